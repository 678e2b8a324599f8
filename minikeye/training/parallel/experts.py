"""The experts of a layer spread over ranks: tokens travel to the experts that they chose, results travel back.

Axes: n token of this rank, d width, x expert, c chosen expert of a token, m hidden channel, r row (a token's copy).
Our addition: the report never mentions expert parallelism. Of P ranks, number i keeps experts i x/P to (i + 1) x/P - 1.
A token goes once for each expert that it chose: sending it once a rank would save bytes, and cost the forty lines.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from minikeye import ops
from minikeye.model.moe import Experts, compute_dtype, tokens_per_expert
from minikeye.training.parallel.wire import Exchange, all_to_all


class SpreadExperts(Experts):
    """Stands where `Experts` stood, on every rank of `mesh` (one axis): same parameters by name and shape, each rank
    with its experts' part of them (DTensor, Shard(0)).

    Every rank has to call it at the same places, with any number of tokens, none included; inputs need gradients on all
    ranks or on none. A row's products are sums of the same terms as in `Experts`, perhaps in another order: equal
    within the rounding of sums of d and m terms. Gradients of an expert count the tokens of all ranks of the mesh.
    copies: how many such groups of ranks there are, which will cut each expert further, along the axis after it.
    Raises ValueError where one of the two does not divide what it cuts.
    """

    def __init__(self, whole: Experts, mesh: DeviceMesh, copies: int = 1):
        nn.Module.__init__(self)
        (experts, d, _), m = whole.gate_up_proj.shape, whole.down_proj.shape[1]
        if experts % mesh.size() or d % copies or m % copies:
            raise ValueError(
                f"expected an ep that divides the {experts} experts of a layer, and a number of processes / ep that "
                f"divides their widths {d} and {m}, got {mesh.size()} and {copies}: choose another --ep"
            )
        self.mesh = mesh
        for name, p in whole.named_parameters():
            # Every rank has the same parameters and keeps its part of them: nothing is sent.
            part = distribute_tensor(p.detach(), mesh, [Shard(0)], src_data_rank=None)
            self.register_parameter(name, nn.Parameter(part, requires_grad=p.requires_grad))

    def forward(
        self,
        x: Float[Tensor, "n d"],
        weights: Float[Tensor, "n c"],
        chosen: Int[Tensor, "n c"],
        residual: Float[Tensor, "n d"] | None = None,
        backend: str = "auto",
    ) -> Float[Tensor, "n d"]:
        """As `Experts.forward`, of this rank's tokens. All at once: ranks with more tokens would need more chunks, and
        the others would wait.
        """
        group, ranks = self.mesh.get_group(), self.mesh.size()
        order = chosen.flatten().argsort(stable=True)  # by expert, and so by the rank that has it
        counts = tokens_per_expert(chosen, self.gate_up_proj.shape[0]).view(ranks, -1)
        found = all_to_all(counts, group)  # of each rank, rows for each expert here
        sent, received = counts.sum(dim=1).tolist(), found.sum(dim=1).tolist()

        # In the dtype of the products that follow: they would round the rows anyway, and it is fewer bytes.
        rows = Exchange.apply(x[order // chosen.shape[1]].to(compute_dtype(x)), sent, received, group)
        y = Exchange.apply(self.work(rows, found, backend), received, sent, group)

        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        return ops.weighted_sum(y, place.view_as(chosen), weights, x.dtype, residual, backend)

    def work(self, rows: Float[Tensor, "r d"], found: Int[Tensor, "p x"], backend: str) -> Float[Tensor, "r d"]:
        """What this rank's experts make of the rows that reached it, in the order in which they came.

        found: how many of them each rank sent to each expert. A rank that no row reached runs a blank one and keeps
        nothing of it, so that its experts have a gradient, if of zeros, as those of all ranks have.
        """
        if not len(rows):
            counts = torch.zeros_like(found[0])
            counts[0] = 1
            return self.swiglu(rows.new_zeros(1, rows.shape[1]), counts, backend)[:0] + rows
        # By sender and then by expert, as they came -> by expert and then by sender.
        expert = torch.arange(found.shape[1], device=rows.device).repeat(len(found))
        order = expert.repeat_interleave(found.flatten()).argsort(stable=True)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        return self.swiglu(rows[order], found.sum(dim=0), backend)[back]

    def swiglu(self, rows: Float[Tensor, "r d"], counts: Int[Tensor, " x"], backend: str) -> Float[Tensor, "r d"]:
        """Rows sorted by expert -> what each row's expert makes of it."""
        up, down = (w.to_local() if isinstance(w, DTensor) else w for w in (self.gate_up_proj, self.down_proj))
        return self.multiply(ops.swiglu(self.multiply(rows, up, counts), backend), down, counts)


def exchanged_bytes(away: int, here: int, experts: int, ranks: int, width: int, size: int, learning: bool) -> int:
    """What one rank sends to others in one layer's pass, and with `learning` in its backward pass.

    away: rows of its tokens for other ranks' experts; here: rows of other ranks' tokens for its own. Rows go out and
    results go back; so do the results' gradients and the rows'. Before them, int64 counts for each expert elsewhere.
    size: bytes of a number. At released widths a row is 2,048 numbers; recomputing sends a pass's bytes once more.
    """
    return (away + here) * width * size * (2 if learning else 1) + 8 * (experts - experts // ranks)
