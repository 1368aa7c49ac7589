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
from recurra.decode import generate
from recurra.errors import UsageError
from recurra.recurrent import at_the_end
from recurra.regularize import locked_mask
from recurra.state import State, choose, flat, masked, take, tmap, unflat, within


class Memory(NamedTuple):
    """What a decoder looks at: values `[batch, places, size]`, how many places each row has (int64 `[batch]`, or None for all), a
    summary `[batch, size]` of the whole, from which it starts, and for one that copies the tokens at the places, int64
    `[batch, places]`."""

    values: Tensor
    lengths: Tensor | None
    summary: Tensor
    tokens: Tensor | None = None

    def take(self, rows: Tensor) -> "Memory":
        """Those rows, in this order."""
        parts = (None if part is None else part[rows] for part in self)
        return Memory(*parts)  # type: ignore[arg-type]


class DecoderState(NamedTuple):
    """The state of the cell inside; the attentional vector, from which the scores come and which may be fed into the next step; the
    weights of the last look; and their sum over all looks so far (coverage)."""

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
    (the bridge): every floating field of the state is tanh(B summary). With `tied`, a_t has the size of the embedding and the
    readout the embedding's matrix (Press & Wolf 2017, arXiv:1608.05859).

    With `copy` it may take a token of the source for the next one (pointer-generator; See, Liu & Manning 2017, arXiv:1704.04368,
    whose gate reads the state and the input too), and its scores are log-probabilities:

        g_t = sigmoid(w a_t + b),    P(token) = g_t softmax(readout(a_t))[token] + (1 - g_t) sum of weights of the places with it
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        core: Cell,
        memory_size: int,
        attention: Attention | None = None,
        *,
        feed: bool = False,
        copy: bool = False,
        tied: bool = False,
        input_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if copy and attention is None:
            raise UsageError("to copy from the source it has to be looked at; take an attention")
        self.embedding, self.core, self.attention = embedding, core, attention
        self.feed, self.input_dropout, self.dropout = feed, input_dropout, dropout
        self.bridge = nn.Linear(memory_size, flat(core.initial_state(1)).shape[1])
        self.vector_size = embedding.embedding_dim if tied else core.output_size
        seen = core.output_size + (0 if attention is None else attention.output_size)
        self.together = nn.Linear(seen, self.vector_size) if attention is not None or tied else None
        self.readout = nn.Linear(self.vector_size, embedding.num_embeddings)
        if tied:
            self.readout.weight = embedding.weight
        self.gate = nn.Linear(self.vector_size, 1) if copy else None

    def attend(self, memory: Memory, width: int = 1) -> "Attending":
        """The decoder as a cell over this memory; `width` rows of it, one after another, look at each row of the memory, as a beam
        of that width wants it."""
        return Attending(self, memory, width)

    def scores(self, vectors: Tensor, weights: Tensor, tokens: Tensor | None) -> Tensor:
        """Of the next token, `[..., vocabulary]`: of attentional vectors `[..., units]` and, to copy, the weights `[..., places]`
        of the look and the tokens `[..., places]` at the places."""
        scores = self.readout(F.dropout(vectors, self.dropout, self.training))
        if self.gate is None:
            return scores
        if tokens is None:
            raise UsageError("a decoder that copies was given a memory without tokens; wanted Memory(..., tokens)")
        own = torch.sigmoid(self.gate(vectors))
        copied = torch.zeros_like(scores).scatter_add(-1, tokens.expand(weights.shape), weights.to(scores.dtype))
        chances = own * scores.softmax(-1) + (1 - own) * copied
        return chances.clamp(min=torch.finfo(chances.dtype).tiny).log()


class Looks(NamedTuple):
    """Many steps of a decoder: attentional vectors `[batch, time, units]`, the weights `[batch, time, places]` of each look, and
    the state after each row's last step. What lies past a row's end is not to be used."""

    vectors: Tensor
    weights: Tensor
    state: DecoderState


@final
class Attending(Cell):
    """A decoder over a memory: a cell from tokens `[batch, time]` to scores `[batch, time, vocabulary]`. Row k looks at row
    k // width of the memory; its state holds the weights of the last look, so that maps come free.

    What attention makes of the memory is computed once a call; without gradients once for all.
    """

    tokens = True

    def __init__(self, decoder: Decoder, memory: Memory, width: int = 1) -> None:
        super().__init__()
        self.decoder, self.width = decoder, width
        for name, part in zip(memory._fields, memory, strict=True):
            self.register_buffer("source" if name == "tokens" else name, part, persistent=False)
        self._kept: Kept | None = None
        self.input_size, self.output_size = decoder.embedding.num_embeddings, decoder.readout.out_features

    values: Tensor
    lengths: Tensor | None
    summary: Tensor
    source: Tensor | None

    def take(self, rows: Tensor) -> "Attending":
        """The cell for these of its rows alone; all that look at the same row of the memory go together."""
        of = rows[:: self.width] // self.width
        some = Attending(
            self.decoder, Memory(self.values, self.lengths, self.summary, self.source).take(of), self.width
        )
        some._kept = None if self._kept is None else take(self._kept, of)
        return some

    def initial_state(self, batch: int) -> DecoderState:
        decoder = self.decoder
        summary = self._of_each(self.summary, batch).to(decoder.bridge.weight.dtype)
        weights = summary.new_zeros(batch, self.values.shape[1])
        core = unflat(decoder.core.initial_state(batch), torch.tanh(decoder.bridge(summary)))
        return DecoderState(core, summary.new_zeros(batch, decoder.vector_size), weights, weights)

    def project(self, xs: Tensor) -> Tensor:
        us = self.decoder.embedding(xs)
        share = self.decoder.input_dropout
        return us * locked_mask(us, share) if self.decoder.training and share > 0 else us

    def step(self, u: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        state = self._next(u, state)
        return self._scores(state.fed, state.weights), state

    def scan(self, xs: Tensor, state: DecoderState, lengths: Tensor | None) -> tuple[Tensor, DecoderState]:
        if not xs.shape[1] or torch.compiler.is_exporting():
            with self._remembering():
                return self.loop(xs, state, lengths)
        vectors, weights, last = self.looks(xs, state, lengths)
        return masked(self._scores(vectors, weights), lengths), last

    def looks(self, xs: Tensor, state: DecoderState, lengths: Tensor | None = None) -> Looks:
        """Read tokens `[batch, time]`. Where no step hangs on what the one before it saw, the cell runs through time at once, and
        so does attention."""
        decoder = self.decoder
        with self._remembering():
            us = self.project(masked(xs, lengths))
            if decoder.feed or (decoder.attention is not None and decoder.attention.looks_back) or not kernels.wanted():
                return self._one_by_one(us, state, lengths)
            ys, core = decoder.core.unroll(us, state.core, lengths)
            vectors, weights = self._look(ys, state)
            fed, last = _ended(vectors, state.fed, lengths), _ended(weights, state.weights, lengths)
            return Looks(
                vectors, weights, DecoderState(core, fed, last, state.covered + masked(weights, lengths).sum(1))
            )

    def _one_by_one(self, us: Tensor, state: DecoderState, lengths: Tensor | None) -> Looks:
        vectors, weights = [], []
        for t, u in enumerate(us.unbind(1)):
            after = self._next(u, state)
            vectors.append(after.fed)
            weights.append(after.weights)
            state = after if lengths is None else choose(lengths > t, after, state)
        return Looks(torch.stack(vectors, 1), torch.stack(weights, 1), state)

    def _next(self, u: Tensor, state: DecoderState) -> DecoderState:
        decoder = self.decoder
        inputs = torch.cat([u, state.fed], 1) if decoder.feed else u
        y, core = decoder.core.step(tmap(lambda x: x[:, 0], decoder.core.project(inputs[:, None])), state.core)
        vectors, weights = self._look(y[:, None], state)
        return DecoderState(core, vectors[:, 0], weights[:, 0], state.covered + weights[:, 0])

    def _look(self, ys: Tensor, before: DecoderState) -> tuple[Tensor, Tensor]:
        """The attentional vectors and weights of outputs `[batch, time, units]` of the cell."""
        decoder = self.decoder
        seen, weights = ys, before.weights[:, None].expand(-1, ys.shape[1], -1)
        if decoder.attention is not None:
            back = decoder.attention.looks_back
            summary, weights = self._ask(ys) if back is None else self._ask_back(ys, getattr(before, back))
            seen = torch.cat([summary, ys], 2)
        return seen if decoder.together is None else torch.tanh(decoder.together(seen)), weights

    def _ask(self, ys: Tensor) -> tuple[Tensor, Tensor]:
        """All that look at the same row of the memory ask together, as queries side by side."""
        rows = len(ys) // self.width
        kept, queries = tmap(lambda part: part[:rows], self._remembered()), ys.reshape(rows, -1, ys.shape[2])
        found = cast(Attention, self.decoder.attention)(queries, kept, self._mask(rows))
        return tmap(lambda part: part.reshape(*ys.shape[:2], -1), found)

    def _ask_back(self, ys: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        kept, mask = (
            tmap(lambda part: self._of_each(part, len(ys)), self._remembered()),
            self._mask(len(ys) // self.width),
        )
        mask = None if mask is None else self._of_each(mask, len(ys))
        return cast(Attention, self.decoder.attention)(ys, kept, mask, before)

    def _mask(self, rows: int) -> Tensor | None:
        return None if self.lengths is None else within(self.lengths[:rows], self.values.shape[1])[:, None]

    def _of_each(self, part: Tensor, rows: int) -> Tensor:
        """What each of so many rows has of a part of the memory."""
        part = part[: rows // self.width]
        return part if self.width == 1 else part.repeat_interleave(self.width, 0)

    def scores_at(self, looks: Looks, real: Tensor) -> Tensor:
        """The scores `[steps, vocabulary]` of those steps where `real`, boolean `[batch, time]`, holds: what lies past the rows'
        ends costs nothing."""
        rows, steps = real.nonzero(as_tuple=True)
        at = rows * real.shape[1] + steps
        vectors, weights = (part.flatten(0, 1).index_select(0, at) for part in (looks.vectors, looks.weights))
        return self.decoder.scores(vectors, weights, None if self.source is None else self.source[rows // self.width])

    def _scores(self, vectors: Tensor, weights: Tensor) -> Tensor:
        tokens = None if self.source is None else self._of_each(self.source, len(vectors))
        if tokens is not None and vectors.dim() == 3:
            tokens = tokens[:, None]
        return self.decoder.scores(vectors, weights, tokens)

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
    """An encoder, `(xs, lengths) -> outputs, summary`, and a decoder that looks at what it put out. One that copies takes the
    inputs for the tokens at the places."""

    def __init__(self, encoder: nn.Module, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def initial_state(self, batch: int) -> State:
        return ()

    def remember(self, xs: State, lengths: Tensor | None = None) -> Memory:
        """What the decoder looks at."""
        ys, summary = self.encoder(xs, lengths)
        return Memory(ys, lengths, summary, xs if self.decoder.gate is not None else None)

    def forward(
        self, xs: State, lengths: Tensor | None, written: Tensor, written_lengths: Tensor | None = None
    ) -> Tensor:
        """Scores of each next token `[batch, time, vocabulary]` after the tokens `written` `[batch, time]` (teacher forcing)."""
        cell = self.decoder.attend(self.remember(xs, lengths))
        return cell.unroll(written, cell.initial_state(len(written)), written_lengths)[0]


@torch.no_grad()
def mixed(cell: Cell, written: Tensor, state: State, own: float) -> Tensor:
    """Tokens `[batch, time]` of which each but the first is, with probability `own`, not the given one but drawn by the cell itself
    after those that come before it here (scheduled sampling; Bengio et al. 2015, arXiv:1506.03099). No gradient flows through
    the choice, as in the paper."""
    truth = written[:, 1:].unbind(1)
    drawn = torch.rand(written.shape, device=written.device) < own

    def feed(scores: Tensor, t: int) -> tuple[Tensor, Tensor]:
        guess = torch.multinomial(scores.float().softmax(1), 1)[:, 0]
        token = torch.where(drawn[:, t], guess, truth[t])
        return token, token

    rest = [token for token, _ in generate(cell, written[:, 0], state, feed, len(truth))]
    return torch.stack([written[:, 0], *rest], 1)


def covered_twice(weights: Tensor) -> Tensor:
    """For each step `[batch, time]` how much of its look, weights `[batch, time, places]`, fell where the steps before had looked:
    sum over places of min(weight, covered), the coverage loss of See, Liu & Manning 2017."""
    before = weights.cumsum(1) - weights
    return torch.minimum(weights, before).sum(2)
