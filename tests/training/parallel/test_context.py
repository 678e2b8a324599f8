"""Context parallelism against one process: selections, outputs, losses, gradients, logits, bytes.

Ranks are a list first, then two real processes: this file, run as a script by `play`, is one of them.
"""

import sys
import warnings
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from minikeye import KeyeConfig, KeyeVL, ops
from minikeye.config import IndexerConfig
from minikeye.training.losses import IGNORED
from minikeye.training.packing import apart
from minikeye.training.parallel.context import Share, gather, gathered_bytes
from minikeye.training.parallel.long_row import read_row
from minikeye.training.parallel.wire import count_sent
from minikeye.training.parallel.zigzag import Zigzag, next_tokens

B, HEADS, GROUPS, WIDTH, J, INDEX_WIDTH, K = 2, 4, 2, 8, 3, 4, 6
PASSES = [("dense", 37), ("masked", 37), ("sparse", 37), ("sparse", 9)]  # of the model: mode, tokens that have labels
TOKENS = {"whole": 40, "padded": 37, "packed": 37, "one": 1}  # of a row; two ranks want a multiple of four


def layer(name: str) -> dict[str, Tensor]:
    """What one layer works with, whole rows. Index numbers are small integers, so that scores are exact, with ties."""
    made, tokens = torch.Generator().manual_seed(len(name)), TOKENS[name]
    draw = lambda *n: torch.randn(B, tokens, *n, generator=made)  # noqa: E731
    whole = lambda *n: torch.randint(-2, 3, (B, tokens, *n), generator=made).float()  # noqa: E731
    x = {"q": draw(HEADS, WIDTH), "k": draw(GROUPS, WIDTH), "v": draw(GROUPS, WIDTH), "wanted": draw(HEADS, WIDTH)}
    x |= {"index_q": whole(J, INDEX_WIDTH), "index_k": whole(INDEX_WIDTH), "index_w": whole(J)}
    if name == "packed":
        x["start"] = (torch.arange(tokens, dtype=torch.int32) // 9 * 9).repeat(B, 1)
    return x


def share_of(x: Tensor, zigzag: Zigzag, rank: int) -> Tensor:
    """The tokens of a rank on axis 1, a token at a time; for padding the first again, which must not matter."""
    rows = [x[:, p if p < zigzag.tokens else 0] for p in zigzag.positions(rank).tolist()]
    return torch.stack(rows, dim=1)


def join(shares: list[Tensor], zigzag: Zigzag) -> Tensor:
    """Back into the order of the row, a token at a time."""
    found = {}
    for rank, share in enumerate(shares):
        found |= {p: share[:, t] for t, p in enumerate(zigzag.positions(rank).tolist())}
    return torch.stack([found[p] for p in range(zigzag.tokens)], dim=1)


def one_process(x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Selection, output, both losses of every query, and the gradients of their sum."""
    start = x.get("start")
    learnt = {name: z.clone().requires_grad_() for name, z in x.items() if name not in ("start", "wanted")}
    q, k, v, index = learnt["q"], learnt["k"], learnt["v"], [learnt[f"index_{n}"] for n in "qkw"]
    selected = ops.select_topk(*index, min(K, q.shape[1]), 0, start)
    out, _ = ops.sparse_attention(q, k, v, selected)
    positions = torch.arange(q.shape[1])
    losses = ops.selected_loss(*index, q, k, selected), ops.warmup_loss(*index, q, k, positions, start)
    ((out * x["wanted"]).sum() + losses[0].sum() + losses[1].sum()).backward()
    done = {"selected": selected, "out": out.detach(), "sparse": losses[0].detach(), "warmup": losses[1].detach()}
    return done | {f"d_{name}": z.grad for name, z in learnt.items()}


def one_rank(x: dict[str, Tensor], group: dist.ProcessGroup) -> dict[str, Tensor]:
    """The same for one rank's share; keys of the others come over the wire."""
    zigzag, rank = Zigzag(x["q"].shape[1], group.size()), group.rank()
    part = {name: share_of(z, zigzag, rank) for name, z in x.items()}
    share = Share(zigzag, rank, part.get("start"))
    learnt = {name: z.requires_grad_() for name, z in part.items() if name not in ("start", "wanted")}
    q, index_q, index_w = learnt["q"], learnt["index_q"], learnt["index_w"]
    with count_sent() as forward:
        k, v, index_k = gather([learnt["k"], learnt["v"], learnt["index_k"]], zigzag, group)
    selected = share.select(index_q, index_k, index_w, min(K, zigzag.tokens))
    out, _ = ops.sparse_attention(q, k, v, selected)
    sparse = ops.selected_loss(index_q, index_k, index_w, q, k, selected)
    warmup = share.warmup_loss(index_q, index_k, index_w, q, k)
    with count_sent() as backward:
        ((out * part["wanted"]).sum() + sparse.sum() + warmup.sum()).backward()
    done = {"selected": selected, "out": out.detach(), "sparse": sparse.detach(), "warmup": warmup.detach()}
    done |= {f"d_{name}": z.grad for name, z in learnt.items()}
    return done | {"sent": torch.tensor([forward.bytes, backward.bytes])}


# ---------------------------------------------------------------------------------------------------- ranks as a list


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("name", TOKENS)
def test_shares_select_what_the_row_selects(name, ranks):
    """Scores are exact and full of ties: every query of every rank has the same positions, in the same order."""
    x = layer(name)
    zigzag, topk = Zigzag(TOKENS[name], ranks), min(K, TOKENS[name])
    expected = ops.select_topk(x["index_q"], x["index_k"], x["index_w"], topk, 0, x.get("start"))
    shares, losses = [], []
    for rank in range(ranks):
        part = {n: share_of(z, zigzag, rank) for n, z in x.items()}
        share = Share(zigzag, rank, part.get("start"))
        shares.append(share.select(part["index_q"], x["index_k"], part["index_w"], topk))
        losses.append(share.warmup_loss(part["index_q"], x["index_k"], part["index_w"], part["q"], x["k"]))
        padding = [t for t, p in enumerate(zigzag.positions(rank).tolist()) if p >= zigzag.tokens]
        assert bool((shares[-1][:, padding] == -1).all()) and not losses[-1][:, padding].any()
        mask = share.everything(part["q"])
        seen = [[s for s in row if s >= 0] for row in mask[0].tolist()]
        begin = part["start"][0].tolist() if "start" in part else [0] * len(seen)
        assert seen == [
            list(range(begin[t], p + 1)) if p < zigzag.tokens else [] for t, p in enumerate(zigzag.positions(rank))
        ]
    assert torch.equal(join(shares, zigzag), expected)
    torch.testing.assert_close(join(losses, zigzag), one_process(x)["warmup"], rtol=1e-5, atol=1e-6)


def test_keys_in_the_wrong_order_are_seen_by_the_selection():
    """The permutation in the place of its inverse: right shapes, other positions."""
    x, zigzag = layer("whole"), Zigzag(40, 2)
    shares = torch.cat([share_of(x["index_k"], zigzag, rank) for rank in range(2)], dim=1)
    part, share = {n: share_of(z, zigzag, 0) for n, z in x.items()}, Share(zigzag, 0)
    found = [
        share.select(part["index_q"], shares[:, at], part["index_w"], K) for at in (zigzag.inverse(), zigzag.order())
    ]
    right = share_of(ops.select_topk(x["index_q"], x["index_k"], x["index_w"], K), zigzag, 0)
    assert torch.equal(found[0], right) and not torch.equal(found[1], right)


def test_shares_of_other_lengths_are_refused():
    x, share = layer("whole"), Share(Zigzag(40, 2), 0)
    with pytest.raises(ValueError, match=r"expected 20 queries \(a share\) and 40 keys \(the row\), got 40 and 40"):
        share.select(x["index_q"], x["index_k"], x["index_w"], K)
    with pytest.raises(ValueError, match="expected shares of 20 tokens and of one dtype"):
        gather([x["k"]], Zigzag(40, 2), Group(2))
    with pytest.raises(ValueError, match="of one dtype, got"):
        gather([x["k"][:, :20], x["v"][:, :20].double()], Zigzag(40, 2), Group(2))
    with pytest.raises(ValueError, match="expected a group of 2 ranks, got 3"):
        gather([x["k"][:, :20]], Zigzag(40, 2), Group(3))


def test_nothing_to_read_is_refused():
    with pytest.raises(ValueError, match=r"expected input_ids and positions of whole rows, got \['labels'\]"):
        read_row(lively(), {"labels": torch.zeros(1, 4, dtype=torch.long)}, Group(2))


def Group(size: int) -> dist.ProcessGroup:
    """A group that nobody else is in and nothing is sent through."""
    return dist.ProcessGroup(0, size)


def test_bytes_at_released_widths():
    """1,088 numbers a token; eight ranks and 262,144 tokens in bfloat16: seven eighths of 570 MB reach each rank."""
    text, index = KeyeConfig.keye_vl_2_30b_a3b().text, KeyeConfig.keye_vl_2_30b_a3b().indexer
    sent = gathered_bytes(Zigzag(262_144, 8), 1, text.kv_heads, text.head_width, index.width, 2)
    assert sent == 7 * 32_768 * 1_088 * 2 == 499_122_176


# -------------------------------------------------------------------------------------------------------- two processes


@pytest.fixture(scope="module")
def ranks(play) -> list[dict]:
    """What two processes found, in rank order."""
    return play(__file__)


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENS)
def test_two_ranks_are_one_process(ranks, name):
    """Selections bit for bit; outputs, L_warmup, L_sparse of every query and all gradients to rounding."""
    expected, zigzag = one_process(layer(name)), Zigzag(TOKENS[name], 2)
    got = {n: join([rank[name][n] for rank in ranks], zigzag) for n in expected}
    assert torch.equal(got.pop("selected"), expected.pop("selected"))
    for n, value in expected.items():
        torch.testing.assert_close(got[n], value, rtol=1e-5, atol=1e-6, msg=lambda text, n=n: f"{n}: {text}")
        assert bool(value.any()) or name == "one"


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENS)
def test_bytes_sent_are_the_formula(ranks, name):
    """Forward, and as many again backward: keys, values and index keys of a share, once to the other rank."""
    share = 2 * -(-TOKENS[name] // 4)
    expected = B * share * (2 * GROUPS * WIDTH + INDEX_WIDTH) * 4
    assert gathered_bytes(Zigzag(TOKENS[name], 2), B, GROUPS, WIDTH, INDEX_WIDTH, 4) == expected
    assert [rank[name]["sent"].tolist() for rank in ranks] == [[expected, expected]] * 2


@pytest.mark.slow
def test_repeats_are_the_same_bits(ranks):
    for rank in ranks:
        first, again = rank["packed"], rank["again"]
        assert all(torch.equal(first[n], again[n]) for n in first) and first["d_k"].any()


@pytest.mark.slow
def test_what_needs_no_gradient_is_not_sent(ranks):
    """Keys and values are frozen: the gradient of the index keys alone travels back."""
    for rank in ranks:
        assert rank["frozen"]["sent"] == B * 20 * INDEX_WIDTH * 4 and rank["frozen"]["others"] == [None, None]


@pytest.mark.slow
@pytest.mark.parametrize(("attention", "spoken"), PASSES)
def test_the_whole_model_is_one_process(ranks, attention, spoken):
    """Logits, next-token loss, KL loss and every parameter's gradient of packed rows with padding; also where all
    labels lie on one rank, and the other takes part all the same.
    """
    expected, found = model_in_one_process(attention, spoken), [rank[attention, spoken] for rank in ranks]
    logits = join([rank["logits"] for rank in found], Zigzag(37, 2))
    torch.testing.assert_close(logits, expected["logits"], rtol=1e-4, atol=1e-5)
    for n in ("ntp", "kl"):
        total = sum(float(rank[n]) for rank in found)
        assert total == pytest.approx(float(expected[n]), rel=1e-5) and total > 0.1
    assert (float(found[1]["ntp"]) > 0) == (spoken == 37) and float(found[0]["ntp"]) > 0
    gradients = found[0]["gradients"]
    assert gradients.keys() == expected["gradients"].keys() and any("sa_indexer" in n for n in gradients)
    for n, value in expected["gradients"].items():
        torch.testing.assert_close(gradients[n], value, rtol=1e-4, atol=1e-5, msg=lambda text, n=n: f"{n}: {text}")


class Losses:
    """An observer: the indexer's loss of all queries, added up."""

    def __init__(self) -> None:
        self.total = torch.zeros(())

    def attention(self, layer: int, trace) -> None:
        index = trace.index_q, trace.index_k, trace.index_w
        self.total = self.total + ops.selected_loss(*index, trace.q, trace.k, trace.indices).sum()

    def routing(self, layer: int, probabilities: Tensor, chosen: Tensor) -> None:
        """Each token alone."""


def lively() -> KeyeVL:
    """nano with weights large enough for attention that has preferences, and k = 8."""
    torch.manual_seed(3)
    model = KeyeVL(replace(KeyeConfig.nano(), indexer=IndexerConfig(heads=2, width=16, topk=8)))
    for name, p in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(p, std=0.1)
    return model


def packed_rows(spoken: int) -> dict[str, Tensor]:
    """Two rows of documents of nine tokens, whose later halves are answers, the last one cut short."""
    ids = torch.randint(0, 256, (B, 37), generator=torch.Generator().manual_seed(5))
    place = torch.arange(37).repeat(B, 1) % 9
    labels = next_tokens(ids, (place > 4) & (torch.arange(37) < spoken))
    start = (torch.arange(37, dtype=torch.int32) // 9 * 9).repeat(B, 1)
    return {"input_ids": ids, "positions": place.expand(3, -1, -1), "labels": labels, "start": start}


def learn(model: KeyeVL, logits: Tensor, labels: Tensor, observer: Losses) -> dict:
    """Sums, so that ranks add up; the gradient is that of both losses."""
    ntp = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    (ntp + observer.total).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    found = {"logits": logits.detach(), "ntp": ntp.detach(), "kl": observer.total.detach()}
    return found | {"gradients": gradients}


def model_in_one_process(attention: str, spoken: int) -> dict:
    model, tokens, observer = lively(), packed_rows(spoken), Losses()
    with apart(model, tokens["start"], attention) as mode:
        out = model({n: tokens[n] for n in ("input_ids", "positions")}, attention=mode, observer=observer)
    return learn(model, out.logits, tokens["labels"], observer)


def model_on_a_rank(attention: str, spoken: int, group: dist.ProcessGroup) -> dict:
    model, observer = lively(), Losses()
    logits, part = read_row(model, packed_rows(spoken), group, attention, observer)
    found = learn(model, logits, part["labels"], observer)
    for gradient in found["gradients"].values():
        dist.all_reduce(gradient, group=group)
    return found


def frozen(group: dist.ProcessGroup) -> dict:
    """Attention whose queries learn, and whose keys and values do not; and the warm-up."""
    x, zigzag = layer("whole"), Zigzag(40, 2)
    part = {n: share_of(z, zigzag, group.rank()) for n, z in x.items()}
    part["index_k"].requires_grad_()
    part["q"].requires_grad_()
    share = Share(zigzag, group.rank())
    k, v, index_k = gather([part["k"], part["v"], part["index_k"]], zigzag, group)
    index = part["index_q"], index_k, part["index_w"]
    out, _ = ops.sparse_attention(part["q"], k, v, share.select(*index, K))
    with count_sent() as sent:
        (out.sum() + share.warmup_loss(*index, part["q"], k).sum()).backward()
    assert part["index_k"].grad.any() and part["q"].grad.any()
    return {"sent": sent.bytes, "others": [part[n].grad for n in "kv"]}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")  # as in the tests
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    group = dist.group.WORLD
    found = {name: one_rank(layer(name), group) for name in TOKENS} | {"again": one_rank(layer("packed"), group)}
    found["frozen"] = frozen(group)
    found |= {case: model_on_a_rank(*case, group) for case in PASSES}
    torch.save(found, folder / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
