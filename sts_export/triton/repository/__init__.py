"""The model repository: all files that a server, a container and a cluster need."""
