"""Stages inside the LLM, a file each; the file's name is the stage's, and ``STAGE`` in it the stage."""
