"""The data plane: from an accepted connection to a replica's answer. Knows ports, never a back end."""
