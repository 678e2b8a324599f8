"""What a model costs, by hand: parameters, FLOP and bytes (arithmetic), memory needed and free (memory)."""

from minikeye.cost.arithmetic import (
    Flops,
    active_parameters,
    decode_bytes,
    decode_flops,
    frame_vision_flops,
    parameters,
    prefill_flops,
    scaled,
    selected_pairs,
    video_cost,
)

__all__ = [
    "Flops", "active_parameters", "decode_bytes", "decode_flops", "frame_vision_flops", "parameters", "prefill_flops",
    "scaled", "selected_pairs", "video_cost",
]  # fmt: skip
