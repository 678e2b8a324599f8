"""The two KL losses of the indexer and their gradients, in tiles."""
