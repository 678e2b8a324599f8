"""Which parts of a text were read, with the words, the picture and the page that say so.

out = model({"input_ids": torch.tensor([ids])}, record=8)
selection = PassageSelection.from_record(out.record, ids, tokenizer)
print(selection.sentence())
selection.to_html("passage.html")
"""

from minikeye.explore.passage import document, picture, words
from minikeye.explore.passage.counts import PassageCounts


class PassageSelection(PassageCounts):
    """The counts of `PassageCounts`, and what can be said and drawn of them.

    All take a choice (layer, query, head): rows of the record, one or several, None for all; an indexer head alone.
    """

    lines = words.lines
    most_read = words.most_read
    truth_share = words.truth_share
    sentence = words.sentence
    alt = words.alt
    png = picture.png
    show = picture.show
    to_html = document.write
