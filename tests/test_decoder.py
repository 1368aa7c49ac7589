"""Decoders that look at a memory: the laws of cells, attention in the state, and beams over them."""

import itertools

import pytest
import torch
from torch import nn

from recurra.attention import ATTENTIONS
from recurra.cells import CELLS, Stacked
from recurra.decode import Beam
from recurra.decoder import Decoder, EncoderDecoder, Memory, repeated
from recurra.models import Encoder, encoder_layers
from recurra.testing import check_cell

KINDS = [(name, feed) for name in [None, *ATTENTIONS] for feed in (False, True)]


def made(name: str | None, feed: bool, cell: str = "gru") -> Decoder:
    torch.manual_seed(0)
    attention = None if name is None else ATTENTIONS[name](4, 4)
    core = Stacked([CELLS[cell](3 + 4 * feed, 5), CELLS[cell](5, 4)])
    return Decoder(nn.Embedding(6, 3), core, 4, attention, feed=feed)


def memory(rows: int = 1, places: int = 5, seed: int = 0) -> Memory:
    torch.manual_seed(seed)
    return Memory(torch.randn(rows, places, 4), torch.randint(1, places + 1, (rows,)), torch.randn(rows, 4))


@pytest.mark.parametrize(("name", "feed"), KINDS)
def test_a_decoder_over_a_memory_keeps_the_laws_of_cells(name: str | None, feed: bool) -> None:
    """All rows look at the same, since laws take rows apart and put them together."""
    torch.manual_seed(0)
    attention = None if name is None else ATTENTIONS[name](2, 2, **({"heads": 1} if name == "multi-head" else {}))
    decoder = Decoder(nn.Embedding(3, 2), CELLS["gru"](2 + 2 * feed, 2), 2, attention, feed=feed)
    one = Memory(torch.randn(1, 3, 2), torch.tensor([2]), torch.randn(1, 2))
    check_cell(decoder.attend(repeated(one, 64)))


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
        decoder.attend(repeated(some, width)), torch.tensor([1, 2]), decoder.attend(some).initial_state(2)
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
            model.decoder.attend(repeated(some, 2)), torch.zeros(16, dtype=torch.int64), start
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
