"""One decoder layer for one new token a row, and the head: the kernels of a decode step in the order they run.

Axes: b batch (1 to 16), d width, n column of the projections, h query head, e head width, k selected key, x expert,
v vocabulary. Report, section 2. The specification is the model itself, a pass of one token a row.

Eleven launches a layer where PyTorch makes about a hundred short ones, whose sum is 90 % of a step. A prototype on an
H200 took 78 us a layer for 300 at batch 1 and 128K, where the bytes need 33; what these kernels take is in
assets/results/full_size.json. Eight launches with dense attention; either way one more from two rows on, which
lists the experts that are awake.
Tried there and not kept: the projections of attention in a parallel branch of the graph, while keys are selected: fork
and join cost 4 to 8 us more than they hide.
"""

from torch import Tensor

from minikeye.kernels.decode.decode_select import select_scored
from minikeye.kernels.decode.dependent import dependent
from minikeye.kernels.decode.step.attend import attend_all, attend_chosen
from minikeye.kernels.decode.step.expert import one_token_experts
from minikeye.kernels.decode.step.experts import batch_experts
from minikeye.kernels.decode.step.norms import add_norm
from minikeye.kernels.decode.step.products import product
from minikeye.kernels.decode.step.route import awake_experts, route
from minikeye.kernels.decode.step.scores import token_scores
from minikeye.kernels.decode.step.shapes import LayerWeights, Rows, StepSizes

Store = tuple[Tensor, Tensor, Tensor]  # keys, values [b s g e] and index keys [b s i] of a layer, unused room included


def decode_layer(
    x: Tensor, parts: Tensor | None, w: LayerWeights, store: Store, rows: Rows, z: StepSizes, dense: bool
) -> tuple[Tensor, Tensor]:
    """The residual stream [b d] and float32 parts [p b d] still to be added to it, before and after a layer."""
    x, normed = add_norm(x, parts, w.input_norm, z.eps)
    y = product(normed, w.projections)[0]
    out = (attend_all if dense else attend_selected)(y, w, store, rows, z)
    x, normed, logits = route(x, product(out, w.o_proj, o_splits(out)), w.post_norm, w.router, z.eps)
    if len(x) == 1:
        return x, one_token_experts(normed, logits, w.gate_up, w.down, z.chosen)
    most = min(len(w.router), len(x) * z.chosen)
    return x, batch_experts(normed, awake_experts(logits, z.chosen), w.gate_up, w.down, most)


def attend_selected(y: Tensor, w: LayerWeights, store: Store, rows: Rows, z: StepSizes) -> Tensor:
    """Lightning indexer and attention over its selection: [b (h e)]. Writes the new token's rows of the cache."""
    scores = token_scores(y, w, store, rows, z)
    room = min(each.shape[1] for each in store)
    indices = select_scored(scores, room, z.topk, rows.lengths, rows.start, dependent(y.device))
    return attend_chosen(y, w, store, indices, rows, z)


def decode_head(x: Tensor, parts: Tensor | None, norm: Tensor, head: Tensor, eps: float) -> Tensor:
    """Logits float32 [b v]: the last norm and the product with head [v d], rounded as the model's own are."""
    return product(add_norm(x, parts, norm, eps)[1], head, rounded=True)[0]


def o_splits(out: Tensor) -> int:
    """Parts of the sum of o_proj, which has few columns: 256 programs of the released model."""
    parts = 2 if len(out) == 1 else 4
    return parts if out.shape[1] % (16 * parts) == 0 else 1
