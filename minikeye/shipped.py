"""Where the checkpoint lies that comes with the repository. The installed package alone does not have it."""

from pathlib import Path

CHECKPOINT = Path(__file__).resolve().parent.parent / "assets" / "checkpoints" / "mini"
