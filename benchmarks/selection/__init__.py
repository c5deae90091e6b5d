"""How long each pruning method takes to choose; see __main__."""
