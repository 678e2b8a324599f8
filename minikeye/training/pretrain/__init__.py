"""The report's order of training in miniature: documents, mixtures of them, the stages, what is known after each."""
