"""Which video frames sparse attention reads: counts, words, pictures, and an explorer for notebooks (widget/)."""

from minikeye.explore.frames import FrameSelection

__all__ = ["FrameSelection"]
