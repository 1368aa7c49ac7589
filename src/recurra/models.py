"""Models are cells again: from tokens to scores, one step or many."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra.cells import (
    CELLS,
    HMM,
    Block,
    Cell,
    Convolved,
    Kalman,
    Latent,
    LockedDropout,
    Packed,
    Stacked,
    cell_called,
    with_packed_weights,
)
from recurra.crf import CRF
from recurra.errors import UsageError
from recurra.init import PRESETS
from recurra.memory import Pooling
from recurra.recurrent import Bidirectional, Layer, Recurrent, largest_over, mean_over
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


@contextmanager
def resting(model: nn.Module) -> Iterator[None]:
    """The model in `eval()` and without gradients for a while. Not to be held over a `yield`: who reads would go without too."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def stack(
    cell: str,
    inputs: int,
    hidden: int,
    layers: int,
    dropout: float,
    *,
    block: bool = False,
    convolved: int = 1,
    **options: object,
) -> Cell:
    """`layers` cells of the same kind on top of each other, each as `one_layer` has it, with locked dropout on the outputs of
    each. One state-space model may stand here alone: its outputs are forecasts, of which nothing is dropped. Raises UsageError
    for other whole models."""
    if cell_called(cell) is Kalman and layers == 1 and not block and convolved == 1:
        return Kalman(inputs, hidden, **options)
    kind = layer_called(cell)
    cells: list[Cell] = []
    for _ in range(layers):
        cells.append(one_layer(kind, cells[-1].output_size if cells else inputs, hidden, options, block, convolved))
    if dropout > 0:
        cells = [LockedDropout(one, dropout) for one in cells]
    return cells[0] if layers == 1 else Stacked(cells)


def one_layer(
    kind: type[Cell], inputs: int, hidden: int, options: dict[str, Any], block: bool = False, convolved: int = 1
) -> Cell:
    """A cell with these options, behind a convolution of `convolved` inputs if that is more than one, in a `Block` if asked for."""
    cell = kind(hidden if block else inputs, hidden, **options)
    cell = Convolved(cell, convolved) if convolved > 1 else cell
    return Block(cell, inputs) if block else cell


def layer_called(name: str) -> type[Cell]:
    """The cell of this name, to be put between embedding and readout. Raises UsageError for a whole model."""
    kind = cell_called(name)
    if issubclass(kind, Latent):
        raise UsageError(
            f"the cell {name} is a whole model, of one layer: hmm is for the language task, kalman for forecast, without --layers, "
            "model.block and model.convolved"
        )
    return kind


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
    block: bool = False,
    convolved: int = 1,
    start: str = "torch",
    **options: object,
) -> SequenceModel | HMM:
    """Next-token scores. `embedding` None is one-hot; `tied` uses one matrix for embedding and readout (Press & Wolf 2017,
    arXiv:1608.05859), then the embedding has the size of the hidden state; `recurrent_dropout` is `weight_drop`'s; each layer
    is `one_layer`'s; `start` is a name in `init.PRESETS`. Of a hidden Markov model (`hmm`) `hidden` says all."""
    if cell == "hmm" and layers == 1 and not block and convolved == 1:
        return HMM(vocabulary, hidden, **options)
    _check_start(start)
    if tied and embedding is None:
        raise UsageError("one-hot inputs have no matrix to tie; leave out embed.tied or embed.kind=onehot")
    table: nn.Embedding | OneHot = OneHot(vocabulary)
    if embedding is not None:
        table = nn.Embedding(vocabulary, hidden if tied else embedding)
        nn.init.normal_(table.weight, std=0.1 if tied else 0.3)
    core = stack(cell, table.embedding_dim, hidden, layers, dropout, block=block, convolved=convolved, **options)
    PRESETS[start](core)
    if recurrent_dropout > 0:
        weight_drop(core, recurrent_dropout)
    readout = nn.Linear(core.output_size, vocabulary)
    if tied:
        readout.weight = cast(nn.Embedding, table).weight
    return SequenceModel(table, core, readout, input_dropout)


@final
class Table(nn.Module):
    """Ids `[...]` -> features `[..., embedding_dim]`: ids below `learnt` by a table that learns, those after by one that does not,
    for words that have a vector and do not occur in training, whose gradient would be nothing at a high price. In training a
    share `dropout` of the ids is taken for 0, the unknown word (word dropout: Iyyer et al. 2015, "Deep unordered composition")."""

    def __init__(self, learnt: int, fixed: int, size: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.learnt = nn.Embedding(learnt, size)
        nn.init.normal_(self.learnt.weight, std=0.3)
        self.register_buffer("fixed", torch.zeros(fixed, size))
        self.embedding_dim = size

    def forward(self, ids: Tensor) -> Tensor:
        count, fixed = self.learnt.num_embeddings, cast(Tensor, self.fixed)
        if self.training and self.dropout > 0:
            ids = torch.where(torch.rand(ids.shape, device=ids.device) < self.dropout, 0, ids)
        if not len(fixed):
            return self.learnt(ids)
        apart = (ids - count).clamp(min=0)
        return torch.where((ids < count)[..., None], self.learnt(ids.clamp(max=count - 1)), fixed[apart])


@final
class AsTheyAre(nn.Module):
    """Features `[batch, time, size]` as they come, where tokens would be looked up in a table."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.embedding_dim = size

    def forward(self, xs: Tensor) -> Tensor:
        return xs


@final
class Encoder(nn.Module):
    """Inputs -> embedding -> layers on top of each other: outputs `[batch, time, output_size]`, zero past each row's end, and a
    summary `[batch, output_size]`.

    In training `input_dropout` drops features of the embedding and `dropout` outputs of each layer but the last, the same
    ones at every step of a call.
    """

    def __init__(
        self, embedding: nn.Module, layers: Sequence[Layer], input_dropout: float = 0.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.embedding, self.layers = embedding, nn.ModuleList(layers)
        self.input_dropout, self.dropout = input_dropout, dropout
        self.output_size = layers[-1].output_size

    def forward(self, xs: State, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        like = next(t for t in (*self.layers.parameters(), *self.layers.buffers()) if t.is_floating_point())
        ys, share = self.embedding(xs).to(like.dtype), self.input_dropout
        summary = ys
        for layer in self.layers:
            if self.training and share > 0:
                ys = ys * locked_mask(ys, share)
            ys, summary = layer(ys, lengths)
            share = self.dropout
        return ys, summary


def encoder_layers(
    cell: str,
    inputs: int,
    hidden: int,
    layers: int,
    bidirectional: bool,
    start: str = "torch",
    block: bool = False,
    convolved: int = 1,
    **options: object,
) -> list[Layer]:
    """Recurrent layers of the same kind, in one direction or in both, each cell as `one_layer` has it."""
    _check_start(start)
    kind = layer_called(cell)
    made: list[Layer] = []
    for _ in range(layers):
        size = made[-1].output_size if made else inputs
        cells = [one_layer(kind, size, hidden, options, block, convolved) for _ in range(1 + bidirectional)]
        for one in cells:
            PRESETS[start](one)
        made.append(Bidirectional(*cells) if bidirectional else Recurrent(cells[0]))
    return made


def _check_start(name: str) -> None:
    if name not in PRESETS:
        raise UsageError(f"there is no start called {name!r}; they are {', '.join(PRESETS)}")


POOLINGS = ("last", "mean", "max", "attention")


@final
class ManyToOne(nn.Module):
    """An encoder, its outputs pooled, and a readout: scores `[batch, outputs]` of whole sequences.

    `pooling`: last, what the layers said last; mean or max over time; attention, what a learnt query takes from the outputs.
    `dropout` drops pooled features in training.
    """

    def __init__(self, encoder: Encoder, outputs: int, pooling: str = "last", dropout: float = 0.0) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise UsageError(f"there is no pooling called {pooling!r}; they are {', '.join(POOLINGS)}")
        self.encoder, self.pooling, self.dropout = encoder, pooling, dropout
        self.attention = Pooling(encoder.output_size) if pooling == "attention" else None
        self.readout = nn.Linear(encoder.output_size, outputs)

    def initial_state(self, batch: int) -> State:
        return ()

    def forward(self, xs: State, lengths: Tensor | None = None) -> Tensor:
        return self.readout(F.dropout(self.pooled(xs, lengths), self.dropout, self.training))

    def pooled(self, xs: State, lengths: Tensor | None = None) -> Tensor:
        """What the readout sees, `[batch, features]`."""
        ys, summary = self.encoder(xs, lengths)
        if self.attention is not None:
            return self.attention(ys, lengths)
        if self.pooling == "last":
            return summary
        return mean_over(ys, lengths) if self.pooling == "mean" else largest_over(ys, lengths)


@final
class ManyToMany(nn.Module):
    """An encoder and a readout at every step: scores `[batch, time, outputs]`; and with `heads`, scores `[batch, heads]` of the
    whole sequence too, from the largest of each output over time. `dropout` drops what the readouts see in training. A
    conditional random field over the scores may go with it (`crf`)."""

    def __init__(
        self, encoder: Encoder, outputs: int, heads: int = 0, dropout: float = 0.0, crf: CRF | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.dropout, self.crf = encoder, dropout, crf
        self.readout = nn.Linear(encoder.output_size, outputs)
        self.head = nn.Linear(encoder.output_size, heads) if heads else None

    def initial_state(self, batch: int) -> State:
        return ()

    def forward(self, xs: State, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        ys, _ = self.encoder(xs, lengths)
        scores = self.readout(F.dropout(ys, self.dropout, self.training))
        if self.head is None:
            return scores, None
        return scores, self.head(F.dropout(largest_over(ys, lengths), self.dropout, self.training))


@final
class Spelled(nn.Module):
    """Words `[batch, time]` and their letters `[batch, time, letters]` -> features: the word's vector beside what a
    bidirectional LSTM says of its letters from either end (Lample et al. 2016, arXiv:1603.01360). Letter 0 is no letter."""

    def __init__(self, table: Table, letters: int, size: int = 25, hidden: int = 25) -> None:
        super().__init__()
        self.table, self.letters = table, nn.Embedding(letters, size)
        self.speller = Bidirectional(CELLS["lstm"](size, hidden), CELLS["lstm"](size, hidden))
        self.embedding_dim = table.embedding_dim + 2 * hidden

    def forward(self, xs: tuple[Tensor, Tensor]) -> Tensor:
        words, letters = xs
        different, places = letters.flatten(0, 1).unique(dim=0, return_inverse=True)  # a word is spelled once a batch
        lengths = (different > 0).sum(1)
        _, spelled = self.speller(self.letters(different[:, : int(lengths.max()) if len(lengths) else 0]), lengths)
        return torch.cat([self.table(words), spelled[places].view(*words.shape, -1)], dim=2)


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
