"""What `doctor` says of this machine: facts in, findings out. Nothing here looks at anything by itself."""
