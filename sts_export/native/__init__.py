"""The compiled libraries of plugins/: where they are looked for, and whether a file is one, without loading it."""
