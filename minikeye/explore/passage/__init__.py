"""Which parts of a text sparse attention reads: counts, words, a picture, a page, and an explorer for notebooks."""

from minikeye.explore.passage.selection import PassageSelection

__all__ = ["PassageSelection"]
