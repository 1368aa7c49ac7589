"""Decoders that look at a memory: the laws of cells, attention in the state, and beams over them."""

import itertools
import math

import pytest
import torch
from torch import nn

from recurra.attention import ATTENTIONS
from recurra.cells import CELLS, Stacked
from recurra.decode import Beam
from recurra.decoder import Decoder, EncoderDecoder, Memory, covered_twice, mixed
from recurra.errors import UsageError
from recurra.models import Encoder, encoder_layers
from recurra.testing import check_cell

KINDS = [(name, feed) for name in [None, *ATTENTIONS] for feed in (False, True)]


def made(name: str | None, feed: bool, cell: str = "gru", *, copy: bool = False, tied: bool = False) -> Decoder:
    torch.manual_seed(0)
    attention = None if name is None else ATTENTIONS[name](4, 4)
    core = Stacked([CELLS[cell](3 + (3 if tied else 4) * feed, 5), CELLS[cell](5, 4)])
    return Decoder(nn.Embedding(6, 3), core, 4, attention, feed=feed, copy=copy, tied=tied)


def memory(rows: int = 1, places: int = 5, seed: int = 0) -> Memory:
    torch.manual_seed(seed)
    values, lengths = torch.randn(rows, places, 4), torch.randint(1, places + 1, (rows,))
    return Memory(values, lengths, torch.randn(rows, 4), torch.randint(0, 6, (rows, places)))


@pytest.mark.parametrize(("copy", "tied"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(("name", "feed"), KINDS)
def test_a_decoder_over_a_memory_keeps_the_laws_of_cells(name: str | None, feed: bool, copy: bool, tied: bool) -> None:
    """All rows look at the same, since laws take rows apart and put them together."""
    if copy and name not in ("general", "coverage"):
        return
    torch.manual_seed(0)
    attention = None if name is None else ATTENTIONS[name](2, 2, **({"heads": 1} if name == "multi-head" else {}))
    decoder = Decoder(nn.Embedding(3, 2), CELLS["gru"](2 + 2 * feed, 2), 2, attention, feed=feed, copy=copy, tied=tied)
    one = Memory(torch.randn(1, 3, 2), torch.tensor([2]), torch.randn(1, 2), torch.tensor([[1, 2, 0]]))
    check_cell(decoder.attend(one.take(torch.zeros(64, dtype=torch.int64))))


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("name", [None, "general", "multi-head", "coverage"])
def test_several_rows_look_at_one_as_if_it_were_there_for_each(name: str | None, copy: bool) -> None:
    decoder, some = made(name, False, copy=copy and name is not None), memory(3)
    each = torch.arange(3).repeat_interleave(4)
    written, lengths = torch.randint(0, 6, (12, 5)), torch.randint(0, 6, (12,))
    one, other = decoder.attend(some, 4), decoder.attend(some.take(each))
    for wide, plain in ((one, other), (one.take(torch.arange(4, 12)), other.take(torch.arange(4, 12)))):
        rows = written[-len(plain.values) :]
        ends, start = lengths[-len(rows) :], wide.initial_state(len(rows))
        torch.testing.assert_close(start, plain.initial_state(len(rows)))
        torch.testing.assert_close(wide.unroll(rows, start, ends), plain.unroll(rows, start, ends))
        torch.testing.assert_close(wide(rows[:, 0], start), plain(rows[:, 0], start))
        looks = wide.looks(rows, start, ends)
        real = torch.arange(5) < ends[:, None]
        torch.testing.assert_close(wide.scores_at(looks, real), plain.unroll(rows, start, ends)[0][real])


def test_to_copy_is_a_mixture_of_two_ways_to_choose_a_token() -> None:
    """Against the formula in float64, written with loops."""
    decoder, some = made("general", False, copy=True).double(), memory(2)
    some = Memory(some.values.double(), some.lengths, some.summary.double(), some.tokens)
    cell = decoder.attend(some)
    written = torch.randint(0, 6, (2, 4))
    start = cell.initial_state(2)
    scores, looks = cell.unroll(written, start)[0], cell.looks(written, start)
    assert decoder.gate is not None and some.tokens is not None
    for row in range(2):
        for t in range(4):
            a, weights = looks.vectors[row, t].detach(), looks.weights[row, t].detach()
            gate = 1 / (1 + math.exp(-float(decoder.gate(a).detach())))
            own = decoder.readout(a).exp() / decoder.readout(a).exp().sum()
            for token in range(6):
                copied = sum(float(weights[place]) for place in range(5) if some.tokens[row, place] == token)
                wanted = gate * float(own[token].detach()) + (1 - gate) * copied
                assert float(scores[row, t, token].detach().exp()) == pytest.approx(wanted, rel=1e-9)
    torch.testing.assert_close(scores.exp().sum(2), torch.ones(2, 4, dtype=torch.float64))


def test_what_is_copied_needs_a_source_and_a_look() -> None:
    with pytest.raises(UsageError, match="take an attention"):
        made(None, False, copy=True)
    some = memory()._replace(tokens=None)
    with pytest.raises(UsageError, match="without tokens"):
        made("general", False, copy=True).attend(some)(
            torch.tensor([1]), made("general", False).attend(some).initial_state(1)
        )


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("name", ["general", "coverage"])
def test_scores_of_the_real_steps_are_those_of_the_whole(name: str, copy: bool) -> None:
    cell, written = made(name, False, copy=copy).attend(memory(3)), torch.randint(0, 6, (3, 7))
    lengths, start = torch.tensor([7, 3, 0]), cell.initial_state(3)
    real = torch.arange(7) < lengths[:, None]
    some = cell.scores_at(cell.looks(written, start, lengths), real)
    torch.testing.assert_close(some, cell.unroll(written, start, lengths)[0][real])


def test_a_mixed_row_is_the_given_one_or_what_the_cell_says_itself() -> None:
    decoder = made("general", True)
    with torch.no_grad():
        decoder.readout.weight.mul_(1e4)  # so sure of itself that what it draws is what it likes best
    cell, written = decoder.attend(memory(4)), torch.randint(0, 6, (4, 9))
    start = cell.initial_state(4)
    assert torch.equal(mixed(cell, written, start, 0.0), written)
    own = mixed(cell, written, start, 1.0)
    said = cell.unroll(own, start)[0].argmax(2)
    assert torch.equal(own[:, 0], written[:, 0]) and torch.equal(own[:, 1:], said[:, :-1])
    torch.manual_seed(1)
    half = mixed(cell, written, start, 0.5)
    said = cell.unroll(half, start)[0].argmax(2)[:, :-1]
    from_both = (half[:, 1:] == written[:, 1:]) | (half[:, 1:] == said)
    assert from_both.all() and 0.2 < float((half[:, 1:] != written[:, 1:]).float().mean()) < 0.7


def test_what_is_covered_twice_by_loops() -> None:
    weights = torch.rand(2, 4, 3, dtype=torch.float64).softmax(2)
    for row in range(2):
        for t in range(4):
            wanted = sum(
                min(float(weights[row, t, place]), sum(float(weights[row, before, place]) for before in range(t)))
                for place in range(3)
            )
            assert float(covered_twice(weights)[row, t]) == pytest.approx(wanted)


@pytest.mark.parametrize(("name", "feed"), KINDS)
def test_the_state_holds_where_the_last_step_looked(name: str | None, feed: bool) -> None:
    some = memory(3)._replace(lengths=torch.tensor([2, 4, 5]))
    cell = made(name, feed).attend(some)
    tokens, lengths = torch.randint(0, 6, (3, 7)), torch.tensor([7, 3, 0])
    state, seen = cell.initial_state(3), torch.zeros(3, 5)
    _, last = cell.unroll(tokens, state, lengths)
    for t in range(7):
        _, after = cell(tokens[:, t], state)
        state = after
        seen = seen + after.weights * (t < lengths)[:, None]
        for row in (lengths == t + 1).nonzero()[:, 0].tolist():
            torch.testing.assert_close(last.weights[row], after.weights[row])
    torch.testing.assert_close(last.covered, seen)
    assert not last.weights[2].any(), "a row of no length has looked nowhere"
    if name is not None:
        torch.testing.assert_close(last.weights.sum(1), torch.tensor([1.0, 1.0, 0.0]))
        past = torch.arange(5) >= torch.tensor([2, 4, 5])[:, None]
        assert past[:2].any(1).all() and not last.covered[past].any(), "there is nothing past the end of the source"


def test_a_beam_over_a_memory_is_exhaustive_search() -> None:
    decoder, some, steps, width = made("general", True), memory(2), 3, 6**3
    with torch.no_grad():
        decoder.readout.weight.mul_(5)
    found = Beam(width, steps, end=0).search(
        decoder.attend(some, width), torch.tensor([1, 2]), decoder.attend(some).initial_state(2)
    )
    for row, first in ((0, 1), (1, 2)):
        cell = decoder.attend(some.take(torch.tensor([row])))
        best = -torch.inf
        for tokens in itertools.product(range(6), repeat=steps):
            cut = tokens.index(0) + 1 if 0 in tokens else steps
            said = tokens[:cut]
            logs = cell.unroll(torch.tensor([[first, *said[:-1]]]), cell.initial_state(1))[0].detach().log_softmax(2)[0]
            best = max(best, float(sum(logs[t, token] for t, token in enumerate(said))))
        assert found[row][0].log_probability == pytest.approx(best, abs=1e-4)


def test_an_encoder_and_a_decoder_learn_to_turn_a_sequence_round() -> None:
    torch.manual_seed(0)
    table = nn.Embedding(8, 16)
    layers = encoder_layers("gru", 16, 16, 1, bidirectional=True)
    decoder = Decoder(nn.Embedding(8, 16), CELLS["gru"](16, 32), 32, ATTENTIONS["general"](32, 32))
    model = EncoderDecoder(Encoder(table, layers), decoder)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(250):
        source = torch.randint(1, 8, (32, 4))
        target = source.flip(1)
        written = torch.cat([torch.zeros(32, 1, dtype=torch.int64), target[:, :-1]], 1)
        loss = nn.functional.cross_entropy(model(source, None, written).flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    source = torch.randint(1, 8, (16, 4))
    model.eval()
    with torch.no_grad():
        some = model.remember(source)
        start = model.decoder.attend(some).initial_state(16)
        found = Beam(2, 4, end=0, never=(0,)).search(
            model.decoder.attend(some, 2), torch.zeros(16, dtype=torch.int64), start
        )
    right = [row[0].tokens == one.flip(0).tolist() for row, one in zip(found, source, strict=True)]
    assert sum(right) >= 14


def test_noise_is_the_decoders_and_stops_with_it() -> None:
    decoder = made("general", False)
    decoder.dropout = 0.5
    tokens, some = torch.randint(0, 6, (3, 7)), memory(3)
    said = lambda: decoder.attend(some).unroll(tokens, decoder.attend(some).initial_state(3))[0]  # noqa: E731
    assert not torch.equal(said(), said())
    decoder.eval()
    assert torch.equal(said(), said())
