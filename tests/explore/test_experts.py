"""The expert load against a count by hand, and its picture and JSON."""

from collections import Counter

import pytest
import torch

from minikeye import KeyeConfig
from minikeye.explore.experts import ExpertLoad, draw, sentence
from minikeye.model.step import Observer

NANO = KeyeConfig.nano()  # 2 layers, 4 experts, 2 a token
EVEN, ONE = [[0, 1], [2, 3]], [[3, 0], [3, 1]]  # choices of two tokens


def seen(first: list, second: list) -> ExpertLoad:
    load = ExpertLoad(NANO)
    for layer, chosen in enumerate((first, second)):
        load.routing(layer, torch.full((1, 2, 4), 0.25), torch.tensor([chosen]))
    return load


class Keeper:
    """Keeps every choice as it came."""

    def __init__(self):
        self.pairs = []

    def attention(self, layer, trace):
        pass

    def routing(self, layer, probabilities, chosen):
        self.pairs += [(layer, expert) for token in chosen.flatten(0, 1).tolist() for expert in token]


def test_counts_are_those_of_a_loop(model, inputs):
    load, keeper = ExpertLoad(model.config), Keeper()
    for observer in (load, keeper):
        model.generate(inputs, max_new_tokens=5, observer=observer)
    tally = Counter(keeper.pairs)
    assert load.counts.tolist() == [[tally[layer, expert] for expert in range(4)] for layer in range(2)]
    read = inputs["input_ids"].shape[1] + 4  # the prompt and all tokens of the answer but the last
    assert load.counts.sum(dim=1).tolist() == [2 * read] * 2


def test_it_is_an_observer():
    assert isinstance(ExpertLoad(NANO), Observer)


def test_imbalance():
    """Layer 0: each of 4 experts once. Layer 1: expert 3 twice, the mean is 1."""
    load = seen(EVEN, ONE)
    assert load.counts.tolist() == [[1, 1, 1, 1], [1, 1, 0, 2]]
    assert load.imbalance().tolist() == [1.0, 2.0]
    load.routing(1, torch.full((1, 1, 4), 0.25), torch.tensor([[[3, 2]]]))
    assert load.imbalance()[1].item() == pytest.approx(3 / 1.5)


def test_nothing_seen_is_an_error():
    load = ExpertLoad(NANO)
    load.routing(0, torch.full((1, 1, 4), 0.25), torch.tensor([[[0, 1]]]))
    for function in (load.imbalance, lambda: draw(load), lambda: sentence(load)):
        with pytest.raises(ValueError, match=r"no token has passed layers \[1\]"):
            function()


def test_json_and_back():
    load = seen(EVEN, ONE)
    back = ExpertLoad.from_json(load.to_json())
    assert torch.equal(back.counts, load.counts) and back.shape == load.shape
    back.routing(0, torch.full((1, 1, 4), 0.25), torch.tensor([[[0, 1]]]))
    assert back.counts[0].tolist() == [2, 2, 1, 1] and load.counts[0].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "other", "version": 1, "counts": [[1]]}', '{"format": "minikeye.ExpertLoad"}']
)
def test_other_json_is_refused(text):
    with pytest.raises(ValueError, match="expected"):
        ExpertLoad.from_json(text)


def test_the_picture_shows_the_relative_load():
    figure = draw(seen(EVEN, ONE))
    heat, bars = figure.axes[:2]
    assert heat.images[0].get_array().tolist() == [[1, 1, 1, 1], [1, 1, 0, 2]]
    assert heat.images[0].get_cmap().name == "cividis" and heat.images[0].get_clim() == (0, 2)
    assert [bar.get_width() for bar in bars.patches] == [1, 2]
    figure.canvas.draw()  # warnings are errors


def test_the_sentence():
    assert sentence(seen(EVEN, ONE)) == (
        "A heat map of 2 layers by 4 experts, lighter where an expert got more of the 4 choices of a layer; layer 1 is "
        "the most uneven, its expert 3 got 2.0 times the mean, and 1 of 8 experts got no token."
    )


def test_a_model_of_another_size_is_refused(model, inputs):
    load = ExpertLoad(KeyeConfig.keye_vl_2_30b_a3b())
    with pytest.raises(ValueError, match=r"of 128 experts, got layer 0 of 4: give ExpertLoad the config of the model"):
        model(inputs, observer=load)
