"""Many processes: who works on what, and what travels between them."""
