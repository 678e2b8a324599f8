"""How far from the exact result a kernel may be: float64 values that carry a bound on their error.

A bound follows from the arithmetic alone: from how many terms each sum has and from how large the terms at hand are.
It holds on any machine and in any order of addition, and no other implementation has a say in it. The rules (Higham,
Accuracy and Stability of Numerical Algorithms, chapters 3 and 4), for computed values x' = x + dx:

    an operation is off by UNIT of its result      a sum of n products by gamma(n) = n UNIT / (1 - n UNIT) of the sum
    of their absolute values, in any order         exp(x') is off by dx of its result, log(x') by dx / x

and what the operands were off by is carried along. UNIT is a whole unit in the last place, where rounding to nearest
loses half of one: tensor cores cut off, and so does Triton's interpreter where it stores bfloat16. For whatever rounds
to nearest that is a safety factor of two, and it is the only one.

Axes: b batch, t query, s key, j indexer head, i indexer width, h query head, g KV head, r query heads a group, e head
width. A set of keys is given as `count` [b t s]: how often a query lists a key.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

UNIT = torch.finfo(torch.float32).eps
FUNCTION = 4  # units that exp2 and log may be off by: NumPy's SIMD versions 4, libm 1, a GPU's approximations 2
BLOCK = 8  # keys that a softmax takes at once, at least: so often may the largest logit so far change
TINY = torch.finfo(torch.float32).tiny  # what is smaller may become 0


def gamma(operations: float) -> float:
    return operations * UNIT / (1 - operations * UNIT)


@dataclass(frozen=True)
class Computed:
    """What exact arithmetic gives, and how far float32 arithmetic may be from it."""

    exact: Tensor  # float64
    error: Tensor

    @property
    def most(self) -> Tensor:
        """The largest size that the computed value may have."""
        return self.exact.abs() + self.error

    def rounded(self, operations: float) -> "Computed":
        return Computed(self.exact, self.error + gamma(operations) * self.most)

    def stored(self, dtype: torch.dtype) -> "Computed":
        """Written as `dtype`, rounded or cut off; nothing happens to float32."""
        if dtype in (torch.float32, torch.float64):
            return self
        info = torch.finfo(dtype)
        return Computed(self.exact, self.error + info.eps * self.most + info.smallest_normal * info.eps)

    def times(self, factor: float | Tensor, operations: float = 0) -> "Computed":
        """A product with a number that is known exactly, but for its own rounding."""
        size = factor.abs() if isinstance(factor, Tensor) else abs(factor)
        return Computed(self.exact * factor, self.error * size).rounded(operations)

    def __mul__(self, other: "Computed") -> "Computed":
        exact = self.exact * other.exact
        return Computed(exact, self.most * other.most - exact.abs()).rounded(1)

    def __sub__(self, other: "Computed") -> "Computed":
        return Computed(self.exact - other.exact, self.error + other.error).rounded(1)

    def sum(self, axis: int, terms: float) -> "Computed":
        error = self.error.sum(axis) + gamma(terms) * self.most.sum(axis)
        return Computed(self.exact.sum(axis), error)

    def __getitem__(self, at) -> "Computed":
        return Computed(self.exact[at], self.error[at])


def given(x: Tensor) -> Computed:
    """An input: nothing has happened to it yet."""
    return Computed(x.detach().double(), torch.zeros((), dtype=torch.float64, device=x.device).expand(x.shape))


def contract(equation: str, x: Computed, y: Computed, terms: float) -> Computed:
    """einsum: sums of `terms` products each."""
    exact = torch.einsum(equation, x.exact, y.exact)
    size, most = torch.einsum(equation, x.exact.abs(), y.exact.abs()), torch.einsum(equation, x.most, y.most)
    return Computed(exact, (most - size).clamp(min=0) + gamma(terms) * most)


def exponential(x: Computed, error: Tensor, present: Tensor) -> Computed:
    """exp(x) whose exponent is off by `error` in all; 0 where not present."""
    exact = torch.where(present, x.exact, -math.inf).exp()
    return Computed(exact, torch.where(present, exact * error.expm1() + TINY, 0.0))


def softmax(logits: Computed, count: Tensor) -> tuple[Computed, Computed]:
    """Weights [.. s] of a key that counts once, and log-sum-exps [..], however the keys come in blocks.

    p = exp(logit - m), m the largest so far. From a logit to the last m, differences add up to twice the largest logit
    at most, to and fro. Each new m costs an exponential and a product, the sum an addition a key: log p is off by `own`
    at most, and the logarithm of the sum by what it would grow by if all were. A weight is p over the sum.
    """
    present, terms = count > 0, float(count.sum(-1).max())
    largest = torch.where(present, logits.most, 0.0).amax(-1)
    changes = 2 + terms / BLOCK
    own = torch.where(present, logits.error, 0.0) + gamma((FUNCTION + 2) * changes + terms)
    own = own + 4 * UNIT * largest[..., None]
    masses = torch.where(present, logits.exact + count.log(), -math.inf)
    exact = masses.logsumexp(-1)
    total = ((masses + own).logsumexp(-1) - exact).nan_to_num(0.0)  # no key: -inf - -inf
    lse = Computed(exact, total + gamma(FUNCTION + 3) * (largest + math.log(max(terms, 1)) + 1))
    weights = exponential(Computed(logits.exact - exact[..., None], own), own + total[..., None], present)
    return weights, lse


def probabilities(logits: Computed, lse: Computed, present: Tensor) -> Computed:
    """exp(logits - lse) in units of log2(e), lse from elsewhere."""
    size = torch.where(present, logits.most + lse.most[..., None], 0.0)
    error = logits.error + lse.error[..., None] + gamma(3) * size + gamma(FUNCTION + 1)
    return exponential(Computed(logits.exact - lse.exact[..., None], error), error, present)


def listed(indices: Tensor, s: int) -> Tensor:
    """How often each query lists each key: float64 [b t s] of indices [b t k]."""
    count = torch.zeros(*indices.shape[:2], s + 1, dtype=torch.float64, device=indices.device)
    at = indices.long().masked_fill(indices < 0, s)
    return count.scatter_add_(-1, at, torch.ones_like(at, dtype=torch.float64))[..., :s]


def grouped(q: Tensor, k: Tensor) -> Computed:
    """[b t h e] -> [b t g r e]"""
    return given(q.unflatten(2, (k.shape[2], -1)))


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    scale: float | None = None,
    dout: Tensor | None = None,
    slab: bool = False,
) -> list[Computed]:
    """out and lse of sparse attention, and with dout, the gradient of out, dq, dk and dv.

    slab: these are some of the queries, and their part of dk and dv is not yet stored in the dtype of k and v.
    """
    dtype, e, r = q.dtype, q.shape[3], q.shape[2] // k.shape[2]
    scale = e**-0.5 if scale is None else scale
    count = listed(indices, k.shape[1])
    keys = float(count.sum(-1).max())
    queries = r * float(count.sum(1).max())
    count = count[:, :, None, None]
    q, k, v = grouped(q, k), given(k), given(v)
    logits = contract("btgre,bsge->btgrs", q, k, e).times(scale, 2)
    weights, lse = softmax(logits, count)
    out = contract("btgrs,bsge->btgre", weights.stored(dtype).times(count), v, keys + 2).stored(dtype)
    results = [out, lse]
    if dout is not None:
        do = given(dout.unflatten(2, q.exact.shape[2:4]))
        p = probabilities(logits, lse, count > 0)
        delta = contract("btgre,btgre->btgr", do, out, e)
        dlogits = (p * (contract("btgre,bsge->btgrs", do, v, e) - delta[..., None])).times(scale, 1)
        dlogits = dlogits.stored(dtype).times(count)
        dq = contract("btgrs,bsge->btgre", dlogits, k, keys)
        dk = contract("btgrs,btgre->bsge", dlogits, q, queries)
        dv = contract("btgrs,btgre->bsge", p.stored(dtype).times(count), do, queries)
        results += [dq.stored(dtype), *(x if slab else x.stored(dtype) for x in (dk, dv))]
    return [Computed(*(y.flatten(2, 3) for y in (x.exact, x.error))) if n < 3 else x for n, x in enumerate(results)]


def index_products(q: Tensor, k: Tensor, w: Tensor) -> tuple[Computed, Computed]:
    """z [b t j s] and the index scores [b t s] that come of it."""
    j, i = q.shape[2:]
    z = contract("btji,bsi->btjs", given(q), given(k), i)
    positive = Computed(z.exact.relu(), z.error)
    return z, contract("btj,btjs->bts", given(w), positive, j).times(i**-0.5, 3)


def index_scores(q: Tensor, k: Tensor, w: Tensor) -> Computed:
    return index_products(q, k, w)[1]


def indexer_loss(
    index_q: Tensor, index_k: Tensor, index_w: Tensor, q: Tensor, k: Tensor, count: Tensor, dloss: Tensor
) -> list[Computed]:
    """The losses [b t] over the keys that count, and the gradients of (loss * dloss).sum() for the first three."""
    (j, i), groups, e = index_q.shape[2:], k.shape[2], q.shape[3]
    keys, queries, present = float(count.sum(-1).max()), float(count.sum(1).max()), count > 0
    logits = contract("btgre,bsge->btgrs", grouped(q, k), given(k), e).times(e**-0.5, 2)
    _, lse = softmax(logits, count[:, :, None, None])
    r = logits.exact.shape[3]
    p = probabilities(logits, lse, present[:, :, None, None]).sum(3, r).times(1 / r, 1)  # [b t g s]
    z, scores = index_products(index_q, index_k, index_w)
    _, row_lse = softmax(scores, count)
    size = torch.where(present, scores.most + row_lse.most[..., None], 0.0)
    log_c = torch.where(present, scores.exact - row_lse.exact[..., None], 0.0)
    log_c = Computed(log_c, scores.error + row_lse.error[..., None] + gamma(3) * size)

    # p (log p - log c) grows by log p - log c + 1 where p grows by 1; the two products are rounded one by one
    log_p, log_q = torch.where(p.exact > 0, p.exact, 1.0).log(), log_c.exact[:, :, None]
    slope = (log_p - log_q).abs() + 1 + (p.error / p.exact).nan_to_num(0.0).clamp(max=1)
    products = p.most * ((FUNCTION + 2) * log_p.abs() + 2 * log_q.abs())
    error = p.error * slope + p.most * log_c.error[:, :, None] + UNIT * (keys + groups + 1) * products
    divergence = Computed(torch.xlogy(p.exact, p.exact) - p.exact * log_q, error).times(count[:, :, None])
    loss = Computed(divergence.exact.sum((2, 3)), divergence.error.sum((2, 3))).rounded(2)

    c = exponential(log_c, log_c.error + gamma(FUNCTION + 1), present)
    d = c.times(float(groups), 1) - p.sum(2, groups)
    open_ = Computed((z.exact > 0).double(), (z.exact.abs() <= z.error).double())  # either, where z may be above 0
    dz = Computed(d.exact[:, :, None], d.error[:, :, None])
    dz = Computed(dz.exact * open_.exact, dz.most * open_.most - (dz.exact * open_.exact).abs())
    dz = dz.times((count * dloss.double()[..., None])[:, :, None], 1)
    dq = contract("btjs,bsi->btji", dz, given(index_k), keys).times(i**-0.5, 2) * given(index_w[..., None])
    # dw = sum_i index_q sum_s dz index_k = sum_s dz z: what dz is off by meets z itself, rounding meets every product
    every = torch.einsum("btji,bsi->btjs", index_q.double().abs(), index_k.double().abs())
    dw = torch.einsum("btjs,btjs->btj", dz.exact, z.exact)
    error = (dz.error * z.exact.abs() + gamma(keys + i) * dz.most * every).sum(-1)
    dw = Computed(dw, error).times(i**-0.5, 3)
    gated = (dz * given(index_w[..., None])).times(i**-0.5, 2)
    dk = contract("btjs,btji->bsi", gated, given(index_q), queries * j)
    return [loss, *(x.stored(y.dtype) for x, y in ((dq, index_q), (dk, index_k), (dw, index_w)))]


def sums(x: Computed, y: Computed) -> Computed:
    return Computed(x.exact + y.exact, x.error + y.error).rounded(1)


def swiglu(gate_up: Tensor) -> Computed:
    """silu(gate) * up: exp(-gate) is off by the rounding of gate / log(2) in units of gate, and by its own."""
    gate, up = gate_up.double().chunk(2, dim=-1)
    exact = gate * gate.sigmoid() * up
    error = exact.abs() * (2 * UNIT * gate.abs() + gamma(FUNCTION + 8)) + TINY * up.abs()
    return Computed(exact, error).stored(gate_up.dtype)


def weighted_rows(y: Tensor, place: Tensor, weights: Tensor, residual: Tensor | None) -> Computed:
    """sum_c weights[n, c] y[place[n, c]], and a residual on top, rounded once."""
    total = contract("nc,ncd->nd", given(weights), given(y[place]), place.shape[1])
    return (total if residual is None else sums(total, given(residual))).stored(y.dtype)


def head_norms(attention, x: Tensor, step) -> dict[str, Computed]:
    """What an attention layer makes of its own projections of x: norm, then rotation, rounded once at the end."""
    index, (b, t) = attention.sa_indexer, x.shape[:2]
    raw = {
        "q": attention.q_proj(x), "k": attention.k_proj(x), "index_q": index.q_proj(x), "index_k": index.k_proj(x)
    }  # fmt: skip
    heads, width = index.heads * index.width, attention.head_width
    out = {"v": given(attention.v_proj(x).view(b, t, -1, width)), "gates": given(raw["index_q"][..., heads:])}
    raw["index_q"] = raw["index_q"][..., :heads]
    for name, norm, rotation in (
        ("q", attention.q_norm, step.rotation),
        ("k", attention.k_norm, step.rotation),
        ("index_q", index.q_norm, step.index_rotation),
        ("index_k", index.k_norm, step.index_rotation),
    ):
        z, e = given(raw[name].view(b, t, -1, len(norm.weight))), len(norm.weight)
        if getattr(norm, "bias", None) is not None:
            z = z - z.sum(-1, e).times(1 / e, 1)[..., None]
        variance = sums((z * z).sum(-1, e).times(1 / e, 1), given(torch.tensor(norm.eps, device=x.device)))
        low = (variance.exact - variance.error).rsqrt()
        scale = Computed(variance.exact.rsqrt(), low - variance.exact.rsqrt()).rounded(FUNCTION)
        z = (z * Computed(scale.exact[..., None], scale.error[..., None])) * given(norm.weight)
        if getattr(norm, "bias", None) is not None:
            z = sums(z, given(norm.bias))
        cos, sin = (given(angle[:, :, None, : e // 2]) for angle in rotation)
        a, b_ = z[..., : e // 2], z[..., e // 2 :]
        turned = a * cos - b_ * sin, sums(b_ * cos, a * sin)
        both = Computed(*(torch.cat(parts, -1) for parts in zip(*((y.exact, y.error) for y in turned), strict=True)))
        out[name] = both.stored(x.dtype)
    out["index_k"] = out["index_k"][:, :, 0]
    return out


def assert_within(got: Tensor, truth: Tensor, error: Tensor, name: str = "result") -> None:
    """No element of `got` further from `truth` than `error`; infinite where truth is."""
    assert got.shape == truth.shape, f"{name}: expected the shape {list(truth.shape)}, got {list(got.shape)}"
    got, finite = got.detach().double(), truth.isfinite()
    assert got[~finite].equal(truth[~finite].double()), f"{name}: not infinite where it must be"
    off, most = (got - truth).abs()[finite], error.expand(truth.shape)[finite]
    if not (off <= most).all():
        worst = int(torch.where(off <= most, 0.0, off / most).nan_to_num(math.inf).argmax())
        raise AssertionError(
            f"{name}: off by {off.flatten()[worst]:.3g} where its arithmetic allows {most.flatten()[worst]:.3g}"
        )
