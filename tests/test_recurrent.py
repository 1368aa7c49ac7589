"""Layers: every one keeps every law, two directions are torch's, and what does not fit is refused in words."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import recurra
from recurra import testing
from recurra.cells import (
    GRU,
    LSTM,
    Cell,
    Elman,
    LayerNormLSTM,
    LearntStart,
    PeepholeLSTM,
    ProjectedLSTM,
    RandomStart,
    Residual,
    Stacked,
    Window,
)
from recurra.recurrent import Bidirectional, Deep, Layer, Recurrent, Reversed
from recurra.state import flipped, leaves, named

LAYERS: dict[str, Callable[[], Layer]] = {
    "recurrent elman": lambda: Recurrent(Elman(4, 3)),
    "recurrent gru": lambda: Recurrent(GRU(4, 3)),
    "recurrent lstm": lambda: Recurrent(LSTM(4, 3)),
    "recurrent lstm projected": lambda: Recurrent(ProjectedLSTM(4, 5, projection=2)),
    "recurrent lstm layer norm": lambda: Recurrent(LayerNormLSTM(4, 3)),
    "recurrent window": lambda: Recurrent(Window(4, 3, window=2)),
    "recurrent stacked": lambda: Recurrent(Stacked([LSTM(4, 4), Residual(GRU(4, 4)), Elman(4, 2)])),
    "recurrent, learnt start": lambda: Recurrent(LearntStart(LSTM(4, 3))),
    "recurrent, random start": lambda: Recurrent(RandomStart(GRU(4, 3))),
    "recurrent, one unit": lambda: Recurrent(LSTM(1, 1)),
    "bidirectional lstm": lambda: Bidirectional(LSTM(4, 3), LSTM(4, 3)),
    "bidirectional, two kinds and sizes": lambda: Bidirectional(GRU(4, 3), PeepholeLSTM(4, 2)),
    "bidirectional stacked": lambda: Bidirectional(Stacked([GRU(4, 3), LSTM(3, 3)]), Elman(4, 1)),
    "bidirectional, learnt and random start": lambda: Bidirectional(LearntStart(LSTM(4, 3)), RandomStart(GRU(4, 2))),
    "bidirectional, sum": lambda: Bidirectional(GRU(4, 3), LSTM(4, 3), merge="sum"),
    "bidirectional, mean": lambda: Bidirectional(GRU(4, 3), GRU(4, 3), merge="mean"),
    "bidirectional, product": lambda: Bidirectional(LSTM(4, 3), LSTM(4, 3), merge="product"),
    "reversed": lambda: Reversed(Recurrent(LSTM(4, 3))),
    "reversed bidirectional": lambda: Reversed(Bidirectional(GRU(4, 3), GRU(4, 2))),
    "deep of one": lambda: Deep([Recurrent(GRU(4, 3))]),
    "deep": lambda: Deep([Recurrent(LSTM(4, 3)), Recurrent(LearntStart(GRU(3, 2)))]),
    "deep bidirectional": lambda: Deep(
        [Bidirectional(LSTM(4, 3), LSTM(4, 3)), Bidirectional(GRU(6, 2), GRU(6, 2)), Recurrent(Elman(4, 5))]
    ),
    "deep of deep": lambda: Deep([Deep([Bidirectional(LSTM(4, 3), LSTM(4, 2))]), Recurrent(GRU(5, 3))]),
}


def filled(layer: Any) -> Any:
    """The module in eval(), with no weight at zero: a learnt start begins there, and would hide that it is used."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("law", testing.LAYER_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("member", LAYERS)
def test_every_layer_keeps_every_law(member: str, law: Callable[[Layer], None], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    law(filled(LAYERS[member]().to(dtype)))


def test_check_layer_tells_the_laws_that_hold() -> None:
    assert recurra.check_layer(LAYERS["deep bidirectional"]()) == [law.__name__ for law in testing.LAYER_LAWS]


class Mean(Layer):
    """Breaks laws on purpose: what is past the end counts."""

    def __init__(self) -> None:
        super().__init__()
        self.input_size = self.output_size = 2

    def forward(self, xs: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return xs, xs.mean(dim=1)


def test_check_layer_names_each_broken_law_in_words() -> None:
    with pytest.raises(
        AssertionError, match="rows of a layer do not see each other: outputs past a row's end"
    ) as caught:
        recurra.check_layer(Mean())
    assert "padding changes no output or gradient of a layer" in str(caught.value)
    assert "keeps its shapes" not in str(caught.value)


def test_check_cell_refuses_a_layer_and_check_layer_refuses_a_cell_in_words() -> None:
    cell = LSTM(2, 2)
    with pytest.raises(recurra.UsageError, match=r"given Bidirectional, wanted an instance of a Cell.* cannot step"):
        recurra.check_cell(Bidirectional(cell, LSTM(2, 2)))  # type: ignore[arg-type]
    with pytest.raises(recurra.UsageError, match=r"given LSTM, wanted an instance of recurra\.recurrent\.Layer"):
        recurra.check_layer(cell)  # type: ignore[arg-type]


# --- what a layer says -----------------------------------------------------------------------------------------------

LENGTHS = torch.tensor([7, 0, 3, 1])


@pytest.mark.parametrize("build", [LSTM, GRU, Elman], ids=lambda build: build.__name__)
def test_the_summary_is_the_last_state_and_zero_for_an_empty_row(build: Any) -> None:
    torch.manual_seed(0)
    cell = filled(LearntStart(build(4, 3)))
    xs = torch.randn(4, 7, 4)
    ys, summary = Recurrent(cell)(xs, LENGTHS)
    same, last = cell.unroll(xs, cell.initial_state(4), LENGTHS)
    assert torch.equal(ys, same)
    torch.testing.assert_close(summary[[0, 2, 3]], last.h[[0, 2, 3]])
    assert last.h[1].any() and not summary[1].any(), "an empty row says nothing, wherever it starts"


@pytest.mark.parametrize("member", LAYERS)
def test_a_batch_without_steps_or_rows_gives_none(member: str) -> None:
    layer = LAYERS[member]().eval()
    for batch, time in ((3, 0), (0, 4)):
        ys, summary = layer(torch.zeros(batch, time, layer.input_size), torch.zeros(batch, dtype=torch.int64))
        assert ys.shape == (batch, time, layer.output_size)
        assert summary.shape == (batch, layer.output_size) and not summary.any()


def test_the_summary_of_two_directions_is_what_each_said_last() -> None:
    torch.manual_seed(0)
    layer, xs = Bidirectional(GRU(4, 3), GRU(4, 2)), torch.randn(4, 7, 4)
    ys, summary = layer(xs, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        if length:
            torch.testing.assert_close(summary[row, :3], ys[row, length - 1, :3])
            torch.testing.assert_close(summary[row, 3:], ys[row, 0, 3:])


@pytest.mark.parametrize("kinds", [(GRU, GRU), (GRU, LSTM)], ids=["one kernel", "two kinds"])
def test_merged_directions_are_those_that_stand_side_by_side(kinds: tuple[type[Cell], type[Cell]]) -> None:
    cells, xs = [kind(4, 3) for kind in kinds], torch.randn(4, 7, 4)
    merged = {
        "sum": lambda a, b: a + b,
        "mean": lambda a, b: 0.5 * a + 0.5 * b,
        "product": lambda a, b: a * b,
    }
    both = Bidirectional(*cells)(xs, LENGTHS)
    for name, merge in merged.items():
        for got, sides in zip(Bidirectional(*cells, merge=name)(xs, LENGTHS), both, strict=True):
            torch.testing.assert_close(got, merge(*sides.chunk(2, dim=-1)))


def test_a_reversed_layer_says_what_it_says_of_the_rows_turned_round() -> None:
    layer, xs = Recurrent(GRU(4, 3)), torch.randn(2, 5, 4)
    ys, summary = Reversed(layer)(xs, torch.tensor([5, 3]))
    for row, length in enumerate((5, 3)):
        alone, end = layer(xs[row : row + 1, :length].flip(1))
        torch.testing.assert_close(ys[row, :length], alone[0])
        torch.testing.assert_close(summary[row], end[0])


def test_a_deep_layer_says_what_its_layers_say_one_after_the_other() -> None:
    torch.manual_seed(0)
    below, above = Bidirectional(LSTM(4, 3), GRU(4, 2)), Recurrent(Elman(5, 2))
    xs = torch.randn(4, 7, 4)
    given, wanted = Deep([below, above])(xs, LENGTHS), above(below(xs, LENGTHS)[0], LENGTHS)
    assert all(torch.equal(a, b) for a, b in zip(given, wanted, strict=True))
    assert given[1].shape == (4, 2)


def test_a_random_start_is_drawn_in_training_only() -> None:
    torch.manual_seed(0)
    layer, xs = Recurrent(RandomStart(LSTM(4, 3), std=1.0)), torch.randn(2, 5, 4)
    assert not torch.equal(layer(xs)[0], layer(xs)[0])
    layer.eval()
    assert torch.equal(layer(xs)[0], layer(xs)[0])


def test_a_learnt_start_learns_from_what_a_layer_says() -> None:
    torch.manual_seed(0)
    layer = Bidirectional(LearntStart(LSTM(4, 3)), LearntStart(GRU(4, 3)))
    layer(torch.randn(4, 7, 4), LENGTHS)[0].sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


# --- two directions --------------------------------------------------------------------------------------------------


def test_two_directions_give_the_numbers_and_gradients_of_torch() -> None:
    torch.manual_seed(0)
    theirs = nn.LSTM(4, 3, bidirectional=True, batch_first=True)
    ours = Bidirectional(LSTM(4, 3), LSTM(4, 3))
    sides = ((ours.forwards, "_l0"), (ours.backwards, "_l0_reverse"))
    for side, suffix in sides:
        side.cell.load_state_dict({name: getattr(theirs, name + suffix) for name in side.cell.state_dict()})
    xs, lengths = torch.randn(4, 7, 4), torch.tensor([4, 7, 1, 3])
    packed, (h, _) = theirs(pack_padded_sequence(xs, lengths, batch_first=True, enforce_sorted=False))
    wanted, _ = pad_packed_sequence(packed, batch_first=True)
    ys, summary = ours(xs, lengths)
    torch.testing.assert_close(ys, wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(summary, torch.cat([h[0], h[1]], dim=1), rtol=1e-6, atol=1e-6)
    for outputs in (ys, wanted):
        (outputs * torch.linspace(-1, 1, outputs.numel()).view(outputs.shape)).sum().backward()
    for side, suffix in sides:
        for name, parameter in side.cell.named_parameters():
            torch.testing.assert_close(parameter.grad, getattr(theirs, name + suffix).grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full rows", "rows of several lengths"])
def test_reading_rows_from_their_ends_with_the_directions_exchanged_gives_the_outputs_flipped(
    lengths: Tensor | None,
) -> None:
    torch.manual_seed(0)
    one, other = filled(LearntStart(LSTM(4, 3))), filled(GRU(4, 2))
    xs = torch.randn(4, 7, 4)
    ys, summary = Bidirectional(one, other)(xs, lengths)
    mirrored, end = Bidirectional(other, one)(flipped(xs, lengths), lengths)
    exchanged = torch.cat([mirrored[..., 2:], mirrored[..., :2]], dim=2)
    torch.testing.assert_close(flipped(exchanged, lengths), ys)
    torch.testing.assert_close(torch.cat([end[:, 2:], end[:, :2]], dim=1), summary)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(0, 6), st.lists(st.integers(1, 3), max_size=2), st.data())
def test_flipping_is_its_own_inverse_and_leaves_padding_where_it_is(
    rows: int, time: int, features: list[int], data: st.DataObject
) -> None:
    drawn = data.draw(st.one_of(st.none(), st.lists(st.integers(0, time), min_size=rows, max_size=rows)))
    lengths = None if drawn is None else torch.tensor(drawn)
    shape = (rows, time, *features)
    xs = torch.arange(torch.Size(shape).numel()).view(shape)
    ys = flipped(xs, lengths)
    assert torch.equal(flipped(ys, lengths), xs)
    for row, length in enumerate(drawn or [time] * rows):
        assert torch.equal(ys[row, :length], xs[row, :length].flip(0))
        assert torch.equal(ys[row, length:], xs[row, length:])


# --- what does not fit -----------------------------------------------------------------------------------------------


def twice() -> Layer:
    cell = LSTM(4, 3)
    return Bidirectional(cell, cell)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: Bidirectional(LSTM(4, 3), LSTM(5, 3)),
            "these cells have 4 and 5; build both with the same input_size",
        ),
        (twice, "given the same cell; build one for each"),
        (
            lambda: Deep([Recurrent(LSTM(4, 3)), Recurrent(GRU(4, 3))]),
            "3 outputs cannot stand under one with 4 inputs; build the upper one with input_size=3",
        ),
        (
            lambda: Deep([Bidirectional(LSTM(4, 3), LSTM(4, 3)), Recurrent(GRU(3, 3))]),
            "6 outputs cannot stand under one with 3 inputs; build the upper one with input_size=6",
        ),
        (lambda: Deep([]), "no layers, wanted at least one"),
        (
            lambda: Bidirectional(LSTM(4, 3), LSTM(4, 2), merge="sum"),
            "a sum wants as many outputs from both directions, and these cells have 3 and 2",
        ),
        (
            lambda: Bidirectional(LSTM(4, 3), LSTM(4, 3), merge="ave"),  # type: ignore[arg-type]
            "there is no merge called 'ave'; they are concat, sum, mean, product",
        ),
    ],
    ids=[
        "input sizes",
        "one cell twice",
        "deep sizes",
        "deep bidirectional sizes",
        "no layers",
        "merged sizes",
        "merge",
    ],
)
def test_layers_that_do_not_fit_together_are_refused_in_words(make: Callable[[], Layer], words: str) -> None:
    with pytest.raises(recurra.UsageError, match=words):
        make()


XS = torch.zeros(2, 5, 4)
WRONG_LENGTHS: dict[str, tuple[Tensor, str]] = {
    "negative": (torch.tensor([-1, 2]), "lengths from -1 to 2 for inputs of 5 steps; wanted each between 0 and 5"),
    "too long": (torch.tensor([1, 6]), "lengths from 1 to 6 for inputs of 5 steps; wanted each between 0 and 5"),
    "float": (torch.tensor([1.0, 2.0]), r"lengths of dtype torch.float32.*wanted int64.*torch.as_tensor\(lengths"),
    "int32": (torch.tensor([1, 2], dtype=torch.int32), "lengths of dtype torch.int32.*wanted int64"),
    "one missing": (torch.tensor([1]), r"lengths of .* shape \(1,\) on cpu; wanted int64 of shape \[2\]"),
    "a column": (torch.tensor([[1], [2]]), r"lengths of .* shape \(2, 1\) on cpu; wanted int64 of shape \[2\]"),
}


@pytest.mark.parametrize("wrong", WRONG_LENGTHS)
def test_wrong_lengths_are_refused_in_words(wrong: str) -> None:
    lengths, words = WRONG_LENGTHS[wrong]
    cell = LSTM(4, 3)
    with pytest.raises(recurra.UsageError, match=f"LSTM was given {words}"):
        cell.unroll(XS, cell.initial_state(2), lengths)
    for layer in (Recurrent(cell), Bidirectional(cell, LSTM(4, 3)), Deep([Recurrent(cell)])):
        with pytest.raises(recurra.UsageError, match=f"LSTM was given {words}"):
            layer(XS, lengths)


WRONG_INPUTS: dict[str, tuple[Tensor, str]] = {
    "features": (torch.zeros(2, 5, 6), r"inputs of shape \(2, 5, 6\), wanted \[batch, time, 4\].*input_size=6"),
    "no time": (torch.zeros(2, 4), r"inputs of shape \(2, 4\), wanted \[batch, time, 4\]"),
    "dtype": (XS.double(), r"is torch.float32 and was given inputs of torch.float64.*xs.to\(torch.float32\)"),
    "half": (XS.bfloat16(), r"is torch.float32 and was given inputs of torch.bfloat16.*xs.to\(torch.float32\)"),
    "integers": (XS.long(), r"inputs of torch.int64, wanted floating-point features"),
}


@pytest.mark.parametrize("wrong", WRONG_INPUTS)
def test_wrong_inputs_are_refused_in_words(wrong: str) -> None:
    xs, words = WRONG_INPUTS[wrong]
    cell = LSTM(4, 3)
    with pytest.raises(recurra.UsageError, match=f"LSTM (was given )?{words}"):
        cell.unroll(xs, cell.initial_state(2))
    for layer in (Recurrent(cell), Bidirectional(cell, LSTM(4, 3)), Deep([Recurrent(cell)])):
        with pytest.raises(recurra.UsageError, match=words):
            layer(xs)


WRONG_STATES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "rows": (
        lambda state: type(state)(*(leaf[:1] for leaf in state)),
        r"2 rows on cpu and a state whose h is .*\(1, 3\)",
    ),
    "units": (
        lambda state: state._replace(c=state.c[:, 1:]),
        r"2 rows on cpu and a state whose c is torch.float32 of shape \(2, 2\) on cpu; wanted torch.float32 of shape \(2, 3\)",
    ),
    "dtype": (
        lambda state: state._replace(c=state.c.double()),
        r"2 rows on cpu and a state whose c is torch.float64 of shape \(2, 3\) on cpu; wanted torch.float32",
    ),
    "one tensor": (lambda state: state.h, "a state with the fields state, wanted h, c"),
    "a plain tuple": (tuple, "a state with the fields 0, 1, wanted h, c"),
    "of another cell": (lambda state: GRU(4, 3).initial_state(2), "a state with the fields h, wanted h, c"),
    "none": (lambda state: None, "a state with the fields state, wanted h, c"),
    "empty": (lambda state: (), "a state with the fields none, wanted h, c"),
    "of a stack": (lambda state: (state, state), "a state with the fields 0.h, 0.c, 1.h, 1.c, wanted h, c"),
}


@pytest.mark.parametrize("wrong", WRONG_STATES)
def test_wrong_states_are_refused_in_words_that_say_where_to_start(wrong: str) -> None:
    change, words = WRONG_STATES[wrong]
    cell = LSTM(4, 3)
    with pytest.raises(recurra.UsageError, match=rf"LSTM was given {words}.*: start from initial_state\(2\)"):
        cell.unroll(XS, change(cell.initial_state(2)))


def test_a_wrong_state_of_a_stacked_cell_is_named_by_its_place() -> None:
    cell: Cell = Stacked([LSTM(4, 3), GRU(3, 2)])
    lower, upper = cell.initial_state(2)
    with pytest.raises(recurra.UsageError, match=r"Stacked was given .* a state whose 1.h is .* of shape \(2, 1\)"):
        cell.unroll(XS, (lower, upper._replace(h=upper.h[:, :1])))
    assert list(named(cell.initial_state(2))) == ["0.h", "0.c", "1.h"] and len(list(leaves((lower, upper)))) == 3
