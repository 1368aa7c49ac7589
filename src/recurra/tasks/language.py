"""The language task: predict the next token of a text, and write."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self, cast, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra import config as configuration
from recurra import storage
from recurra.cells import HMM, cell_called
from recurra.config import Config
from recurra.data import read, texts
from recurra.data import tokens as tokenisers
from recurra.data.batch import Batch
from recurra.data.feed import Corpus, Stream
from recurra.data.survey import survey
from recurra.data.tokens import TOKENS, Tokens, Words
from recurra.decode import Beam, Sampler
from recurra.errors import DataError, RecurraError, UsageError
from recurra.learn import Observed, Regression
from recurra.metrics import bits, perplexity
from recurra.models import SequenceModel, Snapshot, language_model
from recurra.regularize import activity
from recurra.state import State, within
from recurra.tasks.base import Sources, Task, Unit, Validation, refuse
from recurra.tasks.floors import MOST_TOKENS, language_floors
from recurra.tasks.pretrained import coverage, put_vectors, take_vectors
from recurra.tasks.surprise import surprise

PARTS = ("train", "valid", "test")
REFERENCE_ROWS = 32
FEW_UPDATES = 1_500
GATED = ("lstm", "gru", "mgu")


FEATURES = 64  # of a token whose vector is not given


class Continuation(NamedTuple):
    """A text that goes on from another, its log-probability in nats, and whether the model ended it there."""

    text: str
    log_probability: float
    ended: bool


@final
class Language(Task):
    """Next-token prediction over a stream of text whose state is carried on from window to window.

    Loss: cross-entropy in nats a token. Scores: bits per character and per token, and perplexities that say of what.
    """

    name = "language"
    data_files = frozenset({"train.ids", "valid.ids", "test.ids", "corpus.json", "tokenizer.json", "vectors.npz"})
    assets = frozenset({"tokenizer.json"})
    unit = Unit("bits/token", 1 / math.log(2), "tokens")
    model: SequenceModel | HMM

    def __init__(self, config: Config, tokens: Tokens, folder: Path | None = None) -> None:
        self.config, self.tokens = config, tokens
        self._data: Callable[[], Path] | None = (lambda: folder) if folder is not None else None

    @classmethod
    def prepare(cls, config: Config, sources: Sources, folder: Path) -> Self:
        _refuse_options(config)
        kind = _kind(config)
        reader = texts.reader_for(kind)
        parts = _parts(sources, config.data.valid_share, reader)
        if config.embed.frozen and config.embed.vectors is None:
            raise UsageError(
                "embed.frozen holds word vectors, and there are none; give them with --vectors, or leave it out"
            )

        def chunks() -> Iterator[str]:
            return (chunk for piece in parts["train"] for chunk in piece.chunks(reader) if isinstance(chunk, str))

        tokens = TOKENS[kind].learn(chunks, config.tokens.size)
        about: dict[str, Any] = {
            part: texts.write_corpus(folder / f"{part}.ids", pieces, tokens, reader) for part, pieces in parts.items()
        }
        if config.embed.vectors is not None:
            about["vectors"] = _take_vectors(config, tokens, folder)
        tokens.save(folder / "tokenizer.json")
        storage.write_json(folder / "corpus.json", about)
        return cls(config, tokens, folder)

    @classmethod
    def reopen(cls, config: Config, folder: Path) -> Self:
        return cls(config, tokenisers.load(folder / "tokenizer.json"), folder)

    @classmethod
    def restore(cls, config: Config, folder: Path) -> Self:
        return cls(config, tokenisers.load(folder / "tokenizer.json"))

    def attach(self, data: Callable[[], Path]) -> None:
        self._data = data
        vars(self).pop("about", None)
        vars(self).pop("corpora", None)

    @cached_property
    def about(self) -> dict[str, Any]:
        """What is known of each part of the data of this run (train, valid, test); empty where there is none at hand."""
        return storage.read_json(self._data() / "corpus.json") if self._data else {}

    @cached_property
    def corpora(self) -> dict[str, Corpus]:
        """The parts themselves, memory-mapped."""
        folder = self._data() if self._data else Path()
        return {
            part: texts.open_corpus(folder / f"{part}.ids", self.about[part]) for part in PARTS if part in self.about
        }

    def notes(self) -> list[str]:
        known = self.about.get("vectors")
        if known is None:
            return []
        return [coverage(known, self.config.embed)]

    def held(self, share: float) -> list[nn.Parameter]:
        embed = self.config.embed
        held = embed.vectors is not None and share < embed.frozen
        return list(cast(SequenceModel, self.model).embedding.parameters()) if held else []

    def write_assets(self, folder: Path) -> None:
        self.tokens.save(folder / "tokenizer.json")

    def settle(self, config: Config, passes: float | None = None) -> Config:
        """A text that is read often is learnt by heart unless noise prevents it; one that is read a few times is not, and
        noise only slows it down; a budget of few updates is better spent on many small ones of a small network. The
        reference is 384 units and 32 rows. The numbers come from the runs in benchmarks/language.md."""
        updates = (passes or 0.0) * self.corpora["train"].transitions / (REFERENCE_ROWS * config.train.chunk)
        if passes is None:
            chosen = _regime(384)
        elif passes > 20:
            chosen = _regime(512, rate=5e-3, dropout=0.5, input_dropout=0.2, recurrent_dropout=0.2)
        elif updates < FEW_UPDATES:
            chosen = _regime(256, rows=REFERENCE_ROWS // 2)
        else:
            chosen = _regime(384, dropout=0.2 if passes > 4 else 0.0)
        if not config.cell.name.startswith(GATED) or config.optimizer.name not in ("adam", "adamw"):
            del chosen["optimizer"]  # cells without gates, and other optimizers, want their own rate
        chosen["embed"] = {"size": self.about.get("vectors", {}).get("size", FEATURES), "tied": False}
        chosen["tokens"] = {"kind": self.tokens.kind, "lower": False}
        return configuration.settled(config, chosen)

    def build(self, config: Config) -> None:
        model, cell = config.model, config.cell
        given = cell.model_extra or {}
        self.config = config
        self.model = language_model(
            self.tokens.size,
            cell=cell.name,
            hidden=int(model.hidden),
            layers=model.layers,
            embedding=None if config.embed.kind == "onehot" else int(config.embed.size),
            tied=config.embed.tied is True,
            input_dropout=float(model.input_dropout),
            dropout=float(model.dropout),
            recurrent_dropout=float(model.recurrent_dropout),
            block=model.block,
            convolved=model.convolved,
            start=model.init,
            **configuration.options(cell_called(cell.name), given, "cell"),
        )
        if isinstance(self.model, HMM) and ("vectors" in self.about or config.regularize.ar or config.regularize.tar):
            raise UsageError(
                "a hidden Markov model has neither embedding nor activity; leave out --vectors, regularize.ar and tar"
            )
        if "vectors" in self.about:
            table = cast(nn.Embedding, cast(SequenceModel, self.model).embedding)
            put_vectors(self._data(), table.weight)  # type: ignore[misc]

    def batches(self, start: int = 0) -> Iterator[Batch]:
        return self._stream().batches(start)

    def steps_per_epoch(self) -> int:
        return self._stream().epoch_steps()

    def _stream(self) -> Stream:
        train, config = self.corpora["train"], self.config.train
        rows = max(1, min(int(config.rows), train.transitions))
        return Stream(train, rows, config.chunk, config.seed)

    def loss(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        model, wanted = self.model, self.config.regularize
        if isinstance(model, HMM):
            scores, state = model.unroll(batch.inputs, state, batch.lengths)
            return self._summed(scores, batch), state
        features, state = model.features(batch.inputs, state, batch.lengths)
        loss = self._summed(model.readout(features), batch)
        if model.training and (wanted.ar or wanted.tar):
            loss = loss + activity(features, ar=wanted.ar, tar=wanted.tar)
        return loss, state

    def _summed(self, scores: Tensor, batch: Batch) -> Tensor:
        losses = self.step_loss(scores, batch.targets)
        if batch.lengths is not None:
            losses = losses * within(batch.lengths, losses.shape[1])
        return losses.sum() / batch.weight

    def regression(self, batch: Batch, state: State) -> Regression:
        """What the readout sees of each step, and the next token as zeros and a one. Raises UsageError."""
        if isinstance(self.model, HMM) or self.config.embed.tied is True:
            raise UsageError(
                "it wants a readout apart from the embedding; take another --cell, and leave out embed.tied"
            )
        xs, after = self.model.features(batch.inputs, state, batch.lengths)
        ys = F.one_hot(batch.targets, self.tokens.size)
        if batch.lengths is not None:
            kept = within(batch.lengths, batch.time)
            xs, ys = xs[kept][None], ys[kept][None]
        readout = self.model.readout
        return Regression(xs.flatten(0, 1), ys.flatten(0, 1), (readout.weight,), readout.bias, "softmax", after)

    def observed(self, batch: Batch) -> Observed:
        """What a hidden Markov model reads of a batch. Raises UsageError for another model."""
        if not isinstance(self.model, HMM):
            raise UsageError("it trains models with a hidden state; take --cell hmm")
        return Observed(self.model, batch.inputs, batch.targets)

    def step_loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """The surprise of each target `[...]` in nats, under scores `[..., vocabulary]`."""
        return F.cross_entropy(scores.flatten(0, -2), targets.flatten(), reduction="none").view(targets.shape)

    def validate(self) -> Validation:
        """Nats a token on (at most the first 500,000 tokens of) the validation text, read by 16 readers side by side, each
        warmed up on the 256 tokens before its share."""
        nats, count = surprise(self.model, _head(self.corpora["valid"], 500_000), readers=16, warmup=256)
        return Validation(nats / count, nats / count)

    def evaluate(self, data: Sequence[Path] | None = None) -> dict[str, Any]:
        """Scores of files, or of the test text of this run, or of its validation text.

        One reader goes through each text with its state carried on, so the context of a token is all of the text before
        it; texts of more than 500,000 tokens are shared out to more readers, each warmed up on 2,000 tokens.
        """
        began = time.monotonic()
        corpus, about, what = self._corpus_of(data)
        if corpus.transitions < 1:
            raise DataError("the text to evaluate has no token after its first; wanted at least two characters")
        readers = max(1, min(64, corpus.transitions // 500_000))
        nats, count = surprise(self.model, corpus, readers, warmup=2_000)
        if not math.isfinite(nats):
            raise RecurraError(
                "the score is not a finite number: the training of this model has diverged; "
                "train it anew with a lower --set optimizer.rate"
            )
        characters = about["characters"]
        return {
            "task": self.name,
            "data": what,
            "headline": "bits_per_character",
            "higher_is_better": False,
            "scores": {
                "bits_per_character": bits(nats) / characters,
                "bits_per_token": bits(nats) / count,
                "nats_per_token": nats / count,
                "token_perplexity": perplexity(nats, count),
            },
            "tokens": self.tokens.kind,
            "context": "all of the text so far" if readers == 1 else "the text so far, at least 2,000 tokens",
            "floors": self._floors(corpus, characters),
            "n": count,
            "characters": characters,
            "seconds": round(time.monotonic() - began, 3),
        }

    def _corpus_of(self, data: Sequence[Path] | None) -> tuple[Corpus, dict[str, Any], str]:
        if data is None:
            part = "test" if "test" in self.corpora else "valid"
            return self.corpora[part], self.about[part], part
        paths, reader = read.sources(data), texts.reader_for(self.tokens.kind)
        counted = texts.encode_all([texts.Slice(path) for path in paths], self.tokens, reader)
        return counted[0], {"characters": counted[1]}, ", ".join(path.name for path in paths[:5])

    def _floors(self, corpus: Corpus, characters: int) -> dict[str, float]:
        """Bits per character of methods without a network that learnt from the training text; none without that text."""
        if "train" not in self.corpora:
            return {}
        train = self.corpora["train"].ids
        tail, ids = np.asarray(train[-MOST_TOKENS:]), np.asarray(corpus.ids)
        return language_floors(tail, ids, self.tokens.size, self._as_bytes(tail), self._as_bytes(ids), characters)

    def _as_bytes(self, ids: np.ndarray) -> bytes:
        if self.tokens.kind == "bytes":
            return ids[ids != self.tokens.end].astype(np.uint8).tobytes()
        return self.tokens.decode(ids).encode()

    def stream(self) -> Snapshot:
        """The model frozen for use one token at a time; the caller keeps the state.

        `stream.step(token, state) -> scores, state` with tokens int64 `[batch]` (or one int) and scores `[batch, vocabulary]`.
        """
        return Snapshot(self.model)

    def lines(self, report: dict[str, Any]) -> list[str]:
        scores, floors = report["scores"], report["floors"]
        return [
            f"{report['data']}: {report['n']:,} tokens, {report['characters']:,} characters; context: {report['context']}",
            f"  bits per character   {scores['bits_per_character']:.3f}",
            f"  nats per token       {scores['nats_per_token']:.4f}   (tokens: {report['tokens']})",
            f"  token perplexity     {scores['token_perplexity']:.3f}",
            *(f"  floor: {name:<18} {value:.3f} bits per character" for name, value in floors.items()),
        ]

    def answers(
        self, source: Path | Iterable[str], best: int = 5, search: Any = None
    ) -> Iterator[dict[str, Any] | DataError]:
        with _opened(source) if isinstance(source, Path) else nullcontext(source) as lines:
            for line in lines:
                text = line.rstrip("\r\n")
                guesses = [{"token": token, "probability": p} for token, p in self.predict(text, best)]
                yield {"text": text, "next": guesses}

    def shown(self, answer: dict[str, Any]) -> str:
        return "  ".join(f"{guess['token']} {guess['probability']:.3f}" for guess in answer["next"])

    @classmethod
    def survey(cls, config: Config, sources: Sources) -> dict[str, Any]:
        _refuse_options(config)
        return survey(sources.train, config.data.valid_share)

    def predict(self, data: str, best: int = 5) -> list[tuple[str, float]]:
        """The `best` most likely next tokens after the text, each with its probability."""
        scores, _ = self._read(Snapshot(self.model), data)
        chances = scores[0].softmax(0).topk(min(best, self.tokens.size))
        return [(self.tokens.text(int(k)), float(p)) for p, k in zip(chances.values, chances.indices, strict=True)]

    def generate(self, prompt: str = "", length: int = 500, **sampling: Any) -> str:
        """Text that goes on from the prompt: at most `length` tokens, fewer if the model ends the text.

        `sampling`: the fields of `decode.Sampler` (temperature, top_k, top_p, min_p, repetition_penalty, seed).
        """
        return "".join(self.write(prompt, length, **sampling))

    def write(self, prompt: str = "", length: int = 500, **sampling: Any) -> Iterator[str]:
        """The same as `generate`, piece by piece as it is written; a piece never ends inside a character."""
        if length < 0:
            raise UsageError(f"length was {length}, wanted 0 or more tokens")
        sampler, decoder = Sampler(**sampling), self.tokens.decoder()
        stream = Snapshot(self.model)
        scores, state = self._read(stream, prompt)
        for t in range(length):
            token, _ = sampler(scores, t)
            if int(token) == self.tokens.end:
                break
            yield decoder.feed(int(token))
            if t + 1 < length:
                scores, state = stream.step(token, state)
        yield decoder.flush()

    def continuations(self, prompt: str = "", length: int = 100, beam: int = 5, **search: Any) -> list[Continuation]:
        """At most `beam` texts that go on from the prompt, the likeliest first, each of at most `length` tokens.

        `search`: the other fields of `decode.Beam` (length_penalty, no_repeat).
        """
        stream = Snapshot(self.model)
        ids = [self.tokens.end, *self.tokens.encode(prompt).tolist()]
        state = stream.initial_state(1)
        if len(ids) > 1:
            _, state = stream.unroll(torch.tensor([ids[:-1]]), state)
        wanted = Beam(beam, length, self.tokens.end, **search)
        found = wanted.search(stream.step, torch.tensor(ids[-1:]), state)[0]
        return [Continuation(self.tokens.decode(one.tokens), one.log_probability, one.ended) for one in found]

    def _read(self, stream: Snapshot, prompt: str) -> tuple[Tensor, State]:
        """The scores after the prompt, and the state."""
        ids = [self.tokens.end, *self.tokens.encode(prompt).tolist()]
        scores, state = stream.unroll(torch.tensor([ids]), stream.initial_state(1))
        return scores[:, -1], state


def _opened(path: Path) -> Any:
    try:
        return path.open(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; wanted a text file, or - for standard input") from None


def _kind(config: Config) -> str:
    """The kind of tokens. Raises UsageError where the config asks for what a text that is written has not."""
    if config.tokens.lower is True:
        raise UsageError("tokens.lower would lose the capitals of the texts to be written; leave it out")
    refuse(
        config, "the language task reads texts as they are", "text", "label", "separator", "longest", "folds", "fold"
    )
    return "characters" if config.tokens.kind == "auto" else config.tokens.kind


def _regime(
    hidden: int,
    *,
    rate: float = 8e-3,
    rows: int = REFERENCE_ROWS,
    dropout: float = 0.0,
    input_dropout: float = 0.0,
    recurrent_dropout: float = 0.0,
) -> dict[str, dict[str, Any]]:
    """What `auto` stands for, by section."""
    noise = {"dropout": dropout, "input_dropout": input_dropout, "recurrent_dropout": recurrent_dropout}
    return {"model": {"hidden": hidden, **noise}, "optimizer": {"rate": rate}, "train": {"rows": rows}}


def _take_vectors(config: Config, tokens: Tokens, folder: Path) -> dict[str, int]:
    """Take the vectors of the words of the vocabulary. Raises UsageError and DataError."""
    embed = config.embed
    if not isinstance(tokens, Words) or embed.kind != "table" or embed.tied is True:
        raise UsageError(
            f"word vectors start a table of words, and this run has {tokens.kind} with embed.kind={embed.kind}"
            f"{' and embed.tied' if embed.tied is True else ''}; give --set tokens.kind=words with them"
        )
    written = {int(tokens.encode(piece)[0]): piece.strip() for piece in tokens.pieces}
    words = {id: text for id, text in written.items() if any(map(str.isalpha, text))}
    return take_vectors(embed, words, folder)


def _refuse_options(config: Config) -> None:
    """Raise UsageError where there are any under [task]: this task has none of its own."""
    if extra := config.task.model_extra:
        raise UsageError(f"task.{next(iter(extra))} is not an option: language has none of its own")


def _parts(sources: Sources, share: float, reader: texts.Reader) -> dict[str, list[texts.Slice]]:
    whole = lambda paths: [texts.Slice(path) for path in read.sources(paths)]  # noqa: E731
    if sources.valid:
        parts = {"train": whole(sources.train), "valid": whole(sources.valid)}
    else:
        train, valid = texts.split(read.sources(sources.train), share, reader)
        parts = {"train": train, "valid": valid}
    return {**parts, "test": whole(sources.test)} if sources.test else parts


def _head(corpus: Corpus, most: int) -> Corpus:
    """The first `most` tokens of a corpus."""
    inside = corpus.bounds[corpus.bounds < most]
    return Corpus(corpus.ids[:most], np.append(inside, min(most, len(corpus.ids))))
