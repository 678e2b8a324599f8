"""Every kernel once, on small odd shapes, for tools that watch memory:

compute-sanitizer --tool memcheck python -m minikeye.evaluation.kernels.sanitizer
compute-sanitizer --tool racecheck python -m minikeye.evaluation.kernels.sanitizer
"""

import torch

from minikeye.kernels.attention.sparse_attention import sparse_attention
from minikeye.kernels.decode.decode_attention import decode_attention
from minikeye.kernels.decode.decode_select import decode_select
from minikeye.kernels.losses.selected_loss import selected_loss
from minikeye.kernels.losses.warmup_loss import warmup_loss
from minikeye.kernels.selection.select_fast import select_topk_fast
from minikeye.kernels.selection.select_topk import select_topk


def run(device: str = "cuda", t: int = 19, s: int = 150, topk: int = 40, dtype: torch.dtype = torch.float16) -> None:
    """Two batch rows, 19 queries at the end of 150 keys, heads in groups of 3; with and without a first key."""
    torch.manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(2, *shape, device=device, dtype=dtype)

    index = [draw(t, 5, 24), draw(s, 24), draw(t, 5).float()]
    qkv = [draw(t, 6, 32), draw(s, 2, 32), draw(s, 2, 32)]
    start = torch.tensor([0, 140], dtype=torch.int32, device=device)
    for first in (None, start):
        indices = select_topk(*index, topk, s - t, first)
        assert torch.equal(indices, select_topk_fast(*index, topk, s - t, first))
    for x in (*index, *qkv):
        x.requires_grad_()
    for deterministic in (True, False):
        out, _ = sparse_attention(*qkv, indices, deterministic=deterministic)
        torch.autograd.grad(out.float().square().sum(), qkv)
    positions = torch.arange(s - t, s, dtype=torch.int32, device=device)
    for loss in (selected_loss(*index, *qkv[:2], indices), warmup_loss(*index, *qkv[:2], positions, start)):
        torch.autograd.grad(loss.sum(), index)
    with torch.no_grad():
        lengths = torch.tensor([s, 7], dtype=torch.int32, device=device)
        for keys in (index[1], torch.zeros_like(index[1])):  # zeros: more ties than fit, selected by radix
            one = decode_select(index[0][:, -1:], keys, index[2][:, -1:], topk, lengths)
            decode_attention(qkv[0][:, -1:], *qkv[1:], one)


if __name__ == "__main__":
    run()
    torch.cuda.synchronize()
    print("every kernel ran")
