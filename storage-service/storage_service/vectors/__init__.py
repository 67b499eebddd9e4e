"""The vector index: one small interface, one implementation for one machine and one for a server."""
