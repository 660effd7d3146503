"""How data sets lie in folders: a module a layout, each a function from the root to its classes."""
