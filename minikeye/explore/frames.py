"""Which frames were read, with the words and the picture that say so.

selection = FrameSelection.from_record(out.record, inputs["frames"][0], thumbnails=clip.frames)
print(selection.sentence())
selection.figure().savefig("selection.png")
selection.to_html("selection.html")
"""

from minikeye.explore import strip, words
from minikeye.explore.selection import FrameCounts
from minikeye.explore.standalone import document


class FrameSelection(FrameCounts):
    """The counts of `FrameCounts`, and what can be said and drawn of them."""

    sentence = words.sentence
    table = words.table
    format_table = words.format_table
    alt = words.alt
    figure = strip.draw
    to_html = document.write
