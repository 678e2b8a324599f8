"""A teacher that reads another sequence is refused, and the message says which kind of other."""

import pytest
import torch
from tokenizers import Tokenizer, models

from minikeye.config import KeyeConfig
from minikeye.rl.mopd.aligned import require_aligned, segmented, shift

CONFIG = KeyeConfig.nano()
VIDEO = CONFIG.video_token_id


def prompts(ids: list[list[int]]) -> dict[str, torch.Tensor]:
    """Padded on the left, positions counting from the first real token."""
    longest = max(map(len, ids))
    rows = torch.tensor([[0] * (longest - len(row)) + row for row in ids])
    mask = torch.tensor([[False] * (longest - len(row)) + [True] * len(row) for row in ids])
    return {"input_ids": rows, "attention_mask": mask, "positions": (mask.cumsum(1) - 1).clamp(min=0).repeat(3, 1, 1)}


SAID = torch.tensor([[[5, 6, 7, -1]], [[8, 9, -1, -1]]])
OURS = prompts([[1, VIDEO, VIDEO, 2, 3], [1, VIDEO, VIDEO, 4]])


def check(theirs=OURS, read=SAID):
    require_aligned(OURS, theirs, SAID, read, CONFIG, "the expert")


def test_the_same_passes_however_it_is_padded():
    check()
    wider = {
        "input_ids": torch.nn.functional.pad(OURS["input_ids"], (3, 0), value=9),
        "attention_mask": torch.nn.functional.pad(OURS["attention_mask"], (3, 0)),
        "positions": torch.nn.functional.pad(OURS["positions"], (3, 0), value=7),
    }
    check(wider)


def test_answers_moved_by_one():
    moved = torch.tensor([[[6, 7, -1, -1]], [[9, -1, -1, -1]]])
    with pytest.raises(
        ValueError, match=r"student's answer for the expert, .*parts at token 0 of 3.*moved by -1 token"
    ):
        check(read=moved)
    with pytest.raises(ValueError, match="student's answer for the expert"):
        check(read=SAID[:, :, :3])  # cut
    with pytest.raises(ValueError, match=r"parts at token 2 of 2 \(theirs has 3\): the longer goes on .* padding read"):
        check(read=torch.tensor([[[5, 6, 7, -1]], [[8, 9, 0, -1]]]))  # filling taken for a token


def test_readers_that_return_something_else():
    with pytest.raises(ValueError, match=r"from the reader of the expert, got no \['positions'\]"):
        check({"input_ids": OURS["input_ids"]})
    with pytest.raises(ValueError, match="keep prompts and answers in order"):
        check(read=SAID[:1])
    with pytest.raises(ValueError, match="filled to another length"):
        check(read=torch.nn.functional.pad(SAID, (0, 1), value=-1))
    assert shift([1, 1, 1, 1], [1, 1, 1, 1]) == 0


def test_other_frames_template_seconds():
    with pytest.raises(ValueError, match=r"expected 2 visual tokens for the expert in prompt 1, got 1"):
        check(prompts([[1, VIDEO, VIDEO, 2, 3], [1, VIDEO, 4]]))
    with pytest.raises(ValueError, match=r"row 0, got one that parts at token 0 of 5.*moved by 1 token"):
        check(prompts([[9, 1, VIDEO, VIDEO, 2, 3], [1, VIDEO, VIDEO, 4]]))
    with pytest.raises(ValueError, match=r"row 1, .*parts at token 3 of 4.*another template"):
        check(prompts([[1, VIDEO, VIDEO, 2, 3], [1, VIDEO, VIDEO, 7]]))
    with pytest.raises(ValueError, match="the student's positions for the expert in prompt 0, got others"):
        check(OURS | {"positions": OURS["positions"] * 2})
    with pytest.raises(ValueError, match="expected 2 prompts for the expert, got 1"):
        check(prompts([[1, VIDEO, VIDEO, 2, 3]]))


def test_shift():
    assert shift([1, 2, 3, 4], [0, 1, 2, 3]) == 1
    assert shift([1, 2, 3, 4, 5], [3, 4, 5, 6, 7]) == -2
    assert shift([1, 2, 3, 4, 5, 6], [1, 2, 3, 9, 5, 6]) == 0


def test_a_merge_across_the_border_is_why_both_are_encoded_apart():
    """A tokenizer that knows "sec": in one piece the prompt's last letter is gone into the response's first token."""
    vocab = {"s": 0, "e": 1, "c": 2, " ": 3, "ec": 4, "sec": 5}
    bpe = Tokenizer(models.BPE(vocab, [("e", "c"), ("s", "ec")]))
    encode = lambda text: bpe.encode(text).ids  # noqa: E731
    assert encode("s" + "ec") == [5]
    assert segmented(encode, "s", "ec") == ([0], [4])
