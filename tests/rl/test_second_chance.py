"""A second chance: which groups get it, what of it is learnt, and that it teaches what plain sampling never finds."""

import doctest
import math

import pytest
import torch

from minikeye.config import KeyeConfig
from minikeye.inputs.prompt import Prompt, pad
from minikeye.inputs.tokenizer import load_tokenizer
from minikeye.keye import KeyeVL
from minikeye.rl import second_chance
from minikeye.rl.gspo import CISPO, GRPO, GSPO, VARIANTS, advantages, objective
from minikeye.rl.learn import RolloutConfig, reinforce, roll_out
from minikeye.rl.rollout import Answers, answer_logprobs
from minikeye.rl.second_chance import SecondChance, all_wrong, importance, mixed, rolled_back, told_again
from minikeye.training.loop import LoopConfig

CONFIG = KeyeConfig.nano()
TOKENIZER = load_tokenizer(CONFIG)
END = TOKENIZER.token_id("<|im_end|>")


def test_the_tables_of_examples_are_right():
    done = doctest.testmod(second_chance)
    assert done.failed == 0 and done.attempted > 3


def test_a_mixed_group_by_hand():
    """Of three right answers of the second round two are taken, in the place of the first two; the rest stays."""
    rewards = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    answers = Answers(torch.arange(9).view(3, 3, 1), -torch.arange(1.0, 10).view(3, 3, 1))
    assert all_wrong(rewards) == [1, 2]
    again = Answers(
        torch.tensor([[[20, -1], [21, 31], [22, 32]], [[23, 33], [24, -1], [25, -1]]]),
        torch.tensor([[[-0.1, 0], [-0.2, -0.3], [-0.4, -0.5]], [[-9.0, -9], [-9, 0], [-9, 0]]]),
    )
    right = torch.tensor([[0.5, 0.0, 1.0], [0.0, 0.0, 0.0]])
    both, mixed_rewards, hinted = mixed(answers, rewards, [1, 2], again, right, most=2)
    assert mixed_rewards.tolist() == [[0, 1, 0], [0.5, 1, 0], [0, 0, 0]]
    assert hinted.tolist() == [[False] * 3, [True, True, False], [False] * 3]
    assert both.ids.tolist() == [
        [[0, -1], [1, -1], [2, -1]],
        [[20, -1], [22, 32], [5, -1]],
        [[6, -1], [7, -1], [8, -1]],
    ]
    assert both.logprobs[1].flatten().tolist() == pytest.approx([-0.1, 0, -0.4, -0.5, -6, 0])
    one = mixed(answers, rewards, [1, 2], again, right, most=1)
    assert one[1].tolist() == [[0, 1, 0], [0.5, 0, 0], [0, 0, 0]]
    assert rewards[1].tolist() == [0, 0, 0] and answers.ids[1, 0].tolist() == [3]  # what was given is as it was
    for most in (0, 3):
        with pytest.raises(ValueError, match=f"expected to replace 1 to 2 of 3 answers, got {most}"):
            mixed(answers, rewards, [1, 2], again, right, most)


def text_prompts(words: list[str]) -> dict[str, torch.Tensor]:
    prompts = []
    for text in words:
        prompt = Prompt(TOKENIZER, CONFIG.vision.merge)
        prompt.begin("user")
        prompt.text(text)
        prompt.end()
        prompt.begin("assistant")
        prompts.append(prompt)
    return {name: value for name, value in pad(prompts, "left").items() if name != "answer"}


def test_told_again_is_what_the_template_says():
    """The same tokens and positions as a conversation of three turns; ended answers and cut ones; any padding."""
    prompts = text_prompts(["Which?", "Which of all of them?"])
    answers, reports = [[65, END], [66, 67]], ["Not A.", "BC is too late, look again."]
    got = told_again(prompts, answers, reports, CONFIG)
    wanted = []
    for question, said, report in zip(("Which?", "Which of all of them?"), ("A", "BC"), reports, strict=True):
        prompt = Prompt(TOKENIZER, CONFIG.vision.merge)
        for role, text in (("user", question), ("assistant", said), ("user", report)):
            prompt.begin(role)
            prompt.text(text)
            prompt.end()
        prompt.begin("assistant")
        wanted.append(prompt)
    for row, prompt in enumerate(wanted):
        real = got["attention_mask"][row]
        assert got["input_ids"][row][real].tolist() == prompt.ids and real[-len(prompt.ids) :].all()
        assert torch.equal(got["positions"][:, row, real], prompt.positions())
    with pytest.raises(ValueError, match="an answer and a report a prompt, got 2, 1 and 2"):
        told_again(prompts, answers[:1], reports, CONFIG)
    with pytest.raises(ValueError, match="expected prompts with positions"):
        told_again({"input_ids": prompts["input_ids"]}, answers, reports, CONFIG)


def test_visual_tokens_stay_where_they_are():
    """A video before the question: what the model says after it is that of the conversation in one piece."""
    torch.manual_seed(1)
    model = KeyeVL(CONFIG).eval()
    prompt = Prompt(TOKENIZER, CONFIG.vision.merge)
    prompt.begin("user")
    side = CONFIG.vision.merge
    prompt.video([0.0, 0.5], (1, side, side))
    prompt.text("Which?")
    prompt.end()
    prompt.begin("assistant")
    plain = {k: v for k, v in pad([prompt], "left").items() if k != "answer"}
    plain["visual"] = torch.randn(2, CONFIG.text.width)
    got = told_again(plain, [[65, END]], ["Not A."], CONFIG)
    prompt.text("A")
    prompt.end()
    prompt.begin("user")
    prompt.text("Not A.")
    prompt.end()
    prompt.begin("assistant")
    whole = {k: v for k, v in pad([prompt], "left").items() if k != "answer"} | {"visual": plain["visual"]}
    with torch.no_grad():
        ours, theirs = (model(inputs, attention="dense", last=1).logits for inputs in (got, whole))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_ratio_is_that_of_plain_to_hinted_and_is_clipped():
    """By hand: answers of two tokens, 1/8 and 1/2 as likely without the report, s0 = 1/4; s0 = 4; and 1.

    GSPO holds s0 in .95 .. 1.05; GRPO every token in .8 .. 1.2; CISPO from above alone, at 6.
    """
    plain = torch.tensor([[0.1, 0.4], [0.8, 0.8], [0.5, 0.5]]).log()
    hinted = torch.tensor([[0.8, 0.8], [0.2, 0.2], [0.5, 0.5]]).log()
    mask = torch.ones(3, 2, dtype=torch.bool)
    assert importance(plain, hinted, mask).tolist() == pytest.approx([1 / 4, 4, 1])
    held = {
        GSPO: [[0.95, 0.95], [1.05, 1.05], [1, 1]],
        GRPO: [[0.8, 0.8], [1.2, 1.2], [1, 1]],
        CISPO: [[1 / 8, 1 / 2], [4, 4], [1, 1]],
    }
    for variant, ratios in held.items():
        old = rolled_back(plain, hinted, mask, variant)
        assert (plain - old).exp().flatten().tolist() == pytest.approx([r for row in ratios for r in row])
    new, a = plain.clone().requires_grad_(), torch.tensor([1.0, 1.0, -2.0])
    loss, numbers = objective(new, rolled_back(plain, hinted, mask, GSPO), mask, a, GSPO)
    assert float(loss.detach()) == pytest.approx(-(0.95 + 1.05 - 2) / 3, abs=1e-6)
    assert float(numbers["ratio"]) == pytest.approx(1.0) and float(numbers["largest"]) == pytest.approx(1.05)
    off = rolled_back(plain, hinted.masked_fill(~mask.tril(), math.nan), mask.tril(), GSPO)
    assert off[0].tolist() == pytest.approx([math.log(0.1 / 0.95), 0.0])  # what is masked is not looked at


def bandit(variant, chance: bool, clipped: bool = True) -> tuple[float, list[float]]:
    """Four arms, the paid one at e^-14 / 3 without a report and at 2/3 with one. Its probability after 150 groups.

    chance: whether groups without the paid arm are asked again. clipped: old log-probs `rolled_back`, or those under
    the report. Also the importance ratios on the way.
    """
    g = torch.Generator().manual_seed(0)
    logits = torch.tensor([0.0, 0.0, 0.0, -14.0], requires_grad=True)
    report = torch.tensor([0.0, 0.0, 0.0, 14 + math.log(6)])  # what the words in the prompt add
    lr, ratios = 0.5 * (variant.length if variant.average == "length" else 1), []
    for _ in range(150):
        with torch.no_grad():
            old, old_hinted = logits.log_softmax(-1), (logits + report).log_softmax(-1)
            arms, again = (torch.multinomial(p.exp(), 8, True, generator=g) for p in (old, old_hinted))
        answers, rewards = Answers(arms.view(1, 8, 1), old[arms].view(1, 8, 1)), (arms == 3).float().view(1, 8)
        if chance and (rows := all_wrong(rewards)):
            second = Answers(again.view(1, 8, 1), old_hinted[again].view(1, 8, 1))
            answers, rewards, hinted = mixed(answers, rewards, rows, second, (again == 3).float().view(1, 8), 4)
            drawn, where = answers.logprobs.view(8, 1), hinted.flatten()
            three = old[answers.ids.flatten()][where, None], drawn[where], torch.ones(int(where.sum()), 1).bool()
            ratios += importance(*three).tolist()
            if clipped:
                drawn[where] = rolled_back(*three, variant)
        a, kept = advantages(rewards.flatten(), torch.zeros(8, dtype=torch.long), variant)
        if kept.any():
            new = logits.log_softmax(-1)[answers.ids.flatten()][:, None]
            loss, _ = objective(new, answers.logprobs.view(8, 1), kept[:, None], a, variant)
            with torch.no_grad():
                logits -= lr * torch.autograd.grad(loss, logits)[0]
    return float(logits.detach().softmax(-1)[3]), ratios


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != CISPO], ids=lambda v: v.name)
def test_a_bandit_whose_arm_is_never_drawn(variant):
    """Plain sampling learns nothing at all; what the report found is learnt without it; unclipped it is not."""
    start = math.exp(-14) / (3 + math.exp(-14))
    assert bandit(variant, chance=False) == (pytest.approx(start, rel=1e-3), [])
    learnt, ratios = bandit(variant, chance=True)
    assert learnt > 0.9 and ratios[0] == pytest.approx(start / (2 / 3), rel=1e-3) and ratios[-1] > 0.01
    assert bandit(variant, chance=True, clipped=False)[0] < 1e-3


def test_cispo_has_no_bound_from_below():
    """Its weight of an answer that only the report made likely stays what it is: next to nothing is learnt."""
    assert bandit(CISPO, chance=True)[0] < 1e-3


@pytest.fixture(scope="module")
def pupil() -> KeyeVL:
    """Nano, taught to say A where it is asked and Z where it is told that A is wrong; both nearly always."""
    torch.manual_seed(0)
    model = KeyeVL(CONFIG)
    optim = torch.optim.AdamW(model.parameters(), lr=3e-3)
    plain = text_prompts([f"Which, {n}?" for n in range(4)])
    again = told_again(plain, [[ord("A"), END]] * 4, ["Not A."] * 4, CONFIG)
    for _ in range(60):
        loss = 0.0
        for prompts, letter in ((plain, "A"), (again, "Z")):
            answers = torch.tensor([ord(letter), END]).expand(4, 1, 2)
            loss = loss - answer_logprobs(model, prompts, answers).mean()
        optim.zero_grad()
        loss.backward()
        optim.step()
    return model


def z_probability(model: KeyeVL) -> float:
    with torch.no_grad():
        answers = torch.tensor([ord("Z"), END]).expand(4, 1, 2)
        plain = text_prompts([f"Which, {n}?" for n in range(4)])
        return float(answer_logprobs(model, plain, answers).sum(-1).exp().mean())


def test_a_model_learns_what_it_said_with_a_report(pupil):
    """Z is paid and never said, until it is asked again; the log tells how far off the policy it was."""
    plain = text_prompts([f"Which, {n}?" for n in range(4)])
    config = RolloutConfig(group=4, max_new_tokens=2)
    loop = LoopConfig(steps=40, lr=1e-3, warmup=0, log_every=1)
    asked = []

    def report(text: str, known: int) -> str:
        asked.append((text, known))
        return "Not A."

    chance = SecondChance(report, most=2)
    paid = lambda text, known: float(text == "Z")  # noqa: E731
    before, results = z_probability(pupil), {}
    for second in (None, chance):
        model = KeyeVL(CONFIG)
        model.load_state_dict(pupil.state_dict())
        lines = reinforce(model, lambda _: (plain, [0, 1, 2, 3]), paid, config, loop, second_chance=second)
        results[second] = z_probability(model), lines
    assert before < 0.02
    without, lines = results[None]
    assert without == pytest.approx(before, abs=1e-4) and all(line["rescued"] == line["hinted"] == 0 for line in lines)
    learnt, lines = results[chance]
    assert learnt > 0.5 and asked[0] == ("A", 0)
    assert lines[0]["reward"] == 0.0 and lines[-1]["reward"] > 0.3  # of what plain sampling said
    assert lines[0]["rescued"] > 0.5 and lines[0]["hinted"] >= 2 and lines[0]["hint_ratio"] < 0.3
    assert lines[0]["ratio"] == pytest.approx(1 - 0.05 * lines[0]["hinted"] / 8, abs=1e-3)


def test_advantages_of_a_second_chance_are_weighed(pupil):
    """Halved where the answer is not the policy's own, and there alone."""
    plain, config = text_prompts([f"Which, {n}?" for n in range(4)]), RolloutConfig(group=4, max_new_tokens=2)
    paid = lambda text, known: float(text == "Z")  # noqa: E731
    whole, half = (
        roll_out(
            pupil, lambda _: (plain, [0] * 4), 0, paid, config, SecondChance(lambda *_: "Not A.", weight=w, most=2)
        )
        for w in (1.0, 0.5)
    )
    assert whole.hinted.any() and torch.equal(whole.hinted, half.hinted)
    assert torch.equal(half.advantages, torch.where(whole.hinted, whole.advantages / 2, whole.advantages))
    assert (whole.importance[~whole.hinted] == 1).all() and (whole.importance[whole.hinted] < 0.5).all()


def test_killed_in_a_second_chance_it_does_the_same(pupil, tmp_path):
    """The second draw, too, belongs to the number of the batch: resumed, the same numbers and parameters."""
    plain = text_prompts([f"Which, {n}?" for n in range(4)])
    config = RolloutConfig(group=4, max_new_tokens=3, temperature=2.0)  # second answers differ, too
    loop = LoopConfig(steps=8, lr=1e-5, warmup=0, log_every=1, save_every=4)
    chance = SecondChance(lambda text, known: "Not A.", most=2)

    class Killed(Exception):
        """Stands in for a kill."""

    def run(folder, until: int = 99):
        model = KeyeVL(CONFIG)
        model.load_state_dict(pupil.state_dict())

        def at(number: int):
            if number == until:
                raise Killed
            return plain, [0] * 4

        paid = lambda text, known: float(text[:1] == "Z")  # noqa: E731
        return model, reinforce(model, at, paid, config, loop, folder, second_chance=chance)

    whole, lines = run(None)
    with pytest.raises(Killed):
        run(tmp_path, until=3)
    again, rest = run(tmp_path)
    assert [line["step"] for line in rest] == [4, 5, 6, 7] and any(line["hinted"] > 0 for line in rest)
    for ours, theirs in zip(rest, lines[4:], strict=True):
        assert {k: v for k, v in ours.items() if k != "seconds"} == {k: v for k, v in theirs.items() if k != "seconds"}
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), whole.parameters(), strict=True))


def test_answers_that_lean_on_the_report_are_not_learnt(pupil):
    """Right, and not independent: nothing is rescued, and nothing moves."""
    model = KeyeVL(CONFIG)
    model.load_state_dict(pupil.state_dict())
    chance = SecondChance(lambda text, known: "Not A.", independent=lambda text: "Z" not in text, most=2)
    loop = LoopConfig(steps=2, lr=1e-3, warmup=0, log_every=1)
    plain = text_prompts([f"Which, {n}?" for n in range(4)])
    config = RolloutConfig(group=4, max_new_tokens=2)
    paid = lambda text, known: float(text == "Z")  # noqa: E731
    lines = reinforce(model, lambda _: (plain, [0] * 4), paid, config, loop, second_chance=chance)
    assert all(line["rescued"] == line["hinted"] == line["loss"] == 0 for line in lines)
    with pytest.raises(ValueError, match="replace less than a group of 4 answers, got 4"):
        reinforce(model, lambda _: (plain, [0] * 4), paid, config, loop, second_chance=SecondChance(chance.report))
    for bad in ({"most": 0}, {"weight": 0.0}, {"weight": math.inf}):
        with pytest.raises(ValueError, match="expected most >= 1 and a finite weight"):
            SecondChance(chance.report, **bad)
