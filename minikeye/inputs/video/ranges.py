"""Which packets of a file have to be decoded so that the wanted frames come out."""

from array import array


def plan_decode(
    pts: array | list[int], keyframes: bytearray | list[bool], wanted: list[int], restart: int = 8
) -> list[tuple[int, int]]:
    """Packets to decode, as ascending [start, stop) ranges of decoding positions, so that `wanted` ones come out.

    A range begins at the last keyframe that is neither decoded nor shown after the wanted frame (frames shown before an
    open group's keyframe lean on the group before it). Ranges closer than `restart` packets are joined: emptying the
    decoder costs about as much (our choice). One range from 0 is plain sequential decoding.
    """
    plan: list[tuple[int, int]] = []
    key = [i for i, flag in enumerate(keyframes) if flag]
    last = -1  # the last of `key` at or before the wanted packet
    for position in sorted(wanted):
        while last + 1 < len(key) and key[last + 1] <= position:
            last += 1
        start = next((key[i] for i in range(last, -1, -1) if pts[key[i]] <= pts[position]), 0)
        if plan and start < plan[-1][1] + restart:
            plan[-1] = (plan[-1][0], position + 1)
        else:
            plan.append((start, position + 1))
    return plan
