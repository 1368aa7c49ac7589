"""A decoder that writes one sequence while it looks at another: two networks, inputs and outputs of different length."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra import kernels
from recurra.attention import Attention, Kept
from recurra.cells import Cell
from recurra.models import Encoder
from recurra.recurrent import at_the_end
from recurra.state import State, leaves, masked, refill, tmap, within


class Memory(NamedTuple):
    """What a decoder looks at: values `[batch, places, size]`, how many places each row has (int64 `[batch]`, or None for all), and
    a summary `[batch, size]` of the whole, from which it starts."""

    values: Tensor
    lengths: Tensor | None
    summary: Tensor

    def take(self, rows: Tensor) -> "Memory":
        """Those rows, in this order."""
        lengths = None if self.lengths is None else self.lengths[rows]
        return Memory(self.values[rows], lengths, self.summary[rows])


class DecoderState(NamedTuple):
    """The state of the cell inside; the attentional vector that is fed into the next step; the weights of the last look; and
    their sum over all looks so far (coverage)."""

    core: State
    fed: Tensor  # [batch, units]
    weights: Tensor  # [batch, places]
    covered: Tensor  # [batch, places]


@final
class Decoder(nn.Module):
    """A cell that reads the tokens written so far and looks at a memory (Luong, Pham & Manning 2015, arXiv:1508.04025):

        h_t = cell(x_t, h_{t-1}),    c_t = attention(h_t, memory),    a_t = tanh(W [c_t; h_t]),    scores = readout(a_t)

    With `feed`, the cell reads [x_t; a_{t-1}] (input feeding). Without attention a_t = h_t, and all that it knows of the source is
    where it starts (Sutskever, Vinyals & Le 2014, arXiv:1409.3215). It starts from the memory's summary, by a layer of its own
    (the bridge): every field of the cell's state is tanh(B summary).
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        core: Cell,
        memory_size: int,
        attention: Attention | None = None,
        *,
        feed: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding, self.core, self.attention = embedding, core, attention
        self.feed, self.dropout = feed, dropout
        self.sizes = [leaf.shape[1] for leaf in leaves(core.initial_state(0))]
        self.bridge = nn.Linear(memory_size, sum(self.sizes))
        self.together = (
            None if attention is None else nn.Linear(attention.output_size + core.output_size, core.output_size)
        )
        self.readout = nn.Linear(core.output_size, embedding.num_embeddings)

    def attend(self, memory: Memory) -> "Attending":
        """The decoder as a cell over this memory."""
        return Attending(self, memory)


@final
class Attending(Cell):
    """A decoder over a memory: a cell from tokens `[batch, time]` to scores `[batch, time, vocabulary]`. Row k looks at row k of
    the memory; its state holds the weights of the last look, so that maps come free.

    What attention makes of the memory is computed once a call; without gradients once for all.
    """

    tokens = True

    def __init__(self, decoder: Decoder, memory: Memory) -> None:
        super().__init__()
        self.decoder = decoder
        for name, part in zip(memory._fields, memory, strict=True):
            self.register_buffer(name, part, persistent=False)
        self._kept: Kept | None = None
        self.input_size, self.output_size = decoder.embedding.num_embeddings, decoder.readout.out_features

    values: Tensor
    lengths: Tensor | None
    summary: Tensor

    def initial_state(self, batch: int) -> DecoderState:
        decoder = self.decoder
        summary = self.summary[:batch].to(decoder.bridge.weight.dtype)
        parts = torch.tanh(decoder.bridge(summary)).split(decoder.sizes, 1)
        weights = summary.new_zeros(batch, self.values.shape[1])
        core = refill(decoder.core.initial_state(batch), parts)
        return DecoderState(core, summary.new_zeros(batch, decoder.core.output_size), weights, weights)

    def project(self, xs: Tensor) -> Tensor:
        return self.decoder.embedding(xs)

    def step(self, u: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        decoder = self.decoder
        inputs = torch.cat([u, state.fed], 1) if decoder.feed else u
        y, core = decoder.core.step(tmap(lambda x: x[:, 0], decoder.core.project(inputs[:, None])), state.core)
        vectors, weights = self._look(y[:, None], state.weights)
        looked = DecoderState(core, vectors[:, 0], weights[:, 0], state.covered + weights[:, 0])
        return self._scores(vectors)[:, 0], looked

    def scan(self, xs: Tensor, state: DecoderState, lengths: Tensor | None) -> tuple[Tensor, DecoderState]:
        """Where no step hangs on what the one before it saw, the cell runs through time at once, and so does attention."""
        with self._remembering():
            decoder = self.decoder
            one_by_one = decoder.feed or (decoder.attention is not None and decoder.attention.looks_back)
            if one_by_one or not xs.shape[1] or not kernels.wanted():
                return self.loop(xs, state, lengths)
            ys, core = decoder.core.unroll(decoder.embedding(masked(xs, lengths)), state.core, lengths)
            vectors, weights = self._look(ys, state.weights)
            fed, last = _ended(vectors, state.fed, lengths), _ended(weights, state.weights, lengths)
            looked = DecoderState(core, fed, last, state.covered + masked(weights, lengths).sum(1))
            return masked(self._scores(vectors), lengths), looked

    def _look(self, ys: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """The attentional vectors and weights of outputs `[batch, time, units]` of the cell."""
        decoder, rows = self.decoder, ys.shape[0]
        if decoder.attention is None:
            return ys, before[:, None].expand(-1, ys.shape[1], -1)
        kept = tmap(lambda part: part[:rows], self._remembered())
        mask = None if self.lengths is None else within(self.lengths[:rows], self.values.shape[1])[:, None]
        summary, weights = decoder.attention(ys, kept, mask, before)
        return torch.tanh(cast(nn.Linear, decoder.together)(torch.cat([summary, ys], 2))), weights

    def _scores(self, vectors: Tensor) -> Tensor:
        return self.decoder.readout(F.dropout(vectors, self.decoder.dropout, self.decoder.training))

    def _remembered(self) -> Kept:
        if self._kept is not None:
            return self._kept
        kept = self._made()
        if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self._kept = kept
        return kept

    def _made(self) -> Kept:
        values = self.values.to(self.decoder.bridge.weight.dtype)
        return cast(Attention, self.decoder.attention).remember(values)

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        """Within this context what attention makes of the memory is computed once."""
        before = self._kept
        if before is None and self.decoder.attention is not None:
            self._kept = self._made()
        try:
            yield
        finally:
            self._kept = before


def _ended(parts: Tensor, before: Tensor, lengths: Tensor | None) -> Tensor:
    """What stands at each row's end; of a row of no length, what stood before."""
    last = at_the_end(parts, lengths)
    return last if lengths is None else torch.where(lengths[:, None] > 0, last, before)


@final
class EncoderDecoder(nn.Module):
    """An encoder and a decoder that looks at what it put out."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def initial_state(self, batch: int) -> State:
        return ()

    def remember(self, xs: State, lengths: Tensor | None = None) -> Memory:
        """What the decoder looks at."""
        ys, summary = self.encoder(xs, lengths)
        return Memory(ys, lengths, summary)

    def forward(
        self, xs: State, lengths: Tensor | None, written: Tensor, written_lengths: Tensor | None = None
    ) -> Tensor:
        """Scores of each next token `[batch, time, vocabulary]` after the tokens `written` `[batch, time]` (teacher forcing)."""
        cell = self.decoder.attend(self.remember(xs, lengths))
        return cell.unroll(written, cell.initial_state(len(written)), written_lengths)[0]


def repeated(memory: Memory, times: int) -> Memory:
    """Each row so many times, one after another, as a beam of that width wants it."""
    return memory.take(torch.arange(len(memory.summary), device=memory.summary.device).repeat_interleave(times))
