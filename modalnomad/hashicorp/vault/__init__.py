"""Vault or OpenBao: secrets and the platform's own key."""
