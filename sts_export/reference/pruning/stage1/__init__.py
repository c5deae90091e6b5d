"""Stages before the LLM; ``STAGE`` of each file is a Stage1Reference."""
