"""Text to token ids and back: bytes for the small models, the released tokenizer.json through `tokenizers`.

Both answer the same questions: `encode`, `decode`, `token_id`, and which `marks` there are, i.e. tokens with a name.
`encode` never yields a special token: a user who types "<|im_end|>" gets its letters. Special tokens enter a prompt by
name only, through `token_id`. `<think>` is no special token in Qwen3's file, so `encode` yields it: kept as released.
"""

from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer

from minikeye.config import KeyeConfig

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
    """The Qwen3 tokenizer that ships with Keye-VL-2.0, read from its tokenizer.json."""

    def __init__(self, path: str | Path):
        try:
            self._fast = FastTokenizer.from_file(str(path))
        except Exception as error:  # the library raises a bare Exception for every kind of bad file
            raise ValueError(f"{path} is not a readable tokenizer.json: {error}") from error
        self._fast.encode_special_tokens = True  # special tokens in user text are text

    @cached_property
    def marks(self) -> dict[str, int]:
        """Every token that was added to the vocabulary by name, special or not (`<think>`): name -> id."""
        return {token.content: n for n, token in self._fast.get_added_tokens_decoder().items()}

    @cached_property
    def largest_id(self) -> int:
        return max(self._fast.get_vocab(with_added_tokens=True).values())

    def encode(self, text: str) -> list[int]:
        return self._fast.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        return self._fast.decode(ids, skip_special_tokens=skip_special)

    def token_id(self, name: str) -> int:
        """Id of a special token. Raises KeyError where the file does not define it."""
        n = self._fast.token_to_id(name)
        if n is None:
            raise KeyError(f"tokenizer.json defines no token {name!r}: is it the tokenizer of Keye-VL-2.0?")
        return n


Tokenizer = ByteTokenizer | ReleasedTokenizer


def load_tokenizer(config: KeyeConfig, folder: str | Path | None = None) -> Tokenizer:
    """The folder's tokenizer.json where there is one, else bytes for a model whose vocabulary is theirs.

    Raises ValueError where the tokenizer lacks a token that prompts are made of, where its placeholder ids are not
    those of the config, or where no tokenizer fits.
    """
    path = Path(folder) / "tokenizer.json" if folder is not None else None
    if path is not None and path.is_file():
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
