"""Rules in the place of a layer's own choice: who gets which, and that nothing of them stays."""

import pytest
import torch

from minikeye.config import KeyeConfig
from minikeye.model.decoder import Decoder, ruled

CONFIG = KeyeConfig.nano()


def held(decoder: Decoder) -> list:
    return [(layer.self_attn.rule, layer.mlp.gate.rule) for layer in decoder.layers]


def test_each_layer_has_its_rule_and_afterwards_the_one_it_had():
    decoder, (a, b, c, d) = Decoder(CONFIG), (lambda *_, n=n: n for n in range(4))
    with ruled(decoder, keys=[a, b]):
        assert held(decoder) == [(a, None), (b, None)]
        with ruled(decoder, keys=[None, c], experts=[d, d]):
            assert held(decoder) == [(None, d), (c, d)]
        assert held(decoder) == [(a, None), (b, None)]
    assert held(decoder) == [(None, None)] * 2


def test_rules_go_with_an_error():
    decoder = Decoder(CONFIG)
    with pytest.raises(KeyError), ruled(decoder, experts=[len, len]):
        raise KeyError
    assert held(decoder) == [(None, None)] * 2


def test_a_rule_for_every_layer_is_asked_for():
    decoder = Decoder(CONFIG)
    with pytest.raises(ValueError, match="zip"), ruled(decoder, keys=[len]):
        pass
    assert held(decoder) == [(None, None)] * 2


def test_streamed_layers_are_refused():
    """They are made anew at every pass, which would read without the rule and say nothing."""
    decoder = Decoder(CONFIG)
    decoder.layers = torch.nn.Sequential(*decoder.layers)
    with pytest.raises(ValueError, match="load it without streaming"), ruled(decoder, keys=[len, len]):
        pass
