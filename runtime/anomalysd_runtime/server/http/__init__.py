"""HTTP: routes, schemas, guards, the page, KServe v2."""
