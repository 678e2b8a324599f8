"""minikeye: a readable reference implementation of Keye-VL-2.0.

The three public names are imported when they are first used (PEP 562), so that a light module such as
`minikeye.config` can be imported without PyAV or the tokenizers.
"""

from importlib import import_module

__version__ = "0.1.0"
__all__ = ["KeyeConfig", "KeyeVL", "Processor", "__version__"]

_HOME = {"KeyeConfig": "minikeye.config", "KeyeVL": "minikeye.model", "Processor": "minikeye.processor"}


def __getattr__(name: str) -> object:
    """Import the module that defines `name`; AttributeError for any other name."""
    if name not in _HOME:
        raise AttributeError(f"module 'minikeye' has no attribute {name!r}; its public names are {sorted(_HOME)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
