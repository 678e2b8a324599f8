"""The tokenizer that lies in a GGUF file beside the weights: a byte-level BPE, its special tokens, its chat template.

    tokenizer = gguf_tokenizer(path)
    ids = conversation_ids(path, tokenizer, [("user", "What is a radix sort?")])

How text is cut before BPE is in the file by name only ("smollm": each digit alone, then as GPT-2). transformers' reader
of GGUF ignores that name, and gives other tokens where two or more blanks stand before a digit.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minikeye.inputs.gguf_file import stated
from minikeye.inputs.prompt import Prompt
from minikeye.inputs.template import ChatTemplate
from minikeye.inputs.tokenizer import ReleasedTokenizer

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
CUTS = {"smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTES]}}
ROLES = ("system", "user", "assistant")
NORMAL, CONTROL, UNUSED = 1, 3, 5  # the file's numbers for kinds of tokens; CONTROL: one with a name


def gguf_tokenizer(path: str | Path) -> ReleasedTokenizer:
    """The file's tokenizer. `encode` yields no special token, whatever is typed; they go in by `token_id`.

    Raises FileNotFoundError where there is no file, ValueError for one without a byte-level BPE whose cut is known.
    """
    return ReleasedTokenizer.of(tokenizer_json(path), Path(path))


def tokenizer_json(path: str | Path) -> dict[str, Any]:
    """What a tokenizer.json of this model holds. Raises as `gguf_tokenizer`."""
    kind, cut = (_field(path, f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if kind != "gpt2" or not isinstance(cut, str) or cut not in CUTS:
        raise ValueError(f"{path} holds a tokenizer {kind!r} cut as {cut!r}; expected 'gpt2', cut as {', '.join(CUTS)}")
    tokens, types, merges = (_field(path, f"tokenizer.ggml.{key}") for key in ("tokens", "token_type", "merges"))
    _check(path, tokens, types)
    marks = [n for n, number in enumerate(types) if number == CONTROL]
    mark = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": n, "content": tokens[n], **mark} for n in marks],
        "pre_tokenizer": CUTS[cut],
        "decoder": BYTES,
        "model": {"type": "BPE", "vocab": {token: n for n, token in enumerate(tokens)}, "merges": merges},
    }


def _check(path: str | Path, tokens: Any, types: Any) -> None:
    """Raise ValueError for a vocabulary that would be another tokenizer in silence."""
    words = isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)
    if not words or len(set(tokens)) != len(tokens):
        raise ValueError(f"{path} must state tokenizer.ggml.tokens as a list of words, each once")
    if (rows := stated(path, "llama.vocab_size")) not in (None, len(tokens)):
        raise ValueError(f"{path} states {len(tokens)} words for a model of {rows} tokens: they belong to two models")
    if not isinstance(types, list) or len(types) != len(tokens) or not {*types} <= {NORMAL, CONTROL, UNUSED}:
        raise ValueError(
            f"{path} must state a tokenizer.ggml.token_type for each of its {len(tokens)} tokens: {NORMAL} (of the "
            f"BPE), {CONTROL} (with a name) or {UNUSED} (unused); got {types!r:.60}"
        )


def conversation_ids(
    path: str | Path, tokenizer: ReleasedTokenizer, conversation: Sequence[tuple[str, str]]
) -> list[int]:
    """Tokens of a conversation by the file's own template, ending where the assistant is to speak.

    conversation: (role, text) of each turn, at least one; role: "system", "user" or "assistant". Raises ValueError for
    anything else, and where the file has no template, TemplateError as `ChatTemplate.write` does.

        ids = torch.tensor([conversation_ids(path, tokenizer, [("user", "Name a planet.")])])
        out = model.generate({"input_ids": ids}, max_new_tokens=20, stop_ids=(tokenizer.token_id("<|im_end|>"),))
        tokenizer.decode(out.ids[0].tolist())
    """
    turns = list(conversation) if isinstance(conversation, list | tuple) else []
    pairs = [t for t in turns if isinstance(t, tuple) and [*map(type, t)] == [str, str] and t[0] in ROLES]
    if not pairs or len(pairs) != len(turns):
        raise ValueError(f'expected [("user", text), ...], roles {", ".join(ROLES)}; got {conversation!r:.100}')
    prompt = Prompt(tokenizer, merge=1)
    template = ChatTemplate(_field(path, "tokenizer.chat_template"), str(path))
    template.write(prompt, [(role, [text]) for role, text in conversation])
    return prompt.ids


def _field(path: str | Path, key: str) -> Any:
    if (found := stated(path, key)) is None:
        raise ValueError(f"{path} states no {key}: expected a GGUF file of a chat model")
    return found
