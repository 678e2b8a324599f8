"""What a conversation gives back: what the model said, what it called on the way, and what came of it.

A `Reply` is a turn of the model. Where it called tools before it answered, each of those turns is a `Step`: a reply of
its own, with the record of what was read for it, and the results that stand between it and the next.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from minikeye.inference.calling.calls import Call, Invalid
from minikeye.inference.calling.functions import Done
from minikeye.inference.text_stream import split_thought
from minikeye.inputs.prompt import THINK, THOUGHT, FrameSpan, Prompt
from minikeye.inputs.tokenizer import Tokenizer
from minikeye.model.record import Record

OnCall = Callable[[Call | Invalid, Done | None], None]  # before a call is carried out (None), and afterwards


@dataclass(frozen=True, eq=False)
class Reply:
    """What the model said in one turn, and what that took; of an answer also what led to it."""

    answer: str  # without its thought, and without line breaks at either end
    thought: str  # what stood between <think> and </think>, likewise; "" where there was none
    ids: tuple[int, ...]  # every token generated, thought and marks included, the stop token not
    record: Record | None  # what was read for each of them, at positions of the whole conversation
    frames: tuple[FrameSpan, ...]  # where every video frame of the conversation stands
    read: int  # tokens of the prompt that were read for this turn
    reused: int  # tokens of the prompt that the cache held
    steps: tuple["Step", ...] = ()  # the turns before this one in which it called, in order
    left: tuple[Call | Invalid, ...] = ()  # calls of the last turn that was allowed: not carried out


@dataclass(frozen=True, eq=False)
class Step:
    """A turn of the model in which it called."""

    said: Reply  # its frames are those before the results
    calls: tuple[Call | Invalid, ...]
    done: tuple[Done, ...]  # what came of each; `result` is what the model read or saw next


def in_thought(prompt: Prompt) -> bool:
    """Whether the prompt ends inside a thought, which some templates open themselves."""
    number = prompt.tokenizer.token_id
    turn = prompt.ids[len(prompt.ids) - prompt.ids[::-1].index(number("<|im_start|>")) :]
    return number(THINK) in turn and number(THOUGHT) not in turn


def told_apart(tokenizer: Tokenizer, ids: Sequence[int], opened: bool) -> tuple[str, str]:
    """Thought and answer of a turn's tokens, in words. opened: it began inside a thought."""
    thought, answer = split_thought(tokenizer, ids, opened)
    return tokenizer.decode(thought), tokenizer.decode(answer)


def spoken(thought: str, answer: str) -> str:
    """A reply as a message keeps it: a template sees the marks and may drop the thought. An unfinished one is closed,
    so that what follows does not seem to be thought (our choice)."""
    return f"{THINK}{thought}{THOUGHT}{answer}" if thought else answer
