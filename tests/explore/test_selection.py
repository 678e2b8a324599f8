"""What a FrameSelection counts, says and draws, against a record small enough to count by hand."""

import json
from dataclasses import replace
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.text import Text

from minikeye.explore import FrameSelection, strip, words
from minikeye.explore.layout import MAX_COLUMNS, choose_frames, columns, round_number, runs, spread, time_ticks
from minikeye.inputs.prompt import FrameSpan
from minikeye.model.record import LayerRecord, Record

matplotlib.use("Agg")

# Tokens: 0 1 text, 2-4 frame 0, 5 text, 6-8 frame 1, 9 text, 10-12 frame 2, 13-15 text. Queries at 14 and 15.
FRAMES = [FrameSpan(2, 5, 0.0, 0), FrameSpan(6, 9, 0.5, 0), FrameSpan(10, 13, 1.0, 0)]
INDICES = [
    [[[0, 2, 6, 7], [5, 6, 7, 8]], [[1, 9, -1, -1], [0, 1, 2, 3]]],  # layer 0: two rows of two queries
    [[[2, 3, 10, -1], [3, 10, 11, 12]], [[0, 1, 2, 3], [0, 1, 2, 3]]],
    [[[0, 1, 5, 9], [0, 1, 13, 14]], [[0, 1, 2, 3], [0, 1, 2, 3]]],
]
WEIGHTS = [
    [[[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]], [[0.5, 0.5, 0.0, 0.0], [0.25] * 4]],
    [[[0.5, 0.25, 0.25, 0.0], [0.4, 0.3, 0.2, 0.1]], [[0.25] * 4, [0.25] * 4]],
    [[[0.25] * 4, [0.25] * 4], [[0.25] * 4, [0.25] * 4]],
]


@pytest.fixture
def record() -> Record:
    layers = [
        LayerRecord(
            torch.tensor(indices, dtype=torch.int32),
            torch.tensor(weights),
            torch.tensor([[0.9, 0.8], [0.7, 0.6]]),
            torch.zeros(2, 2, 1, dtype=torch.long),
        )
        for indices, weights in zip(INDICES, WEIGHTS, strict=True)
    ]
    return Record(layers, first=14)


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.arange(3 * 3 * 8 * 12, dtype=torch.int64).remainder(251).to(torch.uint8).reshape(3, 3, 8, 12)


def fake(frames: int, layers: int = 2, hot: int | None = None, queries: int = 1, **rest) -> FrameSelection:
    """A selection of 64 keys, drawn at random; half of them in frame `hot`."""
    draw = np.random.default_rng(0)
    share = np.full(frames, (0.25 if hot is not None else 0.75) / frames)
    if hot is not None:
        share[hot] += 0.5
    counts = draw.multinomial(64, [*share, 0.25], size=(layers, queries))[..., :-1]
    keys = torch.full((layers, queries), 64, dtype=torch.int32)
    mass = torch.tensor(counts / 64, dtype=torch.float32)
    base = {
        "layers": tuple(range(layers)),
        "seconds": tuple(0.5 * n for n in range(frames)),
        "videos": (0,) * frames,
        "truth": () if hot is None else (hot,),
    }
    return FrameSelection(
        torch.tensor(counts, dtype=torch.int32), keys, mass, torch.ones(layers, queries), **base | rest
    )


def by_loop(row: int, layers: list[int], queries: list[int]) -> tuple[list, list, list]:
    """Counts, mass and keys as nested lists, one key at a time."""
    counts, mass, keys = [], [], []
    for layer in layers:
        counts.append([]), mass.append([]), keys.append([])
        for query in queries:
            n, m, total = [0, 0, 0], [0.0, 0.0, 0.0], 0
            for position, weight in zip(INDICES[layer][row][query], WEIGHTS[layer][row][query], strict=True):
                if position == -1:
                    continue
                total += 1
                for f, (start, stop) in enumerate([(2, 5), (6, 9), (10, 13)]):
                    if start <= position < stop:
                        n[f] += 1
                        m[f] += weight
            counts[-1].append(n), mass[-1].append(m), keys[-1].append(total)
    return counts, mass, keys


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize(("layers", "queries"), [(None, None), ([1], None), ([2, 0], [1]), (None, [1, 0])])
def test_counts_by_a_loop(record, row, layers, queries):
    s = FrameSelection.from_record(record, FRAMES, layers=layers, queries=queries, row=row)
    counts, mass, keys = by_loop(row, layers or [0, 1, 2], queries or [0, 1])
    assert s.counts.tolist() == counts
    assert s.keys.tolist() == keys
    torch.testing.assert_close(s.mass, torch.tensor(mass))
    torch.testing.assert_close(s.shares, torch.tensor(counts) / torch.tensor(keys)[..., None])
    torch.testing.assert_close(s.text_share + s.shares.sum(-1), torch.ones(s.keys.shape))
    assert s.layers == tuple(layers or [0, 1, 2])
    torch.testing.assert_close(s.kept[0], record.layers[0].kept[row][queries or [0, 1]])


def test_padding_is_no_key(record):
    s = FrameSelection.from_record(record, FRAMES, row=1)
    assert s.keys[0].tolist() == [2, 4]
    assert s.text_share[0].tolist() == [1.0, 0.5]  # keys 1 and 9; then 0 and 1 of four
    empty = replace(s, counts=torch.zeros_like(s.counts), keys=torch.zeros_like(s.keys))
    assert empty.shares.eq(0).all()


def test_layers_may_differ_in_width(record):
    wide = record.layers[0]
    narrow = LayerRecord(wide.indices[..., :1], wide.weights[..., :1], wide.kept, wide.experts)
    s = FrameSelection.from_record(Record([wide, narrow], first=14), FRAMES)
    assert s.keys.tolist() == [[4, 4], [1, 1]]


def test_hit_rate(record):
    s = FrameSelection.from_record(record, FRAMES, truth=[2])
    assert s.hit_rate().tolist() == [0.0, 1.0, 0.0]
    assert FrameSelection.from_record(record, FRAMES, truth=[0]).hit_rate().tolist() == [0.5, 1.0, 0.0]
    with pytest.raises(ValueError, match="pass truth="):
        FrameSelection.from_record(record, FRAMES).hit_rate()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"row": 2}, "expected a row from 0 to 1"),
        ({"row": -1}, "expected a row from 0 to 1"),
        ({"layers": [3]}, "recorded layers 0 to 2"),
        ({"layers": []}, "recorded layers 0 to 2"),
        ({"queries": [2]}, "recorded queries 0 to 1"),
        ({"truth": [3]}, "frame numbers from 0 to 2"),
        ({"labels": ["7"]}, "one label for each of 2 queries, got 1"),
        ({"thumbnails": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)}, "one thumbnail for each of 3 frames, got 2"),
    ],
)
def test_options_that_do_not_fit(record, options, message):
    with pytest.raises(ValueError, match=message):
        FrameSelection.from_record(record, FRAMES, **options)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "at least one video frame, got none"),
        ([FrameSpan(2, 5, 0.0, 0), FrameSpan(14, 17, 0.5, 0)], "ends at token 16, got frames up to 17"),
        ([FrameSpan(6, 9, 0.5, 0), FrameSpan(2, 5, 0.0, 0)], "in the order of the prompt"),
        ([FrameSpan(2, 7, 0.0, 0), FrameSpan(6, 9, 0.5, 0)], "without overlap"),
    ],
)
def test_frames_that_do_not_fit(record, frames, message):
    with pytest.raises(ValueError, match=message):
        FrameSelection.from_record(record, frames)


def test_an_empty_record():
    with pytest.raises(ValueError, match="record=True"):
        FrameSelection.from_record(Record(), FRAMES)


def test_json_round_trip(record, pictures, tmp_path):
    options = {"truth": [2, 1], "labels": ["7", "\n“"], "subject": "the card", "thumbnails": pictures}
    options |= {"question": "Which „digit“?", "answer": "7"}
    s = FrameSelection.from_record(record, FRAMES, layers=[2, 1], **options)
    s.save(tmp_path / "s.json", thumbnails=True)
    text = (tmp_path / "s.json").read_text(encoding="utf-8")
    back = FrameSelection.from_json(text)
    for name in ("layers", "seconds", "videos", "labels", "truth", "subject", "question", "answer"):
        assert getattr(back, name) == getattr(s, name), name
    for name in ("counts", "keys", "thumbnails", "whole"):
        assert torch.equal(getattr(back, name), getattr(s, name)), name
    for name in ("mass", "kept"):
        torch.testing.assert_close(getattr(back, name), getattr(s, name), rtol=0, atol=1e-6)
    assert back.to_json(thumbnails=True) == text
    assert json.loads(s.to_json())["thumbnails"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]


def test_json_is_compact():
    assert len(fake(1024, layers=48, queries=4).to_json()) < 48 * 4 * 64 * 25  # no more than 25 characters for a key


def test_json_of_something_else(record):
    text = FrameSelection.from_record(record, FRAMES).to_json()
    later = json.dumps(json.loads(text) | {"version": 3})
    for other in (later, "{}", "[]", "not JSON"):
        with pytest.raises(ValueError, match="expected"):
            FrameSelection.from_json(other)


def test_an_interrupted_save_leaves_the_old_file(record, tmp_path, monkeypatch):
    s = FrameSelection.from_record(record, FRAMES)
    s.save(tmp_path / "s.json")
    before = (tmp_path / "s.json").read_text()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        replace(s, subject="other").save(tmp_path / "s.json")
    assert (tmp_path / "s.json").read_text() == before


def test_large_thumbnails_shrink(record):
    flat = torch.full((3, 3, 200, 400), 77, dtype=torch.uint8)
    s = FrameSelection.from_record(record, FRAMES, thumbnails=flat)
    assert s.thumbnails.shape == (3, 3, 96, 192)
    assert s.thumbnails.eq(77).all()


SENTENCES = [
    ({"queries": [1], "truth": [1], "subject": "the card"},
     "Layer 0 spends 75 % of its 4 keys and 90 % of its attention on the card at 0.5 s."),
    ({"truth": [1], "subject": "the card"},
     "Layer 0 spends 62 % of its 4 keys and 80 % of its attention on the card at 0.5 s (mean over 2 tokens)."),
    ({"queries": [1], "truth": [0, 1, 2]},
     "Layer 1 spends 100 % of its 4 keys and 100 % of its attention on the frames from 0.0 s to 1.0 s."),
    ({"queries": [1], "truth": [0, 2]},
     "Layer 1 spends 100 % of its 4 keys and 100 % of its attention on the frames at 0.0 s and 1.0 s."),
    ({"layers": [2], "truth": [1]}, "No layer reads the frame at 0.5 s: none of the 4 keys lies there."),
    ({"queries": [1]}, "Layer 0 reads the frame at 0.5 s most: 3 of its 4 keys."),
    ({}, "Layer 0 reads the frame at 0.5 s most: 2.5 of its 4 keys (mean over 2 tokens)."),
    ({"layers": [1]}, "Layer 1 reads the frame at 1.0 s most: 2 of its keys (mean over 2 tokens)."),
    ({"layers": [2]}, "No layer reads a frame: none of the 4 keys lies in one."),
]  # fmt: skip


@pytest.mark.parametrize(("options", "expected"), SENTENCES)
def test_sentence(record, options, expected):
    assert FrameSelection.from_record(record, FRAMES, **options).sentence() == expected


def even(frames: int, **rest) -> FrameSelection:
    """One query that takes four keys from every frame and pays most attention to the last frame but one."""
    s = fake(frames, layers=1, **rest)
    mass = torch.full((1, 1, frames), 0.01)
    mass[..., -2] = 0.2
    return replace(s, counts=torch.full((1, 1, frames), 4, dtype=torch.int32), mass=mass)


def test_sentence_with_ties():
    assert even(3).sentence() == "Layer 0 reads the frames at 0.0 s, 0.5 s and 1.0 s most: 4 of its 64 keys each."
    assert even(7).sentence() == (
        "Layer 0 reads 7 frames equally, 4 of its 64 keys each; of these, 2.5 s gets most attention (20 %)."
    )


def test_sentence_names_the_video():
    assert even(2, videos=(0, 1)).sentence() == (
        "Layer 0 reads the frames at 0.0 s of video 1 and 0.5 s of video 2 most: 4 of its 64 keys each."
    )


def test_sentence_counts_scattered_truth():
    s = even(12, truth=(0, 2, 4, 6, 8))
    assert s.sentence().endswith("on the frames at 5 times between 0.0 s and 4.0 s.")


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0 %"), (0.0004, "<0.1 %"), (0.0625, "6.2 %"), (0.05, "5 %"), (0.0996, "10 %"), (0.814, "81 %"),
     (0.9961, ">99 %"), (1.0, "100 %")],
)  # fmt: skip
def test_percent(share, text):
    assert words.percent(share) == text


def test_table(record):
    s = FrameSelection.from_record(record, FRAMES, queries=[1], truth=[2], subject="the card")
    rows = s.table()
    assert [(r["group"], r["layers"], r["time"], r["keys"], r["truth"]) for r in rows] == [
        ("early", (0, 0), "0.5 s", 0.75, False),
        ("early", (0, 0), "1.0 s", 0.0, True),  # not read, and not left out
        ("middle", (1, 1), "1.0 s", 0.75, True),
        ("middle", (1, 1), "0.0 s", 0.25, False),
        ("late", (2, 2), "1.0 s", 0.0, True),
    ]
    assert rows[0]["attention"] == pytest.approx(0.9)
    assert s.format_table() == "\n".join(
        [
            "layers    frame at  keys  attention",
            "early 0      0.5 s  75 %       90 %",
            "             1.0 s   0 %        0 %  <- the card",
            "middle 1     1.0 s  75 %       60 %  <- the card",
            "             0.0 s  25 %       40 %",
            "late 2       1.0 s   0 %        0 %  <- the card",
        ]
    )
    assert [r["group"] for r in s.table(groups=1)] == ["all"] * 3
    assert FrameSelection.from_record(record, FRAMES, layers=[2]).format_table() == "No layer reads a frame."
    with pytest.raises(ValueError, match="at least one group"):
        s.table(groups=0)


def everything(tokens: int, queries: int, topk: int, padding: int = 0) -> Record:
    """One layer whose query at each of the last positions selects the last `topk` keys it sees; padding on the left."""
    first = padding + tokens - queries
    sets = [list(range(padding, at + 1))[-topk:] for at in range(first, padding + tokens)]
    wide = max(map(len, sets)) if padding == 0 else topk
    indices = torch.tensor([[[*keys, *[-1] * (wide - len(keys))] for keys in sets]], dtype=torch.int32)
    weights = (indices >= 0) * torch.arange(1.0, wide + 1)
    weights /= weights.sum(-1, keepdim=True)
    return Record([LayerRecord(indices, weights, torch.ones(1, queries), torch.zeros(1, queries, 1).long())], first)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("topk", [9, 13, 16, 20])
def test_a_query_that_reads_every_key_is_known(topk, padding):
    """Query by query: at most k keys are seen. With padding, k keys exactly cannot be told from the last k."""
    frames = [replace(f, start=f.start + padding, stop=f.stop + padding) for f in FRAMES]
    s = FrameSelection.from_record(everything(16, 4, topk, padding), frames)
    seen = [13, 14, 15, 16]
    assert s.whole.tolist() == [[n < topk or (n == topk and not padding) for n in seen]]
    assert s.reads_all == (max(seen) < topk or (max(seen) == topk and not padding))


def test_a_prompt_of_at_most_k_tokens_is_shown_by_attention():
    """Shares of the keys are equal, whatever the model does: words, table and picture go by attention and say so."""
    s = FrameSelection.from_record(everything(16, 1, 20), FRAMES, truth=[0], subject="the card", question="Which?")
    attention = [sum(range(a + 1, a + 4)) / sum(range(1, 17)) for a in (2, 6, 10)]
    assert s.shares[0, 0].tolist() == pytest.approx([3 / 16] * 3) and s.mass[0, 0].tolist() == pytest.approx(attention)
    said = (
        "Every layer reads all 16 keys, as the prompt has no more than the model selects; layer 0 spends most attention"
    )
    assert s.sentence() == f"{said} on the card at 0.0 s: 8.8 %."
    assert replace(s, truth=(), subject="").sentence() == f"{said} on the frame at 1.0 s: 26 %."
    assert [row["frame"] for row in s.table(top=1)] == [2, 0] and s.alt().startswith(
        "A heat map of 1 layer by 3 frames"
    )
    assert "lighter means more of the attention" in s.alt() and "1.0 s (26 % of the attention)" in s.alt()
    heat, scale = s.figure().axes[1], s.figure().axes[3]
    np.testing.assert_allclose(heat.images[0].get_array(), s.mass.mean(1).numpy())
    assert scale.get_title(loc="right") == "share of the attention"
    assert not FrameSelection.from_record(everything(16, 1, 15), FRAMES).reads_all


def test_some_queries_that_read_every_key_are_counted():
    s = FrameSelection.from_record(everything(16, 4, 14), FRAMES, question="Which digit?", answer="7")
    assert "2 of 4 tokens read every key." in " ".join(texts(s.figure()))
    assert "Asked “Which digit?”: “7”; mean over 4 tokens." in texts(s.figure())


def test_a_table_for_a_spreadsheet(record):
    s = FrameSelection.from_record(record, FRAMES, layers=[1, 2], truth=[2], labels=["7", ","])
    head, *lines = s.to_csv().splitlines()
    assert head == "layer,token,text,frame,video,seconds,keys,of_keys,attention,truth" and len(lines) == 2 * 2 * 3
    assert lines[0] == "1,0,7,0,0,0.0,2,3,0.75,0" and lines[5] == '1,1,",",2,0,1.0,3,4,0.6,1'


def test_alt_says_what_is_seen(record, pictures):
    s = FrameSelection.from_record(record, FRAMES, queries=[1], truth=[2], subject="the card", thumbnails=pictures)
    alt = s.alt()
    assert alt.startswith("A strip of video frames over a heat map of 3 layers by 3 frames from 0.0 s to 1.0 s")
    assert s.sentence() in alt
    assert "Marks show the card at 1.0 s." in alt
    assert "most-read frames are at 0.5 s (25 % of the keys), 1.0 s (25 % of the keys) and 0.0 s (8.3 % of" in alt
    assert alt.endswith("42 % of the keys lie in no frame.")  # 5 of 12
    assert replace(s, thumbnails=None, truth=()).alt().startswith("A heat map of 3 layers")


def texts(figure: Figure) -> list[str]:
    figure.canvas.draw()
    return [t.get_text() for t in figure.findobj(Text) if t.get_text() and t.get_visible()]


def test_figure_with_thumbnails(record, pictures):
    s = FrameSelection.from_record(
        record, FRAMES, truth=[2], subject="the card", labels=["7", "$"], thumbnails=pictures
    )
    figure = s.figure()
    bars, heat, film, scale = figure.axes
    assert len(film.images) == 3 and len(heat.images) == 1
    np.testing.assert_allclose(heat.images[0].get_array(), s.shares.mean(1).numpy())
    heights = [patch.get_height() for patch in bars.patches]
    np.testing.assert_allclose(sorted(heights), sorted(s.shares.mean((0, 1)).tolist()))
    assert scale.get_title(loc="right") == "share of the selected keys"
    seen = texts(figure)
    assert words.finding(s)[1] in seen
    for text in ("0.0 s", "0.5 s", "1.0 s", "the card", "▸ 1", "layer", "all layers", "time in the video (s)"):
        assert text in seen, text
    assert "Mean over 2 tokens “7$”." in seen
    assert "The keys hold 85 % of dense attention; 42 % of them lie in no frame." in seen  # mean of 1/4 1/4 0 0 1 1
    above = [t.get_text() for t in film.texts if t.get_text().endswith("%")]
    assert above == [words.percent(share) for share in s.shares.mean((0, 1)).tolist()]


def test_figure_of_attention_without_thumbnails(record):
    s = FrameSelection.from_record(record, FRAMES, truth=[2], subject="the card")
    figure = s.figure(width=7, measure="attention")
    _, heat, film, scale = figure.axes
    assert figure.get_figwidth() == 7
    assert not film.images
    np.testing.assert_allclose(heat.images[0].get_array(), s.mass.mean(1).numpy())
    assert scale.get_title(loc="right") == "share of the attention"
    assert "the card, 1.0 s" in texts(figure)
    with pytest.raises(ValueError, match="measure"):
        s.figure(measure="tokens")
    with pytest.raises(ValueError, match="width"):
        s.figure(width=6)


@pytest.mark.parametrize(("frames", "layers"), [(1, 1), (4, 2), (16, 4), (64, 28), (256, 48), (1024, 48)])
def test_figure_at_every_size(frames, layers):
    pictures = torch.zeros(frames, 3, 6, 8, dtype=torch.uint8)
    figure = fake(frames, layers, hot=frames // 2, thumbnails=pictures, subject="the 卡片").figure()
    _, heat, film, _ = figure.axes
    assert len(film.images) == min(frames, len(film.images)) <= 12
    assert heat.images[0].get_array().shape[1] <= MAX_COLUMNS
    assert f"{0.5 * (frames // 2):.1f} s" in texts(figure)  # the truth is among the thumbnails
    assert "the □□" in texts(figure)  # the font has no such letters


@pytest.mark.parametrize("width", [7, 10])
@pytest.mark.parametrize(
    ("frames", "seconds", "videos"), [(2048, 5.27, 1), (64, 180.3, 1), (1024, 10.54, 2), (90, 0.5, 1)]
)
@pytest.mark.parametrize("shape", [(6, 18), (8, 6)])
def test_labels_do_not_overlap(frames, seconds, videos, width, shape):
    """Three hours of video: times of seven characters beside shares of less than 0.1 %."""
    pictures = torch.zeros(frames, 3, *shape, dtype=torch.uint8)
    times = tuple(seconds * n for n in range(frames))
    s = fake(frames, 6, hot=frames // 2, thumbnails=pictures, seconds=times, videos=(videos - 1,) * frames)
    s = replace(s, videos=(0, *s.videos[1:]), counts=torch.where(s.counts == 0, 1, s.counts), keys=s.keys * 64)
    figure = s.figure(width=width)
    figure.canvas.draw()
    drawn = [t for t in figure.findobj(Text) if t.get_text().strip() and t.get_visible()]
    boxes = [(t.get_text(), t.get_window_extent()) for t in drawn if not t.get_rotation()]
    assert sum(text == "<0.1 %" for text, _ in boxes) > 2
    assert [(a, b) for n, (a, one) in enumerate(boxes) for b, other in boxes[:n] if one.overlaps(other)] == []


def test_figure_when_nothing_is_read(record):
    s = FrameSelection.from_record(record, FRAMES, layers=[2])
    assert "No layer reads a frame: none of the 4 keys lies in one" in texts(s.figure())


def test_columns_keep_the_peaks():
    share = np.zeros(1000)
    share[777] = 1.0
    cells, step = columns(share)
    assert step == 4 and len(cells) == 250
    assert cells.max() == 1.0 and cells.argmax() == 777 // 4
    assert columns(share[:256])[1] == 1


def test_chosen_frames():
    share = np.zeros(100)
    share[[40, 41, 70]] = [0.5, 0.4, 0.3]
    chosen = choose_frames(share, (10,), 9)
    assert len(chosen) == 9 and chosen == sorted(set(chosen))
    assert {10, 40, 70} <= set(chosen)
    assert 41 not in chosen  # shows what 40 shows
    assert max(np.diff([0, *chosen, 99])) <= 20  # no wide gap
    assert choose_frames(share[:5], (), 9) == [0, 1, 2, 3, 4]
    assert len(choose_frames(share, tuple(range(100)), 9)) == 9


def test_spread_moves_no_box_more_than_it_must():
    centres = spread([1.0, 1.1, 8.0], width=1.0, gutter=0.0, room=10.0)
    np.testing.assert_allclose(centres, [0.55, 1.55, 8.0])
    packed = spread([5.0] * 4, width=1.0, gutter=0.1, room=4.3)
    np.testing.assert_allclose(packed, [0.5, 1.6, 2.7, 3.8])


def test_names_of_a_scale_do_not_overlap():
    """Drawn by matplotlib, for tops from 0.1 % to 100 %."""
    names = []
    for top in np.geomspace(0.001, 1, 40).tolist():
        figure = Figure(figsize=(2, 1), dpi=100)
        axes = figure.add_axes((0, 0.5, 1, 0.1))
        image = axes.imshow([[0.0, top]], norm=PowerNorm(strip.GAMMA, 0, top))
        scale = figure.add_axes((0, 0.2, 1, 0.1))
        strip._draw_scale(scale, image, "share")
        figure.canvas.draw()
        boxes = [label.get_window_extent() for label in scale.get_xticklabels()]
        assert all(a.x1 + 2 < b.x0 for a, b in pairwise(boxes)), top
        names.append(len(boxes))
    assert set(names) <= {2, 3, 4} and names.count(4) > 10


def test_marks_and_ticks():
    assert runs((1, 2, 3, 7)) == [(1, 3), (7, 7)]
    assert runs(()) == []
    assert [round_number(x) for x in (0.9, 1.7, 4.0, 0.06)] == [1.0, 2.0, 5.0, 0.05]
    places, names, _ = time_ticks(fake(64))
    assert [float(name) * 2 for name in names] == pytest.approx(places)  # two frames a second
    places, names, unit = time_ticks(fake(4, videos=(0, 0, 1, 1), seconds=(0.0, 0.5, 0.0, 0.5)))
    assert (places, names) == ([0, 2], ["video 1", "video 2"]) and "prompt" in unit
