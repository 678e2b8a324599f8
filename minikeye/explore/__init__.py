"""What the model selected: records -> FrameSelection -> figure, JSON, table, sentence."""

from minikeye.explore.selection import FrameSelection

__all__ = ["FrameSelection"]
