"""A Nomad for tests, and what the real one does in its place; start at `server`."""
