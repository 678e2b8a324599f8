"""Generation against an argmax loop without a cache; sampling against brute force."""

import inspect

import pytest
import torch

from minikeye.inference.generate import Draw, Generation, generate, log_probabilities, sample, sayable
from minikeye.keye import KeyeVL

PROMPT = torch.tensor([[72, 105, 32, 116, 104, 101, 114, 101]])


@pytest.fixture(scope="module")
def model(lively) -> KeyeVL:
    return lively


@pytest.mark.parametrize("attention", ["sparse", "dense", "masked"])
@torch.no_grad()
def test_greedy_is_an_argmax_loop(model, attention):
    """Everything is computed anew for each token."""
    ids = PROMPT
    for _ in range(24):
        ids = torch.cat((ids, model({"input_ids": ids}, attention=attention).logits[:, -1:].argmax(-1)), dim=1)
    got = model.generate({"input_ids": PROMPT}, max_new_tokens=24, attention=attention)
    assert got.row() == ids[0, 8:].tolist() and got.record is None
    assert len(set(got.row())) > 5


def test_padded_rows_are_single_runs(model):
    """Three prompts in one batch, padded on the left, continue as each alone."""
    rows = [PROMPT[0], PROMPT[0, :3], PROMPT[0, 2:7]]
    single = [model.generate({"input_ids": row[None]}, max_new_tokens=20).row() for row in rows]
    ids = torch.stack([torch.nn.functional.pad(row, (8 - len(row), 0), value=256) for row in rows])
    got = model.generate({"input_ids": ids, "attention_mask": ids != 256}, max_new_tokens=20)
    assert [got.row(n) for n in range(3)] == single


def test_stop(model):
    """The stop token ends its row and is not returned; the other rows go on; the streamed steps are the result."""
    free = model.generate({"input_ids": PROMPT}, max_new_tokens=12).row()
    stop = next(n for n in free[4:] if n not in free[:4])
    at = free.index(stop)
    rows = torch.cat([PROMPT, PROMPT.flip(1)])
    other = model.generate({"input_ids": PROMPT.flip(1)}, max_new_tokens=12).row()
    steps = []
    got = model.generate({"input_ids": rows}, max_new_tokens=12, stop_ids=(stop, 319), on_token=steps.append)
    assert got.row(0) == free[:at]
    expected = other[: other.index(stop)] if stop in other else other
    assert got.row(1) == expected and len(expected) > at
    assert got.ids[0, at:].eq(-1).all() and torch.equal(torch.stack(steps, dim=1), got.ids)


def test_stop_at_once(model):
    first = model.generate({"input_ids": PROMPT}, max_new_tokens=1).row()
    got = model.generate({"input_ids": PROMPT}, max_new_tokens=9, stop_ids=tuple(first), record=True)
    assert tuple(got.ids.shape) == (1, 0) and got.row() == [] and got.record is None


def test_record_has_a_query_for_every_token(model):
    """What was read to produce it: the query is the token before, and never sees later ones."""
    got = model.generate({"input_ids": PROMPT}, max_new_tokens=20, record=True)
    assert got.record.first == 7 and got.record.queries == 20 == got.ids.shape[1]
    for layer in got.record.layers:
        for n in range(20):
            keys = layer.indices[0, n]
            assert (keys >= 0).sum() == min(16, 8 + n) and keys.max() <= 7 + n
        assert tuple(layer.experts.shape) == (1, 20, 2)


def test_record_changes_nothing_and_stops_in_time(model):
    free = model.generate({"input_ids": PROMPT}, max_new_tokens=12)
    stop = next(n for n in free.row()[4:] if n not in free.row()[:4])
    got = model.generate({"input_ids": PROMPT}, max_new_tokens=12, stop_ids=(stop,), record=True)
    assert got.row() == free.row()[: free.row().index(stop)]
    assert got.record.queries == len(got.row())


def test_seeds(model):
    """One seed, one text; another seed, another; the global generator is left alone."""

    def text(seed):
        return model.generate({"input_ids": PROMPT}, max_new_tokens=16, temperature=1.0, seed=seed).row()

    state = torch.get_rng_state()
    assert text(1) == text(1) != text(2)
    assert torch.equal(torch.get_rng_state(), state)


def test_logits_that_are_not_finite(model):
    broken = KeyeVL(model.config)
    torch.nn.init.constant_(broken.lm_head.weight, float("nan"))
    with pytest.raises(FloatingPointError, match="logits are not finite"):
        broken.generate({"input_ids": PROMPT}, max_new_tokens=2)


@pytest.mark.parametrize(
    "option", [dict(max_new_tokens=0), dict(temperature=-1.0), dict(top_k=-1), dict(top_p=0.0), dict(top_p=1.1)]
)
def test_numbers_out_of_range(model, option):
    with pytest.raises(ValueError, match="expected whole max_new_tokens >= 1, 0 <= temperature < inf"):
        model.generate({"input_ids": PROMPT}, **option)


def test_rows():
    ids = torch.tensor([[5, 6, -1], [7, 8, 9]])
    nothing = torch.zeros(2, 3), torch.full((2,), -1), torch.zeros(2)
    assert Generation(ids, *nothing, None).row(0) == [5, 6]


# ------------------------------------------------------------------------------------------------------------ sampling


def brute_force(logits: list[float], temperature: float, top_k: int, top_p: float) -> list[float]:
    """Most likely tokens first: keep k of them, then as many as it takes to reach top_p of what is left."""
    p = torch.tensor(logits, dtype=torch.float64).div(temperature).softmax(0).tolist()
    order = sorted(range(len(p)), key=lambda n: -p[n])[: top_k or None]
    total, kept, mass = sum(p[n] for n in order), [], 0.0
    for n in order:
        if mass < top_p * total:
            kept.append(n)
            mass += p[n]
    return [p[n] / mass if n in kept else 0.0 for n in range(len(p))]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 3, 50])
@pytest.mark.parametrize("top_p", [1.0, 0.93, 0.4, 1e-6])
def test_sampling_keeps_what_brute_force_keeps(temperature, top_k, top_p, monkeypatch):
    """The probabilities that reach the draw, for five rows of logits."""
    logits, seen = torch.randn(5, 11) * 2, []
    draw = torch.multinomial
    monkeypatch.setattr(torch, "multinomial", lambda p, *args, **more: seen.append(p) or draw(p, *args, **more))
    tokens = sample(logits, temperature, top_k, top_p, None)
    for row, p, token in zip(logits.tolist(), seen[0], tokens.tolist(), strict=True):
        expected = torch.tensor(brute_force(row, temperature, top_k, top_p))
        torch.testing.assert_close((p / p.sum()), expected, atol=1e-5, rtol=0.0)
        assert expected[token] > 0


def test_sampling_frequencies(generator):
    """20,000 draws land within four standard errors of the probabilities."""
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).expand(20_000, -1)
    p = logits[0].softmax(-1)
    share = sample(logits, 1.0, 0, 1.0, generator).bincount(minlength=4) / 20_000
    assert ((share - p).abs() < 4 * (p * (1 - p) / 20_000).sqrt()).all()


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.7)])
@pytest.mark.parametrize("rows", [(0, 7), (0, 3), (3, 4), (6, 7)])
def test_some_rows_draw_what_they_draw_among_all(rows, top_k, top_p, generator):
    """What `torch.multinomial` draws for them, many times over, from one state of the generator."""
    first, last = rows
    for _ in range(200):
        logits = 3 * torch.randn(7, 40, generator=generator)
        state = generator.get_state()
        expected = sample(logits, 0.9, top_k, top_p, generator)
        after = generator.get_state()
        generator.set_state(state)
        found = sample(logits[first:last], 0.9, top_k, top_p, generator, Draw(0, first, 7))
        assert torch.equal(found, expected[first:last])
        assert torch.equal(generator.get_state(), after)  # the next token's numbers are the same, too


def test_rows_of_a_batch_answer_as_among_all(model):
    """Also where others end sooner. A draw without such rows is refused."""
    ids, options = (
        torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 5, 9]]),
        {"temperature": 1.5, "attention": "dense"},
    )
    whole = generate(model, {"input_ids": ids}, 12, seed=4, stop_ids=(*range(60),), **options)
    part = generate(model, {"input_ids": ids[1:3]}, 12, seed=Draw(4, 1, 4), stop_ids=(*range(60),), **options)
    assert [part.row(n) for n in range(2)] == [whole.row(n) for n in (1, 2)]
    assert len({len(whole.row(n)) for n in range(4)}) > 1
    for bad in (Draw(4, 3, 4), Draw(4, -1, 4)):
        with pytest.raises(ValueError, match="expected 2 rows within those of the draw"):
            generate(model, {"input_ids": ids[1:3]}, 12, seed=bad, **options)


def test_temperature_zero_is_argmax():
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 0.0]])
    assert sample(logits, 0.0, 2, 0.5, None).tolist() == [1, 0]


def test_pixels_cannot_be_said(model):
    """A placeholder stands for a visual token of the prompt; it is never generated, however likely."""
    favourite = model.generate({"input_ids": PROMPT}, max_new_tokens=1).row()[0]
    loud = KeyeVL(model.config).eval()
    loud.load_state_dict(model.state_dict())
    for placeholder in (model.config.image_token_id, model.config.video_token_id):
        loud.lm_head.weight.data[placeholder] = 9 * model.lm_head.weight[favourite]
    assert loud({"input_ids": PROMPT}).logits[0, -1].argmax() == model.config.image_token_id
    assert loud.generate({"input_ids": PROMPT}, max_new_tokens=1).row() == [favourite]


def test_a_cache_goes_on(model):
    """Two questions with one cache are one long prompt: what was said stands between them, but for its last token."""
    first = model.generate({"input_ids": PROMPT}, max_new_tokens=5)
    said = torch.tensor([first.row()])
    assert first.cache.length == 12
    more = torch.cat([said[:, -1:], PROMPT[:, :4]], dim=1)
    second = model.generate({"input_ids": more}, max_new_tokens=9, cache=first.cache)
    whole = torch.cat([PROMPT, said, PROMPT[:, :4]], dim=1)
    assert second.row() == model.generate({"input_ids": whole}, max_new_tokens=9).row()
    assert second.cache is first.cache and second.cache.length == 12 + 5 + 8


def test_the_cache_is_made_once(model):
    """Prompt and answer fit from the start: the stores of the first step are those of the last."""
    seen = []
    keep = lambda _: seen.append(out_cache.layers[0]._stores[0].data_ptr())  # noqa: E731
    out_cache = model.new_cache()
    model.generate({"input_ids": PROMPT}, max_new_tokens=20, cache=out_cache, on_token=keep)
    assert len(seen) == 20 and len(set(seen)) == 1
    assert out_cache.layers[0]._stores[0].shape[1] == 8 + 19


def test_more_than_the_context(model):
    """Told before anything is read."""
    most = model.config.text.max_positions
    with pytest.raises(ValueError, match=f"8 tokens and up to {most} new ones exceed the context of {most}"):
        model.generate({"input_ids": PROMPT}, max_new_tokens=most)


def test_more_than_is_free(model, monkeypatch):
    """Refused before anything is read, with what would fit."""
    from minikeye.cost.memory import NotEnoughMemory
    from minikeye.inference import generate

    monkeypatch.setattr(generate, "free_bytes", lambda device: 40 * 2**20)
    with pytest.raises(NotEnoughMemory, match=r"cpu has 41\.9 MB free"):
        model.generate({"input_ids": torch.ones(1, 2000, dtype=torch.long)}, max_new_tokens=2000)


@pytest.mark.parametrize("inputs", [{}, {"role": "user", "content": "hi"}, {"input_ids": [1, 2]}])
def test_what_is_no_input(model, inputs):
    with pytest.raises(ValueError, match=r"inputs\['input_ids'\] must be a non-empty int tensor \[b t\], got"):
        model.generate(inputs)


@pytest.mark.parametrize("temperature", [1e-39, 1e-3, 1.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(1, 1.0), (0, 1e-50), (1, 1e-50)])
def test_the_narrowest_choice_is_one_token(temperature, top_k, top_p):
    """Also among equals, where a threshold would let all of them through."""
    logits = torch.tensor([[0.0, 3.0, 3.0, 3.0], [5.0, -torch.inf, 1.0, 1.0]])
    drawn = {tuple(sample(logits, temperature, top_k, top_p, None).tolist()) for _ in range(30)}
    assert len(drawn) == 1 and next(iter(drawn))[0] in (1, 2, 3) and next(iter(drawn))[1] == 0


@pytest.mark.parametrize("temperature", [float("nan"), float("inf")])
def test_temperatures_that_are_no_number(model, temperature):
    with pytest.raises(ValueError, match="0 <= temperature < inf"):
        model.generate({"input_ids": PROMPT}, temperature=temperature)


def test_the_prompt_is_read_in_chunks(model, monkeypatch):
    """All of one layer before any of the next, and the same answer."""
    seen = []

    class Watch:
        def attention(self, layer, trace):
            seen.append((layer, trace.q.shape[1]))

        def routing(self, *of):
            pass

    ids = torch.arange(20)[None]
    out = model.generate({"input_ids": ids}, max_new_tokens=2, chunk=8, observer=Watch())
    assert seen == [(0, 8), (0, 8), (0, 4), (1, 8), (1, 8), (1, 4), (0, 1), (1, 1)]
    assert out.row() == model.generate({"input_ids": ids}, max_new_tokens=2, chunk=None).row()


def test_what_the_memory_is_asked_for(model, monkeypatch):
    """The batch, the visual tokens of a row, the chunk; what the cache has taken counts as free."""
    from minikeye.inference import generate

    asked = []
    monkeypatch.setattr(generate, "needs", lambda config, **bill: asked.append(bill))
    monkeypatch.setattr(generate, "require", lambda bill, free, where, parts: asked.append((free, parts)))
    monkeypatch.setattr(generate, "free_bytes", lambda device: 1000)
    ids = torch.cat([PROMPT, PROMPT])
    out = model.generate({"input_ids": ids}, max_new_tokens=5, chunk=3)
    bill, (free, parts) = asked
    assert (bill["context"], bill["batch"], bill["visual"], bill["chunk"], bill["streaming"]) == (12, 2, 0, 3, False)
    assert free == 1000 and parts == ("cache", "activations")
    held = out.cache.bytes()
    model.generate({"input_ids": ids[:, :1]}, max_new_tokens=1, cache=out.cache)
    assert held > 0 and asked[-1][0] == 1000 + held and asked[-2]["context"] == 13


# ------------------------------------------------------------------------------------------------- learning from reward


def forced(model, prompt: list[int], drawn: list[int], temperature: float) -> torch.Tensor:
    """Log-probabilities of the drawn tokens by one pass over all of them, pixels left out, in float64."""
    with torch.no_grad():
        logits = model({"input_ids": torch.tensor([prompt + drawn])}).logits[0, len(prompt) - 1 : -1].double()
    logits[:, [model.config.image_token_id, model.config.video_token_id]] = -torch.inf
    return (logits / (temperature or 1.0)).log_softmax(-1).gather(1, torch.tensor(drawn)[:, None])[:, 0]


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "seed": 1}, {"temperature": 1.5, "top_k": 4, "seed": 2}])
def test_log_probabilities_are_those_of_one_pass(model, options):
    """Of every token drawn, the stop token's too; of the whole softmax, whatever top_k cuts away."""
    rows = torch.cat([PROMPT, PROMPT.flip(1)])
    free = model.generate({"input_ids": rows}, max_new_tokens=12, **options)
    stop = free.row(0)[4]
    out = model.generate({"input_ids": rows}, max_new_tokens=12, stop_ids=(stop,), **options)
    assert int(out.stops[0]) == stop and stop not in out.row(0)
    for n, prompt in enumerate(rows.tolist()):
        drawn, logprobs = out.drawn(n)
        assert drawn == out.row(n) + ([stop] if int(out.stops[n]) == stop else [])
        expected = forced(model, prompt, drawn, options.get("temperature", 0.0))
        torch.testing.assert_close(torch.tensor(logprobs).double(), expected, atol=1e-4, rtol=0)
    filled = out.ids < 0
    assert filled.any() and (out.logprobs[filled] == 0).all() and (out.logprobs[~filled] < 0).all()


def test_a_row_without_a_stop_token_has_none(model):
    out = model.generate({"input_ids": PROMPT}, max_new_tokens=3)
    assert out.stops.tolist() == [-1] and out.stop_logprobs.tolist() == [0.0]
    assert out.drawn() == (out.row(), out.logprobs[0].tolist())


def test_stopped_at_once(model):
    """No token, but a stop token with its probability: an empty answer is an answer."""
    first = model.generate({"input_ids": PROMPT}, max_new_tokens=1)
    out = model.generate({"input_ids": PROMPT}, max_new_tokens=4, stop_ids=tuple(first.row()))
    assert out.ids.shape == out.logprobs.shape == (1, 0)
    assert out.drawn() == (first.row(), first.logprobs[0].tolist())


def test_many_answers_to_a_prompt_that_is_read_once(model):
    """All of the prompt but its last token, repeated, goes on as a batch of equal prompts does: padded rows too."""
    rows = torch.randint(256, (2, 20))
    mask = torch.ones_like(rows, dtype=torch.bool)
    mask[1, :5] = False
    cache = model.new_cache()
    with torch.no_grad():
        model({"input_ids": rows[:, :-1], "attention_mask": mask[:, :-1]}, cache, last=1)
    held = cache.length, cache.bytes()
    many, last = cache.repeat(3, capacity=30), rows[:, -1:].repeat_interleave(3, dim=0)
    assert many.batch == 6 and many.bytes() == 3 * cache.bytes() and many.layers[0].capacity == 30
    options = {"max_new_tokens": 8, "temperature": 1.0, "seed": 5}
    got = model.generate({"input_ids": last}, cache=many, **options)
    whole = {"input_ids": rows.repeat_interleave(3, dim=0), "attention_mask": mask.repeat_interleave(3, dim=0)}
    assert torch.equal(got.ids, model.generate(whole, **options).ids) and len({tuple(r) for r in got.ids.tolist()}) > 2
    assert (cache.length, cache.bytes()) == held  # the one that was repeated can be repeated again


@pytest.mark.parametrize("times", [0, -1])
def test_a_cache_is_repeated_once_at_least(model, times):
    cache = model.generate({"input_ids": PROMPT}, max_new_tokens=2).cache
    with pytest.raises(ValueError, match="times >= 1"):
        cache.repeat(times)
    with pytest.raises(ValueError, match="holds tokens"):
        model.new_cache().repeat(2)


# ---------------------------------------------------------------------------- what callers who read docstrings only met


def test_rows_that_ended_apart_cannot_go_on_together(model):
    """While the others went on, a row that had ended read tokens it did not say. Cut to before that, all may go on."""
    rows = torch.cat([PROMPT, PROMPT.flip(1)])
    free = model.generate({"input_ids": rows}, max_new_tokens=8)
    stop = next(token for token in free.row(0) if token not in free.row(1))
    out = model.generate({"input_ids": rows}, max_new_tokens=8, stop_ids=(stop,))
    more = {"input_ids": torch.full((2, 1), 7)}
    for cache in (out.cache, out.cache.repeat(2)):
        ids = {"input_ids": torch.full((cache.batch, 1), 7)}
        with pytest.raises(ValueError, match="ended at different steps and cannot go on together: cut it to"):
            model.generate(ids, max_new_tokens=1, cache=cache)
        with torch.no_grad(), pytest.raises(ValueError, match="ended at different steps"):
            model(ids, cache)
    ended = len(PROMPT[0]) + len(out.row(0))
    out.cache.truncate(ended, out.cache.next_position - (out.cache.length - ended))
    got = model.generate(more, max_new_tokens=3, cache=out.cache)
    for n in range(2):
        whole = torch.cat([rows[n], free.ids[n, : len(out.row(0))], torch.tensor([7])])[None]
        assert got.row(n) == model.generate({"input_ids": whole}, max_new_tokens=3).row()


@pytest.mark.parametrize("at", [1, 3])
def test_an_interrupted_generation_leaves_the_cache_as_it_was(model, at):
    first = model.generate({"input_ids": PROMPT}, max_new_tokens=3)
    before, steps = (first.cache.length, first.cache.next_position.clone()), []

    def stop(token):
        steps.append(token)
        if len(steps) == at:
            raise KeyboardInterrupt

    more = {"input_ids": torch.tensor([[first.row()[-1], 65, 66]])}
    with pytest.raises(KeyboardInterrupt):
        model.generate(more, max_new_tokens=9, cache=first.cache, on_token=stop)
    assert first.cache.length == before[0] and torch.equal(first.cache.next_position, before[1])
    whole = torch.tensor([[*PROMPT[0].tolist(), *first.row(), 65, 66]])
    got = model.generate(more, max_new_tokens=4, cache=first.cache)
    assert got.row() == model.generate({"input_ids": whole}, max_new_tokens=4).row()


def test_a_ratio_needs_the_function_that_was_drawn_from(model):
    """`sayable` leaves out what `generate` cannot say, copies, and lets gradients through."""
    out = model.generate({"input_ids": PROMPT}, max_new_tokens=5)
    whole = torch.cat([PROMPT, out.ids], dim=1)
    logits = model({"input_ids": whole}).logits[:, len(PROMPT[0]) - 1 : -1]
    again = log_probabilities(sayable(logits, model.config), out.ids)
    torch.testing.assert_close(again.detach(), out.logprobs, atol=1e-5, rtol=0)
    assert again.requires_grad and logits.isfinite().all()
    assert (log_probabilities(logits, out.ids) < again - 1e-4).any()  # without it the ratio would be of two functions


@pytest.mark.parametrize(
    ("tokens", "temperature", "message"),
    [
        (torch.zeros(2, 2), 1.0, r"one token for each row of logits \[2, 3, 5\]"),
        (torch.zeros(2, 3), -1.0, "0 <= temperature"),
        (torch.zeros(2, 3), float("nan"), "0 <= temperature"),
        (torch.full((2, 3), -1), 1.0, "leave out the filling"),
        (torch.full((2, 3), 5), 1.0, r"lie in 0\.\.4"),
    ],
)
def test_log_probabilities_of_what_does_not_fit(tokens, temperature, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(log_probabilities)(torch.zeros(2, 3, 5), tokens.long(), temperature)


@pytest.mark.parametrize("option", [{"max_new_tokens": 2.5}, {"top_k": 1.5}])
def test_half_a_token(model, option):
    with pytest.raises(ValueError, match="whole max_new_tokens"):
        inspect.unwrap(generate)(model, {"input_ids": PROMPT}, **option)


@pytest.mark.parametrize("stop", [320, -1])
def test_a_stop_token_that_there_is_not(model, stop):
    with pytest.raises(ValueError, match=r"stop_ids must lie in 0\.\.319"):
        model.generate({"input_ids": PROMPT}, stop_ids=(stop,))
