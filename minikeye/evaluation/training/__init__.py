"""Scripts that time training, measure its memory, and reckon what balancing can win."""
