"""The 3D positions that M-RoPE turns by: time, row and column of every token of a prompt.

Axes: t position. Report, section 2, "3D RoPE"; layout as in the released code.
"""

import torch
from jaxtyping import Int
from torch import Tensor


def position_ids(
    is_visual: list[bool], grids: list[tuple[int, int, int]], merge: int, start: int = 0
) -> Int[Tensor, "3 t"]:
    """3D positions of one sequence (released code; report, section 2, "3D RoPE").

    Text: time = row = column = a running index. An image or one video frame is a block: time stays at the block's
    start, row and column count from it. The next text token starts one past the largest position so far, so a frame's
    order comes from the running index, not from its seconds.

    is_visual: for each token, whether it stands for a visual token. grids: (1, rows, columns), patches of each block.
    start: position of the first token. Raises ValueError where the placeholders and the grids do not match.
    """
    blocks, out, here, t = iter(grids), [], start, 0
    while t < len(is_visual):
        if not is_visual[t]:
            out.append((here, here, here))
            here, t = here + 1, t + 1
            continue
        _, rows, columns = next(blocks, (0, 0, 0))
        rows, columns = rows // merge, columns // merge
        count = rows * columns
        if count == 0 or not all(is_visual[t : t + count]) or t + count > len(is_visual):
            raise ValueError(
                f"token {t} starts an image or frame of {rows} x {columns} visual tokens, but "
                f"that many placeholders do not follow it: give one grid per image or frame, in order, and as many "
                f"placeholders as it has tokens"
            )
        out += [(here, here + row, here + column) for row in range(rows) for column in range(columns)]
        here, t = here + max(rows, columns), t + count
    if (rest := len(list(blocks))) > 0:
        raise ValueError(f"{rest} grids have no placeholder tokens: give one run of placeholders per image or frame")
    return torch.tensor(out, dtype=torch.long).reshape(-1, 3).T
