"""Which experts the tokens went to: counts per layer and expert, how uneven they are, and a picture of both.

    load = ExpertLoad(model.config)
    model.generate(inputs, observer=load)  # max_new_tokens=1: the prompt alone
    draw(load).savefig("load.png")
    print(sentence(load))

Axes: l layer, x expert, b batch, t token, c chosen expert of a token. Report, section 2: 8 of 128 experts a token.
"""

import json

import matplotlib.style
import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor

from minikeye.config import KeyeConfig
from minikeye.explore.figures import PALETTE
from minikeye.model.moe import tokens_per_expert
from minikeye.model.step import AttentionTrace

FORMAT, VERSION = "minikeye.ExpertLoad", 1


class ExpertLoad:
    """An observer that counts the choices of every layer over everything it sees. Padding counts like other tokens."""

    def __init__(self, config: KeyeConfig):
        self.shape = config.text.layers, config.text.experts
        self._counts: dict[int, Int[Tensor, " x"]] = {}  # by layer, where the layer is: a count must not wait for a GPU

    def attention(self, layer: int, trace: AttentionTrace) -> None:
        """Attention chooses no experts."""

    def routing(self, layer: int, probabilities: Float[Tensor, "b t x"], chosen: Int[Tensor, "b t c"]) -> None:
        if layer >= self.shape[0] or probabilities.shape[-1] != self.shape[1]:
            raise ValueError(
                f"expected layers 0..{self.shape[0] - 1} of {self.shape[1]} experts, got layer {layer} of "
                f"{probabilities.shape[-1]}: give ExpertLoad the config of the model that is watched"
            )
        more = tokens_per_expert(chosen, self.shape[1])
        self._counts[layer] = self._counts[layer] + more if layer in self._counts else more

    @property
    def counts(self) -> Int[Tensor, "l x"]:
        """Choices so far, on the CPU; zeros for a layer that has not been seen."""
        out = torch.zeros(self.shape, dtype=torch.long)
        for layer, counts in self._counts.items():
            out[layer] = counts.cpu()
        return out

    def imbalance(self) -> Float[Tensor, " l"]:
        """The busiest expert's choices over the mean of all: 1 when even, at worst experts / experts per token.

        Raises ValueError before every layer has been seen.
        """
        return self.relative().amax(dim=1)

    def relative(self) -> Float[Tensor, "l x"]:
        """Each expert's choices over the mean of its layer. Raises ValueError before every layer has been seen."""
        counts = self.counts.double()
        if unseen := (counts.sum(dim=1) == 0).nonzero().flatten().tolist():
            raise ValueError(f"no token has passed layers {unseen}: pass this as observer to a model first")
        return counts / counts.mean(dim=1, keepdim=True)

    def to_json(self) -> str:
        """Versioned JSON with all counts."""
        return json.dumps({"format": FORMAT, "version": VERSION, "counts": self.counts.tolist()})

    @classmethod
    def from_json(cls, text: str) -> "ExpertLoad":
        """Read what `to_json` wrote. text: the JSON, not a path. Raises ValueError for anything else."""
        try:
            document = json.loads(text)
            found = document["format"], document["version"]
            counts = torch.tensor(document["counts"], dtype=torch.long)
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"expected JSON written by ExpertLoad.to_json, got {text[:80]!r}") from error
        if found != (FORMAT, VERSION) or counts.ndim != 2:
            raise ValueError(f"expected {FORMAT} version {VERSION} with counts [l x], got {found} {list(counts.shape)}")
        load = cls.__new__(cls)
        load.shape, load._counts = tuple(counts.shape), {n: row for n, row in enumerate(counts) if row.any()}
        return load


def draw(load: ExpertLoad, width: float | int = 8.0) -> Figure:
    """A heat map of layers by experts beside bars of each layer's imbalance, `width` inches wide.

    Colour is load over the layer's mean. Raises ValueError before every layer has been seen.
    """
    values, worst = load.relative().numpy(), load.imbalance().numpy()
    layers = len(values)
    with matplotlib.style.context("default"):
        figure = Figure(figsize=(width, float(np.clip(0.16 * layers, 1.2, 7.0)) + 1.2), layout="constrained")
        heat, bars = figure.subplots(1, 2, width_ratios=(5, 1), sharey=True)
        image = heat.imshow(values, aspect="auto", cmap="cividis", vmin=0, interpolation="nearest")
        heat.set(xlabel="expert", ylabel="layer", title="load of each expert, mean of its layer = 1")
        heat.xaxis.get_major_locator().set_params(integer=True)
        heat.yaxis.get_major_locator().set_params(integer=True)
        figure.colorbar(image, ax=heat, location="left", label="times the mean", shrink=0.9)
        bars.barh(np.arange(layers), worst, color=PALETTE["orange"], edgecolor=PALETTE["black"], linewidth=0.5)
        bars.axvline(1, color=PALETTE["black"], linestyle="--", linewidth=1)
        bars.set(xlabel="busiest / mean", xlim=(0, None))
        bars.spines[["top", "right"]].set_visible(False)
    return figure


def sentence(load: ExpertLoad) -> str:
    """What the picture shows, for its alt text: how much was counted, the most uneven layer, and experts left idle."""
    worst, counts = load.imbalance(), load.counts
    layer = int(worst.argmax())
    layers, experts = counts.shape
    idle = int((counts == 0).sum())
    return (
        f"A heat map of {layers} layers by {experts} experts, lighter where an expert got more of the "
        f"{int(counts[0].sum()):,} choices of a layer; layer {layer} is the most uneven, its expert "
        f"{int(counts[layer].argmax())} got {worst[layer]:.1f} times the mean, and {idle} of {layers * experts:,} "
        f"experts got no token."
    )
