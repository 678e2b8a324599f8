"""A FrameCounts in words: the sentence, the table, the alt text.

Axes: l recorded layer, t recorded query, f frame. Where there are several queries, numbers are means over them.
"""

from typing import Any

import torch
from torch import Tensor

from minikeye.explore.selection import FrameCounts


def percent(share: float) -> str:
    """0.814 -> "81 %", 0.0625 -> "6.2 %"; never rounds something to nothing or almost all to all."""
    p = 100 * share
    if 0 < p < 0.1:
        return "<0.1 %"
    if 99.5 <= p < 99.9999:
        return ">99 %"
    return f"{p:.0f} %" if p >= 9.95 or p == 0 else f"{p:.1f} %".replace(".0 ", " ")


def when(selection: FrameCounts, frame: int) -> str:
    """Time of a frame: "3.2 s", or "3.2 s of video 2" where there are several videos."""
    time = f"{selection.seconds[frame]:.1f} s"
    return time if len(set(selection.videos)) == 1 else f"{time} of video {selection.videos[frame] + 1}"


def listed(parts: list[str]) -> str:
    """Enumerate: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def sentence(selection: FrameCounts) -> str:
    """What one layer reads: of the truth where it is known, else of the frame with most keys.

    The layer is the one with the largest such share of keys; ties go to more attention, then to the earlier layer.
    """
    layer, found = finding(selection)
    queries = selection.counts.shape[1]
    mean = f" (mean over {queries} tokens)" if queries > 1 else ""
    return f"{found}{mean if layer is not None else ''}."


def finding(selection: FrameCounts) -> tuple[int | None, str]:
    """Which recorded layer the sentence is about (None: all of them), and the sentence without its end."""
    if selection.reads_all:
        return _of_attention(selection)
    return (_of_truth if selection.truth else _of_most_read)(selection)


def _of_truth(s: FrameCounts) -> tuple[int | None, str]:
    frames = list(s.truth)
    share, mass = s.shares[..., frames].sum(-1).mean(1), s.mass[..., frames].sum(-1).mean(1)
    layer = max(range(len(share)), key=lambda n: (share[n].item(), mass[n].item()))
    place = f"{s.subject or ('the frame' if len(frames) == 1 else 'the frames')} {at_times(s, frames)}"
    if share[layer] == 0:
        return None, f"No layer reads {place}: none of {_keys(s.keys, 'the')} lies there"
    keys, attention = percent(share[layer].item()), percent(mass[layer].item())
    spends = f"spends {keys} of {_keys(s.keys[layer])} and {attention} of its attention"
    return layer, f"Layer {s.layers[layer]} {spends} on {place}"


def _of_most_read(s: FrameCounts) -> tuple[int | None, str]:
    counts, mass = s.counts.float().mean(1), s.mass.mean(1)
    if not counts.any():
        return None, f"No layer reads a frame: none of {_keys(s.keys, 'the')} lies in one"
    top, shares = counts.amax(-1), s.shares.mean(1).amax(-1)
    layer = max(range(len(top)), key=lambda n: (shares[n].item(), mass[n].max().item()))
    tied = (counts[layer] == top[layer]).nonzero().flatten().tolist()
    each = f"{top[layer].item():.1f}".removesuffix(".0") + f" of {_keys(s.keys[layer])}"
    name = f"Layer {s.layers[layer]}"
    if len(tied) == 1:
        return layer, f"{name} reads the frame at {when(s, tied[0])} most: {each}"
    if len(tied) <= 3:
        return layer, f"{name} reads the frames at {listed([when(s, f) for f in tied])} most: {each} each"
    first = max(tied, key=lambda f: mass[layer, f].item())
    most = f"of these, {when(s, first)} gets most attention ({percent(mass[layer, first].item())})"
    return layer, f"{name} reads {len(tied)} frames equally, {each} each; {most}"


def _of_attention(s: FrameCounts) -> tuple[int, str]:
    """Where every key is read, so that only attention differs."""
    mass = s.mass.mean(1)
    most = mass[:, list(s.truth)].sum(-1) if s.truth else mass.amax(-1)
    layer = int(most.argmax())
    frames = list(s.truth) or [int(mass[layer].argmax())]
    place = f"{s.subject or ('the frame' if len(frames) == 1 else 'the frames')} {at_times(s, frames)}"
    short = f"Every layer reads {_keys(s.keys, 'all')}, as the prompt has no more than the model selects"
    return layer, f"{short}; layer {s.layers[layer]} spends most attention on {place}: {percent(most[layer].item())}"


def _keys(keys: Tensor, owner: str = "its") -> str:
    """Name the keys: "its 64 keys", or "its keys" where their number varies."""
    n = keys.unique().tolist()
    return f"{owner} {n[0]} keys" if len(n) == 1 else f"{owner} keys"


def at_times(s: FrameCounts, frames: list[int]) -> str:
    """Name the times: "at 3.2 s and 7.0 s", "from 3.0 s to 9.5 s" for a run; beyond four only their number."""
    run = frames == list(range(frames[0], frames[-1] + 1)) and len({s.videos[f] for f in frames}) == 1
    if len(frames) > 2 and run:
        return f"from {s.seconds[frames[0]]:.1f} s to {when(s, frames[-1])}"
    if len(frames) <= 4:
        return f"at {listed([when(s, f) for f in frames])}"
    return f"at {len(frames)} times between {when(s, frames[0])} and {when(s, frames[-1])}"


def table(selection: FrameCounts, groups: int = 3, top: int = 3) -> list[dict[str, Any]]:
    """The `top` most-read frames of `groups` groups of neighbouring layers, group by group, and the best truth frame.

    Rows: group, layers (first, last), frame, time, keys (share of the selected keys), attention (share), truth (bool).
    Most read: by keys, or by attention where every key is read. Frames that no layer of the group reads are left out;
    a truth frame is not left out, so that it never seems forgotten. Raises ValueError for fewer than one group.
    """
    if groups < 1:
        raise ValueError(f"expected at least one group of layers, got {groups}")
    rows = []
    parts = torch.arange(len(selection.layers)).tensor_split(min(groups, len(selection.layers)))
    names = {1: ["all"], 2: ["early", "late"], 3: ["early", "middle", "late"]}
    for name, part in zip(names.get(len(parts), range(1, len(parts) + 1)), parts, strict=True):
        share, mass = selection.shares[part].mean((0, 1)), selection.mass[part].mean((0, 1))
        by = (mass, share) if selection.reads_all else (share, mass)
        order = sorted(range(len(share)), key=lambda f: (-by[0][f].item(), -by[1][f].item(), f))
        read = [f for f in order[:top] if share[f] > 0]
        if not set(read) & set(selection.truth):
            read += [f for f in order if f in selection.truth][:1]
        rows += [
            {
                "group": str(name),
                "layers": (selection.layers[part[0]], selection.layers[part[-1]]),
                "frame": f,
                "time": when(selection, f),
                "keys": share[f].item(),
                "attention": mass[f].item(),
                "truth": f in selection.truth,
            }
            for f in read
        ]
    return rows


def format_table(selection: FrameCounts, groups: int = 3) -> str:
    """The table as text in columns; the layers are named once per group, truth frames carry the subject."""
    lines, last = [("layers", "frame at", "keys", "attention", "")], None
    for row in table(selection, groups):
        first, end = row["layers"]
        group = f"{row['group']} {first}" + (f"-{end}" if end != first else "")
        mark = f"<- {selection.subject or 'answer'}" if row["truth"] else ""
        lines.append(
            ("" if group == last else group, row["time"], percent(row["keys"]), percent(row["attention"]), mark)
        )
        last = group
    if len(lines) == 1:
        return "No layer reads a frame."
    w = [max(len(line[c]) for line in lines) for c in range(4)]
    columns = (f"{a:<{w[0]}}  {b:>{w[1]}}  {c:>{w[2]}}  {d:>{w[3]}}  {e}".rstrip() for a, b, c, d, e in lines)
    return "\n".join(columns)


def alt(selection: FrameCounts) -> str:
    """The kind of picture, its extent, the finding, the most-read frames over all layers."""
    s = selection
    share, what = s.shown.mean((0, 1)), "attention" if s.reads_all else "keys"
    read = [f for f in sorted(range(len(share)), key=lambda f: (-share[f].item(), f))[:3] if share[f] > 0]
    layers = f"{len(s.layers)} layer{'s' if len(s.layers) > 1 else ''}"
    frames = f"{len(s.seconds)} frame{'s' if len(s.seconds) > 1 else ''}"
    strip = "A strip of video frames over a heat map" if s.thumbnails is not None else "A heat map"
    span = f"from {when(s, 0)} to {when(s, len(share) - 1)}" if len(share) > 1 else f"at {when(s, 0)}"
    parts = [
        f"{strip} of {layers} by {frames} {span}, with bars below; lighter means more of the "
        f"{'attention' if s.reads_all else 'selected keys'}.",
        sentence(s),
    ]
    if s.truth:
        parts.append(f"Marks show {s.subject or 'the answer'} {at_times(s, list(s.truth))}.")
    if read:
        most = listed([f"{when(s, f)} ({percent(share[f].item())} of the {what})" for f in read])
        parts.append(f"Over all layers the most-read frames are at {most}." if len(read) > 1 else f"Read most: {most}.")
    parts.append(f"{percent(s.text_share.mean().item())} of the keys lie in no frame.")
    return " ".join(parts)
