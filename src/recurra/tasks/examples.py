"""What the tasks on examples have in common: whole sequences, each with something to be said of it or of its steps."""

import json
import time
import unicodedata
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from recurra import config as configuration
from recurra import storage
from recurra.cells import cell_called
from recurra.config import Config
from recurra.data import read, split
from recurra.data.batch import Batch
from recurra.data.examples import Examples
from recurra.data.feed import Buckets, Ragged
from recurra.data.synthetic import synthetic
from recurra.data.vocabulary import Vocabulary
from recurra.errors import DamagedError, DataError, UsageError
from recurra.models import Encoder, Spelled, Table, encoder_layers, resting
from recurra.regularize import weight_drop
from recurra.state import tmap
from recurra.tasks.base import Sources, Task, Validation
from recurra.tasks.inputs import FEATURES, Encoded, Inputs
from recurra.tasks.pretrained import coverage, put_vectors, take_vectors

PARTS = ("train", "valid", "test")
SCORED_AT_ONCE = 128  # rows


class Part(NamedTuple):
    """Some examples, and the same as numbers."""

    examples: Examples
    inputs: Encoded
    targets: Any


class OnExamples(Task):
    """A task whose data are examples that do not go on from one another: each batch has whole sequences of about the same
    length, and no state is carried.

    A task says how its files are read (`read_files`), what is learnt of the targets (`learn`), how they become numbers
    (`encode_targets`), what the network looks like (`network`) and what it says of how well it does.
    """

    data_files = frozenset(
        {"task.json", "tokenizer.json", "vectors.npz"} | {f"{part}.{end}" for part in PARTS for end in ("json", "npz")}
    )
    assets = frozenset({"task.json"})
    writes: ClassVar[bool] = False  # whether it puts out texts
    Options: ClassVar[Callable[..., Any]]  # what [task] of the config may hold: a dataclass of keyword-only fields

    def __init__(self, config: Config, inputs: Inputs, known: dict[str, Any], folder: Path | None = None) -> None:
        self.config, self.inputs, self.known = config, inputs, known
        self.options = options(type(self), config)
        self._data: Callable[[], Path] | None = (lambda: folder) if folder is not None else None

    # --- what a task says of itself ---------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def read_files(cls, config: Config, paths: Sequence[Path], wanted: bool, tolerant: bool) -> Examples:
        """The examples of some files; their targets too where they are `wanted`. With `tolerant`, what cannot be read is noted in
        `problems` and left out."""

    @classmethod
    @abstractmethod
    def learn(cls, config: Config, parts: Mapping[str, Examples], inputs: Inputs) -> dict[str, Any]:
        """What is learnt of the targets, for JSON: scales of the training, names of all parts, so that a rare label that falls to
        another part is no surprise. Raises DataError where nothing can be learnt from them."""

    @classmethod
    @abstractmethod
    def learn_inputs(cls, config: Config, train: Examples) -> Inputs:
        """The vocabulary or the scales of the inputs."""

    @classmethod
    @abstractmethod
    def strata(cls, examples: Examples) -> list[Hashable]:
        """For each example what is to be spread evenly over training and validation."""

    @abstractmethod
    def encode_targets(self, examples: Examples) -> Any:
        """The targets as arrays, -1 for a label that is not known."""

    @abstractmethod
    def targets(self, encoded: Any, rows: np.ndarray) -> Any:
        """The targets of a batch as tensors."""

    @abstractmethod
    def network(self, config: Config, encoder: Any) -> nn.Module:
        """The model around an encoder."""

    @abstractmethod
    def judge(self, part: Part) -> Validation:
        """How the model does on a part."""

    @abstractmethod
    def report(self, part: Part, train: Part | None) -> dict[str, Any]:
        """The scores on a part, with floors learnt from `train` where it is there."""

    @abstractmethod
    def answer(self, examples: Examples, best: int, search: Any = None) -> Iterator[dict[str, Any]]:
        """What the model says of each example, ready for JSON."""

    @abstractmethod
    def line(self, text: str, place: str) -> Examples:
        """The one example that a line of input stands for. Raises DataError."""

    # --- the doors --------------------------------------------------------------------------------------------------

    @classmethod
    def prepare(cls, config: Config, sources: Sources, folder: Path) -> Self:
        options(cls, config)
        if config.regularize.ar or config.regularize.tar:
            raise UsageError("regularize.ar and tar are for language models; leave them out")
        if config.embed.tied is True and not cls.writes:
            raise UsageError("embed.tied is for networks that write; leave it out")
        parts = cls._parts(config, sources)
        train = parts["train"]
        inputs = cls.learn_inputs(config, train)
        known = cls.learn(config, parts, inputs)
        known["notes"] = train.notes
        known["channels"] = train.channels
        if config.embed.vectors is not None:
            known["vectors"] = take_vectors(config.embed, inputs.vocabulary(), folder)
        for name, examples in parts.items():
            _write(folder, name, examples)
        _save(folder, inputs, known)
        return cls(config, inputs, known, folder)

    @classmethod
    def reopen(cls, config: Config, folder: Path) -> Self:
        return cls(config, *_load(folder), folder)

    @classmethod
    def restore(cls, config: Config, folder: Path) -> Self:
        return cls(config, *_load(folder))

    def attach(self, data: Callable[[], Path]) -> None:
        self._data = data
        vars(self).pop("parts", None)

    def write_assets(self, folder: Path) -> None:
        _save(folder, self.inputs, self.known)

    @classmethod
    def _parts(cls, config: Config, sources: Sources) -> dict[str, Examples]:
        """The examples of each part: those of a fold, where one is asked for, else those that files say, else a share."""
        data, seed = config.data, config.train.seed
        train = cls._read(config, sources.train, "train")
        channels = train.channels
        if data.fold is not None:
            if sources.test or data.folds is None or data.fold > data.folds:
                raise UsageError(
                    "data.fold counts from 1 to data.folds, and takes its test data from the whole; no --test"
                )
            held = split.folds(cls.strata(train), data.folds, seed)[data.fold - 1]
            test, train = train.take(held), train.take(np.setdiff1d(np.arange(len(train)), held))
            parts = {"test": test}
        else:
            parts = {"test": aligned(cls._read(config, sources.test, "test"), channels)} if sources.test else {}
        if sources.valid:
            return {"train": train, "valid": aligned(cls._read(config, sources.valid, "valid"), channels), **parts}
        if read.is_synthetic(sources.train[0]):
            name = read.synthetic_name(sources.train[0])
            made: dict[str, Examples] = {
                "valid": synthetic(name, "valid", None, seed),
                "test": synthetic(name, "test", None, seed),
            }
            return {"train": train, **made, **parts}
        kept, held = split.held_back(cls.strata(train), data.valid_share, seed)
        return {"train": train.take(kept), "valid": train.take(held), **parts}

    @classmethod
    def _read(
        cls, config: Config, paths: Sequence[Path], part: str, wanted: bool = True, tolerant: bool = False
    ) -> Examples:
        if any(map(read.is_synthetic, paths)) and len(paths) > 1:
            raise UsageError("a synthetic set was given with other data; give it alone")
        if read.is_synthetic(paths[0]):
            return synthetic(read.synthetic_name(paths[0]), cast(Any, part), None, config.train.seed)
        return cls.read_files(config, paths, wanted, tolerant)

    # --- the data ---------------------------------------------------------------------------------------------------

    @cached_property
    def parts(self) -> dict[str, Part]:
        """What is at hand of the data of this run."""
        if self._data is None:
            return {}
        folder = self._data()
        return {name: self.part(_read_part(folder, name)) for name in PARTS if (folder / f"{name}.json").exists()}

    def part(self, examples: Examples) -> Part:
        """Examples with their targets as numbers."""
        return Part(examples, self.inputs.encode(examples, self.config.data.longest), self.encode_targets(examples))

    def notes(self) -> list[str]:
        train = self.parts["train"]
        notes = [*self.known["notes"]]
        counts = ", ".join(f"{len(part.examples):,} {name}" for name, part in self.parts.items())
        lengths = train.inputs.steps.lengths
        notes.append(
            f"examples: {counts}; steps: {int(np.median(lengths))} (median) to {int(lengths.max(initial=0))}; "
            f"padding {self._buckets().padding():.1%}"
        )
        longest = self.config.data.longest
        if longest is not None:
            cut = sum(_length(self.inputs, one) > longest for one in train.examples.inputs)
            notes.append(f"{cut:,} of {len(lengths):,} sequences are cut after {longest} steps (data.longest)")
        if "vectors" in self.known:
            notes.append(coverage(self.known["vectors"], self.config.embed))
        return notes

    def held(self, share: float) -> list[nn.Parameter]:
        embed = self.config.embed
        return (
            [cast(nn.Parameter, self._table().learnt.weight)]
            if embed.vectors is not None and share < embed.frozen
            else []
        )

    def batches(self, start: int = 0) -> Iterator[Batch]:
        for step, rows in self._buckets().batches(start):
            yield self.batch(self.parts["train"], rows, step)

    def batch(self, part: Part, rows: np.ndarray, step: int = 0) -> Batch:
        """Those rows of a part."""
        inputs, lengths = part.inputs.padded(rows)
        fresh = torch.ones(len(rows), dtype=torch.bool)
        targets = self.targets(part.targets, rows)
        return Batch(inputs, targets, lengths, self.weight(targets, lengths), fresh, step)

    def weight(self, targets: Any, lengths: Tensor) -> float:
        """How many targets a batch has."""
        return float(len(lengths))

    def steps_per_epoch(self) -> int:
        return self._buckets().epoch_steps()

    def _buckets(self) -> Buckets:
        train = self.config.train
        return Buckets(
            self.parts["train"].inputs.steps.lengths, int(train.rows) if train.rows != "auto" else 32, train.seed
        )

    # --- the model --------------------------------------------------------------------------------------------------

    def settle(self, config: Config, passes: float | None = None) -> Config:
        chosen = self.regime()
        features = {"size": self.known.get("vectors", {}).get("size", FEATURES), "tied": False}
        chosen["embed"] = features | chosen.get("embed", {})
        kind, lower = getattr(self.inputs.tokens, "kind", "words"), getattr(self.inputs.tokens, "lower", False)
        chosen["tokens"] = {"kind": kind if self.inputs.kind != "series" else "auto", "lower": lower}
        return configuration.settled(config, chosen)

    def regime(self) -> dict[str, dict[str, Any]]:
        """What `auto` stands for, by section: sequences of words are few and their words many, so that noise is needed. The numbers
        come from the runs in benchmarks/QUALITY.md."""
        if isinstance(self.inputs.tokens, Vocabulary):
            return _regime(256, input_dropout=0.3, dropout=0.5)
        if self.inputs.kind == "series":
            return _regime(128, input_dropout=0.1, dropout=0.5)
        return _regime(128, input_dropout=0.0, dropout=0.0)

    def build(self, config: Config) -> None:
        self.config = config
        self.options = options(type(self), config)
        self.model = self.network(config, self.encoder(config))
        if "vectors" in self.known and self._data is not None:
            table = self._table()
            put_vectors(self._data(), table.learnt.weight, cast(Tensor, table.fixed))

    def encoder(self, config: Config) -> nn.Module:
        """What reads the inputs: `(xs, lengths) -> outputs, summary`."""
        model, embedding = config.model, self.inputs.embedding(config)
        layers = encoder_layers(
            config.cell.name,
            embedding.embedding_dim,  # type: ignore[arg-type]
            int(model.hidden),
            model.layers,
            bool(self.options.bidirectional),
            model.init,
            model.block,
            model.convolved,
            **configuration.options(cell_called(config.cell.name), config.cell.model_extra or {}, "cell"),
        )
        for layer in layers if float(model.recurrent_dropout) else ():
            weight_drop(layer, float(model.recurrent_dropout))
        return Encoder(embedding, layers, float(model.input_dropout), float(model.dropout))

    def _table(self) -> Table:
        embedding = cast(Any, self.model).encoder.embedding
        return embedding.table if isinstance(embedding, Spelled) else embedding

    def outputs(self, inputs: Encoded) -> Iterator[tuple[np.ndarray, Any, Tensor]]:
        """What the model puts out, without noise, batch by batch: (rows, output, lengths), rows of like length together."""
        device = next(self.model.parameters()).device
        for rows in by_length(inputs.steps.lengths, SCORED_AT_ONCE):
            xs, lengths = inputs.padded(rows)
            with resting(self.model):
                out = self.model(tmap(lambda x: x.to(device), xs), lengths.to(device))
            yield rows, out, lengths

    def validate(self) -> Validation:
        return self.judge(self.parts["valid"])

    # --- use --------------------------------------------------------------------------------------------------------

    def evaluate(self, data: Sequence[Path] | None = None) -> dict[str, Any]:
        began = time.monotonic()
        if data is None:
            if not self.parts:
                raise UsageError(
                    "this model was loaded without the data of its run; load the run folder, or give files"
                )
            name = "test" if "test" in self.parts else "valid"
            part = self.parts[name]
        else:
            paths = read.sources(data)
            part = self.part(aligned(self._read(self.config, paths, "test"), self.known["channels"]))
            name = ", ".join(read.shown(path.name) for path in paths[:5])
        report = self.report(part, self.parts.get("train"))
        return {
            "task": self.name,
            "data": name,
            **report,
            "n": len(part.examples),
            "seconds": round(time.monotonic() - began, 3),
        }

    def predict(self, data: Any) -> Any:
        """What the model says of one example: a text, a list of words, or numbers [time, channels]. Raises DataError."""
        place, kind = "the example", self.inputs.kind
        if isinstance(data, str):
            return next(self._answered(self.line(data, place), best=5))
        if kind == "series":
            data = series_of(data, place)
        elif kind == "text" or not isinstance(data, list) or not data or not all(isinstance(one, str) for one in data):
            raise DataError(
                f"{place} was given as {type(data).__name__}, wanted a text{' or a list of words' * (kind == 'words')}"
            )
        return next(self._answered(Examples(kind, [data], None, None, [place]), best=5))

    def _answered(self, examples: Examples, best: int, search: Any = None) -> Iterator[dict[str, Any]]:
        """The answers, and of each sequence that was cut how many steps were left out."""
        longest = self.config.data.longest
        for one, answer in zip(examples.inputs, self.answer(examples, best, search), strict=True):
            left_out = 0 if longest is None else _length(self.inputs, one) - longest
            yield {**answer, "cut": left_out} if left_out > 0 else answer

    def answers(
        self, source: Path | Iterable[str], best: int = 5, search: Any = None
    ) -> Iterator[dict[str, Any] | DataError]:
        if isinstance(source, Path):
            if not _is_plain(source):
                found = self._read(self.config, read.sources([source]), "test", wanted=False, tolerant=True)
                examples = aligned(found, self.known["channels"])
                yield from self._answered(examples, best, search)
                yield from map(DataError, examples.problems)
                return
            source = "".join(read.characters(source)).removesuffix("\n").split("\n")
        for number, text in enumerate(source, 1):
            try:
                example = self.line(text.rstrip("\r\n"), f"line {number}")
                if example.kind != self.inputs.kind:
                    raise DataError(
                        f"line {number} is {example.kind}, and the network was trained on {self.inputs.kind}"
                    )
                yield from self._answered(example, best, search)
            except DataError as error:
                yield error


def _regime(hidden: int, *, input_dropout: float, dropout: float) -> dict[str, dict[str, Any]]:
    noise = {"input_dropout": input_dropout, "dropout": dropout, "recurrent_dropout": 0.0}
    return {"model": {"hidden": hidden, **noise}, "optimizer": {"rate": 4e-3}, "train": {"rows": 32}}


def by_length(lengths: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """All rows, `size` at a time, those of like length together."""
    order = np.argsort(lengths, kind="stable")
    return (order[at : at + size] for at in range(0, len(order), size))


def options(task: type[OnExamples], config: Config) -> Any:
    """The options of the task. Raises UsageError for one that it does not have."""
    return task.Options(**configuration.options(task.Options, config.task.model_extra or {}, "task"))


def record_of(text: str, place: str, keys: Sequence[str]) -> Any:
    """The value under one of the keys, of a line that holds a JSON object; or a JSON array itself; None where it is neither.
    Raises DataError."""
    text = text.lstrip("\ufeff \t")
    if not text.startswith(("{", "[")):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.startswith("["):
            return None
        raise DataError(f"{place} begins as a JSON object and is none: {error}") from None
    if isinstance(value, dict):
        found = next((value[key] for key in keys if key in value), None)
        if found is None:
            raise DataError(f"{place} holds an object without {' or '.join(map(repr, keys))}; wanted one of them")
        return found
    return value


def text_or_series(kind: str, text: str, place: str, column: str | None) -> Examples:
    """The one example of a line: numbers where the network reads series, else a text, by itself or in a JSON object under `text` or
    the name of the column that was trained on. Raises DataError."""
    value = record_of(text, place, (*([column] if column else []), "text", "values", "x", "sentence"))
    if kind == "series":
        return Examples("series", [series_of(value, place)], None, None, [place])
    text = text if value is None else value
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{place} holds no text")
    return Examples("text", [text], None, None, [place])


def aligned(examples: Examples, channels: list[str]) -> Examples:
    """The same with the channels in the order of the training, where both have names. Raises DataError where they are others."""
    if not channels or not examples.channels or examples.channels == channels:
        return examples
    if sorted(channels) != sorted(examples.channels):
        raise DataError(
            f"{examples.places[0]} has the channels {', '.join(examples.channels)}, and the training {', '.join(channels)}; "
            "give the same ones"
        )
    order = [examples.channels.index(name) for name in channels]
    return replace(examples, inputs=[one[:, order] for one in examples.inputs], channels=channels)


def lengths_of(config: Config, parts: Mapping[str, Examples]) -> dict[str, np.ndarray]:
    """How many steps the sequences of each part have, as a network would read them."""
    inputs = Inputs.learn(config, parts["train"])
    return {name: inputs.encode(part).steps.lengths for name, part in parts.items()}


def in_one_line(text: str) -> str:
    """A text as one line of a terminal: control characters are escaped."""
    return "".join(repr(char)[1:-1] if unicodedata.category(char) == "Cc" else char for char in text)


def series_of(value: Any, place: str) -> np.ndarray:
    """Numbers [time, channels] of a JSON value, `[1, 2, 3]` or `[[1, 2], [3, 4]]`. Raises DataError."""
    try:
        numbers = np.array(value, np.float32)
    except (TypeError, ValueError, OverflowError):
        raise DataError(
            f"{place} holds no array of numbers; wanted [[1.0, 2.0], [3.0, 4.0]], a list for each step"
        ) from None
    if numbers.ndim == 1:
        numbers = numbers[:, None]
    if numbers.ndim != 2 or not len(numbers) or not np.isfinite(numbers).all():
        raise DataError(f"{place} holds numbers of shape {numbers.shape}; wanted finite ones, [time, channels]")
    return numbers


def _length(inputs: Inputs, example: Any) -> int:
    return len(example) if inputs.kind in ("series", "picture") else len(inputs.shown(example))


def _is_plain(path: Path) -> bool:
    """Whether a file holds one input a line."""
    kind = Path(path.stem).suffix if path.suffix.lower() in read.OPEN else path.suffix
    return not path.is_dir() and kind.lower() in ("", ".txt", ".text", ".lines")


def _save(folder: Path, inputs: Inputs, known: Mapping[str, Any]) -> None:
    storage.write_json(folder / "task.json", {"inputs": inputs.save(folder), "known": dict(known)})


def _load(folder: Path) -> tuple[Inputs, dict[str, Any]]:
    value = storage.read_json(folder / "task.json")
    if not isinstance(value, dict) or not isinstance(value.get("known"), dict) or "inputs" not in value:
        raise DamagedError(f"{folder / 'task.json'}: expected what a task knows; restore it from a copy")
    return Inputs.load(folder, value["inputs"]), value["known"]


def _write(folder: Path, name: str, examples: Examples) -> None:
    """Leave examples in a folder: series as an array, all else as JSON."""
    kept = {key: getattr(examples, key) for key in ("kind", "heads", "places", "channels")}
    arrays: dict[str, Any] = {}
    if examples.kind in ("series", "picture"):
        joined = Ragged.of(examples.inputs, examples.inputs[0])
        arrays |= {"values": joined.values, "bounds": joined.bounds}
    else:
        kept["inputs"] = examples.inputs
    first = examples.targets[0] if examples.targets else None
    kept["form"] = "numbers" if isinstance(first, np.ndarray) else type(first).__name__
    if isinstance(first, np.ndarray):
        rows = [one.reshape(-1, one.shape[-1]) for one in cast(list[Any], examples.targets)]
        told = Ragged.of(rows, rows[0])
        arrays |= {"targets": told.values, "target_bounds": told.bounds, "each": np.array(first.ndim == 2)}
    else:
        kept["targets"] = examples.targets
    np.savez(folder / f"{name}.npz", **arrays)
    text = json.dumps(kept, ensure_ascii=False, allow_nan=False)
    (folder / f"{name}.json").write_text(text, encoding="utf-8")


def _read_part(folder: Path, name: str) -> Examples:
    path = folder / f"{name}.json"
    kept = storage.read_json(path, limit_bytes=path.stat().st_size)  # as large as the manifest has it
    inputs, targets = kept.get("inputs"), kept.get("targets")
    with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
        if kept["kind"] in ("series", "picture"):
            inputs = np.split(arrays["values"], arrays["bounds"][1:-1])
        if kept["form"] == "numbers":
            targets = np.split(arrays["targets"], arrays["target_bounds"][1:-1])
            targets = targets if bool(arrays["each"]) else [one[0] for one in targets]
    if kept["form"] == "tuple":
        targets = [tuple(one) for one in targets]
    return Examples(kept["kind"], inputs, targets, kept["heads"], kept["places"], kept["channels"])
