"""Stages inside the LLM; ``STAGE`` of each file is a Stage2Reference."""
