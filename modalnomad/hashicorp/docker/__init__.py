"""Images for Nomad's docker driver: built by an engine on this machine, pushed to a registry, pinned by digest."""
