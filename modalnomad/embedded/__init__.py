"""The back end without servers: this machine, child processes, files. Never imported by router or deploy."""
