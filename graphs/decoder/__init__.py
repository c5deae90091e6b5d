"""The decoder: its layers, and the parts that it is cut into."""
