"""A conversation on the command line: questions from the keyboard, answers as they come, and what was called."""

from collections.abc import Sequence
from typing import Any

from minikeye.cli.opening import remark, remark_notes
from minikeye.cli.wording import in_flags, say
from minikeye.inference.calling.calls import Call, Invalid
from minikeye.inference.calling.functions import Done, shortened
from minikeye.inference.chat import Chat
from minikeye.inputs.processor import Clip
from minikeye.inputs.video import VideoPlan

WIDEST = 160  # characters of a call or a result that are shown


def converse(
    talk: Chat, shown: Sequence[dict[str, Any]], planned: Sequence[VideoPlan], options: dict[str, Any]
) -> None:
    """Ask what is typed until an empty line. shown: parts that the first question begins with. options: of `ask`."""
    remark("chat", "an empty line or Ctrl-D ends it, /reset starts again, Ctrl-C breaks off an answer")
    asked = False
    while question := read_line():
        if question == "/reset":
            talk.reset()
            asked = False
            continue
        parts = [*([] if asked else shown), {"type": "text", "text": question}]
        first = len(talk.messages)
        try:
            reply = talk.ask(parts, on_text=say, on_call=tell_call, **options)
        except KeyboardInterrupt:  # the answer is given up, not the conversation
            print(" (stopped)", end="")
        except ValueError as error:  # too long, say: another question may do
            print(f"error: {in_flags(error)}", end="")
        else:
            asked = True
            if reply.left:
                turns = len(reply.steps) + 1
                say(f"\n({turns} turns are used up, the calls of the last not carried out: ask again to go on)")
            if len(parts) > 1:
                clips = [part["video"] for part in talk.messages[first]["content"] if part["type"] == "video"]
                remark_notes([note for clip in clips for note in clip.notes], planned)
        print("\n")


def tell_call(call: Call | Invalid, done: Done | None) -> None:
    """A line for a call, another for what came of it: `on_call` of `Chat.ask`."""
    say(f"\ncall     {one_line(call)}" if done is None else f"\nresult   {one_line(done.result)}\n")
    if done is not None and isinstance(done.result, Clip):
        remark_notes(done.result.notes, [])


def one_line(what: Call | Invalid | Clip | str) -> str:
    """A call or a result in a short line."""
    match what:
        case Call(name, arguments):
            words = f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
        case Invalid():
            words = "none that can be read"
        case Clip(frames, seconds):
            span = f"{seconds[0]:.1f} s" if len(seconds) == 1 else f"{seconds[0]:.1f} to {seconds[-1]:.1f} s"
            words = f"{len(frames)} frame{'s' * (len(frames) != 1)}, {span}"
        case _:
            words = " ".join(what.split())
    return shortened(words, WIDEST)


def read_line() -> str:
    """A line from the keyboard; "" at the end of input."""
    try:
        return input("> ").strip()
    except EOFError:
        print()
        return ""
