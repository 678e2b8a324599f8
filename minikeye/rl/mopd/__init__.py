"""Learning from reward: what an answer earns, the record of one, and the loss that makes better ones likelier."""
