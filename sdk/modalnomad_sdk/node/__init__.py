"""What a task of Nomad does on its node before it becomes a replica. Standard library only, and on the way that every
start takes, little of it: a request waits meanwhile.

    __main__     where the SDK is unpacked, with modules that are compiled; the archive's own entry
    launch       the order of things, to the replica's first instruction
    variables    the replica's environment
    secret_files values that Nomad wrote beside the task
    unpack       the SDK of this archive, once per node
    build        the environment of an image, once per node
    prune        what a node no longer needs
"""
