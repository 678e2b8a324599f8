"""minivid: synthetic videos with known events, questions about them, and cards put into real footage."""
