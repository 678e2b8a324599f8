"""Training: the loop, supervised learning from answers, and teaching the indexer."""
