"""minikeye: a readable reference implementation of Keye-VL-2.0.

The three public names are imported when they are first used (PEP 562), so that a light module such as
`minikeye.config` can be imported without PyAV or the tokenizers. In reading order:

    config        every number of the model
    model/        report, section 2: rope, vision, moe, indexer, cache, step, attention, decoder, record, batch, keye
    ops/          what attention and selection compute: torch_selection and torch_attention are the specification
    inputs/       from a video file to tokens: container, sampling, video, prompt, processor
    keye          KeyeVL: the network with load, save and generate, from checkpoint/ and inference/
    cost/         parameters, FLOP, bytes, memory
    minivid/      the synthetic world: videos whose events are known, and questions about them
    training/     stages, losses, the indexer's teacher; recipes/ are the scripts that were run
    explore/      which frames were read, and which lines of a text: counts, words, pictures, widgets
    evaluation/   what the checkpoint can do, what sparse attention costs, what the kernels gain
    cli/          the command line; exercises/ the checkers of the notebooks
"""

from importlib import import_module

__version__ = "0.1.0"
__all__ = ["KeyeConfig", "KeyeVL", "Processor", "__version__"]

_HOME = {"KeyeConfig": "minikeye.config", "KeyeVL": "minikeye.keye", "Processor": "minikeye.inputs.processor"}


def __getattr__(name: str) -> object:
    """Import the module that defines `name`; AttributeError for any other name."""
    if name not in _HOME:
        raise AttributeError(f"module 'minikeye' has no attribute {name!r}; its public names are {sorted(_HOME)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
