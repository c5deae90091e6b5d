"""Preparing a run on a machine without network that takes little at a time: pack, step, there, rehearse."""
