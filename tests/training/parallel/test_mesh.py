"""What a spread model's units return must be looked through, in every version of torch; the rest is in test_samples."""

import torch
from torch.utils import _pytree as pytree

from minikeye.config import KeyeConfig
from minikeye.keye import KeyeVL
from minikeye.model.decoder import Sight
from minikeye.training.dsa import IndexerTeacher
from minikeye.training.parallel import mesh


def test_what_units_return_is_looked_through(monkeypatch):
    """Before torch 2.13, a dataclass that is not made known is one leaf: nothing in it calls parameters back."""
    shown = []
    monkeypatch.setattr(Sight, "show", lambda sight, observer, layer: shown.append(sight))
    out = KeyeVL(KeyeConfig.nano())({"input_ids": torch.arange(6)[None]}, observer=IndexerTeacher(None))
    assert any(leaf is out.logits for leaf in pytree.tree_leaves(out))
    trace = shown[-1].trace
    seen = {id(leaf) for leaf in pytree.tree_leaves(tuple(shown[-1]))}
    assert {id(x) for x in (trace.q, trace.k, trace.index_q, trace.index_k, trace.index_w)} <= seen
    assert mesh.KeyeOutput in pytree.SUPPORTED_NODES and mesh.AttentionTrace in pytree.SUPPORTED_NODES
