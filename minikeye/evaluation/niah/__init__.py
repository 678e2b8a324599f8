"""Needles in haystacks: a heat map of length and depth, by generation and by teacher forcing (V-NIAH of LongVA)."""
