"""A request: prompt, pictures and settings, checked against what a bundle holds, as rows that the decoder reads."""
