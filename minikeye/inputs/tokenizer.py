"""Text to token ids and back: bytes for the small models, the released tokenizer.json through `tokenizers`.

Both answer the same questions: `encode`, `decode`, `token_id`, and which `marks` there are, i.e. tokens with a name.
`encode` never yields a special token: a user who types "<|im_end|>" gets its letters. Special tokens enter a prompt by
name only, through `token_id`. `<think>` is no special token in Qwen3's file, so `encode` yields it: kept as released.
"""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from minikeye.config import KeyeConfig
from minikeye.config_json import shown
from minikeye.files import file_in, read_json

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|frame|>",
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
)
# No prompt can be written without these. The report does not state the id of <|frame|>: all go by name.
PROMPT_TOKENS = SPECIAL_TOKENS[:8]
# The parts of a byte-level BPE. Others are not Keye's, and some end the process where their numbers are wrong.
PARTS = {
    "normalizer": {"NFC", "NFD", "NFKC", "NFKD", "Sequence"},
    "pre_tokenizer": {"ByteLevel", "Digits", "Sequence", "Split"},
    "post_processor": {"ByteLevel", "Sequence", "TemplateProcessing"},  # of special tokens, which are not asked for
    "decoder": {"ByteLevel", "Sequence"},
}


class ByteTokenizer:
    """UTF-8 bytes are tokens 0..255; the special tokens follow. Needs no file."""

    def __init__(self) -> None:
        self._ids = {name: 256 + n for n, name in enumerate(SPECIAL_TOKENS)}
        self._names = {n: name for name, n in self._ids.items()}

    @property
    def marks(self) -> dict[str, int]:
        """The special tokens: name -> id."""
        return dict(self._ids)

    @property
    def largest_id(self) -> int:
        return max(self._names)

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        """Text of the ids. Bytes that are not UTF-8 show as U+FFFD; ids beyond the special tokens are nothing."""
        pieces = (bytes([n]) if n < 256 else b"" if skip_special else self._names.get(n, "").encode() for n in ids)
        return b"".join(pieces).decode(errors="replace")

    def token_id(self, name: str) -> int:
        """Id of a special token. Raises KeyError, listing the names there are."""
        if name not in self._ids:
            raise KeyError(f"no special token {name!r}; there are {', '.join(self._ids)}")
        return self._ids[name]


class ReleasedTokenizer:
    """A byte-level BPE: the Qwen3 tokenizer that ships with Keye-VL-2.0, read from its tokenizer.json."""

    def __init__(self, path: str | Path):
        self._read(read_json(path), path)

    @classmethod
    def of(cls, content: dict[str, Any], path: str | Path) -> "ReleasedTokenizer":
        """The same from what such a file would hold. path: where it is from, for messages."""
        tokenizer = cls.__new__(cls)
        tokenizer._read(content, path)
        return tokenizer

    def _read(self, content: dict[str, Any], path: str | Path) -> None:
        check_parts(path, content)
        self._path = path
        try:
            self._fast = FastTokenizer.from_str(json.dumps(content))
        except BaseException as error:
            raise _not_ours(error, f"{path} is not a readable tokenizer.json") from error
        self._fast.encode_special_tokens = True  # special tokens in user text are text

    @cached_property
    def marks(self) -> dict[str, int]:
        """Every token that was added to the vocabulary by name, special or not (`<think>`): name -> id."""
        return {token.content: n for n, token in self._fast.get_added_tokens_decoder().items()}

    @cached_property
    def largest_id(self) -> int:
        return max(self._fast.get_vocab(with_added_tokens=True).values())

    def encode(self, text: str) -> list[int]:
        """Raises ValueError where the file's rules for cutting text fail on this text."""
        try:
            return self._fast.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            raise _not_ours(error, "tokenizer.json cannot cut this text into words") from error

    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        return self._fast.decode(ids, skip_special_tokens=skip_special)

    def token_id(self, name: str) -> int:
        """Id of a special token. Raises KeyError where the file does not define it."""
        n = self._fast.token_to_id(name)
        if n is None:
            raise KeyError(f"{self._path} defines no token {name!r}: is it the tokenizer of this model?")
        return n


def check_parts(path: str | Path, content: dict[str, Any]) -> None:
    """Raise ValueError for a tokenizer.json with what a chat model never has: it would cut a question, or worse."""
    for key in ("truncation", "padding"):
        if content.get(key) is not None:
            raise ValueError(f"{path} states {key} {shown(content[key])}: a chat model has none, set it to null")
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or model.get("dropout"):
        dropout = f" with dropout {shown(model['dropout'])}" if isinstance(model, dict) and model.get("dropout") else ""
        kind = model.get("type") if isinstance(model, dict) else model
        raise ValueError(f"{path} is not a readable tokenizer.json: expected BPE, got {shown(kind)}{dropout}")
    for key, allowed in PARTS.items():
        rest = [content.get(key)]
        while rest:
            part = rest.pop()
            rest += part.values() if isinstance(part, dict) else part if isinstance(part, list) else []
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind not in allowed and not {"SpecialToken", "Sequence"} & part.keys():
                raise ValueError(f"{path} has a {key} {shown(kind)}; minikeye takes {', '.join(sorted(allowed))}")


def _not_ours(error: BaseException, message: str) -> BaseException:
    """The library raises bare Exceptions, and panics, which are none, for every kind of bad file: one ValueError."""
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return ValueError(f"{message}: {error!s:.200}")
    return error


Tokenizer = ByteTokenizer | ReleasedTokenizer


def load_tokenizer(config: KeyeConfig, folder: str | Path | None = None) -> Tokenizer:
    """The folder's tokenizer.json where there is one, else bytes for a model whose vocabulary is theirs.

    Raises ValueError where the tokenizer lacks a token that prompts are made of, where its placeholder ids are not
    those of the config, or where no tokenizer fits.
    """
    path = file_in(folder, "tokenizer.json") if folder is not None else None
    if path is not None and path.exists():
        tokenizer: Tokenizer = ReleasedTokenizer(path)
    elif config.text.vocab <= 1024:
        tokenizer, path = ByteTokenizer(), None
    else:
        raise ValueError(
            f"a vocabulary of {config.text.vocab} needs a tokenizer.json in the checkpoint's folder ({folder})"
        )
    where = path or "the byte tokenizer"
    if missing := [name for name in PROMPT_TOKENS if name not in tokenizer.marks]:
        raise ValueError(f"{where} defines no token {', '.join(missing)}: is it the tokenizer of Keye-VL-2.0?")
    for name, expected in (("<|image_pad|>", config.image_token_id), ("<|video_pad|>", config.video_token_id)):
        if tokenizer.token_id(name) != expected:
            raise ValueError(
                f"{name} is token {tokenizer.token_id(name)} in {where} but {expected} in config.json: "
                "the two belong to different models"
            )
    return tokenizer
