"""The unrolled network with the shapes of its tensors, as text: what lectures let students fill in."""

import inspect
from typing import NamedTuple

from torch import nn

from recurra.cells import Cell
from recurra.probe.record import Record, Track
from recurra.regularize import plain_name
from recurra.state import leaves

BLANK = "______"
MEANINGS = {  # of the names that cells share
    "weight_ih": "input weights (U)",
    "weight_hh": "recurrent weights (W)",
    "bias_ih": "bias beside the input weights",
    "bias_hh": "bias beside the recurrent weights",
    "weight_hr": "projection of the output",
    "readout.weight": "readout weights (V)",
    "readout.bias": "bias of the readout",
    "embedding.weight": "a vector for each token",
}


class Row(NamedTuple):
    """A tensor or parameter: what it is called and stands for, its shape, and how its numbers are counted."""

    name: str
    meaning: str
    shape: tuple[int, ...]
    numbers: str


class Layer(NamedTuple):
    """A cell as it is drawn: what it is, its number of steps, which way it goes, and the shapes of its input, of the fields of its
    state in one step, and of its parameters."""

    name: str
    kind: str
    steps: int
    backwards: bool
    x: tuple[int, ...]
    state: dict[str, tuple[int, ...]]
    parameters: dict[str, tuple[int, ...]]


class Shapes(NamedTuple):
    """The shapes of one pass: tensors of one step and of all steps by cell, the parameters, and how many numbers they are; and the
    cells, to be drawn."""

    steps: int
    one_step: list[Row]
    all_steps: list[Row]
    parameters: list[Row]
    formulas: dict[str, str]
    total: int
    layers: list[Layer]

    def lines(self, blank: bool = False) -> list[str]:
        """As text; `blank` leaves the shapes and counts to be filled in, and the solution follows."""
        if blank:
            head = ["Fill in the shapes and counts; the solution is below.", ""]
            return [*head, *self._lines(True), "", "Solution", "", *self._lines(False)]
        return self._lines(False)

    def _lines(self, blank: bool) -> list[str]:
        out = ["One step", *_table(self.one_step, blank), "", f"{self.steps} steps", *_table(self.all_steps, blank)]
        out += ["", "Parameters", *_table(self.parameters, blank)]
        total = BLANK if blank else f"{self.total:,}"
        formulas = [] if blank else [f"  {name}: {formula}" for name, formula in self.formulas.items()]
        return [*out, f"  all: {total} parameters", *formulas]


def unrolled(model: nn.Module, seen: Record) -> Shapes:
    """Every tensor of one step and of all steps of every cell in a pass, and every parameter of the model, with real shapes."""
    one, every = [], []
    for track in seen.tracks:
        step, steps = _tensors(track)
        one += step
        every += steps
    parameters = [_parameter(name, parameter, model) for name, parameter in model.named_parameters()]
    total = sum(parameter.numel() for parameter in model.parameters())
    formulas = {track.name: formula for track in seen.tracks if (formula := _formula(track))}
    longest, layers = max(track.steps for track in seen.tracks), [_layer(track) for track in seen.tracks]
    return Shapes(longest, one, every, parameters, formulas, total, layers)


def _layer(track: Track) -> Layer:
    state = {name: (value.shape[0], *value.shape[2:]) for name, value in track.states().items()}
    parameters = {plain_name(name): tuple(one.shape) for name, one in track.cell.named_parameters()}
    x = (track.xs.shape[0], *track.xs.shape[2:])
    return Layer(track.name, type(track.cell).__name__, track.steps, track.backwards, x, state, parameters)


def _tensors(track: Track) -> tuple[list[Row], list[Row]]:
    """Of one step, and of all: input, what was projected, gates, state."""
    told = [("x", "input", track.xs)]
    told += [
        ("u" * (at + 1), "input sums" if not at else "what goes with them", u) for at, u in enumerate(leaves(track.us))
    ]
    told += [(name, "candidate" if name == "candidate" else "gate", gate) for name, gate in track.gates.items()]
    told += [(name, "state", state) for name, state in track.states().items()]
    arrow = " (from the end)" if track.backwards else ""
    one: list[Row] = []
    every: list[Row] = []
    for name, meaning, values in told:
        for rows, shape in ((one, (values.shape[0], *values.shape[2:])), (every, tuple(values.shape))):
            rows.append(Row(f"{track.name} {name}", meaning + arrow, shape, _product(shape)))
    return one, every


def _parameter(name: str, parameter: nn.Parameter, model: nn.Module) -> Row:
    plain = plain_name(name)
    meaning = next((words for end, words in MEANINGS.items() if plain.endswith(end)), "")
    owner = model.get_submodule(plain.rpartition(".")[0])
    shape = tuple(parameter.shape)
    blocks = len(owner.blocks) if isinstance(owner, Cell) and plain.rpartition(".")[2] in _BY_BLOCK else 1
    if blocks > 1 and shape[0] % blocks == 0:
        return Row(plain, meaning, shape, _product((blocks, shape[0] // blocks, *shape[1:])))
    return Row(plain, meaning, shape, _product(shape))


_BY_BLOCK = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _product(shape: tuple[int, ...]) -> str:
    total = 1
    for size in shape:
        total *= size
    return f"{' x '.join(map(str, shape))} = {total:,}" if len(shape) > 1 else f"{total:,}"


def _formula(track: Track) -> str:
    """How a cell counts its parameters, as its docstring says, and how many they are."""
    found = [line for line in (inspect.getdoc(type(track.cell)) or "").splitlines() if line.startswith("Parameters: ")]
    count = sum(parameter.numel() for parameter in track.cell.parameters())
    return f"{found[0].removeprefix('Parameters: ')} = {count:,}" if found else ""


def _table(rows: list[Row], blank: bool) -> list[str]:
    cells = [("name", "what it is", "shape", "numbers")]
    for row in rows:
        shape = BLANK if blank else f"[{', '.join(map(str, row.shape))}]"
        cells.append((row.name, row.meaning, shape, BLANK if blank else row.numbers))
    widths = [max(len(row[column]) for row in cells) for column in range(3)]
    return [
        "  " + "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3]])
        for row in cells
    ]
