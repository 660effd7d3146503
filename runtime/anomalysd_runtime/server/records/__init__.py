"""Storage of verdicts: the SQLite record, its retention, the cache of the last ones, queries."""
