"""The page: a server that only reads a run, its static files, and the report."""
