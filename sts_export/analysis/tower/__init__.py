"""How a vision tower's attention follows its features: scores per layer, their curve, and maps of the tokens."""
