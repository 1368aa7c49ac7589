"""Target tokens per second of an encoder-decoder with attention, in training and in beam search, beside the same model written
with the modules of torch.nn, interleaved.

Texts are made up, shaped like Multi30k: 8 to 25 tokens, pairs of like length, batches of like length as the task makes them.
Both sides have the same weights, optimizer and batches, and before anything is timed they have to give the same loss and to
find the same texts. JoeyNMT, in an environment of its own: benchmarks/joey.py.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from recurra.attention import General
from recurra.bench.kernels import PAUSE
from recurra.cells import LSTM
from recurra.config import OptimizerConfig
from recurra.data.feed import POOL, Buckets, Ragged
from recurra.decode import Beam
from recurra.decoder import Decoder, EncoderDecoder
from recurra.errors import RecurraError
from recurra.fit import make_optimizer
from recurra.kernels import native
from recurra.models import Encoder, encoder_layers, resting
from recurra.state import within

VOCABULARY, ROWS, BATCHES, SHORTEST, LONGEST = 6_000, 64, 3, 8, 25
PAD, BEGIN, END, WORDS = 0, 2, 3, 4  # ids; words from WORDS on
WIDTH, LIMIT, LENGTH_PENALTY, SMOOTHING = 5, 47, 0.6, 0.1  # as the task seq2seq has them, with LONGEST tokens at most

Works = Callable[[], int]  # does some work and says for how many target tokens


class Texts(NamedTuple):
    """A batch of pairs: what is read `source` int64 [rows, places] and how long it is `places` [rows]; what the decoder reads
    and is to say `read`, `wanted` int64 [rows, time], and how long that is `steps` [rows]."""

    source: Tensor
    places: Tensor
    read: Tensor
    wanted: Tensor
    steps: Tensor

    @property
    def tokens(self) -> int:
        return int(self.steps.sum())


class Found(NamedTuple):
    """The best text of a row: its tokens without the end mark, and the score that it was ranked by."""

    tokens: list[int]
    score: float


def made_up(vocabulary: int = VOCABULARY, rows: int = ROWS, seed: int = 0) -> list[Texts]:
    """Batches of random words: a few of those that the task would make of a pool of such texts, so there is little padding."""
    rng, count = np.random.default_rng(seed), POOL * rows
    places = np.clip(rng.normal(14, 4, count).round(), SHORTEST, LONGEST).astype(np.int64)
    said = np.clip((places + rng.normal(0, 2, count)).round(), SHORTEST, LONGEST).astype(np.int64)

    def words(lengths: np.ndarray, begin: Sequence[int] = (), end: Sequence[int] = ()) -> Ragged:
        some = (rng.integers(WORDS, vocabulary, length) for length in lengths)
        return Ragged.of([np.array([*begin, *one, *end], np.int64) for one in some], np.zeros(0, np.int64))

    sources, targets = words(places), words(said, [BEGIN], [END])
    batches = []
    for each in Buckets(places + said + 1, rows, seed).epoch(0)[:BATCHES]:
        (source, lengths), (ids, marked) = sources.padded(each), targets.padded(each)
        read = ids[:, :-1].masked_fill(ids[:, :-1] == END, PAD)
        batches.append(Texts(source, lengths, read, ids[:, 1:], marked - 1))
    return batches


@final
class Plain(nn.Module):
    """What a careful user of torch.nn writes (Luong, Pham & Manning 2015, without input feeding): the whole target goes through
    nn.LSTM at once and all its steps look at the source at once; the readout is tied to the embedding."""

    def __init__(self, vocabulary: int, hidden: int) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(vocabulary, hidden), nn.Embedding(vocabulary, hidden)
        self.encoder = nn.LSTM(hidden, hidden, batch_first=True, bidirectional=True)
        self.bridge = nn.Linear(2 * hidden, 2 * hidden)
        self.decoder = nn.LSTM(hidden, hidden, batch_first=True)
        self.keys = nn.Linear(2 * hidden, hidden, bias=False)
        self.together = nn.Linear(3 * hidden, hidden)
        self.readout = nn.Linear(hidden, vocabulary)
        self.readout.weight = self.target.weight
        for table in (self.source, self.target):
            nn.init.normal_(table.weight, std=0.1)

    def encode(self, source: Tensor, places: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """What is looked at (values, keys, which places there are) and the state `[1, rows, hidden]` that writing starts from."""
        packed = pack_padded_sequence(self.source(source), places, batch_first=True, enforce_sorted=False)
        packed, (h, _) = self.encoder(packed)
        values, _ = pad_packed_sequence(packed, batch_first=True)
        start = torch.tanh(self.bridge(torch.cat([h[0], h[1]], 1)))[None].chunk(2, 2)
        return (values, self.keys(values), within(places, values.shape[1])), tuple(part.contiguous() for part in start)

    def forward(
        self, tokens: Tensor, memory: tuple[Tensor, ...], state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Scores of each next token `[rows, time, vocabulary]`, and the state after the last."""
        values, keys, real = memory
        ys, state = self.decoder(self.target(tokens), state)
        weights = torch.bmm(ys, keys.transpose(1, 2)).masked_fill(~real[:, None], -torch.inf).softmax(2)
        seen = torch.cat([torch.bmm(weights, values), ys], 2)
        return self.readout(torch.tanh(self.together(seen))), state


@torch.no_grad()
def lifelike(model: Plain) -> None:
    """Give an untrained model weights with which it writes as a trained one does, so that a search has as much to do: it is sure
    of its words to some degree, and its texts become about as long as their sources.

    Unit 0 of the encoder's forward direction counts the places, the bridge hands on the negative count, unit 0 of the decoder
    counts the steps onto it, and the end mark's score grows with their sum. All else is random.
    """
    hidden, unit = model.readout.in_features, 0.01
    for table in (model.source, model.target):
        nn.init.normal_(table.weight, std=10 / hidden**0.5)
    nn.init.normal_(model.together.weight, std=3 / hidden**0.5)
    for lstm in (model.encoder, model.decoder):
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_hh_l0"):
            lstm.get_parameter(name).unflatten(0, (4, hidden))[:, 0] = 0.0
        lstm.get_parameter("bias_ih_l0").unflatten(0, (4, hidden))[:, 0] = torch.tensor([10.0, 10.0, unit, 10.0])
    h, c = 0, hidden  # what the bridge makes the decoder's start from
    model.bridge.weight[[h, c]], model.bridge.bias[[h, c]] = 0.0, 0.0
    model.bridge.weight[[h, c], 0] = -1.0
    model.together.weight[0], model.together.bias[0] = 0.0, 0.3
    model.together.weight[0, 2 * hidden] = 0.1 / unit
    model.target.weight[:, 0], model.target.weight[:WORDS] = 0.0, 0.0
    model.target.weight[END, 0] = 30.0
    model.readout.bias.zero_()


def like(plain: Plain) -> EncoderDecoder:
    """The same model as the task seq2seq builds it, with a copy of the weights."""
    vocabulary, hidden = plain.readout.weight.shape
    encoder = Encoder(nn.Embedding(vocabulary, hidden), encoder_layers("lstm", hidden, hidden, 1, True))
    attention = General(hidden, 2 * hidden)
    decoder = Decoder(nn.Embedding(vocabulary, hidden), LSTM(hidden, hidden), 2 * hidden, attention, tied=True)
    model = EncoderDecoder(encoder, decoder)
    model.load_state_dict({_our_name(name): weight for name, weight in plain.state_dict().items()})
    return model


def _our_name(name: str) -> str:
    """Of a parameter of `Plain`, such as encoder.weight_ih_l0_reverse."""
    part, _, kind = name.partition(".")
    one = kind.removesuffix("_reverse").removesuffix("_l0")
    homes = {
        "source": "encoder.embedding",
        "encoder": f"encoder.layers.0.{'backwards' if kind.endswith('_reverse') else 'forwards'}.cell",
        "target": "decoder.embedding",
        "decoder": "decoder.core",
        "keys": "decoder.attention.W",
    }
    return f"{homes.get(part, f'decoder.{part}')}.{one}"


def our_loss(model: EncoderDecoder, texts: Texts, smoothing: float = SMOOTHING) -> Tensor:
    """Nats a token, as `tasks.writing.Writes.loss` computes it."""
    cell = model.decoder.attend(model.remember(texts.source, texts.places))
    looks = cell.looks(texts.read, cell.initial_state(len(texts.read)), texts.steps)
    real = within(texts.steps, texts.wanted.shape[1])
    return F.cross_entropy(cell.scores_at(looks, real), texts.wanted[real], label_smoothing=smoothing)


def plain_loss(model: Plain, texts: Texts, smoothing: float = SMOOTHING) -> Tensor:
    scores, _ = model(texts.read, *model.encode(texts.source, texts.places))
    return F.cross_entropy(scores.flatten(0, 1), texts.wanted.flatten(), ignore_index=PAD, label_smoothing=smoothing)


def our_search(model: EncoderDecoder, texts: Texts) -> list[Found]:
    """As `tasks.writing.Writes.written` searches."""
    beam = Beam(WIDTH, LIMIT, END, n_best=1, length_penalty=LENGTH_PENALTY)
    with resting(model):
        memory = model.remember(texts.source, texts.places)
        alone, cell = model.decoder.attend(memory), model.decoder.attend(memory, WIDTH)
        first = torch.full((len(texts.places),), BEGIN)
        start = alone.initial_state(len(first))
        found = beam.search(
            cell, first, start, covered=lambda state: state.covered, places=memory.lengths, narrow=cell.take
        )
    return [Found(best[0].tokens, best[0].score) for best in found]


@torch.no_grad()
def plain_search(model: Plain, texts: Texts) -> list[Found]:
    """The batched beam search that toolkits for translation have: in each step the best continuations over width * vocabulary;
    those that end are kept, and a row is over, and leaves the batch, when it has as many as the beam is wide."""
    memory, state = model.eval().encode(texts.source, texts.places)
    memory = tuple(part.repeat_interleave(WIDTH, 0) for part in memory)
    state = tuple(part.repeat_interleave(WIDTH, 1) for part in state)
    owners, tokens = list(range(len(texts.places))), torch.full((len(texts.places) * WIDTH, 1), BEGIN)
    sums = torch.full((len(owners), WIDTH), -torch.inf)
    sums[:, 0] = 0.0
    done: list[list[Found]] = [[] for _ in owners]
    for step in range(1, LIMIT + 1):
        scores, state = model(tokens[:, -1:], memory, state)
        logs = (scores[:, 0].log_softmax(1) + sums.view(-1, 1)).view(len(owners), -1)
        best, places = logs.topk(2 * WIDTH, 1)
        parents, words = places // scores.shape[2], places % scores.shape[2]
        ends, penalty = words == END, ((5 + step) / 6) ** LENGTH_PENALTY
        for row, rank in ends[:, :WIDTH].nonzero().tolist():
            text = tokens[row * WIDTH + parents[row, rank], 1:].tolist()
            done[owners[row]].append(Found(text, float(best[row, rank]) / penalty))
        sums, kept = best.masked_fill(ends, -torch.inf).topk(WIDTH, 1)
        going = torch.tensor([len(done[owner]) < WIDTH for owner in owners])
        rows = (torch.arange(len(owners))[:, None] * WIDTH + parents.gather(1, kept))[going].flatten()
        tokens = torch.cat([tokens[rows], words.gather(1, kept)[going].view(-1, 1)], 1)
        state, sums = tuple(part.index_select(1, rows) for part in state), sums[going]
        if not going.all():
            memory = tuple(part.index_select(0, rows) for part in memory)
            owners = [owner for owner, on in zip(owners, going.tolist(), strict=True) if on]
        if not owners:
            break
    for row, owner in enumerate(owners):  # what has not ended at the last step counts too
        written = tokens[row * WIDTH : (row + 1) * WIDTH, 1:].tolist()
        done[owner] += map(Found, written, (sums[row] / penalty).tolist())
    return [max(one, key=lambda found: found.score) for one in done]


def check_losses(ours: EncoderDecoder, plain: Plain, batches: Sequence[Texts]) -> None:
    """Raises RecurraError where the two have losses that are not the same to 1e-4."""
    for texts in batches:
        own, other = our_loss(ours, texts, 0.0).item(), plain_loss(plain, texts, 0.0).item()
        if not abs(own - other) < 1e-4:
            raise RecurraError(f"the two sides' losses were {own} and {other}, wanted the same to 1e-4")


def check_searches(ours: EncoderDecoder, plain: Plain, batches: Sequence[Texts]) -> None:
    """Raises RecurraError where the scores of the best texts are not the same to 1e-3 in all rows but one of fifty: of two
    hypotheses that are equal but for rounding a beam may prune either, and go on elsewhere."""
    found = [
        (own.score, other.score)
        for texts in batches
        for own, other in zip(our_search(ours, texts), plain_search(plain, texts), strict=True)
    ]
    apart = sum(not abs(own - other) < 1e-3 for own, other in found)
    if apart > len(found) / 50:
        raise RecurraError(
            f"the two sides' best texts had other scores in {apart} of {len(found)} rows, wanted 2 % at most"
        )


def updates(model: nn.Module, loss: Callable[[Texts], Tensor], batches: Sequence[Texts]) -> Works:
    """An update for each batch: forward, backward, clip, AdamW, fused, as a run of the task makes it."""
    optimizer, parameters = make_optimizer(model, OptimizerConfig(rate=1e-3)), list(model.parameters())

    def work() -> int:
        model.train()
        for texts in batches:
            loss(texts).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return sum(texts.tokens for texts in batches)

    return work


def searches(search: Callable[[Texts], list[Found]], batches: Sequence[Texts]) -> Works:
    """The best text of every row; the end mark is one of its tokens."""
    return lambda: sum(len(found.tokens) + 1 for texts in batches for found in search(texts))


def compare(
    hidden: int,
    seconds: float,
    threads: int | None = None,
    seed: int | None = None,
    vocabulary: int = VOCABULARY,
    rows: int = ROWS,
    rounds: int = 5,
) -> dict[str, Any]:
    """Medians over `rounds` of target tokens per second, both sides in turn in each round, and the median of the ratios; about
    `seconds` for each side of each. Raises RecurraError where the sides do not compute the same."""
    if threads:
        torch.set_num_threads(threads)
    batches = made_up(vocabulary, rows, seed or 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        plain, writer = Plain(vocabulary, hidden), Plain(vocabulary, hidden)
        lifelike(writer)
        ours, our_writer = like(plain), like(writer)
    for one, other in ((ours, plain), (our_writer, writer)):
        check_losses(one, other, batches)
    check_searches(our_writer, writer, batches)
    sides = {
        "training": (
            updates(ours, lambda texts: our_loss(ours, texts), batches),
            updates(plain, lambda texts: plain_loss(plain, texts), batches),
        ),
        "beam search": (
            searches(lambda texts: our_search(our_writer, texts), batches),
            searches(lambda texts: plain_search(writer, texts), batches),
        ),
    }
    report: dict[str, Any] = {
        "hidden": hidden,
        "vocabulary": vocabulary,
        "rows": rows,
        "width": WIDTH,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "kernels": native.described(),
    }
    for what, works in sides.items():
        mine, theirs = turns(works, seconds / rounds, rounds)
        report[what] = {
            "recurra": median(mine),
            "torch.nn": median(theirs),
            "ratio": median(a / b for a, b in zip(mine, theirs, strict=True)),
        }
    return report


def turns(sides: Sequence[Works], share: float, rounds: int) -> list[list[float]]:
    """Of each side the tokens per second in each round: all sides in turn, each for `share` seconds at least; a first round only
    warms up."""
    rates = [[_rate(side, share) for side in sides] for _ in range(rounds + 1)][1:]
    return [list(side) for side in zip(*rates, strict=True)]


def _rate(work: Works, seconds: float) -> float:
    time.sleep(PAUSE)
    began, tokens = time.perf_counter(), 0
    while not tokens or time.perf_counter() - began < seconds:
        tokens += work()
    return tokens / (time.perf_counter() - began)
