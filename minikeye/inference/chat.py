"""A conversation of several turns in which nothing is read twice.

    chat = Chat(model, processor)
    chat.ask([{"type": "video", "video": "clip.mp4"}, {"type": "text", "text": "What happens?"}]).answer
    chat.ask("And then?", on_text=print)
    Chat(model, processor, tools=[look]).ask("What is on the sign?").steps  # what it called, and what came back

Each turn writes the whole conversation as a prompt, of which a `Reader` gives the model what it has not read. So a
template may rewrite the past as it likes, for example drop old thoughts: what differs is read anew.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from minikeye.inference.calling.calls import Call, Invalid, announced, read_calls, response
from minikeye.inference.calling.functions import Done, carried_out, named, schemas_of, shortened
from minikeye.inference.reader import Pixels, Reader
from minikeye.inference.text_stream import TextStream
from minikeye.inference.turns import OnCall, Reply, Step, in_thought, spoken, told_apart
from minikeye.inputs.processor import Message, Processor
from minikeye.inputs.prompt import THINK, Prompt
from minikeye.model.keye import KeyeModel
from minikeye.model.step import Mode

LONGEST = 4_000  # characters of a result; what is longer is cut, and says so. Our choice


class Chat:
    """One conversation: its messages, and the reader that knows what the model has read of them.

    system: words put before everything. thinking: whether the model may think before it answers (`Processor.build`).
    attention, backend: as in `generate`. record: keep in each reply what the model read for it. context: tokens that
    the conversation may have and that the cache makes room for at once; None: as many as the model takes, in a cache
    that grows. tools: functions that the model may call, typed and with docstrings (`functions.schemas_of`). It is told
    of them by the checkpoint's template where that has words for tools, else after the system's words.
    Raises ValueError for a context that the model does not have, and for tools that are none.
    """

    def __init__(
        self,
        model: KeyeModel,
        processor: Processor,
        *,
        system: str | None = None,
        tools: Sequence[Callable[..., Any]] = (),
        thinking: bool = True,
        attention: Mode = "sparse",
        backend: str = "auto",
        record: bool = False,
        context: int | None = None,
    ):
        most = model.config.text.max_positions
        if context is not None and not 1 <= context <= most:
            raise ValueError(f"expected a context of 1 to {most} tokens, got {context}")
        self.model, self.processor, self.context = model, processor, context
        self._options = {"attention": attention, "backend": backend, "record": record}
        self._functions = named(tools)
        self._schemas = schemas_of(self._functions)
        own = {"tools": list(self._schemas.values())} if tools and processor.announces_tools else {}
        self._layout = {"thinking": thinking, **own}
        words = [] if system is None else [system]
        words += [announced(self._schemas)] if tools and not own else []
        self._system: list[Message] = [{"role": "system", "content": "\n\n".join(words)}] if words else []
        self.reset()

    @property
    def messages(self) -> list[Message]:
        """The conversation so far, as `Processor` takes it; videos are Clips, images tensors. Not to be changed."""
        return list(self._messages)

    def reset(self) -> None:
        """Forget everything but the system's words."""
        self._messages = list(self._system)
        self._reader = Reader(self.model, self.context or 0)

    def ask(
        self,
        content: str | list[Any],
        *,
        max_new_tokens: int = 1024,
        on_text: Callable[[str], None] | None = None,
        on_call: OnCall | None = None,
        most_turns: int = 8,
        **sampling: Any,
    ) -> Reply:
        """The model's reply to the user's next turn; both are part of the conversation from then on.

        content: a string or a list of parts, as in a message of `Processor`. A video or image is read once and kept at
        the size it got. The videos of one question share a budget, and later ones change nothing about it (our choice).
        on_text: gets each piece of the reply, thought included, when it is certain. sampling: temperature, top_k, top_p
        and seed of `generate`. A turn of the model ends at one of `processor.stop_ids` or after max_new_tokens.

        Where the model calls tools, it reads what they gave, as a user's turn, and speaks again, up to most_turns times
        (our choice); the calls of the last of these turns are not carried out and stand in the reply's `left`. on_call:
        gets each call before it is carried out, with None, and afterwards, with what came of it. A call that is
        invalid, a tool that raises, and a result that cannot be shown or has no room in the context are told to the
        model as errors. Raises ValueError for content that does not fit, and where prompt and reply could exceed the
        context. Whatever is raised, Ctrl-C in a tool too, the conversation stays as it was before the question.
        """
        if most_turns < 1:
            raise ValueError(f"expected most_turns of at least 1, got {most_turns}")
        messages = [*self._messages, {"role": "user", "content": keep(content, self.processor)}]
        steps = list[Step]()
        self._reader.begin()
        while True:
            prompt, pixels = self._prompt(messages, max_new_tokens)
            said, message = self._speak(prompt, pixels, on_text, {"max_new_tokens": max_new_tokens, **sampling})
            messages = [*messages, message]
            calls = self._calls(prompt, said)
            if not calls or len(steps) + 1 == most_turns:
                break
            done = list[Done]()
            for call in calls:
                done.append(self._result(call, messages, done, max_new_tokens, on_call))
            messages = [*messages, told(done)]
            steps.append(Step(said, tuple(calls), tuple(done)))
        self._messages = messages
        self._reader.settle()
        return replace(said, steps=tuple(steps), left=tuple(calls))

    def _prompt(self, messages: list[Message], more: int) -> tuple[Prompt, Pixels]:
        """As of `Processor.build`. Raises ValueError where a reply of `more` tokens could exceed the context."""
        prompt, pixels = self.processor.build(messages, **self._layout)
        self._require_room(len(prompt.ids), more)
        return prompt, pixels

    def _speak(
        self, prompt: Prompt, pixels: Pixels, on_text: Callable[[str], None] | None, options: dict[str, Any]
    ) -> tuple[Reply, Message]:
        """One turn of the model, and what the conversation keeps of it. Its text is handed out on the way."""
        stream = TextStream(self.processor.tokenizer)

        def say(text: str) -> None:
            if text and on_text is not None:
                on_text(text)

        hear = None if on_text is None else lambda tokens: say(stream.add(int(tokens[0])))
        options = {"stop_ids": self.processor.stop_ids, "on_token": hear, **self._options, **options}
        out, reused = self._reader.go_on(prompt, pixels, **options)
        say(stream.end())
        thought, answer = told_apart(self.processor.tokenizer, out.row(), in_thought(prompt))
        reply = Reply(
            answer.strip("\n"),
            thought.strip("\n"),
            tuple(out.row()),
            out.record,
            tuple(prompt.frames),
            read=len(prompt.ids) - reused,
            reused=reused,
        )
        return reply, {"role": "assistant", "content": spoken(thought, answer)}

    def _calls(self, prompt: Prompt, said: Reply) -> list[Call | Invalid]:
        """The calls of a turn, as far as anything may be called; those in thoughts are none."""
        if not self._functions:
            return []
        words = self.processor.tokenizer.decode(list(said.ids), skip_special=False)
        return read_calls(THINK + words if in_thought(prompt) else words)

    def _result(
        self, call: Call | Invalid, messages: list[Message], before: list[Done], more: int, on_call: OnCall | None
    ) -> Done:
        """What came of a call; where that cannot stand beside the results before it, why not."""
        if on_call is not None:
            on_call(call, None)
        done = carried_out(call, self._functions, self._schemas, LONGEST)
        try:
            self._prompt([*messages, told([*before, done])], more)
        except ValueError as error:
            done = Done(shortened(f"error: {error}", LONGEST), "raised")
        if on_call is not None:
            on_call(call, done)
        return done

    def _require_room(self, tokens: int, more: int) -> None:
        most = self.model.config.text.max_positions if self.context is None else self.context
        if tokens + more - 1 > most:  # the last token is said, not read
            raise ValueError(
                f"a conversation of {tokens} tokens and a reply of up to {more} exceed the context of {most}: allow "
                f"fewer max_new_tokens, show fewer frames, or start again with reset()"
            )


def told(done: Sequence[Done]) -> Message:
    """The user's turn that tells what calls gave."""
    return {"role": "user", "content": response([one.result for one in done])}


def keep(content: str | list[Any], processor: Processor) -> str | list[Any]:
    """A user's content with its videos and images read: what the conversation remembers. It shares no memory with what
    the caller may change, Clips apart. What is no content is left for `Processor.build` to complain about.
    """
    if not isinstance(content, list):
        return content
    videos = sum(isinstance(part, Mapping) and part.get("type") == "video" for part in content)
    kept = []
    for part in content:
        match part:
            case {"type": "video", "video": _}:
                kept.append({"type": "video", "video": processor.clip(part, videos)})
            case {"type": "image", "image": source}:
                kept.append({"type": "image", "image": processor.image(source).clone()})
            case _:
                kept.append(dict(part) if isinstance(part, Mapping) else part)
    return kept
