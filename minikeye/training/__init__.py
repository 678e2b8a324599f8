"""Training: the loop and its state, stages, their losses and lengths, the indexer's teacher; scripts in recipes/."""
