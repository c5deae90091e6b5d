"""The compiled libraries of sts-export, which finds them in this folder without importing it."""
