"""What runs in a replica: loads the user's code and serves it under the runner contract."""
