"""The face of the model: the network of `minikeye.model`, with loading, saving and generating.

model = KeyeVL.from_pretrained("assets/checkpoints/mini")
out = model.generate(inputs, max_new_tokens=32, stop_ids=processor.stop_ids)
"""

from minikeye.checkpoint.loader import load
from minikeye.checkpoint.tensors import save
from minikeye.inference.generate import generate
from minikeye.model.keye import KeyeModel


class KeyeVL(KeyeModel):
    """Keye-VL-2.0 at any size: `KeyeVL(KeyeConfig.nano())`, `KeyeVL.from_pretrained(folder)`."""

    from_pretrained = classmethod(load)
    save_pretrained = save
    generate = generate
