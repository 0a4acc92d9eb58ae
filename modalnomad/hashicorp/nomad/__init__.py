"""Nomad runs the replicas: a revision is a parameterized batch job, a replica one dispatched child of it."""
