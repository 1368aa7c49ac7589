"""Beam search against exhaustive search, greedy search, and the model's own log-probabilities."""

import itertools
import math
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recurra.attention import ATTENTIONS
from recurra.cells import CELLS
from recurra.constraints import in_turn
from recurra.decode import Beam, Expansion, Hypothesis, Sampler, sample
from recurra.decoder import Attending, Decoder, Memory
from recurra.errors import RecurraError, UsageError
from recurra.models import SequenceModel, language_model
from recurra.state import State

END, SIZE = 0, 4


def made(size: int = SIZE, seed: int = 3) -> SequenceModel:
    torch.manual_seed(seed)
    made = language_model(size, cell="gru", hidden=6, embedding=5).eval()
    with torch.no_grad():
        made.readout.weight.mul_(4)
    return made


@pytest.fixture
def model() -> SequenceModel:
    return made()


def log_probability(model: SequenceModel, first: int, tokens: list[int]) -> float:
    """What the model itself says of these tokens after `first`."""
    xs = torch.tensor([[first, *tokens]])
    logs = model.unroll(xs, model.initial_state(1))[0].detach().log_softmax(2)
    return float(sum(logs[0, t, token] for t, token in enumerate(tokens)))


def searched(model: SequenceModel, beam: Beam, first: list[int], **asked: Any) -> list[list[Hypothesis]]:
    return beam.search(model, torch.tensor(first), model.initial_state(len(first)), **asked)


def said(one: Hypothesis) -> list[int]:
    return [*one.tokens, *([END] if one.ended else [])]


def holds(tokens: list[int], phrase: list[int]) -> bool:
    return any(tokens[at : at + len(phrase)] == phrase for at in range(len(tokens)))


@cache
def every(first: int, steps: int) -> list[tuple[list[int], float]]:
    """All that can be said in so many steps, each with its log-probability, the likeliest first."""
    model, found = made(), []
    for length in range(1, steps + 1):
        for tokens in itertools.product(range(SIZE), repeat=length):
            if END not in tokens[:-1] and (tokens[-1] == END or length == steps):
                found.append((list(tokens), log_probability(model, first, list(tokens))))
    return sorted(found, key=lambda one: -one[1])


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


sequences = st.lists(st.integers(1, SIZE - 1), min_size=1, max_size=3)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(sequences, max_size=3), min_size=1, max_size=3), st.data())
def test_a_wide_beam_is_exhaustive_search_among_what_is_asked_for(phrases: list[list[list[int]]], data: Any) -> None:
    """Phrases may overlap themselves and each other, and prefixes hold parts of them."""
    steps, firsts = 4, [data.draw(st.integers(1, SIZE - 1)) for _ in phrases]
    prefix = [data.draw(st.lists(st.integers(1, SIZE - 1), max_size=steps)) for _ in phrases]
    found = searched(made(), Beam(SIZE**steps, steps, END), firsts, prefix=prefix, phrases=phrases)
    for row, first, begun, asked in zip(found, firsts, prefix, phrases, strict=True):
        fitting = [one for one in every(first, steps) if one[0][: len(begun)] == begun]
        lacks = [sum(not holds(tokens, phrase) for phrase in asked) for tokens, _ in fitting]
        wanted = [(*one, n) for one, n in zip(fitting, lacks, strict=True) if not n or one[0][-1] != END]
        wanted.sort(key=lambda one: one[2])  # among those that lack as much, the likeliest first
        assert [(said(one), one.unmet) for one in row] == [(tokens, n) for tokens, _, n in wanted]
        assert [one.log_probability for one in row] == pytest.approx([value for _, value, _ in wanted], abs=1e-4)


@pytest.mark.parametrize("width", [2, 4, 7])
def test_phrases_that_no_beam_would_say_occur_and_what_is_said_is_the_models_own(width: int) -> None:
    model, phrases = made(12), [[[7, 7, 3], [9]], [[5, 11]]]
    plain = searched(model, Beam(width, 14, END), [1, 2])
    assert not any(all(holds(one.tokens, phrase) for phrase in phrases[0]) for one in plain[0])
    for row, first, asked in zip(
        searched(model, Beam(width, 14, END), [1, 2], phrases=phrases), [1, 2], phrases, strict=True
    ):
        assert row[0].unmet == 0 and len({tuple(one.tokens) for one in row}) == len(row)
        for one in row:
            assert one.log_probability == pytest.approx(log_probability(model, first, said(one)), abs=1e-4)
            assert one.unmet == sum(not holds(one.tokens, phrase) for phrase in asked) and not (one.unmet and one.ended)


def test_a_phrase_that_cannot_be_met_is_said_to_be_missing(model: SequenceModel) -> None:
    for row in searched(model, Beam(3, 4, END), [1, 2], phrases=[[[1, 2, 3, 1, 2]], [[1, 2, 3], [3, 1, 1], [2]]]):
        assert row and all(not one.ended and one.unmet >= 1 and len(one.tokens) == 4 for one in row)


def test_what_has_met_all_comes_before_what_is_likelier_and_has_not(model: SequenceModel) -> None:
    row = searched(model, Beam(40, 4, END), [1], phrases=[[[2, 1, 2]]])[0]
    assert [one.unmet for one in row] == sorted(one.unmet for one in row) and {one.unmet for one in row} == {0, 1}
    assert max(one.score for one in row if one.unmet) > max(one.score for one in row if not one.unmet)


def test_rows_with_demands_are_searched_as_if_they_were_alone() -> None:
    model, beam, firsts = made(12), Beam(3, 9, END, length_penalty=0.6), [1, 2, 3, 4, 5]
    prefix: list[list[int]] = [[], [3, 4], [1], [], [6, 6, 6]]
    phrases: list[list[list[int]]] = [[], [[4, 5], [2]], [], [[9, 8, 7]], [[6]]]
    together = searched(model, beam, firsts, prefix=prefix, phrases=phrases)
    for at, first in enumerate(firsts):
        asked = {"prefix": prefix[at : at + 1], "phrases": phrases[at : at + 1]}
        alone = searched(model, beam, [first], **{key: value for key, value in asked.items() if value[0]})[0]
        assert [one.tokens for one in together[at]] == [one.tokens for one in alone]
        assert [one.score for one in together[at]] == pytest.approx([one.score for one in alone], abs=1e-5)


@pytest.mark.parametrize("width", [1, 3])
def test_a_prefix_is_a_search_from_where_it_ends(width: int) -> None:
    model, begun = made(12), [4, 9, 4]
    _, state = model.unroll(torch.tensor([[1, *begun[:-1]]]), model.initial_state(1))
    later = Beam(width, 6, END).search(model, torch.tensor(begun[-1:]), state)[0]
    found = searched(model, Beam(width, 6 + len(begun), END, never=(9,)), [1], prefix=[begun])[0]
    later = [one for one in later if 9 not in one.tokens]
    assert found[0].tokens[: len(begun)] == begun
    if later:
        assert found[0].tokens == [*begun, *later[0].tokens]
        before = log_probability(model, 1, begun)
        assert found[0].log_probability == pytest.approx(before + later[0].log_probability, abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 3)), min_size=1, max_size=12), st.integers(1, 12))
def test_a_beam_is_shared_out_as_evenly_as_its_banks_allow(choices: list[tuple[int, int]], width: int) -> None:
    values, banks = (torch.tensor([part]) for part in zip(*choices, strict=True))
    order = in_turn(values.float(), banks)[0].tolist()
    assert sorted(order) == list(range(len(choices)))
    taken = order[:width]
    for bank in {bank for _, bank in choices}:
        own = [at for at in order if choices[at][1] == bank]
        assert [choices[at][0] for at in own] == sorted((choices[at][0] for at in own), reverse=True)
        share = sum(choices[at][1] == bank for at in taken)
        if share < len(own):  # it had more to give: no other got more than one above its share
            assert all(sum(choices[at][1] == other for at in taken) <= share + 1 for _, other in choices)


def plain(model: SequenceModel, width: int, steps: int, first: int, alpha: float) -> list[tuple[list[int], float]]:
    """The same search, written in lists: each step sorts all that can be said."""
    live, done = [([], 0.0)], []
    for _ in range(steps):
        xs = torch.tensor([[first, *tokens] for tokens, _ in live])
        logs = model.unroll(xs, model.initial_state(len(live)))[0][:, -1].detach().log_softmax(1).tolist()
        ranked = [
            ([*tokens, token], value + log)
            for (tokens, value), row in zip(live, logs, strict=True)
            for token, log in enumerate(row)
        ]
        ranked.sort(key=lambda one: -one[1])
        done += [one for one in ranked[:width] if one[0][-1] == END]
        live = [one for one in ranked if one[0][-1] != END][:width]
        if len(done) >= width:
            break
    found = [*done, *live][:width] if len(done) < width else done[:width]
    scored = [(tokens, value / ((5 + len(tokens)) / 6) ** alpha) for tokens, value in found]
    return sorted(scored, key=lambda one: -one[1])


@pytest.mark.parametrize(("width", "size"), [(1, 340), (4, 830), (4, 9), (7, 5), (3, 2)])
def test_a_search_is_what_sorting_all_that_can_be_said_finds(width: int, size: int) -> None:
    """Of vocabularies that are looked through block by block, and of small ones; where the end is likely and where it is not."""
    for seed in range(12):
        model = made(size, seed)
        with torch.no_grad():
            model.readout.bias[END] += seed / 2
        firsts, alpha = list(range(1, min(size, 9))), 3.0 * (seed % 2)
        for row, first in zip(searched(model, Beam(width, 6, END, alpha), firsts), firsts, strict=True):
            wanted = plain(model, width, 6, first, alpha)
            assert [said(one) for one in row] == [tokens for tokens, _ in wanted]
            assert [one.score for one in row] == pytest.approx([value for _, value in wanted], abs=1e-4)


def looking(rows: int = 2, places: int = 4, name: str = "general", end: float = 0.0) -> tuple[Decoder, Memory]:
    torch.manual_seed(5)
    decoder = Decoder(nn.Embedding(SIZE, 3), CELLS["gru"](6, 3), 4, ATTENTIONS[name](3, 4), feed=True).eval()
    with torch.no_grad():
        decoder.readout.weight.mul_(5)
        decoder.readout.bias[END] += end
    return decoder, Memory(3 * torch.randn(rows, places, 4), torch.tensor([places, 2])[:rows], torch.randn(rows, 4))


def over(decoder: Decoder, memory: Memory, beam: Beam, first: list[int], **asked: Any) -> list[list[Hypothesis]]:
    start = decoder.attend(memory).initial_state(len(first))
    return beam.search(decoder.attend(memory, beam.width), torch.tensor(first), start, **asked)


def weights_of(state: State) -> Tensor:
    return state.covered


@pytest.mark.parametrize("alpha", [0.0, 0.8])
def test_what_has_looked_everywhere_is_ranked_higher(alpha: float) -> None:
    """The formula again, over weights that are summed here; the second row has half of its places."""
    decoder, memory = looking()
    beam = Beam(SIZE**3, 3, END, length_penalty=alpha, coverage_penalty=0.9)
    found = over(decoder, memory, beam, [1, 2], covered=weights_of, places=memory.lengths)
    for row, first, at in zip(found, [1, 2], range(2), strict=True):
        cell = decoder.attend(memory.take(torch.tensor([at])))
        assert [one.score for one in row] == sorted((one.score for one in row), reverse=True) and len(row) > 9
        for one in row:
            state, total, seen = cell.initial_state(1), 0.0, torch.zeros(4)
            for read, token in zip([first, *said(one)], said(one), strict=False):
                scores, state = cell(torch.tensor([read]), state)
                total, seen = total + float(scores.detach().log_softmax(1)[0, token]), seen + state.weights[0].detach()
            looked = sum(math.log(min(float(seen[place]), 1.0)) for place in range([4, 2][at]))
            score = total / ((5 + len(said(one))) / 6) ** alpha + 0.9 * looked
            assert one.score == pytest.approx(score, abs=1e-3) and one.log_probability == pytest.approx(total, abs=1e-4)
    without = over(decoder, memory, Beam(SIZE**3, 3, END, length_penalty=alpha), [1, 2])
    assert [one.tokens for one in without[0]] != [one.tokens for one in found[0]], "the penalty changes this order"


def test_a_place_that_is_never_looked_at_leaves_the_scores_finite() -> None:
    decoder, memory = looking()
    found = over(decoder, memory, Beam(2, 3, END, coverage_penalty=1.0), [1, 2], covered=lambda s: 0 * s.covered)
    assert all(math.isfinite(one.score) for row in found for one in row)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 99), st.integers(1, 5), st.sampled_from([0.0, 0.6, 2.0, -0.7, -2.0]), st.integers(-2, 4), st.data()
)
def test_a_search_for_fewer_finds_the_best_of_a_search_for_all(
    seed: int, width: int, alpha: float, likely: int, data: Any
) -> None:
    model, count = made(6, seed), data.draw(st.integers(1, width))
    with torch.no_grad():
        model.readout.weight.mul_(0.3)
        model.readout.bias[END] += likely
    whole = searched(model, Beam(width, 8, END, length_penalty=alpha), [1, 2, 3])
    fewer = searched(model, Beam(width, 8, END, length_penalty=alpha, n_best=count), [1, 2, 3])
    assert [[said(one) for one in row] for row in fewer] == [[said(one) for one in row[:count]] for row in whole]


@pytest.mark.parametrize(("alpha", "ends"), [(2.0, [0.6, 0, 0, 0, 0, 1, 1]), (-2.0, [0.35, 0.99, 1, 1, 1, 1, 1])])
def test_a_search_for_one_waits_where_another_length_may_score_higher(alpha: float, ends: list[float]) -> None:
    """A longer one that loses little, where length is rewarded; a shorter one where it is punished. `ends`: at each step."""

    def cell(x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        end = torch.tensor(ends)[state]
        return torch.stack([end, 1 - end, 0 * end], 1).clamp(min=1e-6).log(), state + 1

    def found(n_best: int) -> list[Hypothesis]:
        beam = Beam(2, len(ends), END, length_penalty=alpha, n_best=n_best)
        return beam.search(cell, torch.ones(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))[0]

    assert found(1) == found(0)[:1] and found(1)[0].tokens, "the one that ends at once is not the best"


class Counting:
    """A decoder over a memory that writes down how many rows it was given, and can be narrowed to some of them."""

    def __init__(self, cell: Attending, given: list[int]) -> None:
        self.cell, self.given = cell, given

    def __call__(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        self.given.append(len(x))
        return self.cell(x, state)

    def narrow(self, rows: Tensor) -> "Counting":
        return Counting(self.cell.take(rows), self.given)


@pytest.mark.parametrize("width", [1, 3])
def test_rows_that_are_over_are_left_out_and_nothing_else_changes(width: int) -> None:
    decoder, _ = looking(end=1.5)
    torch.manual_seed(9)
    memory = Memory(3 * torch.randn(8, 5, 4), torch.randint(1, 6, (8,)), 3 * torch.randn(8, 4))
    first, start = torch.randint(1, SIZE, (8,)), decoder.attend(memory).initial_state(8)
    beam = Beam(width, 12, END, length_penalty=0.5, coverage_penalty=0.3)
    asked: dict[str, Any] = {
        "covered": weights_of,
        "places": memory.lengths,
        "prefix": [[], [1], [2, 2, 2, 2, 2, 2], [], [], [], [3], []],
        "phrases": [[], [], [], [], [[3, 2, 3]], [], [], []],
    }
    whole, narrowed = (Counting(decoder.attend(memory, width), []) for _ in range(2))
    wanted = beam.search(whole, first, start, **asked)
    found = beam.search(narrowed, first, start, narrow=narrowed.narrow, **asked)
    assert set(whole.given) == {8 * width} and len(whole.given) == len(narrowed.given)
    assert narrowed.given == sorted(narrowed.given, reverse=True) and len(set(narrowed.given)) >= 3
    for row, other in zip(found, wanted, strict=True):
        assert [said(one) for one in row] == [said(one) for one in other]
        assert [one.score for one in row] == pytest.approx([one.score for one in other], abs=1e-4)


def test_a_search_stops_as_soon_as_nothing_can_be_better() -> None:
    decoder, memory = looking(end=3)
    given: dict[int, list[int]] = {1: [], 0: []}
    for n_best, calls in given.items():
        cell = Counting(decoder.attend(memory, 3), calls)
        Beam(3, 30, END, n_best=n_best).search(cell, torch.tensor([1, 2]), decoder.attend(memory).initial_state(2))
    assert len(given[1]) < len(given[0])


def test_a_search_stops_as_soon_as_as_many_have_ended_as_the_beam_is_wide() -> None:
    """Also where longer ones, which are scored higher, would follow."""
    decoder, memory = looking(1, end=3)
    calls: list[int] = []
    cell = Counting(decoder.attend(memory), calls)
    found = Beam(1, 40, END, length_penalty=5).search(cell, torch.tensor([1]), decoder.attend(memory).initial_state(1))
    assert found[0][0].ended and calls == [1] * len(said(found[0][0]))


@pytest.mark.parametrize("phrases", [None, [[[2, 1]], []]])
def test_the_tree_of_a_search_holds_its_hypotheses_and_what_was_cut_off(phrases: Any) -> None:
    decoder, memory = looking(end=1)
    beam, levels = Beam(5, 7, END), list[Expansion]()
    found = over(decoder, memory, beam, [1, 2], phrases=phrases, watch=levels.append)
    paths: list[list[tuple[list[int], float, bool]]] = [[], []]
    cut = 0
    ranks: dict[tuple[int, int], list[int]] = {(row, 0): [] for row in range(2)}  # of (row, rank) its tokens
    for t, level in enumerate(levels):
        assert level.step == t and level.rows.tolist() == [0, 1]
        following = {}
        for row in range(2):
            kept = [place for place in level.kept[row].tolist() if place >= 0]
            for place, value in enumerate(level.sums[row].tolist()):
                if value == -math.inf:
                    assert place not in kept and not level.ended[row, place]
                    continue
                parent = int(level.parents[row, place])
                tokens = [*ranks[row, parent], int(level.tokens[row, place])]
                first = [1, 2][row]
                cell = decoder.attend(memory.take(torch.tensor([row])))
                scores, state = cell.unroll(torch.tensor([[first, *tokens[:-1]]]), cell.initial_state(1))
                logs = scores.detach().log_softmax(2)[0]
                assert value == pytest.approx(float(sum(logs[at, token] for at, token in enumerate(tokens))), abs=1e-4)
                torch.testing.assert_close(level.state.weights[row * 5 + parent], state.weights[0].detach())
                ended = bool(level.ended[row, place])
                assert not (ended and place in kept) and (not ended or tokens[-1] == END)
                cut += not ended and place not in kept
                if ended or (place in kept and t + 1 == 7):
                    paths[row].append((tokens, value, ended))
            enough = sum(ended for *_, ended in paths[row]) == 5
            assert level.kept[row].tolist() == [*kept, *[-1] * (5 - len(kept))] and not (enough and kept)
            for rank, place in enumerate(kept):
                following[row, rank] = [*ranks[row, int(level.parents[row, place])], int(level.tokens[row, place])]
        ranks = following
    assert cut and any(ended for row in paths for *_, ended in row), (
        "of this tree something is cut off and something ends"
    )
    for row in range(2):
        wanted = [(said(one), one.log_probability, one.ended) for one in found[row]]
        assert all(one in paths[row] for one in wanted)
        assert sum(ended for *_, ended in paths[row]) == sum(one.ended for one in found[row])


@pytest.mark.parametrize("name", ["general", "additive"])
def test_a_beam_of_one_is_sampling_without_warmth(name: str) -> None:
    decoder, memory = looking(name=name)
    cell, first = decoder.attend(memory), torch.tensor([1, 2])
    drawn = sample(cell, first, cell.initial_state(2), Sampler(temperature=0), 9, END)
    for one, row in zip(drawn, over(decoder, memory, Beam(1, 9, END), [1, 2]), strict=True):
        assert (one.tokens, one.ended) == (row[0].tokens, row[0].ended)
        assert one.log_probability == pytest.approx(row[0].log_probability, abs=1e-4)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"prefix": [[1]]}, "prefix was given for 1 rows"),
        ({"phrases": [[], [], []]}, "phrases was given for 3 rows"),
        ({"places": torch.tensor([3])}, "places was given for 1 rows"),
        ({"prefix": [[1, END], []]}, "holds the token 0, which ends a text"),
        ({"phrases": [[], [[2, END]]]}, "holds the token 0, which ends a text"),
        ({"phrases": [[[]], []]}, "one of them is empty"),
        ({"prefix": [[1] * 4, []]}, "prefix of 4 tokens, and the beam has 3 steps"),
        ({"prefix": [[1], [-1]]}, "below 0"),
        ({"phrases": [[[1, SIZE]], []]}, f"token {SIZE}, and there are {SIZE}: from 0 to {SIZE - 1}"),
    ],
)
def test_demands_that_do_not_fit_are_refused_in_words(model: SequenceModel, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        searched(model, Beam(2, 3, END), [1, 2], **asked)


def test_a_coverage_penalty_wants_to_know_what_is_covered(model: SequenceModel) -> None:
    with pytest.raises(UsageError, match="nothing says what has been looked at"):
        searched(model, Beam(2, 3, END, coverage_penalty=0.2), [1])
    for wrong in (-0.1, math.inf, math.nan):
        with pytest.raises(UsageError, match="coverage_penalty was"):
            Beam(2, 3, END, coverage_penalty=wrong)
    for count in (-1, 3):
        with pytest.raises(UsageError, match="n_best was"):
            Beam(2, 3, END, n_best=count)
