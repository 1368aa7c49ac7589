"""Beam search against exhaustive search, greedy search, and the model's own log-probabilities."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from recurra.decode import Beam, Hypothesis
from recurra.errors import RecurraError, UsageError
from recurra.models import SequenceModel, language_model

END, SIZE = 0, 4


@pytest.fixture
def model() -> SequenceModel:
    torch.manual_seed(3)
    made = language_model(SIZE, cell="gru", hidden=6, embedding=5).eval()
    with torch.no_grad():
        made.readout.weight.mul_(4)
    return made


def log_probability(model: SequenceModel, first: int, tokens: list[int]) -> float:
    """What the model itself says of these tokens after `first`."""
    xs = torch.tensor([[first, *tokens]])
    logs = model.unroll(xs, model.initial_state(1))[0].detach().log_softmax(2)
    return float(sum(logs[0, t, token] for t, token in enumerate(tokens)))


def searched(model: SequenceModel, beam: Beam, first: list[int]) -> list[list[Hypothesis]]:
    return beam.search(model, torch.tensor(first), model.initial_state(len(first)))


@pytest.mark.parametrize("alpha", [0.0, 0.7, 2.0])
def test_a_wide_beam_is_exhaustive_search(model: SequenceModel, alpha: float) -> None:
    steps, beam = 4, Beam(SIZE**4, 4, END, length_penalty=alpha)
    every = []
    for length in range(1, steps + 1):
        for tokens in itertools.product(range(SIZE), repeat=length):
            ended = tokens[-1] == END
            if END in tokens[:-1] or not (ended or length == steps):
                continue
            value = log_probability(model, 1, list(tokens))
            score = value / ((5 + length) / 6) ** alpha
            every.append(Hypothesis([t for t in tokens if t != END], value, score, ended))
    every.sort(key=lambda one: -one.score)
    found = searched(model, beam, [1])[0]
    assert [one.tokens for one in found] == [one.tokens for one in every]
    for one, other in zip(found, every, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-4) and one.ended == other.ended


@pytest.mark.parametrize("width", [1, 2, 3, 7])
def test_log_probabilities_are_the_models_own(model: SequenceModel, width: int) -> None:
    for row, first in zip(searched(model, Beam(width, 6, END), [1, 2, 3]), [1, 2, 3], strict=True):
        assert 1 <= len(row) <= width and [one.score for one in row] == sorted((o.score for o in row), reverse=True)
        for one in row:
            said = [*one.tokens, END] if one.ended else one.tokens
            assert one.log_probability == pytest.approx(log_probability(model, first, said), abs=1e-4)


def test_a_beam_of_one_takes_the_best_token_every_time(model: SequenceModel) -> None:
    for first in range(1, SIZE):
        tokens: list[int] = []
        state, token = model.initial_state(1), first
        for _ in range(8):
            scores, state = model(torch.tensor([token]), state)
            token = int(scores.argmax())
            if token == END:
                break
            tokens.append(token)
        assert searched(model, Beam(1, 8, END), [first])[0][0].tokens == tokens


def test_rows_are_searched_as_if_they_were_alone(model: SequenceModel) -> None:
    beam = Beam(3, 7, END, length_penalty=0.6)
    together = searched(model, beam, [1, 2, 3, 1])
    for row, first in zip(together, [1, 2, 3, 1], strict=True):
        alone = searched(model, beam, [first])[0]
        assert [one.tokens for one in row] == [one.tokens for one in alone]
        assert [one.score for one in row] == pytest.approx([one.score for one in alone], abs=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_gram_occurs_twice_where_that_is_forbidden(model: SequenceModel, size: int) -> None:
    free = searched(model, Beam(3, 12, END, never=(END,)), [1])[0]
    grams = lambda tokens: list(zip(*(tokens[at:] for at in range(size)), strict=False))  # noqa: E731
    assert any(len(set(grams(one.tokens))) < len(grams(one.tokens)) for one in free), "this model repeats itself"
    steps = {1: 3, 2: 7, 3: 12}[size]  # that three tokens have without a repetition
    found = searched(model, Beam(3, steps, END, no_repeat=size, never=(END,)), [1])[0]
    for one in [*found, *searched(model, Beam(3, 12, END, no_repeat=size), [1])[0]]:
        assert len(set(grams(one.tokens))) == len(grams(one.tokens))
    assert any(len(one.tokens) == steps for one in found)


def test_what_is_never_to_be_chosen_is_not(model: SequenceModel) -> None:
    for row in searched(model, Beam(4, 5, END, never=(END, 2)), [1, 3]):
        assert row and all(not one.ended and 2 not in one.tokens and len(one.tokens) == 5 for one in row)


def test_a_state_follows_its_hypothesis(model: SequenceModel) -> None:
    """With a cell whose output says all that it has read: sums of distinct powers."""

    class Reader(torch.nn.Module):
        def forward(self, x: Tensor, state: tuple[Tensor]) -> tuple[Tensor, tuple[Tensor]]:
            read = state[0] * 7 + x
            scores = torch.stack([(read * place) % 11 for place in range(2, 2 + SIZE)], 1).float()
            return scores, (read,)

    cell = Reader()
    for one in Beam(5, 4, END).search(cell, torch.tensor([1]), (torch.zeros(1, dtype=torch.int64),))[0]:  # type: ignore[arg-type]
        state, total, before = (torch.zeros(1, dtype=torch.int64),), 0.0, 1
        for token in [*one.tokens, *([END] if one.ended else [])]:
            scores, state = cell(torch.tensor([before]), state)
            total, before = total + float(scores.log_softmax(1)[0, token]), token
        assert one.log_probability == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("wrong", [{"width": 0}, {"steps": 0}, {"no_repeat": -1}])
def test_a_wrong_beam_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="wanted at least 1, 1 and 0"):
        Beam(**{"width": 2, "steps": 3, "end": 0, **wrong})


def test_scores_that_are_not_finite_are_said(model: SequenceModel) -> None:
    with torch.no_grad():
        model.readout.bias.fill_(math.nan)
    with pytest.raises(RecurraError, match="training has diverged"):
        searched(model, Beam(2, 3, END), [1])
