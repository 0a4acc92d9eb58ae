"""The nouns: manifest, revision, replica, route, errors. Frozen data without I/O."""
