"""Sampling: what is cut stays cut, what is drawn follows the probabilities, the same seed writes the same."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.decode import Sampler, generate
from recurra.errors import UsageError
from recurra.models import language_model

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


@pytest.mark.parametrize(
    "bad", [{"temperature": -1}, {"top_p": 1.5}, {"min_p": -0.1}, {"top_k": -2}, {"repetition_penalty": 0}]
)
def test_impossible_settings_are_refused_with_the_range(bad) -> None:
    with pytest.raises(UsageError, match="wanted a number"):
        Sampler(**bad)
