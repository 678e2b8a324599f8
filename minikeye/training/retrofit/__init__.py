"""DSA put into a language model that others trained: texts to learn from, and the two stages of the report."""
