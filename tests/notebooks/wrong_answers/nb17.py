"""Wrong answers to the exercises of notebook 17, and what their checkers must say."""

from minikeye import KeyeConfig
from minikeye.cost import active_parameters, parameters
from minikeye.exercises.nb17 import check_layer_parameters, check_reusable, check_streamed_bytes


def layer(c, *, experts=None, kv=None, matrices=3, router=1, norms=2, head_norms=2, gates=1, indexer=1, index_norms=3):
    """Right but for the argument that is given."""
    text, index, d = c.text, c.indexer, c.text.width
    attention = 2 * d * text.head_width * (text.heads + (kv or text.kv_heads)) + head_norms * text.head_width
    scorer = d * index.heads * (index.width + gates) + d * index.width + index_norms * index.width
    mixture = (experts or text.experts) * matrices * d * text.expert_width + router * d * text.experts
    return attention + indexer * scorer + mixture + norms * d


def streamed(c, *, experts=None, embedding=None, head=1, indexer=1, norm=0, row=1, vision=0, width=2):
    """Right but for the argument that is given."""
    a, p, d = active_parameters(c), parameters(c), c.text.width
    rows = p.embedding if embedding else row * d
    read = rows + a.attention + indexer * a.indexer + a.router + (experts or a.experts) + a.norms - d + norm * d
    return width * (read + head * a.head + vision * (p.vision + p.projector))


def reused(new, held, blocks, *, cap=True, back=True, late=False, edges=False, count=False, before=False):
    """Right but for the argument that is given."""
    most = min(len(new) - (1 if cap and not late else 0), len(held))
    same = next((n for n in range(most) if new[n] != held[n]), most)
    if count:
        same = sum(a == b for a, b in zip(new, held, strict=False))
    for n, (start, stop) in enumerate(blocks):
        if back and (start < same <= stop if edges else start < same < stop):
            same = blocks[n - 1][1] if before and n else start
            break
    return min(same, len(new) - 1) if late else same


def other(**change):
    return lambda config: layer(config, **change)


def reads(**change):
    return lambda config: streamed(config, **change)


def keeps(**change):
    return lambda new, held, blocks: reused(new, held, blocks, **change)


RELEASED = KeyeConfig.keye_vl_2_30b_a3b()

WRONG_ANSWERS = [
    (check_layer_parameters, lambda c: None, "write its body"),
    (check_layer_parameters, lambda c: layer(c) / 1, "use //"),
    (check_layer_parameters, other(indexer=0), "indexer is missing"),
    (check_layer_parameters, other(gates=0), "gates are missing"),
    (check_layer_parameters, other(experts=8), "the layer has all 128"),
    (check_layer_parameters, other(matrices=2), "three matrices"),
    (check_layer_parameters, other(norms=0), "two norms of the layer are missing"),
    (check_layer_parameters, other(norms=1), "not one"),
    (check_layer_parameters, other(head_norms=0), "norms of q and k"),
    (check_layer_parameters, other(kv=32), "kv_heads heads"),
    (check_layer_parameters, other(router=0), "router is missing"),
    (check_layer_parameters, other(index_norms=0), "indexer's norms"),
    (check_layer_parameters, other(index_norms=2), "64 too few"),
    (check_layer_parameters, lambda c: parameters(c).total // c.text.layers, "too many"),
    (check_layer_parameters, lambda c: layer(RELEASED), "released model only"),
    (check_streamed_bytes, lambda c: None, "write its body"),
    (check_streamed_bytes, reads(width=1), "two bytes"),
    (check_streamed_bytes, lambda c: 2 * parameters(c).total, "not everything"),
    (check_streamed_bytes, lambda c: streamed(c, experts=parameters(c).experts), "without a token"),
    (check_streamed_bytes, reads(embedding=1), "one row is read"),
    (check_streamed_bytes, reads(embedding=1, norm=1), "one row is read"),
    (check_streamed_bytes, reads(head=0), "head is read as a whole"),
    (check_streamed_bytes, reads(indexer=0), "indexer is read too"),
    (check_streamed_bytes, reads(norm=1), "not read again"),
    (check_streamed_bytes, reads(row=0), "in the embedding is missing"),
    (check_streamed_bytes, reads(vision=1), "no pixels"),
    (check_streamed_bytes, reads(width=4), "two bytes"),
    (check_streamed_bytes, reads(width=3), "too many"),
    (check_streamed_bytes, lambda c: streamed(RELEASED), "released model only"),
    (check_reusable, lambda new, held, blocks: None, "write its body"),
    (check_reusable, keeps(count=True), "do not count matches"),
    (check_reusable, keeps(back=False), "inside a visual block"),
    (check_reusable, keeps(before=True), "only the block that was cut"),
    (check_reusable, keeps(edges=True), "not inside it"),
    (check_reusable, keeps(cap=False), "at most 11"),
    (check_reusable, keeps(late=True), "leave it out first"),
    (check_reusable, lambda new, held, blocks: 0, "answer 6"),
]
