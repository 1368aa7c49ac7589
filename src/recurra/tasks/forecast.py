"""The forecast task: what comes next in series and signals."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast, final

import numpy as np
from torch import Tensor

from recurra import config as configuration
from recurra import storage
from recurra.config import Config
from recurra.data import panel as panels
from recurra.data import read
from recurra.data.batch import Batch
from recurra.data.panel import LARGEST, Columns, Panel
from recurra.data.read import shown
from recurra.data.times import UNITS, Frequency
from recurra.data.windows import drawing
from recurra.errors import DamagedError, DataError, UsageError
from recurra.learn import Observed, Regression
from recurra.state import State
from recurra.tasks.base import Sources, Task, Unit, Validation, refuse
from recurra.tasks.forecast_frames import OnFrames
from recurra.tasks.forecast_next import OnNext
from recurra.tasks.forecast_ways import Data, Options, options_of
from recurra.tasks.forecast_windows import OnWindows

PARTS = ("train", "valid", "test")
ARRAYS = ("values", "seen", "bounds", "starts", "known", "static")


@final
class Forecast(Task):
    """What comes next in many series at once, of one variable or several: numbers, window by window
    (`OnWindows`), or step by step from all that came before: vectors of zeros and ones (`OnFrames`, with task.output=binary), or
    numbers (`OnNext`, with task.output=next).

    Data are read as `data.panel` says. Files for validation and test go on where the training files end, or hold series of their
    own; without them the end of each series is kept.
    """

    name = "forecast"
    data_files = frozenset({"panel.npz", "panel.json", "task.json"})
    assets = frozenset({"task.json"})
    unit = Unit("loss", 1.0, "values")

    def __init__(self, config: Config, known: dict[str, Any], folder: Path | None = None) -> None:
        self.config, self.known = config, known
        self.way = _kind(options_of(config))(config, options_of(config), known)
        self._data: Callable[[], Path] | None = (lambda: folder) if folder is not None else None

    @classmethod
    def prepare(cls, config: Config, sources: Sources, folder: Path) -> Self:
        return cls._learnt(config, *_read_parts(config, options_of(config), sources), folder)

    @classmethod
    def of_rows(cls, config: Config, variables: list[str], rows: np.ndarray, folder: Path) -> Self:
        """The task over the first rows of a stream, `[steps, variables]`, all of which are for training. They are left in
        `folder`, as `prepare` leaves those of files."""
        panel = panels.of_array("stream", rows, variables, UNITS["step"])
        columns = Columns(time="rows", target=tuple(variables), understood=True)
        span = lambda begin: np.array([[begin, len(rows)]])  # noqa: E731
        spans = {"train": span(0), "valid": span(len(rows)), "test": span(len(rows))}
        return cls._learnt(config, replace(panel, columns=columns, same=np.ones(1, bool)), spans, [], folder)

    @classmethod
    def _learnt(
        cls, config: Config, panel: Panel, spans: dict[str, np.ndarray], notes: list[str], folder: Path
    ) -> Self:
        """The task over series and their parts, which are left in `folder`."""
        options = options_of(config)
        known = {
            **_kind(options).learn(panel, spans, options),
            "columns": None if panel.columns is None else asdict(panel.columns),
            "variables": panel.variables,
            "known_names": panel.known_names,
            "static_names": panel.static_names,
            "frequency": list(panel.frequency),
        }
        known["notes"] = [*panel.notes, *notes, *known["notes"]]
        arrays: dict[str, Any] = {name: getattr(panel, name) for name in ARRAYS}
        arrays |= {f"{part}_span": span for part, span in spans.items()}
        np.savez(folder / "panel.npz", **arrays)
        storage.write_json(folder / "panel.json", panel.names)
        storage.write_json(folder / "task.json", known)
        return cls(config, known, folder)

    @classmethod
    def reopen(cls, config: Config, folder: Path) -> Self:
        return cls(config, _load(folder), folder)

    @classmethod
    def restore(cls, config: Config, folder: Path) -> Self:
        return cls(config, _load(folder))

    def attach(self, data: Callable[[], Path]) -> None:
        self._data = data
        vars(self).pop("data", None)

    def write_assets(self, folder: Path) -> None:
        storage.write_json(folder / "task.json", self.known)

    @cached_property
    def data(self) -> Data | None:
        """The series of this run, where they are at hand."""
        if self._data is None:
            return None
        folder = self._data()
        with np.load(folder / "panel.npz", allow_pickle=False) as kept:
            arrays = {name: kept[name] for name in ARRAYS}
            spans = {part: kept[f"{part}_span"] for part in PARTS}
        names, known = storage.read_json(folder / "panel.json"), self.known
        panel = Panel(
            names, known["variables"], frequency=self.frequency, known_names=known["known_names"],
            static_names=known["static_names"], same=spans["train"][:, 1] > 0, **arrays,
        )  # fmt: skip
        return Data(panel, spans)

    @property
    def frequency(self) -> Frequency:
        return Frequency(*self.known["frequency"])

    def _trained_on(self) -> Data:
        if self.data is None:
            raise UsageError("this model was loaded without the data of its run; load the run folder, or give files")
        return self.data

    def notes(self) -> list[str]:
        data, known = self._trained_on(), self.known
        counts = ", ".join(f"{int((span[:, 1] - span[:, 0]).sum()):,} {part}" for part, span in data.spans.items())
        window = (
            []
            if known["context"] == known["horizon"] == 1
            else drawing(known["context"], known["horizon"], self.way.options.stride)
        )
        return [*known["notes"], f"{len(data.panel):,} series; steps: {counts}", *window]

    def settle(self, config: Config, passes: float | None = None) -> Config:
        return configuration.settled(
            config, {**self.way.regime(self._trained_on(), passes), "embed": {"size": 64, "tied": False}}
        )

    def build(self, config: Config) -> None:
        self.config, self.way = config, _kind(options_of(config))(config, options_of(config), self.known)
        self.model = self.way.network(config)

    def batches(self, start: int = 0) -> Iterator[Batch]:
        return self.way.batches(self._trained_on(), start)

    def steps_per_epoch(self) -> int:
        return self.way.epoch_steps(self._trained_on())

    def loss(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        return self.way.loss(self.model, batch, state)

    def regression(self, batch: Batch, state: State) -> Regression:
        """What the readout sees of a batch, and what it is to say. Raises UsageError where it is not linear in what it learns."""
        return self.way.regression(self.model, batch, state)

    def observed(self, batch: Batch) -> Observed:
        """What a model with a hidden state reads of a batch. Raises UsageError for another model."""
        return self.way.observed(self.model, batch)

    def validate(self) -> Validation:
        return self.way.validate(self.model, self._trained_on())

    def evaluate(self, data: Sequence[Path] | None = None) -> dict[str, Any]:
        """On files: series that go on where those of this run end are forecast from there, where the data of the run is at hand;
        others from their first context."""
        began = time.monotonic()
        if data is None:
            own = self._trained_on()
            part = "test" if (own.spans["test"][:, 1] > own.spans["test"][:, 0]).any() else "valid"
            panel, span = own.panel, own.spans[part]
        else:
            paths = read.sources(data)
            part = ", ".join(shown(path.name) for path in paths[:5])
            panel, span = self._after_ours(self._panel(paths))
        report = self.way.report(self.model, panel, span, self.data)
        return {"task": self.name, "data": part, **report, "seconds": round(time.monotonic() - began, 3)}

    def _panel(self, paths: Sequence[Path]) -> Panel:
        """Files with the variables that this model knows, read as those were that it was trained on."""
        columns, variables = self.way.options.columns(), self.known["variables"]
        if not panels.holds_arrays(paths):
            kept = self.known.get("columns")
            columns = replace(columns, target=tuple(variables)) if kept is None else _columns(kept)
        found = panels.panel(paths, columns, self.frequency)
        if found.variables != variables:
            raise DataError(
                f"{shown(paths[0])} has the variables {_some(found.variables)}, and the model was trained on {_some(variables)}; "
                "give files like those it was trained on"
            )
        return found

    def _after_ours(self, panel: Panel) -> tuple[Panel, np.ndarray]:
        if self.data is None:
            return panel, np.stack([np.zeros_like(panel.lengths), panel.lengths], 1)
        whole, begins = panels.joined([self.data.panel, panel], repeats=True)
        given = dict(zip(panel.names, panel.lengths, strict=True))
        ends = [at + given.get(name, 0) for name, at in zip(whole.names, begins[:, 1], strict=True)]
        return whole, np.stack([begins[:, 1], np.minimum(ends, whole.lengths)], 1)

    def lines(self, report: dict[str, Any]) -> list[str]:
        return self.way.lines(report)

    def predict(self, data: Any) -> list[dict[str, Any]]:
        """What comes after each series of a file, or after an array `[steps, variables]`: a row for each step and variable."""
        if isinstance(data, str | Path):
            return list(self.answers(Path(data)))  # type: ignore[arg-type]
        return list(self.way.answers(self.model, self._of_array(data, "the array")))

    def answers(
        self, source: Path | Iterable[str], best: int = 5, search: Any = None
    ) -> Iterator[dict[str, Any] | DataError]:
        """Of a file of series; or of lines, each a JSON array of numbers, or of a list of numbers for each step."""
        if isinstance(source, Path):
            yield from self.way.answers(self.model, self._panel(read.sources([source])))
            return
        for number, line in enumerate(source, 1):
            try:
                found = list(self.way.answers(self.model, self._of_array(_numbers(line, number), f"line {number}")))
            except DataError as error:
                yield error
                continue
            yield from found

    def _of_array(self, values: Any, name: str) -> Panel:
        """One series that is told of by its numbers alone. Raises DataError."""
        if self.known["known_names"] or self.known["static_names"] or self.way.options.calendar:
            raise DataError(f"{name} has no times and covariates, and this model wants them; give a file")
        try:
            array = np.asarray(values, np.float64)
        except (ValueError, TypeError, OverflowError):
            raise DataError(f"{name} is no array of numbers, such as [1, 2, 3] or [[1, 2], [3, 4]]") from None
        array = array[:, None] if array.ndim == 1 else array
        width = len(self.known["variables"])
        if (
            array.ndim != 2
            or array.shape[1] != width
            or not len(array)
            or (np.abs(array) > LARGEST).any()
            or np.isnan(array).all(0).any()
        ):
            raise DataError(
                f"{name} has shape {array.shape}, wanted numbers up to {LARGEST:.2g} [steps, {width}]; NaN stands for a missing one"
            )
        return panels.of_array(name, array, self.known["variables"], self.frequency)

    def anomalies(self, data: Path | str) -> list[dict[str, Any]]:
        """Each step of the series of a file that can be forecast: value, what was expected, and how unusual it is, in usual
        errors of its variable; the most unusual first. Raises UsageError for a model that has no windows."""
        if not isinstance(self.way, OnWindows):
            raise UsageError(
                "anomalies are told by the windows that a step was forecast in; train without "
                f"task.output={self.way.options.output} to have them"
            )
        found = self.way.anomalies(self.model, *self._after_ours(self._panel(read.sources([data]))))
        return sorted(found, key=lambda step: -cast(float, step["score"]))

    def shown(self, answer: dict[str, Any]) -> str:
        return self.way.shown(answer)

    @classmethod
    def survey(cls, config: Config, sources: Sources) -> dict[str, Any]:
        options = options_of(config)
        panel, spans, notes = _read_parts(config, options, sources)
        known = _kind(options).learn(panel, spans, options)
        lengths, steps = panel.lengths, known["context"] + known["horizon"]
        report: dict[str, Any] = {
            "series": len(panel),
            "variables": panel.variables,
            "steps": int(lengths.sum()),
            "shortest": int(lengths.min()),
            "longest": int(lengths.max()),
            "begins": min(panel.stamp(k, 0) for k in range(len(panel))),
            "one step": str(panel.frequency),
            "filled_values": int((~panel.seen).sum()),
            **{f"{part}_steps": int((span[:, 1] - span[:, 0]).sum()) for part, span in spans.items()},
        }
        if _kind(options) is OnWindows:
            lines = drawing(known["context"], known["horizon"], options.stride)
            report |= {
                "season": known["season"],
                "first window": lines[0],
                "second window": lines[1],
                "third window": lines[2],
            }
        report |= {f"note {number}": text for number, text in enumerate([*panel.notes, *notes, *known["notes"]], 1)}
        return {**report, "warnings": _warnings(panel, spans, steps, options.output == "binary")}


def _kind(options: Options) -> type[OnFrames] | type[OnNext] | type[OnWindows]:
    if options.output == "binary":
        return OnFrames
    return OnNext if options.output == "next" else OnWindows


def _columns(kept: dict[str, Any]) -> Columns:
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()}
    return Columns(**fields)


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:8])) + (f" and {len(names) - 8:,} more" if len(names) > 8 else "")


def _read_parts(config: Config, options: Options, sources: Sources) -> tuple[Panel, dict[str, np.ndarray], list[str]]:
    """All series, the steps of each that belong to each part, and what is to be said of that."""
    refuse(config, "forecasts are made of series", "text", "label", "separator", "longest", "folds", "fold")
    if config.embed.vectors is not None:
        raise UsageError("forecasts are made of numbers, and word vectors were given; leave --vectors out")
    if read.is_synthetic(sources.train[0]):
        raise UsageError("there are no synthetic series to forecast; give files")
    given = {part: getattr(sources, part) for part in PARTS if getattr(sources, part)}
    first = panels.panel(given["train"], options.columns())
    first = replace(first, same=np.ones(len(first), bool))
    columns = first.columns or options.columns()
    read_alike = [panels.panel(paths, columns, first.frequency) for part, paths in given.items() if part != "train"]
    panel, begins = panels.joined([first, *read_alike])
    ends = np.concatenate([begins[:, 1:], panel.lengths[:, None]], 1)
    from_files = {part: np.stack([begins[:, at], ends[:, at]], 1) for at, part in enumerate(given)}
    spans, notes = _spans(options, config.data.valid_share, from_files)
    return panel, spans, notes


def _spans(options: Options, share: float, files: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The parts: as files say, else cut off the training series by steps, else by a share for validation."""
    for part in ("valid", "test"):
        if part in files and getattr(options, f"{part}_steps") is not None:
            raise UsageError(f"task.{part}_steps and --{part} are two ways to say one thing; give one of them")
    total = files["train"][:, 1]
    nothing = np.stack([total, total], 1)
    notes: list[str] = []
    if options.train_steps is not None:
        edges = np.cumsum([options.train_steps, options.valid_steps or 0, options.test_steps or 0])
        train, valid, test = (np.minimum(edge, total) for edge in edges)
        if (left := int((total - test).sum())) > 0:
            notes.append(f"the last {left:,} steps lie after those for training, validation and test, and are left out")
    else:
        test = total
        valid = np.maximum(0, test - (options.test_steps or 0))
        if options.valid_steps is not None or "valid" not in files:
            least = np.maximum(options.horizon or 1, np.round(share * valid).astype(np.int64))
            kept = least if options.valid_steps is None else options.valid_steps
            train = np.maximum(0, valid - kept)
        else:
            train = valid
    spans = {
        "train": np.stack([np.zeros_like(train), train], 1),
        "valid": files.get("valid", np.stack([train, valid], 1)),
        "test": files.get("test", np.stack([valid, test], 1) if options.test_steps is not None else nothing),
    }
    if not (spans["train"][:, 1] > 0).any():
        raise DataError(
            f"the series are too short: the longest has {int(total.max(initial=0)):,} steps, and nothing is left for training "
            f"where the last {int((total - spans['train'][:, 1]).max(initial=0)):,} are cut off for validation and test; take a "
            "smaller task.horizon (as many are kept at least), task.valid_steps or task.test_steps"
        )
    return spans, notes


def _warnings(panel: Panel, spans: dict[str, np.ndarray], window: int, binary: bool) -> list[str]:
    words, filled = [], float((~panel.seen).mean())
    values = np.split(panel.values, panel.bounds[1:-1])
    still = [name for name, part in zip(panel.names, values, strict=True) if (np.ptp(part, axis=0) == 0).any()]
    if still and not binary:
        words.append(f"{len(still):,} series have a variable that never changes, such as {shown(still[0])!r}.")
    if filled > 0.05:
        words.append(f"{filled:.0%} of the values were missing and are filled; forecasts are not scored on them.")
    short = int(((spans["train"][:, 1] < window) & (spans["train"][:, 1] > 0)).sum())
    if short:
        words.append(
            f"{short:,} series have fewer than {window} steps for training, context and horizon together: "
            "before them their first value is repeated."
        )
    if (copies := len(panel.names) - len(set(panel.names))) > 0:
        words.append(
            f"{copies:,} series of later files have the name of one before and do not go on from it; they count as their own."
        )
    return words


def _numbers(line: str, number: int) -> Any:
    try:
        return np.array(json.loads(line), np.float64)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise DataError(f"line {number} is no JSON array of numbers, such as [1, 2, 3] or [[1, 2], [3, 4]]") from None


def _load(folder: Path) -> dict[str, Any]:
    value = storage.read_json(folder / "task.json")
    wanted = {"variables", "known_names", "static_names", "frequency", "context", "horizon", "notes"}
    if not isinstance(value, dict) or not wanted <= set(value):
        raise DamagedError(f"{folder / 'task.json'}: not what the forecast task writes; restore it from a copy")
    return value
