"""The control plane: from a user's file to published routes. Knows ports, never a back end."""
