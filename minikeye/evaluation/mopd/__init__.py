"""Scores of answers and the runs that measure them."""
