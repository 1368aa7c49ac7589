"""Sampling: what is cut stays cut, what is drawn follows the probabilities, the same seed writes the same."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.decode import Sampler, generate, sample
from recurra.errors import UsageError
from recurra.models import SequenceModel, language_model

scores = st.lists(st.floats(-8, 8), min_size=2, max_size=12).map(lambda row: torch.tensor([row]))


@settings(max_examples=60, deadline=None)
@given(scores, st.floats(0.2, 3.0), st.integers(0, 12), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_cut_probabilities_are_the_softmax_of_what_is_kept(row, temperature, top_k, top_p, min_p) -> None:
    sampler = Sampler(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    full, cut = (row / temperature).softmax(1), sampler.probabilities(row)
    kept = cut > 0
    assert kept.any() and cut.argmax() in (full == full.max()).nonzero()[:, 1]
    torch.testing.assert_close(cut[kept], full[kept] / full[kept].sum(), rtol=1e-4, atol=1e-6)
    ranked = full.sort(descending=True).values[0]
    if top_k == 0 and min_p == 0:
        least = int((ranked.cumsum(0) - ranked < top_p).sum())
        assert int(kept.sum()) == max(least, 1) or torch.unique(full).numel() < full.numel()
    if 0 < top_k < row.shape[1] and torch.unique(full).numel() == full.numel():
        assert int(kept.sum()) <= top_k
    assert (full[kept] >= min_p * full.max() * (1 - 1e-6)).all()


def test_draws_follow_the_probabilities() -> None:
    row = torch.tensor([[2.0, 1.0, 0.0]])
    sampler = Sampler(seed=3)
    drawn = torch.bincount(torch.stack([sampler.pick(row) for _ in range(4000)]).flatten(), minlength=3) / 4000
    torch.testing.assert_close(drawn, row.softmax(1)[0], rtol=0, atol=0.03)


def test_temperature_zero_takes_the_best_and_never_is_never() -> None:
    row = torch.tensor([[0.0, 5.0, 4.0]])
    assert int(Sampler(temperature=0).pick(row)) == 1
    assert int(Sampler(temperature=0, never=(1,)).pick(row)) == 2


def test_the_repetition_penalty_shuns_what_was_written() -> None:
    row = torch.tensor([[1.0, 0.9, -3.0]])
    sampler = Sampler(temperature=0, repetition_penalty=2.0)
    assert [int(sampler.pick(row)) for _ in range(3)] == [0, 1, 0]


def test_the_same_seed_writes_the_same_and_another_seed_does_not() -> None:
    torch.manual_seed(0)
    model = language_model(20, hidden=8, embedding=4).eval()

    def write(seed: int) -> list[int]:
        return [
            int(token)
            for token, _ in generate(model, torch.tensor([1]), model.initial_state(1), Sampler(seed=seed), 30)
        ]

    assert write(1) == write(1) != write(2)


def warm(size: int = 4, scale: float = 4.0) -> SequenceModel:
    torch.manual_seed(0)
    model = language_model(size, hidden=8, embedding=4).eval()
    with torch.no_grad():
        model.readout.weight.mul_(scale)
    return model


@pytest.mark.parametrize(
    "sampler", [Sampler(), Sampler(temperature=0), Sampler(temperature=0.4, top_k=2), Sampler(repetition_penalty=3.0)]
)
def test_log_probabilities_of_samples_are_the_models_own_and_nothing_follows_the_end(sampler: Sampler) -> None:
    model, first, steps = warm(), torch.tensor([1, 2, 3, 1, 2, 3]), 6
    drawn = sample(model, first, model.initial_state(6), sampler, steps, end=0)
    for start, one in zip(first.tolist(), drawn, strict=True):
        assert 0 not in one.tokens and (one.ended or len(one.tokens) == steps) and one.score == one.log_probability
        said = [*one.tokens, *([0] if one.ended else [])]
        assert len(said) <= steps
        logs = model.unroll(torch.tensor([[start, *said[:-1]]]), model.initial_state(1))[0].detach().log_softmax(2)[0]
        wanted = float(sum(logs[t, token] for t, token in enumerate(said)))
        assert one.log_probability == pytest.approx(wanted, abs=1e-4)


def test_samples_come_as_often_as_their_probability_says() -> None:
    model, rows, often = warm(3, 2.0), 6000, Counter[tuple[float, tuple[int, ...]]]()
    first = torch.ones(rows, dtype=torch.int64)
    for one in sample(model, first, model.initial_state(rows), Sampler(seed=2), 3, end=0):
        often[round(one.log_probability, 4), (*one.tokens, one.ended)] += 1
    assert len(often) > 6
    for (value, _), count in often.items():
        assert count / rows == pytest.approx(math.exp(value), abs=0.03)


def test_sampling_takes_no_step_after_the_last_end() -> None:
    calls = []

    def cell(x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The k-th row ends after k + 1 tokens."""
        calls.append(len(x))
        ends = state >= torch.arange(len(x))
        return torch.stack([40.0 * ends, 20.0 * torch.ones(len(x))], 1), state + 1

    drawn = sample(cell, torch.ones(4, dtype=torch.int64), torch.zeros(4), Sampler(temperature=0), 50, end=0)
    assert [len(one.tokens) for one in drawn] == [0, 1, 2, 3] and all(one.ended for one in drawn)
    assert calls == [4] * 4
    with pytest.raises(UsageError, match="wanted at least 1"):
        sample(cell, torch.ones(4, dtype=torch.int64), torch.zeros(4), Sampler(), 0, end=0)


@pytest.mark.parametrize(
    "bad", [{"temperature": -1}, {"top_p": 1.5}, {"min_p": -0.1}, {"top_k": -2}, {"repetition_penalty": 0}]
)
def test_impossible_settings_are_refused_with_the_range(bad) -> None:
    with pytest.raises(UsageError, match="wanted a number"):
        Sampler(**bad)
