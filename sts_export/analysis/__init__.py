"""Looking at pruning: pictures and measurements."""
