"""Table x laws: every member of every concept obeys every law of `recurra.testing`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import recurra
from recurra import testing
from recurra.cells import (
    CELLS,
    GRU,
    HMM,
    LRU,
    LSTM,
    LTC,
    MGU,
    QRNN,
    SLSTM,
    SRU,
    Block,
    Cell,
    CfC,
    Clockwork,
    ConvLSTM,
    Convolved,
    CoupledLSTM,
    Elman,
    IndRNN,
    Jordan,
    Kalman,
    LayerNormGRU,
    LayerNormLSTM,
    Leaky,
    LearntStart,
    LiGRU,
    LockedDropout,
    MatrixLSTM,
    MinGRU,
    MinLSTM,
    Mogrifier,
    MultiplicativeLSTM,
    Orthogonal,
    PeepholeLSTM,
    Projected,
    ProjectedLSTM,
    RandomStart,
    Reservoir,
    Residual,
    Stacked,
    Window,
    Zoneout,
    with_packed_weights,
)
from recurra.config import build
from recurra.data.batch import Batch
from recurra.models import language_model
from recurra.tasks import Language, Sources

MEMBERS: dict[str, Callable[[], Cell]] = {
    "elman": lambda: Elman(4, 3),
    "elman relu": lambda: Elman(4, 3, activation="relu"),
    "elman logistic": lambda: Elman(4, 3, activation="logistic"),
    "elman identity": lambda: Elman(4, 3, activation="identity"),
    "jordan": lambda: Jordan(4, 3),
    "jordan, two outputs": lambda: Jordan(4, 3, outputs=2, activation="logistic", output_activation="identity"),
    "leaky": lambda: Leaky(4, 3),
    "leaky, elapsed": lambda: Leaky(4, 3, activation="relu", elapsed=True, slowest=5.0),
    "lstm": lambda: LSTM(4, 3),
    "lstm, sigmoid candidate": lambda: LSTM(4, 3, candidate="sigmoid"),
    "lstm, candidate dropout": lambda: LSTM(4, 3, candidate_dropout=0.5),
    "lstm peephole": lambda: PeepholeLSTM(4, 3),
    "lstm coupled": lambda: CoupledLSTM(4, 3),
    "lstm projected": lambda: ProjectedLSTM(4, 5, projection=2),
    "lstm layer norm, sums": lambda: LayerNormLSTM(4, 3),
    "lstm layer norm, gates": lambda: LayerNormLSTM(4, 3, norm="gates"),
    "lstm, one unit": lambda: LSTM(1, 1),
    "gru": lambda: GRU(4, 3),
    "gru, reset before": lambda: GRU(4, 3, reset="before"),
    "gru layer norm": lambda: LayerNormGRU(4, 3),
    "mgu": lambda: MGU(4, 3),
    "indrnn": lambda: IndRNN(4, 3),
    "mingru": lambda: MinGRU(4, 3),
    "minlstm": lambda: MinLSTM(4, 3, candidate="positive"),
    "lru": lambda: LRU(4, 3),
    "qrnn": lambda: QRNN(4, 3),
    "qrnn, ifo": lambda: QRNN(4, 3, pooling="ifo"),
    "qrnn, three wide, f": lambda: QRNN(4, 3, width=3, pooling="f"),
    "sru": lambda: SRU(4, 3),
    "sru, peephole": lambda: SRU(3, 3, peephole=True, activation="identity"),
    "ligru": lambda: LiGRU(4, 3),
    "lstm multiplicative": lambda: MultiplicativeLSTM(4, 3),
    "mogrifier": lambda: Mogrifier(4, 3),
    "slstm": lambda: SLSTM(4, 3),
    "lstm matrix, two heads": lambda: MatrixLSTM(4, 4, heads=2),
    "clockwork": lambda: Clockwork(4, 4, periods=(1, 2, 3)),
    "orthogonal": lambda: Orthogonal(4, 3),
    "orthogonal, cayley": lambda: Orthogonal(4, 3, map="cayley"),
    "ltc": lambda: LTC(4, 3, unfolds=2),
    "cfc, elapsed": lambda: CfC(4, 3, elapsed=True),
    "convlstm": lambda: ConvLSTM(8, 4, grid=(2, 2, 2)),
    "window": lambda: Window(4, 3, window=3),
    "window of one": lambda: Window(4, 3, window=1),
    "window longer than the sequence": lambda: Window(4, 3, window=9),
    "reservoir": lambda: Reservoir(4, 6, density=0.5),
    "reservoir, leaky": lambda: Reservoir(4, 6, density=1.0, leak=0.3, radius=1.2),
    "hmm": lambda: HMM(5, 3),
    "kalman": lambda: Kalman(2, 3),
    "residual": lambda: Residual(LSTM(4, 4)),
    "block": lambda: Block(MinGRU(3, 3), inputs=4),
    "convolved": lambda: Convolved(LSTM(4, 3), width=3),
    "convolved, one wide": lambda: Convolved(MinGRU(4, 3), width=1),
    "block of a convolved": lambda: Block(Convolved(MinGRU(3, 3)), inputs=4),
    "block of an lstm": lambda: Block(LSTM(4, 4), width=1),
    "stacked blocks": lambda: language_model(7, cell="lru", hidden=3, embedding=2, layers=2, dropout=0.5, block=True),
    "projected": lambda: Projected(GRU(4, 3), 2),
    "zoneout": lambda: Zoneout(LSTM(4, 3), 0.3),
    "learnt start": lambda: LearntStart(LSTM(4, 3)),
    "random start": lambda: RandomStart(Elman(4, 3)),
    "packed lstm": lambda: with_packed_weights(LSTM(4, 3)),
    "packed stack": lambda: with_packed_weights(Stacked([GRU(4, 3), Residual(Elman(3, 3, activation="relu"))])),
    "packed language model": lambda: with_packed_weights(language_model(7, hidden=3, embedding=2, layers=2)),
    "all wrappers": lambda: Stacked(
        [LearntStart(Zoneout(LSTM(4, 4), 0.2)), Residual(RandomStart(Projected(LockedDropout(Jordan(4, 3), 0.4), 4)))]
    ),
    "stacked": lambda: Stacked([LSTM(4, 3), GRU(3, 2), Elman(2, 5)]),
    "locked dropout": lambda: LockedDropout(GRU(4, 3), 0.5),
    "language model": lambda: language_model(7, hidden=3, embedding=2),
    "language model, all noise": lambda: language_model(
        7, cell="gru", hidden=3, layers=2, embedding=2, dropout=0.5, input_dropout=0.5, recurrent_dropout=0.3
    ),
    "language model, one-hot": lambda: language_model(7, hidden=3, embedding=None),
    "language model, tied": lambda: language_model(6, cell="elman", hidden=3, tied=True),
}


@pytest.mark.parametrize("law", testing.CELL_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("member", MEMBERS)
def test_every_cell_keeps_every_law(member: str, law: Callable[[Cell], None]) -> None:
    torch.manual_seed(0)
    law(MEMBERS[member]().eval())


@pytest.mark.parametrize("member", MEMBERS)
def test_every_cell_keeps_every_law_in_float64_too(member: str) -> None:
    torch.manual_seed(1)
    cell = MEMBERS[member]().double().eval()
    for law in testing.CELL_LAWS:
        if law is not testing.an_exported_cell_takes_any_length:  # slow, and tracing does not depend on the dtype
            law(cell)


class Forgetful(Cell):
    """Breaks laws on purpose: keeps state in an attribute and lets rows see each other."""

    def __init__(self) -> None:
        super().__init__()
        self.input_size, self.output_size = 2, 2
        self.weight = nn.Parameter(torch.eye(2))
        self.calls = 0.0

    def initial_state(self, batch: int) -> torch.Tensor:
        return torch.zeros(batch, 2)

    def step(self, u: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls += 0.1
        y = u @ self.weight + state.mean(dim=0) + self.calls
        return y, y


def test_check_cell_names_each_broken_law_in_words() -> None:
    with pytest.raises(AssertionError, match="rows do not see each other") as caught:
        recurra.check_cell(Forgetful())
    assert "calling twice gives the same" in str(caught.value)


class Lied(torch.autograd.Function):
    """Tanh, with a gradient that is a hundredth too large."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return 1.01 * grad * (1 - ctx.saved_tensors[0].tanh().square())


class Deceitful(Cell):
    """An Elman network whose gradient is wrong."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.input_size, self.output_size = 2, units
        self.weight = nn.Parameter(torch.randn(2 + units, units) / units**0.5)

    def initial_state(self, batch: int) -> torch.Tensor:
        return self.weight.new_zeros(batch, self.output_size)

    def step(self, u: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = Lied.apply(torch.cat([u, state], dim=1) @ self.weight)
        return y, y


@pytest.mark.parametrize("units", [4, 64])
def test_a_gradient_that_is_wrong_is_found_in_small_and_large_cells(units: int) -> None:
    testing.gradients_are_right_to_the_second_order(Elman(2, units))
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        testing.gradients_are_right_to_the_second_order(Deceitful(units))


def test_check_cell_refuses_what_cannot_step_in_words() -> None:
    with pytest.raises(recurra.UsageError, match="cannot step"):
        recurra.check_cell(nn.LSTM(2, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("member", MEMBERS)
def test_states_keep_the_state_laws(member: str) -> None:
    for law in testing.STATE_LAWS:
        law(MEMBERS[member]().initial_state(3))
        law(())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.data())
def test_batches_keep_the_batch_laws(rows: int, time: int, data: st.DataObject) -> None:
    lengths = data.draw(st.one_of(st.none(), st.lists(st.integers(0, time), min_size=rows, max_size=rows)))
    inputs = torch.arange(rows * time).view(rows, time)
    weight = float(rows * time if lengths is None else sum(lengths))
    fresh = torch.tensor(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    batch = Batch(inputs, inputs + 1, None if lengths is None else torch.tensor(lengths), weight, fresh)
    for law in testing.BATCH_LAWS:
        law(batch)


@pytest.mark.parametrize("kind", ["characters", "bytes", "words", "bpe"])
@pytest.mark.parametrize("law", testing.TASK_LAWS, ids=lambda law: law.__name__)
def test_the_language_task_keeps_the_task_laws(kind: str, law: Callable, tmp_path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, as ever. " * 12, encoding="utf-8")
    size = 300 if kind == "bpe" else None
    config = build(
        {"tokens": {"kind": kind, "size": size}, "train": {"rows": 3, "chunk": 5, "steps": 6}, "model": {"hidden": 6}}
    )
    (tmp_path / "data").mkdir()
    task = Language.prepare(config, Sources([text]), tmp_path / "data")
    torch.manual_seed(0)
    task.build(task.settle(config, 1.0))
    task.model.eval()
    law(task, "The qu", tmp_path)


# --- oracles ---------------------------------------------------------------------------------------------------------

TORCH = {
    "elman": (lambda: Elman(5, 4), nn.RNNCell),
    "elman relu": (lambda: Elman(5, 4, activation="relu"), lambda i, h: nn.RNNCell(i, h, nonlinearity="relu")),
    "lstm": (lambda: LSTM(5, 4), nn.LSTMCell),
    "gru": (lambda: GRU(5, 4), nn.GRUCell),
}


@pytest.mark.parametrize("name", TORCH)
def test_torch_cells_take_our_weights_and_give_our_numbers(name: str) -> None:
    torch.manual_seed(0)
    ours, theirs = TORCH[name][0](), TORCH[name][1](5, 4)
    theirs.load_state_dict(ours.state_dict())
    x, state = torch.randn(3, 5), testing.random_state(ours, 3)
    _, after = ours(x, state)
    expected = theirs(x, tuple(state) if name == "lstm" else state[0])
    expected = expected if name == "lstm" else (expected,)
    for a, b in zip(after, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "blocks"), [("elman", 1), ("gru", 3), ("lstm", 4)])
def test_the_number_of_parameters_is_the_formula_of_the_docstring(name: str, blocks: int) -> None:
    count = sum(p.numel() for p in CELLS[name](7, 5).parameters())  # type: ignore[call-arg]
    assert count == blocks * 5 * (7 + 5 + 2)


def test_the_lectures_tanh_cell_gives_its_published_numbers() -> None:
    cell = Elman(1, 1)
    with torch.no_grad():
        for parameter, value in zip(cell.parameters(), (0.2, 0.3, -0.1, 0.0), strict=True):
            parameter.fill_(value)
    ys, _ = cell.unroll(torch.tensor([[[0.7], [0.9], [1.1]]]), cell.initial_state(1))
    torch.testing.assert_close(ys[0, :, 0], torch.tensor([0.0399, 0.0917, 0.1464]), rtol=0, atol=1e-4)


def test_wrong_shapes_and_lengths_are_refused_in_words() -> None:
    cell = LSTM(4, 3)
    xs, state = torch.randn(2, 5, 4), cell.initial_state(2)
    for call, words in [
        (lambda: cell.unroll(torch.randn(2, 5, 6), state), "build the cell with input_size=6"),
        (lambda: cell.unroll(xs, cell.initial_state(3)), r"start from initial_state\(2\)"),
        (lambda: cell.unroll(xs, state, torch.tensor([1.0, 2.0])), "wanted int64"),
        (lambda: cell.unroll(xs, state, torch.tensor([1, 9])), "each between 0 and 5"),
        (lambda: cell.unroll(xs, state, torch.tensor([-1, 2])), "from -1 to 2"),
    ]:
        with pytest.raises(recurra.UsageError, match=words):
            call()
