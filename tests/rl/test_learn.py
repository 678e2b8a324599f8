"""Learning from reward on a model of a few thousand parameters: it learns, what it should, and can be killed."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from minikeye.config import KeyeConfig
from minikeye.keye import KeyeVL
from minikeye.minivid.dataset import make_videos
from minikeye.minivid.lessons import Lesson, Size, question_prompts
from minikeye.rl.groups import judge, over_sampled, share_of
from minikeye.rl.gspo import GSPO, VARIANTS, objective
from minikeye.rl.learn import RolloutConfig, learn_from, learns, reinforce, roll_out, with_visual_tokens
from minikeye.rl.replay import noisy
from minikeye.rl.rollout import Answers, answer_logprobs
from minikeye.rl.second_chance import SecondChance
from minikeye.training.loop import LoopConfig, learning_rate

CONFIG = KeyeConfig.nano()
SMALL = RolloutConfig(group=6, max_new_tokens=2)
LOOP = LoopConfig(steps=8, lr=3e-3, warmup=0, log_every=1, save_every=2)


def policy() -> KeyeVL:
    torch.manual_seed(0)
    return KeyeVL(CONFIG)


def questions(model: KeyeVL, count: int = 4):
    """Needle questions about four frames; all that the reward knows of one is its number."""
    size = Size(4, count, 28, 28)

    def at(iteration: int):
        numbers = range(count * iteration, count * (iteration + 1))
        videos = make_videos(5, numbers, 4, "train")
        prompts = question_prompts(videos, "N", size, CONFIG)
        mask = prompts["attention_mask"]
        del prompts["frames"]
        inputs = Lesson(prompts, videos, size).inputs(CONFIG, "cpu") | {"attention_mask": mask}
        return with_visual_tokens(model, inputs), list(numbers)

    return at


def early(text: str, _: int) -> float:
    """Rewarded is an answer that begins with one of the first half of all bytes: an even chance at first."""
    return float(bool(text) and ord(text[0]) < 128)


def rarely(text: str, number: int) -> float:
    """The same of the first two of four questions; answers to the others are worth the same."""
    return early(text, number) if number % 4 < 2 else 0.5


def test_reward_rises_and_only_the_decoder_moves():
    model = policy()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    lines = reinforce(model, questions(model), early, SMALL, replace(LOOP, steps=40, save_every=0))
    start, end = (sum(line["reward"] for line in part) / len(part) for part in (lines[:6], lines[-6:]))
    assert start < 0.7 and end > start + 0.2
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved <= {n for n in before if learns(n)} and "lm_head.weight" in moved
    assert {"reward", "teaches", "length", "clipped", "ratio"} <= lines[0].keys()
    assert lines[0]["ratio"] == pytest.approx(1, abs=1e-5)  # the first step of a rollout is on-policy
    assert abs(lines[1]["ratio"] - 1) > 1e-5


def test_the_tower_sees_a_prompt_once():
    """However many answers a group has and steps they are learnt from: 4 prompts of 4 frames of 4 patches a rollout."""
    model, seen = policy(), []
    model.visual.register_forward_hook(lambda _, inputs, out: seen.append((len(inputs[0]), out.requires_grad)))
    reinforce(model, questions(model), early, replace(SMALL, minibatches=2), replace(LOOP, steps=4, save_every=0))
    assert seen == [(64, False)] * 2


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_an_empty_answer_adds_nothing(variant):
    """A row without tokens, whatever its advantage: the loss and gradients of the answers beside it, and no nan."""
    config, losses, grads = replace(SMALL, variant=variant), [], []
    for empty in (False, True):
        model = policy()
        groups = roll_out(model, questions(model), 0, early, config)
        assert torch.equal(groups.answers.ids, roll_out(model, questions(model), 0, early, config).answers.ids)
        if empty:  # one more answer to each prompt
            wide = lambda x, value: torch.cat((x, torch.full_like(x[:, :1], value)), dim=1)  # noqa: E731
            answers = Answers(wide(groups.answers.ids, -1), wide(groups.answers.logprobs, 0.0))
            parts = {name: wide(getattr(groups, name), 1) for name in ("rewards", "advantages", "importance")}
            groups = replace(groups, answers=answers, hinted=wide(groups.hinted, False), **parts)
        loss, _ = learn_from(model, groups, config)
        losses.append(float(loss.detach()))
        grads.append(model.lm_head.weight.grad)
    assert losses[0] == pytest.approx(losses[1], abs=1e-6) and grads[0].abs().max() > 0
    assert torch.allclose(grads[0], grads[1], atol=1e-6)


def test_a_reward_that_is_no_number_stops_the_run():
    model = policy()
    with pytest.raises(ValueError, match=r"the reward of .* is nan: expected a finite number"):
        reinforce(model, questions(model), lambda text, _: math.nan, SMALL, LOOP)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_every_variant_takes_steps(variant):
    model = policy()
    lines = reinforce(model, questions(model), early, replace(SMALL, variant=variant), replace(LOOP, steps=2))
    assert all(math.isfinite(line["loss"]) and line["norm"] > 0 for line in lines)


def test_killed_and_resumed_it_does_the_same(tmp_path):
    whole, halves = policy(), policy()
    lines = reinforce(whole, questions(whole), early, SMALL, LOOP)

    class Killed(Exception):
        """Stands in for a kill."""

    calls = []

    def fatal(text: str, number: int) -> float:
        calls.append(number)
        if number >= 12:  # in the fourth rollout
            raise Killed
        return early(text, number)

    with pytest.raises(Killed):
        reinforce(halves, questions(halves), fatal, SMALL, LOOP, tmp_path)
    again = policy()
    rest = reinforce(again, questions(again), early, SMALL, LOOP, tmp_path)
    assert [line["step"] for line in rest] == [6, 7] and calls
    for ours, theirs in zip(rest, lines[6:], strict=True):
        assert {k: v for k, v in ours.items() if k != "seconds"} == {k: v for k, v in theirs.items() if k != "seconds"}
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), whole.parameters(), strict=True))


def test_groups_that_agree_are_made_up_for(tmp_path):
    """Most groups agree: others are asked for, by numbers that belong to the iteration, and a kill changes nothing."""
    config, asked = replace(SMALL, oversample=3), []

    def noted(model: KeyeVL):
        at = questions(model)
        return lambda number: asked.append(number) or at(number)

    whole = policy()
    lines = reinforce(whole, noted(whole), rarely, config, LOOP)
    numbers = [line["rolled"] / 4 for line in lines[::2]]  # batches of each iteration
    assert asked == [3 * i + n for i, count in enumerate(numbers) for n in range(int(count))]
    assert 2.0 in numbers and set(numbers) <= {2.0, 3.0}  # two of four groups can teach: a second batch, at least
    assert all(line["lacking"] == 0 or line["rolled"] == 12 for line in lines)
    plain = reinforce(policy(), questions(whole), rarely, SMALL, LOOP)
    assert all(line["lacking"] == 4 - 4 * line["teaches"] >= 2 for line in plain)
    assert sum(line["lacking"] for line in lines) < sum(line["lacking"] for line in plain)
    halves = policy()
    stop = replace(LOOP, steps=4)
    with pytest.MonkeyPatch.context() as patch:  # the schedule of the whole run: it was killed after four steps
        patch.setattr("minikeye.training.loop.learning_rate", lambda step, _: learning_rate(step, LOOP))
        reinforce(halves, questions(halves), rarely, config, stop, tmp_path)
    again = policy()
    rest = reinforce(again, questions(again), rarely, config, LOOP, tmp_path)
    for ours, theirs in zip(rest, lines[4:], strict=True):
        assert {k: v for k, v in ours.items() if k != "seconds"} == {k: v for k, v in theirs.items() if k != "seconds"}
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), whole.parameters(), strict=True))


@pytest.mark.parametrize(
    ("attention", "router", "index", "mends"),
    [("dense", 0.1, 0.0, "routing"), ("sparse", 0.0, 0.1, "index"), ("sparse", 0.1, 0.1, "both")],
)
@pytest.mark.parametrize("oversample", [1, 3])
def test_replay_takes_the_samplers_choices(attention: str, router: float, index: float, mends: str, oversample: int):
    """Noise turns choices while answers are drawn: replayed, the first minibatch's ratios are 1; otherwise not.

    Shares of what several batches gave are learnt from, whose prompts and answers are of different lengths.
    """
    model = policy()

    def at(number: int):
        prompts, known = questions(model)(number)
        return {name: x if name == "visual" else F.pad(x, (2 * number, 0)) for name, x in prompts.items()}, known

    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)  # choices that are not even, so that noise turns some
    numbers = {}
    for replay in ("none", mends):
        config = RolloutConfig(group=3, max_new_tokens=5, attention=attention, replay=replay, oversample=oversample)
        with noisy(model, router, index, seed=4):
            batch_at = lambda n: roll_out(model, at, n, rarely, config)  # noqa: E731, B023
            groups, rolled = over_sampled(batch_at, oversample)
        assert (rolled["rolled"] > 4) == (oversample > 1) and len(groups) >= 2
        numbers[replay] = [learn_from(model, groups.share(n, 2), config)[1] for n in range(2)]
    for plain, replayed in zip(numbers["none"], numbers[mends], strict=True):
        assert float(replayed["ratio"]) == pytest.approx(1, abs=1e-5)
        assert float(replayed["largest"]) == pytest.approx(1, abs=1e-5) and float(replayed["kl"]) < 1e-9
        assert abs(float(plain["ratio"]) - 1) > 1e-4 and float(plain["kl"]) > 1e-6


def test_replay_of_ones_own_choices_changes_nothing():
    """Sampler and learner are one program here: until the policy has moved, nothing is mended, to rounding.

    In the second minibatch it has, and its own choices differ from those that the answers were drawn with.
    """
    logs = []
    for replay in ("none", "both"):
        config, model = replace(SMALL, attention="sparse", replay=replay), policy()
        logs.append(reinforce(model, questions(model), early, config, replace(LOOP, save_every=0)))
    assert any(line["teaches"] for line in logs[0])
    plain, replayed = ({k: v for k, v in lines[0].items() if k != "seconds"} for lines in logs)
    assert replayed == pytest.approx(plain, abs=1e-5)
    assert all(line["ratio"] == pytest.approx(1, abs=1e-5) for lines in logs for line in lines[::2])
    assert logs[0][1]["ratio"] != pytest.approx(logs[1][1]["ratio"], abs=1e-3)


def test_groups_that_agree_teach_nothing():
    model = policy()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    lines = reinforce(model, questions(model), lambda text, _: 1.0, SMALL, replace(LOOP, steps=4))
    assert all(line["teaches"] == line["loss"] == line["clipped"] == 0 and line["ratio"] == 1 for line in lines)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("loss", "the loss is nan"),
        ("gradient", r"the gradient of model\.norm\.weight is not"),
        ("logits", "the model's logits are not"),
    ],
)
def test_what_is_not_finite_is_kept_and_stops_the_run(tmp_path, monkeypatch, what: str, message: str):
    """At once, also at steps that are neither logged nor saved; nothing has moved, and the batch tells all."""
    model, steps = policy(), []
    config = replace(SMALL, variant=GSPO)

    def broken(*given, **batch):
        steps.append(given)
        loss, numbers = objective(*given, **batch)
        if len(steps) == 4:
            before.update({n: p.detach().clone() for n, p in model.named_parameters()})
            if what == "loss":
                loss = loss * math.nan
            if what == "gradient":
                model.model.norm.weight.register_hook(lambda grad: grad * math.inf)
            if what == "logits":
                raise FloatingPointError("the model's logits are not finite")
        return loss, numbers

    before: dict[str, torch.Tensor] = {}
    monkeypatch.setattr("minikeye.rl.learn.objective", broken)
    loop = replace(LOOP, log_every=7, save_every=0)
    with pytest.raises(FloatingPointError, match=rf"stopped at step 3: {message}.*reinforce\.failed\.pt"):
        reinforce(model, questions(model), early, config, loop, tmp_path)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    kept = torch.load(tmp_path / "reinforce.failed.pt", weights_only=True)
    _, logprobs, mask, advantages, _ = steps[-1]
    assert kept["step"] == 3 and torch.equal(kept["advantages"].flatten(), advantages)
    assert torch.equal(kept["ids"].flatten(0, 1) >= 0, mask) and torch.equal(kept["logprobs"].flatten(0, 1), logprobs)
    assert {"input_ids", "positions", "visual"} <= kept["prompts"].keys() and kept["teaches"].all()
    assert kept["rewards"].shape == kept["advantages"].shape and len(kept["prompts"]["input_ids"]) == len(
        kept["rewards"]
    )


def test_without_a_folder_nothing_is_kept(monkeypatch):
    model = policy()
    nan = lambda *given, **batch: (objective(*given, **batch)[0] * math.nan, {})  # noqa: E731
    monkeypatch.setattr("minikeye.rl.learn.objective", nan)
    with pytest.raises(FloatingPointError, match=r"step 0: the loss is nan; its batch was not kept: give a folder"):
        reinforce(model, questions(model), early, SMALL, LOOP)


def test_a_share_of_the_prompts_is_those_prompts():
    """Their visual tokens go with them: the same log-probabilities as among the others."""
    model = policy().eval()
    prompts, _ = questions(model)(0)
    ids = torch.randint(0, 256, (4, 2, 3), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = answer_logprobs(model, prompts, ids)
        part = answer_logprobs(model, share_of(prompts, slice(1, 3)), ids[1:3])
    assert torch.allclose(whole[1:3], part, atol=1e-5) and not torch.allclose(whole[1:3], whole[:2], atol=1e-3)


def test_rewards_are_judged_one_by_one():
    """Texts without filling; a reward that is no number is refused by its answer."""
    ids = torch.tensor([[[72, 105, -1], [72, -1, -1]]])
    seen = []

    def reward(text, known):
        seen.append((text, known))
        return float("nan") if text == "H" else 1.0

    decode = lambda tokens: bytes(tokens).decode()  # noqa: E731
    with pytest.raises(ValueError, match="the reward of 'H' is nan: expected a finite number"):
        judge(Answers(ids, torch.zeros(1, 2, 3)), ["known"], reward, decode)
    assert seen == [("Hi", "known"), ("H", "known")]


def test_what_does_not_fit_is_refused(unchecked):
    model = policy()
    with pytest.raises(ValueError, match="multiples of 2 minibatches, got 7 and 2"):
        reinforce(model, questions(model), early, SMALL, replace(LOOP, steps=7))
    with pytest.raises(ValueError, match="expected prompts in 2 equal minibatches, got 3"):
        reinforce(model, questions(model, 3), early, SMALL, LOOP)
    for bad in ({"group": 1}, {"minibatches": 0}, {"oversample": 0}):
        with pytest.raises(ValueError, match="group >= 2"):
            RolloutConfig(**bad)
    with pytest.raises(ValueError, match="variant without kl"):
        RolloutConfig(variant=replace(GSPO, kl=0.1))
    for bad in ({"temperature": 0.0}, {"attention": "Dense"}):
        with pytest.raises(ValueError, match="temperature above 0"):
            RolloutConfig(**bad)
    for bad in ({"replay": "keys"}, {"replay": "both"}, {"replay": "index"}):
        with pytest.raises(ValueError, match="the last two with sparse attention"):
            RolloutConfig(**bad)
    chance = SecondChance(lambda said, known: "No.")
    with pytest.raises(ValueError, match="no replay beside a second chance"):
        replayed = replace(SMALL, replay="routing")
        reinforce(policy(), lambda number: ({}, []), early, replayed, LOOP, second_chance=chance)
    with pytest.raises(ValueError, match="log_every 1 or no multiple of 2 minibatches, got 4"):
        reinforce(model, questions(model), early, SMALL, replace(LOOP, log_every=4))
    few = questions(model)
    with pytest.raises(ValueError, match="4 prompts and 3 known"):
        reinforce(model, lambda n: (few(n)[0], few(n)[1][:3]), early, SMALL, LOOP)


def test_a_run_is_resumed_with_its_own_minibatches(tmp_path):
    model = policy()
    reinforce(model, questions(model, 6), early, SMALL, replace(LOOP, steps=4), tmp_path)
    other = replace(SMALL, minibatches=3)
    with pytest.raises(ValueError, match="whole rollout of 3 minibatches, got step 4"):
        reinforce(model, questions(model, 6), early, other, replace(LOOP, steps=6, save_every=3), tmp_path)
