"""Checkpoints: the released format, three ways to hold a model, and folders of random weights to try them on."""

from minikeye.checkpoint.loader import load
from minikeye.checkpoint.tensors import CheckpointError, save, tensor_files

__all__ = ["CheckpointError", "load", "save", "tensor_files"]
