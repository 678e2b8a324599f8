"""The chat template that ships with a checkpoint (jinja, run by rendering.py): a user's words stay words.

A template writes `<|im_start|>` and means the token; a user who writes it means the letters. After rendering both would
look alike. So each text goes in as a sentinel, and the rendered result is cut at the sentinels: between them special
tokens count, in the texts they do not. The n-th `<|image_pad|>` or `<|video_pad|>` becomes the n-th image or video.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from minikeye.inputs.prompt import RESPONDED, RESPONSE, THINK, THOUGHT, Prompt, Turn, Visual
from minikeye.inputs.rendering import render

OPEN, CLOSE = "\U0010f0a0", "\U0010f0a1"  # private-use characters around a text's number; no template has them
PADS = {"<|image_pad|>": "image", "<|video_pad|>": "video"}
# What templates look for in a turn: they drop thoughts up to the last user's turn that holds no results. As tokens a
# tokenizer takes these marks alike wherever they stand.
IN_SIGHT = {"assistant": (THINK, THOUGHT), "user": (RESPONSE, RESPONDED)}


class TemplateError(ValueError):
    """A chat template that cannot be run, or that does not say what the conversation says."""


class ChatTemplate:
    """A template. `write` lays a conversation out into a Prompt."""

    def __init__(self, source: str, where: str, tokens: Mapping[str, str] | None = None):
        """where: the file, for messages. tokens: names that the template may use, such as eos_token.

        `takes_tools` says whether it has words of its own for tools.
        Raises TemplateError for a template that does not compile.
        """
        self.source, self.where, self.tokens = source, where, dict(tokens or {})
        try:
            self.takes_tools = "tools" in render(source, None).split()
        except ValueError as error:  # also an unknown filter or tag
            raise TemplateError(f"{where} is not a template that jinja can run: {error}; mend or remove it") from error

    def write(
        self,
        prompt: Prompt,
        conversation: Sequence[Turn],
        thinking: bool = True,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Append the conversation, ending where the assistant is to speak.

        thinking: handed on as `enable_thinking`; a template that does not ask for it goes on as it likes.
        tools: schemas, {"type": "function", "function": {"name": ...}}, handed on under that name. Raises TemplateError
        where the template fails, drops, repeats or reorders a text, an image or a video, or leaves out a tool. Only
        what an assistant said before its last `</think>` may be dropped, as Qwen3's template does in earlier turns.
        """
        texts, droppable = _Texts(), set[int]()
        messages = [_message(turn, texts, droppable) for turn in conversation]
        pieces = re.split(f"{OPEN}([0-9]+){CLOSE}", self._render(messages, thinking, tools))
        self._check_texts([int(n) for n in pieces[1::2]], "".join(pieces[::2]), len(texts), droppable)
        self._check_tools(tools, "".join(pieces[::2]), prompt)
        visuals = [part for _, parts in conversation for part in parts if isinstance(part, Visual)]
        literal = [re.split("(" + "|".join(map(re.escape, PADS)) + ")", piece) for piece in pieces[::2]]
        self._check_visuals([PADS[pad] for piece in literal for pad in piece[1::2]], [v.kind for v in visuals])
        shown = iter(visuals)
        for n, piece in enumerate(pieces):
            if n % 2:
                prompt.text(texts[int(piece)])
                continue
            for m, words in enumerate(literal[n // 2]):
                if m % 2:
                    prompt.block(next(shown))
                else:
                    prompt.marked(words, prompt.tokenizer.marks)

    def _render(self, messages: list[dict[str, Any]], thinking: bool, tools: Sequence[Mapping[str, Any]]) -> str:
        options = {**self.tokens, "messages": messages, "add_generation_prompt": True, "enable_thinking": thinking}
        options |= {"tools": list(tools)} if tools else {}
        try:
            return render(self.source, options)
        except ValueError as error:
            raise TemplateError(
                f"{self.where} cannot lay out this conversation: {error}; its roles are "
                f"{', '.join(message['role'] for message in messages)}"
            ) from error

    def _check_texts(self, found: list[int], rest: str, count: int, droppable: set[int]) -> None:
        """Every text once, in order, whole."""
        absent = set(range(count)) - set(found) - droppable
        if absent or found != sorted(set(found)) or OPEN in rest or CLOSE in rest:
            raise TemplateError(
                f"{self.where} must write each text of the conversation once, in order and unchanged: of texts "
                f"0 to {count - 1} it left out {sorted(absent)} and wrote {found}; mend or remove it"
            )

    def _check_tools(self, tools: Sequence[Mapping[str, Any]], rest: str, prompt: Prompt) -> None:
        """Every tool is named, and none holds a mark, which would count here: a template's own words are not hidden."""
        if absent := [tool["function"]["name"] for tool in tools if tool["function"]["name"] not in rest]:
            raise TemplateError(f"{self.where} leaves out the tools {', '.join(absent)}: mend or remove it")
        words = json.dumps(list(tools), ensure_ascii=False)
        for name, token in prompt.tokenizer.marks.items():
            if name in words and prompt.tokenizer.encode(name) != [token]:
                raise TemplateError(f"expected tools whose docstrings hold no token's name, got {name}: reword them")

    def _check_visuals(self, found: list[str], expected: list[str]) -> None:
        if found != expected:
            raise TemplateError(
                f"{self.where} must write one placeholder for each of {expected or 'no images or videos'} in this "
                f"order, it wrote {found or 'none'}; mend or remove it"
            )


class _Texts(list[str]):
    """The texts that went in, each under its number."""

    def hide(self, text: str) -> str:
        """The sentinel of a text. White space around it stays in sight: templates look at it and strip it."""
        core = text.strip()
        if not core:
            return text
        self.append(core)
        before, after = text.split(core, 1)
        return f"{before}{OPEN}{len(self) - 1}{CLOSE}{after}"

    def hide_all_but(self, marks: Sequence[str], text: str) -> str:
        """The sentinels of a text in which these marks stay in sight."""
        pieces = re.split("(" + "|".join(marks) + ")", text) if marks else [text]
        return "".join(piece if n % 2 else self.hide(piece) for n, piece in enumerate(pieces))


def _message(turn: Turn, texts: _Texts, droppable: set[int]) -> dict[str, Any]:
    """The message that a template sees. Text alone is a string, which every template takes."""
    role, parts = turn
    first, content = len(texts), list[dict[str, str]]()
    for part in parts:
        if isinstance(part, Visual):
            content.append({"type": part.kind})
            continue
        content.append({"type": "text", "text": texts.hide_all_but(IN_SIGHT.get(role, ()), part)})
        if role == "assistant" and THOUGHT in part:
            answer = part.rpartition(THOUGHT)[2]
            droppable |= set(range(first, len(texts) - bool(answer.strip())))
    if any(part["type"] != "text" for part in content):
        return {"role": role, "content": content}
    return {"role": role, "content": "".join(part["text"] for part in content)}
