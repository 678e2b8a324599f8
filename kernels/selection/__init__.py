"""Index scores, and the exact top-k of every row of them by radix."""
