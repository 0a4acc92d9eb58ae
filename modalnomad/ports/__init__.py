"""The four seams between product and back end: engine, discovery, secrets, artifacts. Protocols only."""
