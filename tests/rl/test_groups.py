"""Which groups are kept, by hand; and that those of several batches side by side are what each would be alone."""

import pytest
import torch

from minikeye.config import KeyeConfig
from minikeye.keye import KeyeVL
from minikeye.rl.groups import Groups, joined, over_sampled, share_of
from minikeye.rl.rollout import Answers, answer_logprobs

CONFIG = KeyeConfig.nano()


def batch(first: int, teaches: list[bool], tokens: int = 3, length: int = 2, mask: bool = True) -> Groups:
    """Groups of two answers about prompts first, first + 1, ...; the first prompt has a token of padding."""
    b = len(teaches)
    ids = torch.arange(b * tokens).view(b, tokens) % 50 + 10 * first
    positions = torch.arange(tokens).expand(3, b, -1).clone()
    prompts = {"input_ids": ids, "positions": positions}
    if mask:
        prompts["attention_mask"] = torch.ones(b, tokens, dtype=torch.bool)
        prompts["attention_mask"][0, 0] = False
    rewards = torch.tensor([[0.25 * (first + n), 0.25 * (first + n) + says] for n, says in enumerate(teaches)])
    answers = Answers(torch.full((b, 2, length), 7), torch.full((b, 2, length), -0.5 - first))
    values, hinted = rewards - rewards.mean(1, keepdim=True), torch.zeros(b, 2, dtype=torch.bool)
    return Groups(prompts, answers, rewards, values, torch.tensor(teaches), hinted, torch.ones(b, 2))


def test_groups_are_made_up_for_by_hand():
    """Two of four teach, then one, then three: four are kept, in order, and what came too many is left."""
    drawn = [batch(0, [True, False, True, False]), batch(4, [False, True, False, False]), batch(8, [True] * 4)]
    asked = []
    kept, numbers = over_sampled(lambda n: asked.append(n) or drawn[n], most=5)
    assert asked == [0, 1, 2] and len(kept) == 4
    assert kept.rewards[:, 0].tolist() == [0.0, 0.5, 1.25, 2.0] and kept.teaches.all()
    assert kept.prompts["input_ids"].tolist() == [[0, 1, 2], [6, 7, 8], [43, 44, 45], [80, 81, 82]]
    assert kept.answers.logprobs[:, 0, 0].tolist() == [-0.5, -0.5, -4.5, -8.5]
    # Rewards of groups 0 to 11 are .25 n and .25 n, or 1 more where they teach: 2.75 / 2 + 7 / 24.
    expected = {"reward": 1.375 + 7 / 24, "teaches": 7 / 12, "length": 2.0, "rescued": 0, "rolled": 12, "lacking": 0}
    assert numbers == pytest.approx(expected)


@pytest.mark.parametrize(("most", "kept", "lacking"), [(1, 2, 2), (2, 3, 1), (3, 4, 0), (4, 4, 0)])
def test_no_more_than_the_bound(most: int, kept: int, lacking: int):
    asked = []
    teaching = [[True, True, False, False], [False, False, True, False], [True] * 4]
    groups, numbers = over_sampled(lambda n: asked.append(n) or batch(4 * n, teaching[n]), most)
    assert asked == list(range(min(most, 3)))
    assert (len(groups), numbers["lacking"], numbers["rolled"]) == (kept, lacking, 4 * len(asked))


def test_where_nothing_teaches():
    groups, numbers = over_sampled(lambda n: batch(n, [False, False]), 3)
    assert (len(groups), numbers["lacking"], numbers["rolled"], numbers["teaches"]) == (0, 2, 6, 0.0)
    assert len(groups.share(0, 2)) == 0


def test_shares_are_even():
    """Five groups in three shares: 1, 2 and 2, every group once and in order; one group in two: 0 and 1."""
    five = batch(0, [True] * 5)
    shares = [five.share(n, 3) for n in range(3)]
    assert [len(share) for share in shares] == [1, 2, 2]
    assert torch.equal(torch.cat([share.rewards for share in shares]), five.rewards)
    assert [len(batch(0, [True]).share(n, 2)) for n in range(2)] == [0, 1]


def test_side_by_side_as_alone():
    """Prompts of two lengths, with and without padding, visual tokens, answers of two lengths: the same log-probs."""
    torch.manual_seed(0)
    model = KeyeVL(CONFIG).eval()
    parts = []
    for tokens, length, mask in ((5, 2, True), (8, 4, False)):
        part = batch(len(parts), [True, True, True], tokens, length, mask)
        part.prompts["input_ids"][:, 2:4] = CONFIG.video_token_id
        part.prompts["visual"] = torch.randn(6, CONFIG.text.width)
        part.answers.ids[1, 0, 1:] = -1
        parts.append(part)
    with torch.no_grad():
        both = joined(parts)
        together = answer_logprobs(model, both.prompts, both.answers.ids)
        apart = [answer_logprobs(model, part.prompts, part.answers.ids) for part in parts]
        chosen = answer_logprobs(model, share_of(both.prompts, both.rewards[:, 0] == 0.5), both.answers.ids[[2, 4]])
    assert both.prompts["attention_mask"].sum(1).tolist() == [4, 5, 5, 8, 8, 8]
    assert torch.allclose(together[:3, :, :2], apart[0], atol=1e-5) and not together[:3, :, 2:].any()
    assert torch.allclose(together[3:], apart[1], atol=1e-5)
    assert torch.allclose(chosen, together[[2, 4]], atol=1e-5)
    assert not torch.allclose(together[0], together[2], atol=1e-3)


def test_batches_of_two_kinds_are_refused():
    text, video = batch(0, [True, True]), batch(1, [True, True])
    video.prompts["visual"] = torch.zeros(2, 8)
    other = batch(2, [True, True])
    other.prompts["visual"] = torch.zeros(4, 8)
    for parts in ([text, video], [video, other]):
        with pytest.raises(ValueError, match="over-sample from one kind of prompts"):
            joined(parts)
