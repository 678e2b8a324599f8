"""What the model selected: records -> FrameSelection -> figure, JSON, table, sentence.

The widget is `minikeye.explore.explorer.FrameExplorer`; a module of its own, since it needs ipywidgets.
"""

from minikeye.explore.selection import FrameSelection

__all__ = ["FrameSelection"]
