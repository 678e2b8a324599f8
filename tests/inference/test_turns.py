"""A model that calls tools in a conversation: what it says is scripted, what it reads is not."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

import minikeye.inference.generate
from minikeye import KeyeConfig, KeyeVL, Processor
from minikeye.inference import reader
from minikeye.inference.calling.calls import MOST, Call, Invalid, announced, written
from minikeye.inference.calling.functions import Done, named, schemas_of
from minikeye.inference.chat import Chat
from minikeye.inference.generate import Generation
from minikeye.inference.reader import unread
from minikeye.inputs.processor import Clip
from minikeye.inputs.prompt import Prompt
from minikeye.inputs.template import ChatTemplate

NANO = Processor(KeyeConfig.nano())
QWEN_3 = (Path(__file__).parents[1] / "inputs" / "qwen3.jinja").read_text(encoding="utf-8")
STOP = NANO.stop_ids[0]


class Stop(BaseException):
    """As Ctrl-C: no Exception."""


def frames(seed: int, count: int = 3) -> Clip:
    noise = np.random.default_rng(seed).integers(0, 256, (count, 3, 28, 56), dtype=np.uint8)
    return Clip(torch.from_numpy(noise), [4.0 + n / 4 for n in range(count)])


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def video(seed: int) -> dict:
    return {"type": "video", "video": frames(seed, 5)}


def add(a: int, b: int) -> int:
    """The sum of two numbers."""
    return a + b


def look(start: float, end: float) -> Clip:
    """Show seconds of the video again."""
    assert isinstance(start, float) and isinstance(end, float)  # although JSON has 4
    return frames(round(start))


def fail(why: str) -> str:
    """Raise an error."""
    raise RuntimeError(why)


TOOLS = [add, look, fail]
ADD, LOOK, FAIL = Call("add", {"a": 2, "b": 3}), Call("look", {"start": 4, "end": 4.5}), Call("fail", {"why": "no"})


def tokens(words: str) -> list[int]:
    """What a model draws that says these words: its marks of thoughts are tokens."""
    prompt = Prompt(NANO.tokenizer, 2)
    prompt.said(words)
    return prompt.ids


class Script:
    """What the model says, turn by turn, in the place of `generate`; and what it saw."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.inputs: list[dict] = []  # of each turn
        self.logits: list[torch.Tensor] = []  # of each turn, for every token that it says and for the one that ends it

    def say(self, *words: str) -> None:
        self.words = list(words)

    def generate(self, model, inputs, *, cache, attention, on_token, **rest) -> Generation:
        row = tokens(self.words.pop(0))
        with torch.no_grad(), cache.all_or_nothing():
            logits = model(inputs, cache, attention, last=1).logits
            for token in row:
                on_token is None or on_token(torch.tensor([token]))
            if row:
                logits = torch.cat([logits, model({"input_ids": torch.tensor([row])}, cache, attention).logits], dim=1)
        self.inputs.append(inputs)
        self.logits.append(logits[0])
        nothing = torch.zeros(1, len(row))
        return Generation(torch.tensor([row]).long(), nothing, torch.tensor([STOP]), torch.zeros(1), None, cache)


@pytest.fixture
def script(monkeypatch) -> Script:
    script = Script()
    monkeypatch.setattr(reader, "generate", script.generate)
    return script


@pytest.fixture
def model(lively) -> KeyeVL:
    return lively


def templated(source: str) -> Processor:
    processor = Processor(NANO.config)
    processor.template = ChatTemplate(source, "here/chat_template.jinja")
    return processor


def turns(reply):
    """Every turn of the model that led to a reply, itself the last."""
    return [*(step.said for step in reply.steps), reply]


# ------------------------------------------------------------------------------------- what is called, and what is read


def test_calls_are_carried_out_and_told(model, script):
    """Two turns with calls, one of them with two; then the answer. What is called is told before it is carried out."""
    script.say(f"Let me see.\n{written(ADD)}", f"{written(FAIL)}\n{written(ADD)}", "Five.")
    log = []
    chat = Chat(model, NANO, tools=TOOLS)
    reply = chat.ask("What is 2 + 3?", on_call=lambda *what: log.append(what))
    assert (reply.answer, reply.left) == ("Five.", ())
    assert [step.calls for step in reply.steps] == [(ADD,), (FAIL, ADD)]
    done = Done("5"), Done("error: RuntimeError: no", "raised"), Done("5")
    assert [step.done for step in reply.steps] == [done[:1], done[1:]]
    assert reply.steps[0].said.answer == f"Let me see.\n{written(ADD)}" and reply.steps[0].said.steps == ()
    assert log == [(ADD, None), (ADD, done[0]), (FAIL, None), (FAIL, done[1]), (ADD, None), (ADD, done[2])]
    assert chat.messages == [
        {"role": "system", "content": announced(schemas_of(named(TOOLS)))},
        {"role": "user", "content": "What is 2 + 3?"},
        {"role": "assistant", "content": f"Let me see.\n{written(ADD)}"},
        {"role": "user", "content": "<tool_response>\n5\n</tool_response>"},
        {"role": "assistant", "content": f"{written(FAIL)}\n{written(ADD)}"},
        {
            "role": "user",
            "content": "<tool_response>\nerror: RuntimeError: no\n</tool_response>\n"
            "<tool_response>\n5\n</tool_response>",
        },
        {"role": "assistant", "content": "Five."},
    ]


# Two questions: with a thought, frames that a tool shows beside text, and a call that is none.
QUESTIONS = [[video(1), text("Which digit?")], "Are you sure?"]
SAID = [f"<think>\nhm\n</think>\n\n{written(LOOK)}\n{written(ADD)}", written(FAIL), "7"]
SAID_LATER = [f"{written(LOOK)}<tool_call>\n{{", "Yes."]


@pytest.mark.parametrize("attention", ["sparse", "dense"])
@pytest.mark.parametrize("template", [None, QWEN_3], ids=["ChatML", "template"])
def test_a_conversation_is_the_one_computed_from_nothing(model, script, attention, template):
    """Logits of every turn, not only of its last token: the messages so far, and what was said, in a single pass of a
    model that has read nothing. The template drops the thought when the next question comes."""
    script.say(*SAID, *SAID_LATER)
    processor = NANO if template is None else templated(template)
    chat = Chat(model, processor, tools=TOOLS, system="Be brief.", attention=attention)
    replies = [chat.ask(content) for content in QUESTIONS]
    assert [len(reply.steps) for reply in replies] == [2, 1]
    shown = {} if template is None else {"tools": list(schemas_of(named(TOOLS)).values())}
    answers = [at for at, message in enumerate(chat.messages) if message["role"] == "assistant"]
    for at, turn, logits in zip(answers, [*turns(replies[0]), *turns(replies[1])], script.logits, strict=True):
        prompt, pixels = processor.build(chat.messages[:at], **shown)
        assert turn.read + turn.reused == len(prompt.ids)
        prompt.drawn(turn.ids)
        whole = model(unread(prompt, pixels, 0), attention=attention, last=len(logits)).logits[0]
        torch.testing.assert_close(logits, whole, atol=1e-4, rtol=1e-4)
    thoughts = prompt.ids.count(NANO.tokenizer.token_id("<think>"))
    assert thoughts == (1 if template is None else 0) and len(prompt.frames) == 5 + 3 + 3


def test_by_a_template_of_its_own_it_is_the_same(model, script):
    """Qwen3's form against ChatML: the same tokens are read of the first question, so that no bit of a logit differs;
    only the messages do not name the tools."""
    replies, chats = [], [Chat(model, p, tools=TOOLS, system="Be brief.") for p in (NANO, templated(QWEN_3))]
    for chat in chats:
        script.say(*SAID)
        replies.append(chat.ask(QUESTIONS[0]))
    one, other = map(turns, replies)
    assert [(t.ids, t.read, t.reused, t.frames) for t in one] == [(t.ids, t.read, t.reused, t.frames) for t in other]
    assert len(one) == 3 and all(map(torch.equal, script.logits[:3], script.logits[3:]))
    own, listed = chats[1].messages[0], chats[0].messages[0]
    assert own == {"role": "system", "content": "Be brief."}
    assert listed["content"] == f"Be brief.\n\n{announced(schemas_of(named(TOOLS)))}"


def test_nothing_is_read_twice(model, script):
    """Of a result as many tokens as it has, counted by hand; frames of the user's and of the tool's once each."""
    script.say(written(ADD), written(LOOK), "7", "8")
    chat = Chat(model, NANO, tools=TOOLS)
    reply = chat.ask([video(1), text("Well?")])
    first, second, last = turns(reply)
    marks = "_\n_user\n"  # a _ is a special token: the end of the model's turn is read with what follows
    sum_ = len(f"{marks}<tool_response>\n5\n</tool_response>_\n_assistant\n")
    assert (second.read, second.reused) == (sum_, first.read + len(first.ids))
    sight = len(f"{marks}<tool_response>\n__\n</tool_response>_\n_assistant\n") + 3 * (len("_4.0") + 2)
    assert (last.read, last.reused) == (sight, second.read + second.reused + len(second.ids))
    assert chat.ask("Sure?").read == len(f"{marks}Sure?_\n_assistant\n")
    assert [len(inputs.get("grids", [])) for inputs in script.inputs] == [5, 0, 3, 0]


def test_every_turn_has_its_record_and_frames(model, monkeypatch):
    """Drawn by `generate` itself. Before the look 5 frames could be selected, after it 8; each turn's record is that of
    the messages so far, computed from nothing."""
    left = iter([*tokens(written(LOOK)), STOP, *tokens("It is"), STOP])
    monkeypatch.setattr(minikeye.inference.generate, "sample", lambda *_: torch.tensor([next(left)]))
    chat = Chat(model, NANO, tools=[look], record=True)
    pieces = []
    reply = chat.ask([video(1), text("Well?")], on_text=pieces.append)
    assert "".join(pieces) == f"{written(LOOK)}It is"
    (step,) = reply.steps
    assert [len(turn.frames) for turn in turns(reply)] == [5, 8]
    assert reply.frames[:5] == step.said.frames and [f.video for f in reply.frames] == [0] * 5 + [1] * 3
    assert torch.equal(step.done[0].result.frames, frames(4).frames)
    for turn, at in ((step.said, 2), (reply, 4)):
        left = iter(turn.ids)
        fresh = model.generate(NANO(chat.messages[:at]), max_new_tokens=len(turn.ids), record=True).record
        assert turn.record.first == fresh.first == turn.read + turn.reused - 1
        for mine, theirs in zip(turn.record.layers, fresh.layers, strict=True):
            assert torch.equal(mine.indices, theirs.indices) and len(mine.indices[0]) == len(turn.ids)


# --------------------------------------------------------------------------------------------------- what may go wrong


def small(side: int = 27) -> Clip:
    """Show what does not fit."""
    return Clip(torch.zeros(1, 3, side, 28, dtype=torch.uint8), [0.0])


def untimed() -> Clip:
    """Show frames without times."""
    return Clip(torch.zeros(2, 3, 28, 28, dtype=torch.uint8), [0.0])


def no_json() -> set:
    """Give what JSON has not."""
    return {1}


def huge() -> Clip:
    """Show more than there is room for."""
    return frames(0, 500)


@pytest.mark.parametrize(
    ("said", "error", "kind"),
    [
        (written(FAIL), "error: RuntimeError: no", "raised"),
        (written(Call("small", {})), "error: expected frames with sides multiples of 28 pixels", "raised"),
        (written(Call("untimed", {})), "error: ValueError: expected a finite second for each of 2 frames", "raised"),
        (written(Call("no_json", {})), "error: TypeError: Object of type set is not JSON", "raised"),
        (written(Call("huge", {})), "and a reply of up to 30 exceed the context of 4096", "raised"),
        (written(Call("add", {"a": 1})), "error: add needs b", "invalid"),
        (written(Call("rm", {})), "error: no tool is called 'rm'; there are add, fail, small,", "invalid"),
        ("<tool_call>\n{", "error: expected </tool_call> after <tool_call>", "invalid"),
    ],
)
def test_what_goes_wrong_is_told(model, script, said, error, kind):
    """And the conversation goes on: in the same turn, another call is carried out all the same."""
    script.say(f"{written(ADD)}{said}", "I see.")
    chat = Chat(model, NANO, tools=[add, fail, small, untimed, no_json, huge])
    reply = chat.ask("Hi", max_new_tokens=30)
    (step,) = reply.steps
    assert step.done[0] == Done("5") and reply.answer == "I see."
    assert error in step.done[1].result and step.done[1].error == kind
    assert step.done[1].result in chat.messages[-2]["content"]


def test_a_long_result_is_cut(model, script, monkeypatch):
    monkeypatch.setattr(minikeye.inference.chat, "LONGEST", 3)
    script.say(written(Call("add", {"a": 99_999, "b": 1})), "I see.")
    (step,) = Chat(model, NANO, tools=[add]).ask("Hi").steps
    assert step.done == (Done("100... (the first 3 of 6 characters)"),)


def test_a_context_without_room_for_an_error(model, script):
    """The announcement, the question, the call: 16 more tokens hold no result, and no error. Nothing was asked."""
    script.say(written(ADD))
    sizes = Chat(model, NANO, tools=[add]).ask("Hi", most_turns=1)
    chat = Chat(model, NANO, tools=[add], context=sizes.read + len(sizes.ids) + 16)
    before = chat.messages
    script.say(written(ADD), "5")
    with pytest.raises(ValueError, match=r"exceed the context of \d+: allow fewer max_new_tokens"):
        chat.ask("Hi", max_new_tokens=len(sizes.ids))
    assert chat.messages == before
    script.say("Hello")
    assert chat.ask("Hi", max_new_tokens=9).answer == "Hello"


def test_calls_that_are_none(model, script):
    """Inside a thought, also one that the turn did not begin with or that never ends; and where there are no tools."""
    begun = f"<think>{written(ADD)}"
    for words in (f"{begun}</think>", f"a<think>b</think>c{begun}</think>", begun):
        script.say(words)
        assert Chat(model, NANO, tools=TOOLS).ask("Hi").steps == ()
    script.say(written(ADD))
    reply = Chat(model, NANO).ask("Hi")
    assert (reply.answer, reply.steps, reply.left) == (written(ADD), (), ())


def test_a_thought_that_the_template_opens(model, script):
    source = QWEN_3.replace("assistant\\n' }}\n    {%- if enable", "assistant\\n<think>' }}\n    {%- if enable")
    assert source != QWEN_3
    call = written(ADD)
    for words, steps in ((f"hm{call}</think>no.", 0), (f"hm{call}", 0), (f"hm</think>{call}", 1)):
        script.say(words, "</think>Five.")
        assert len(Chat(model, templated(source), tools=TOOLS).ask("Hi").steps) == steps


def test_the_turns_of_a_question_are_counted(model, script):
    """The calls of the last are not carried out; the reply has them, and the conversation goes on."""
    called = []

    def note(n: int) -> str:
        """Note a number."""
        called.append(n)
        return "noted"

    calls = [Call("note", {"n": n}) for n in range(4)]
    script.say(written(calls[0]), written(calls[1]), f"{written(calls[2])}{written(calls[3])}")
    chat = Chat(model, NANO, tools=[note])
    log = []
    reply = chat.ask("Hi", most_turns=3, on_call=lambda *what: log.append(what))
    assert called == [0, 1] and len(log) == 4 and reply.left == tuple(calls[2:]) and len(reply.steps) == 2
    assert [message["role"] for message in chat.messages[1:]] == ["user", "assistant"] * 3
    script.say("Done.")
    assert chat.ask("Go on").answer == "Done."
    script.say(*([written(calls[0])] * 8))
    assert len(chat.ask("Again").steps) == 7 and len(called) == 2 + 7
    with pytest.raises(ValueError, match="expected most_turns of at least 1, got 0"):
        chat.ask("Hi", most_turns=0)


def test_many_calls_of_a_turn(model, script):
    """The first MOST are carried out, and the model is told so."""
    script.say(written(ADD) * (MOST + 1), "Five.")
    (step,) = Chat(model, NANO, tools=[add]).ask("Hi").steps
    assert step.calls[:-1] == (ADD,) * MOST and isinstance(step.calls[-1], Invalid)
    assert f"error: expected at most {MOST} calls in a turn" in step.done[-1].result


# ---------------------------------------------------------------------------------------------------------- interrupts


def throw(*_, **named):
    raise Stop


def in_a_tool(chat, monkeypatch):
    monkeypatch.setitem(chat._functions, "look", throw)
    return {}


def before_a_call(chat, monkeypatch):
    return {"on_call": lambda call, done: throw() if done is None else None}


def after_a_call(chat, monkeypatch):
    return {"on_call": lambda call, done: throw() if done is not None else None}


def in_the_first_turn(chat, monkeypatch):
    return {"on_text": throw}


def in_the_second_turn(chat, monkeypatch):
    """In the middle of its words."""
    pieces = []
    return {"on_text": lambda piece: pieces.append(piece) or (len(pieces) > len(written(LOOK)) and throw())}


def while_frames_are_read(chat, monkeypatch):
    """In the second layer, when the first has stored what the tool showed."""
    layer, passes = chat.model.model.layers[1], []
    forward = layer.forward

    def at_the_third(*given, **named):
        passes.append(0)
        return throw() if len(passes) == 3 else forward(*given, **named)  # the question, what was said, the frames

    monkeypatch.setattr(layer, "forward", at_the_third)
    return {}


def while_the_prompt_is_written(chat, monkeypatch):
    """With the result of the call already there."""
    build, shown = chat.processor.build, lambda messages: messages[-1]["content"][0] == text("<tool_response>\n")
    monkeypatch.setattr(chat.processor, "build", lambda m, **how: throw() if shown(m) else build(m, **how))
    return {}


PLACES = [
    in_a_tool,
    before_a_call,
    after_a_call,
    in_the_first_turn,
    in_the_second_turn,
    while_frames_are_read,
    while_the_prompt_is_written,
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("asked", [0, 1])
def test_an_interrupted_question_was_never_asked(model, script, monkeypatch, place, asked):
    """The next question has the same words, calls the same and is shown other frames of the same size: tokens alike,
    pixels not. It reads as much, and sees the same, as in a conversation that nobody interrupted."""
    before = [("Hello", [written(ADD), "Hi."])][:asked]
    chat, other = (Chat(model, Processor(NANO.config), tools=TOOLS) for _ in range(2))
    for talk in (chat, other):
        for content, words in before:
            script.say(*words)
            talk.ask(content)
    messages = chat.messages
    script.say(written(LOOK), "It is a cat.")
    with monkeypatch.context() as patch, pytest.raises(Stop):
        chat.ask([video(1), text("What?")], **place(chat, patch))
    assert len(messages) == len(chat.messages) and all(a is b for a, b in zip(messages, chat.messages, strict=True))
    del script.logits[:]
    replies = []
    for talk in (chat, other):
        monkeypatch.setitem(talk._functions, "look", lambda start, end: frames(77))
        script.say(written(LOOK), "It is a dog.")
        replies.append(turns(talk.ask([video(2), text("What?")])))
    assert [(t.ids, t.read, t.reused) for t in replies[0]] == [(t.ids, t.read, t.reused) for t in replies[1]]
    assert len(script.logits) == 4 and all(map(torch.equal, script.logits[:2], script.logits[2:]))


# ----------------------------------------------------------------------------------------------------------- what tools


def nameless(a: int, b) -> int:
    """One parameter has no type."""
    return a


def silent(a: int) -> int:
    return a


def unknown(a: "Nowhere") -> int:  # noqa: F821
    """Its type is not there."""
    return a


async def later() -> str:
    """It would give no result, but a promise of one."""
    return ""


def rest(*numbers: int) -> int:
    """It takes whatever comes."""
    return sum(numbers)


def by_place(a: int, /) -> int:
    """A call has names."""
    return a


@pytest.mark.parametrize(
    ("tools", "complaint"),
    [
        ([add, look, add], "expected tools of different names, got two that are called add"),
        ([lambda a: a], "expected a docstring of the tool <lambda>"),
        ([silent], "expected a docstring of the tool silent"),
        ([functools.partial(add, 1)], r"expected tools=\[function, ...\] of plain functions, got functools.partial"),
        ([later], "of plain functions, got <function later"),
        ([int], "of plain functions, got <class 'int'>"),
        ([nameless], "expected named parameters with a type in the tool nameless, got b"),
        ([rest], "expected named parameters with a type in the tool rest, got "),
        ([by_place], "expected named parameters with a type in the tool by_place, got a"),
        ([unknown], "expected types that are known where the tool unknown is defined: name 'Nowhere' is not defined"),
    ],
)
def test_wrong_tools_are_refused_at_the_door(model, tools, complaint):
    with pytest.raises(ValueError, match=complaint):
        Chat(model, NANO, tools=tools)


def test_tools_come_as_a_list():
    for wrong in (add, None, "add"):
        with pytest.raises(ValueError, match=r"expected tools=\[function, ...\] of plain functions, got "):
            named(wrong)


def test_tools_stay_after_a_reset(model, script):
    chat = Chat(model, NANO, tools=TOOLS)
    for _ in range(2):
        script.say(written(ADD), "Five.")
        assert chat.ask("Hi").steps[0].done == (Done("5"),)
        chat.reset()
    assert len(chat.messages) == 1
