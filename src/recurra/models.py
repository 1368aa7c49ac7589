"""Models are cells again: from tokens to scores, one step or many."""

import copy
from typing import cast, final

import torch
from torch import Tensor, nn

from recurra.cells import CELLS, Cell, LockedDropout, Packed, Stacked, with_packed_weights
from recurra.errors import UsageError
from recurra.init import PRESETS
from recurra.regularize import locked_mask, weight_drop, without_weight_drop
from recurra.state import State, masked


@final
class OneHot(nn.Module):
    """Token k becomes the k-th unit vector: `[...]` int64 -> `[..., size]` int64. It has no parameters and no neighbourhood."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.num_embeddings = self.embedding_dim = size

    def forward(self, tokens: Tensor) -> Tensor:
        return (tokens[..., None] == torch.arange(self.num_embeddings, device=tokens.device)).long()


@final
class SequenceModel(Cell):
    """A cell from tokens `[batch, time]` int64 to scores `[batch, time, vocabulary]`: embedding, core, readout.

    `input_dropout` drops a share of the features of the embedding in training, the same ones at every step of a call.
    """

    tokens = True

    def __init__(
        self, embedding: "nn.Embedding | OneHot", core: Cell, readout: nn.Linear, input_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.embedding, self.core, self.readout = embedding, core, readout
        self.input_dropout = input_dropout
        self.input_size, self.output_size = embedding.num_embeddings, readout.out_features

    def initial_state(self, batch: int) -> State:
        return self.core.initial_state(batch)

    def project(self, xs: Tensor) -> State:
        return self.core.project(self._embedded(xs))

    def step(self, u: State, state: State) -> tuple[Tensor, State]:
        y, state = self.core.step(u, state)
        return self.readout(y), state

    def scan(self, xs: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        ys, state = self.features(xs, state, lengths)
        return masked(self.readout(ys), lengths), state

    def features(self, xs: Tensor, state: State, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """What the readout sees, `[batch, time, units]`, and the last state."""
        return self.core.unroll(self._embedded(xs), state, lengths)

    def _embedded(self, tokens: Tensor) -> Tensor:
        xs = self.embedding(tokens).to(self.readout.weight.dtype)
        if self.training and self.input_dropout > 0:
            xs = xs * locked_mask(xs, self.input_dropout)
        return xs


def stack(cell: str, inputs: int, hidden: int, layers: int, dropout: float, **options: object) -> Cell:
    """`layers` cells of the same kind on top of each other, with locked dropout on the outputs of each."""
    if cell not in CELLS:
        raise UsageError(f"there is no cell called {cell!r}; the cells are {', '.join(CELLS)}")
    cells: list[Cell] = []
    for _ in range(layers):
        cells.append(CELLS[cell](cells[-1].output_size if cells else inputs, hidden, **options))
    if dropout > 0:
        cells = [LockedDropout(one, dropout) for one in cells]
    return cells[0] if layers == 1 else Stacked(cells)


def language_model(
    vocabulary: int,
    *,
    cell: str = "lstm",
    hidden: int = 384,
    layers: int = 1,
    embedding: int | None = 64,
    tied: bool = False,
    input_dropout: float = 0.0,
    dropout: float = 0.0,
    recurrent_dropout: float = 0.0,
    start: str = "torch",
    **options: object,
) -> SequenceModel:
    """Next-token scores. `embedding` None is one-hot; `tied` uses one matrix for embedding and readout (Press & Wolf 2017,
    arXiv:1608.05859), then the embedding has the size of the hidden state; `recurrent_dropout` is `weight_drop`'s; `start`
    is a name in `init.PRESETS`."""
    if start not in PRESETS:
        raise UsageError(f"there is no start called {start!r}; they are {', '.join(PRESETS)}")
    if tied and embedding is None:
        raise UsageError("one-hot inputs have no matrix to tie; leave out embed.tied or embed.kind=onehot")
    table: nn.Embedding | OneHot = OneHot(vocabulary)
    if embedding is not None:
        table = nn.Embedding(vocabulary, hidden if tied else embedding)
        nn.init.normal_(table.weight, std=0.1 if tied else 0.3)
    core = stack(cell, table.embedding_dim, hidden, layers, dropout, **options)
    PRESETS[start](core)
    if recurrent_dropout > 0:
        weight_drop(core, recurrent_dropout)
    readout = nn.Linear(core.output_size, vocabulary)
    if tied:
        readout.weight = cast(nn.Embedding, table).weight
    return SequenceModel(table, core, readout, input_dropout)


@final
class Snapshot:
    """A cell frozen as it is now, for use one step at a time: no gradients, no noise, weights packed for the native step
    where there is one; the caller keeps the state."""

    def __init__(self, cell: Cell) -> None:
        self._cell = copy.deepcopy(cell).eval().requires_grad_(False)
        without_weight_drop(self._cell)
        self._device = next(self._cell.parameters()).device
        self._cell = with_packed_weights(self._cell)
        self._direct = isinstance(self._cell, Packed)  # its step makes no graph and needs no guard

    def initial_state(self, batch: int = 1) -> State:
        """The state before the first step, for `batch` rows."""
        with torch.inference_mode():
            return self._cell.initial_state(batch)

    def step(self, x: Tensor | int, state: State) -> tuple[Tensor, State]:
        """One step: output `[batch, output_size]` and the next state. A plain number stands for a batch of one token."""
        if self._direct and not isinstance(x, int):
            return self._cell.step(x, state)
        x = torch.tensor([x], device=self._device) if isinstance(x, int) else x.to(self._device)
        with torch.inference_mode():
            return self._cell(x, state)

    def unroll(self, xs: Tensor, state: State) -> tuple[Tensor, State]:
        """Many steps at once: outputs `[batch, time, output_size]` and the last state."""
        with torch.inference_mode():
            return self._cell.unroll(xs.to(self._device), state)
