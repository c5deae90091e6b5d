"""A model that returns features of pictures, for who searches or indexes them: no prompt, no decoder."""
