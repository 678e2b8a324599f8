"""Sparse attention forward and backward: a query at a time, or over the union of neighbours' sets."""
