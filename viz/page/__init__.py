"""The live page: a server that only reads, and its static files."""
