"""What DSA keeps and loses in a language model that others trained."""
