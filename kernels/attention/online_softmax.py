"""Softmax over keys that come block by block, as functions that kernels inline.

For every row: m is the largest logit so far, total = sum exp2(logit - m), acc [row, e] = sum exp2(logit - m) values.
A block with a larger logit scales total and acc down first. Exponentials are powers of two (exp2 is the GPU's
instruction), so logits come in units of log2(e). A logit of -inf is no key; a row without keys gives zeros and a
log-sum-exp of -inf.
"""

import math

import torch
import triton
import triton.language as tl

LOG2E = tl.constexpr(math.log2(math.e))
LN2 = tl.constexpr(math.log(2.0))
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)  # first m: finite, so that "-inf - m" stays -inf and is never nan


@triton.jit
def begin(ROWS: tl.constexpr, E: tl.constexpr):
    """m, total and acc of no keys."""
    m = tl.full([ROWS], LOWEST, tl.float32)
    return m, tl.zeros([ROWS], tl.float32), tl.zeros([ROWS, E], tl.float32)


@triton.jit
def absorb(m, total, acc, logits, values):
    """m, total and acc after a block of logits [row, key] and values [key, e]."""
    m_new = tl.maximum(m, tl.max(logits, axis=1))
    p = tl.exp2(logits - m_new[:, None])
    shrink = tl.exp2(m - m_new)
    total = total * shrink + tl.sum(p, axis=1)
    acc = tl.dot(p.to(values.dtype), values, acc * shrink[:, None], input_precision="ieee")
    return m_new, total, acc


@triton.jit
def finish(m, total, acc):
    """Weighted mean of the values [row, e] and log-sum-exp of the logits [row], in units of 1."""
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    return acc / total[:, None], tl.where(empty, float("-inf"), m * LN2 + tl.log(total))
