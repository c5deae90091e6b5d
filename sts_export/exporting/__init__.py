"""From a checkpoint and a request to a bundle."""
