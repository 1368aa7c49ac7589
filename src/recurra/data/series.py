"""Files -> sequences of numbers with labels or numbers to tell of them: .ts, .npz, long tables and recordings."""

import csv
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple, final

import numpy as np

from recurra.data import times
from recurra.data.examples import Examples
from recurra.data.labelled import kind_of
from recurra.data.read import characters, shown
from recurra.data.sound import log_mel, read_sound
from recurra.data.tables import arrays as read_arrays
from recurra.data.tables import filled, numeral, parquet
from recurra.errors import DataError, UsageError

TABLES = {".csv": ",", ".tsv": "\t", ".parquet": ""}
IDS = ("id", "series", "unique_id", "sequence", "series_id", "sequence_id")
TIMES = ("time", "t", "ds", "step", "timestamp", "frame", "date", "datetime")
LABELS = ("label", "class", "target", "y")  # but y beside z is a direction
BANDS = 40
MISSING = ("", "?", "nan", "na", "null")  # however they are capitalised


class _Asked(NamedTuple):
    """What the caller said."""

    label: str | None
    wanted: bool
    each_step: bool | None


def series(
    paths: Sequence[Path],
    *,
    label: str | None = None,
    wanted: bool = True,
    tolerant: bool = False,
    each_step: bool | None = None,
) -> Examples:
    """The sequences of files of one kind, `.gz` and `.xz` around them, with what is to be said of each.

    .ts               as UCR, aeon and sktime write it, without time stamps; class or number last
    .npz              x [n, time, channels] or [n, time], with lengths [n] where they differ; or values [total, channels] and
                      bounds (or offsets) [n + 1]. y: integers or strings are labels, floats are numbers; [n] (floats also
                      [n, outputs]) tells of whole sequences; [n, time] or [total] (floats [n, time, outputs], or
                      [total, outputs]) of every step
    .csv .tsv         a row a step: columns id, time, label and any number of features, known by their names; without ids a
    .parquet          file is one sequence, without times the steps are in the order of the rows. Labels that differ within
                      a sequence are labels of its steps. Numbers with a decimal point are numbers, not labels
    .wav .flac .ogg   log mel energies (`sound.log_mel`); the label is the name of the folder

    `label` names the column, or the array, of labels. With `wanted` false there are no targets, and labels are passed over.
    `each_step` decides what is told of: every step (true) or whole sequences (false). A missing value is filled with the
    one before it, else with the one after, else with zero. With `tolerant` true, lines and sequences that cannot be read
    are passed over and listed in `problems`. How the files were understood, and what was filled, is said in `notes`.
    Raises DataError with the place of what is wrong, UsageError for an option that the files do not have.
    """
    if not paths:
        raise DataError("no data was given: name at least one file")
    files = [Path(path) for path in paths]
    first = READERS.get(kind_of(files[0]))
    for file in files:
        kind = READERS.get(kind_of(file))
        if kind is None:
            raise DataError(f"{shown(file)} is of no kind that holds sequences of numbers: wanted {', '.join(READERS)}")
        if kind is not first:
            raise DataError(f"{shown(files[0])} and {shown(file)} are of two kinds; give files of one kind")
    gathered = _Gathered(wanted, tolerant)
    READERS[kind_of(files[0])](files, gathered, _Asked(label, wanted, each_step))
    return gathered.examples()


def is_series(paths: Sequence[Path], text: str | None = None) -> bool:
    """Whether the first file holds sequences of numbers, not texts: by its kind; or a table in which there is an id or a time
    and the first row has nothing but numbers beside them and the label. A table with a column `text` of texts does not."""
    file = Path(paths[0])
    kind = kind_of(file)
    if kind not in TABLES:
        return kind in READERS
    with suppress(DataError):
        rows = _rows(file)
        names, cells = next(rows, (0, []))[1], next(rows, (0, []))[1]
        columns = _guessed(names, None)
        placed = text is None and len(cells) == len(names) and (columns.id, columns.time) != (None, None)
        return placed and bool(columns.features) and all(_is_value(cells[column]) for column in columns.features)
    return False


# --- what is gathered ---------------------------------------------------------------------------------------------------


@final
class _Gathered:
    """The sequences read so far, each checked as it comes."""

    def __init__(self, wanted: bool, tolerant: bool) -> None:
        self.wanted, self.tolerant = wanted, tolerant
        self.inputs: list[np.ndarray] = []
        self.targets: list[Any] = []
        self.places: list[str] = []
        self.channels: list[str] = []
        self.notes: list[str] = []
        self.problems: list[str] = []
        self._first: tuple[Path, int, str] | None = None
        self._gaps: Counter[int] = Counter()

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Goes on past what cannot be read, and says so, where that was asked for."""
        try:
            yield
        except DataError as error:
            if not self.tolerant:
                raise
            self.problems.append(str(error))

    def agree(self, file: Path, channels: int, told: str) -> None:
        """Raises DataError unless the file has as many channels as the first, and tells ("" for nothing) the same."""
        if self.wanted and not told:
            raise DataError(f"{shown(file)} holds no labels: training and judging need them, predicting does not")
        self._first = self._first or (file, channels, told)
        other, width, before = self._first
        if channels != width:
            raise DataError(
                f"{shown(file)} has {channels} channel{'s' * (channels != 1)} and {shown(other)} has {width}; "
                "give files with the same channels"
            )
        if self.wanted and told != before:
            raise DataError(f"{shown(file)} holds {told} and {shown(other)} {before}; give files that tell of the same")

    def add(self, values: np.ndarray, target: Any, place: str, at: Callable[[int], str] | None = None) -> None:
        """One sequence [time, channels], what is said of it, and where it was read; `at` tells the place of a step."""
        at = at or (lambda step: f"{place}, step {step + 1}")
        if not len(values):
            raise DataError(f"{place} is a sequence of no steps; take it out")
        with np.errstate(over="ignore"):
            values = np.asarray(values, np.float32)
        wrong = np.argwhere(np.isinf(values))
        if len(wrong):
            raise DataError(
                f"{at(wrong[0][0])}: {self._name(wrong[0][1])} is infinite or too large for 32 bits; correct it, or leave "
                "it empty to have it filled"
            )
        _refuse_gaps(target, place, at)
        missing = np.isnan(values)
        if missing.any():
            self._gaps.update(dict(enumerate(missing.sum(0).tolist())))
            values = filled(values)
        self.inputs.append(values)
        self.targets.append(target)
        self.places.append(place)

    def examples(self) -> Examples:
        if not self.inputs:
            raise DataError(f"no sequence could be read: {self.problems[0] if self.problems else 'there is none'}")
        some = ", ".join(f"{self._name(channel)} {count}" for channel, count in sorted(self._gaps.items()) if count)
        filling = f"{self._gaps.total()} missing values were filled with the value before, else after, else 0: {some}"
        notes = list(dict.fromkeys(self.notes + [filling] * bool(some)))
        targets = self.targets if self.wanted else None
        return Examples("series", self.inputs, targets, None, self.places, self.channels, notes, self.problems)

    def _name(self, channel: int) -> str:
        return repr(self.channels[channel]) if self.channels else f"channel {channel + 1}"


def _refuse_gaps(target: Any, place: str, at: Callable[[int], str]) -> None:
    if isinstance(target, np.ndarray):
        wrong = np.argwhere(~np.isfinite(target))
        where = None if not len(wrong) else at(wrong[0][0]) if target.ndim == 2 else place
    elif isinstance(target, list):
        where = at(target.index("")) if "" in target else None
    else:
        where = place if target == ("",) else None
    if where is not None:
        raise DataError(f"{where} has no label, or no finite number in its place; fill it in or take it out")


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text with their ends, and their numbers from 1."""
    number, rest = 0, ""
    for part in characters(file):
        *whole, rest = (rest + part).split("\n")
        for number, line in enumerate(whole, number + 1):  # noqa: B020
            yield number, line + "\n"
    if rest:
        yield number + 1, rest


# --- .ts ----------------------------------------------------------------------------------------------------------------


class _Header(NamedTuple):
    """What the lines before @data say."""

    dimensions: int | None
    length: int | None  # of every sequence, where it is stated
    classes: list[str] | None
    numbers: bool  # a number is told of every sequence


def _ts(files: Sequence[Path], gathered: _Gathered, asked: _Asked) -> None:
    if asked.label is not None or asked.each_step:
        raise UsageError(
            "a .ts file tells of whole sequences, at the end of its lines: it has no names and no steps to ask for"
        )
    for file in files:
        lines = _lines(file)
        head = _header(file, lines)
        rows = [(number, line.strip()) for number, line in lines if line.strip() and line[0] not in "#%"]
        if not rows:
            raise DataError(f"{shown(file)} has no line after @data; give a file with sequences")
        dimensions = head.dimensions or rows[0][1].count(":") + 1 - (bool(head.classes) or head.numbers)
        gathered.agree(file, dimensions, "numbers" if head.numbers else "labels" if head.classes else "")
        for number, line in rows:
            place = f"{shown(file)}:{number}"
            with gathered.passing():
                values, told = _case(line, head._replace(dimensions=dimensions), place)
                gathered.add(values, _ts_target(told, head, place) if asked.wanted else None, place)


def _header(file: Path, lines: Iterator[tuple[int, str]]) -> _Header:
    said: dict[str, list[str]] = {}
    for number, line in lines:
        words = line.split()
        if not words or words[0].startswith(("#", "%")):
            continue
        if not words[0].startswith("@"):
            raise DataError(f"{shown(file)}:{number} begins {line[:40]!r}; wanted lines of @ and a name until @data")
        if words[0].lower() == "@data":
            return _understood(f"{shown(file)}, above line {number}", said)
        said[words[0][1:].lower()] = words[1:]
    raise DataError(f"{shown(file)} has no line @data; it is no .ts file, or was cut")


def _understood(place: str, said: dict[str, list[str]]) -> _Header:
    true = {name for name, words in said.items() if words and words[0].lower() == "true"}
    if "timestamps" in true:
        raise DataError(f"{place}: @timeStamps true; give values without time stamps, at equal distances")
    classes = said["classlabel"][1:] if "classlabel" in true else None
    if classes == []:
        raise DataError(f"{place}: @classLabel true, and no class is named; name them behind it")
    if classes and "targetlabel" in true:
        raise DataError(f"{place}: both @classLabel and @targetLabel are true; leave one")
    counts = {
        name: _count(place, name, said[name]) for name in ("dimension", "dimensions", "serieslength") if name in said
    }
    dimensions = counts.get("dimensions", counts.get("dimension"))
    if "univariate" in true and dimensions not in (None, 1):
        raise DataError(f"{place}: @univariate true and {dimensions} dimensions; correct one of them")
    length = counts.get("serieslength") if "equallength" in true else None
    return _Header(1 if "univariate" in true else dimensions, length, classes, "targetlabel" in true)


def _count(place: str, name: str, words: list[str]) -> int:
    if len(words) != 1 or not words[0].isdecimal() or not 0 < len(words[0]) < 10 or int(words[0]) == 0:
        raise DataError(f"{place}: @{name} {' '.join(words)[:40]!r}; wanted one number of at least 1")
    return int(words[0])


def _case(line: str, head: _Header, place: str) -> tuple[np.ndarray, str]:
    """The values [time, dimensions] of a line, and what it tells of them."""
    if line.startswith("("):
        raise DataError(f"{place} holds time stamps, (time, value); give values alone, at equal distances")
    parts = line.split(":")
    told = parts.pop().strip() if head.classes or head.numbers else ""
    if len(parts) != head.dimensions:
        raise DataError(
            f"{place} has {len(parts)} dimension{'s' * (len(parts) != 1)}{' and a label' * bool(head.classes)}, "
            f"wanted {head.dimensions}; it may have been cut"
        )
    columns = [_numbers(part.split(",") if part.strip() else [], place) for part in parts]
    lengths = sorted({len(column) for column in columns})
    if len(lengths) > 1:
        raise DataError(f"{place} has dimensions of {lengths[0]} and of {lengths[-1]} steps; give them one length")
    if head.length and lengths != [head.length]:
        raise DataError(f"{place} has {lengths[0]} steps and @seriesLength is {head.length}; it may have been cut")
    return np.array(columns).T, told


def _ts_target(told: str, head: _Header, place: str) -> Any:
    if head.numbers:
        return np.array(_numbers([told], place), np.float32)
    if told not in (head.classes or ()):
        raise DataError(f"{place} has the label {told[:40]!r}, and @classLabel names {_some(head.classes or [])}")
    return (told,)


def _numbers(cells: Sequence[str], place: str) -> list[float]:
    """The cells as numbers, missing ones as NaN."""
    try:
        return [numeral(cell) for cell in cells]
    except ValueError:
        pass
    numbers = []
    for cell in cells:
        try:
            numbers.append(math.nan if cell.strip().lower() in MISSING else numeral(cell))
        except ValueError:
            raise DataError(
                f"{place}: {cell[:40]!r} is no number; correct it, or leave it empty to be filled"
            ) from None
    return numbers


def _some(names: Sequence[str]) -> str:
    return shown(", ".join(name[:40] for name in names[:12])) + " ..." * (len(names) > 12)


# --- .npz ---------------------------------------------------------------------------------------------------------------


class _Layout(NamedTuple):
    """Which part of an array is of which sequence."""

    steps: tuple[int, ...]  # the axes that an array with something for every step begins with
    parts: list[Any]  # parts[i] takes the steps of sequence i out of such an array


def _npz(files: Sequence[Path], gathered: _Gathered, asked: _Asked) -> None:
    for file in files:
        arrays = read_arrays(file)
        values, layout = _values(file, arrays)
        said, targets = _told(file, arrays, layout, asked)
        gathered.agree(file, values.shape[-1], said)
        gathered.notes += [f"{asked.label or 'y'} holds {said}"] * bool(said)
        before = shown(file)
        for row, (part, target) in enumerate(zip(layout.parts, targets, strict=True), 1):
            with gathered.passing():
                gathered.add(values[part], target, f"{before}, row {row}")


def _values(file: Path, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, _Layout]:
    """What is said of every step, with channels as its last axis, and where the sequences lie in it."""
    ragged = "values" in arrays
    name = "values" if ragged else next((name for name in ("x", "X") if name in arrays), None)
    if name is None:
        raise DataError(
            f"{shown(file)} holds the arrays {_some(list(arrays))}; wanted x [n, time, channels], or values and bounds"
        )
    values = arrays[name]
    axes = 1 if ragged else 2
    if values.ndim not in (axes, axes + 1) or values.dtype.kind not in "biuf" or not values.size:
        wanted = "[total, channels]" if ragged else "[n, time, channels] or [n, time]"
        raise DataError(f"{shown(file)}: {name} is {values.dtype} of shape {values.shape}; wanted numbers {wanted}")
    values = values[..., None] if values.ndim == axes else values
    return values, (_joined if ragged else _padded)(file, arrays, values.shape[:axes])


def _joined(file: Path, arrays: dict[str, np.ndarray], steps: tuple[int, ...]) -> _Layout:
    name = "bounds" if "bounds" in arrays else "offsets"
    bounds = arrays.get(name, np.zeros(0))
    whole = bounds.ndim == 1 and len(bounds) > 1 and bounds.dtype.kind in "iu"
    if not whole or bounds[0] != 0 or bounds[-1] != steps[0] or (bounds[1:] < bounds[:-1]).any():
        raise DataError(
            f"{shown(file)}: {name} of shape {bounds.shape} do not cut the {steps[0]} steps of values; "
            f"wanted [n + 1] whole numbers that rise from 0 to {steps[0]}"
        )
    return _Layout(steps, [slice(begin, end) for begin, end in pairwise(bounds.tolist())])


def _padded(file: Path, arrays: dict[str, np.ndarray], steps: tuple[int, ...]) -> _Layout:
    count, time = steps
    lengths = arrays.get("lengths", np.full(count, time))
    if lengths.shape != (count,) or lengths.dtype.kind not in "iu" or lengths.min() < 0 or lengths.max() > time:
        raise DataError(
            f"{shown(file)}: lengths of shape {lengths.shape} do not fit; wanted {count} whole numbers up to {time}"
        )
    return _Layout(steps, [(row, slice(int(length))) for row, length in enumerate(lengths)])


def _told(file: Path, arrays: dict[str, np.ndarray], layout: _Layout, asked: _Asked) -> tuple[str, list[Any]]:
    """What y tells, in words, and the part of it for every sequence."""
    name = asked.label or "y"
    count, steps = len(layout.parts), layout.steps
    if not asked.wanted:
        return "", [None] * count
    if name not in arrays:
        if asked.label:
            raise UsageError(f"{shown(file)} holds no array {name!r}; it holds {_some(list(arrays))}")
        return "", [None] * count
    y = arrays[name]
    numbers = y.dtype.kind == "f"
    if y.dtype.kind not in "biufSU":
        raise DataError(
            f"{shown(file)}: {name} is {y.dtype}; wanted integers or strings for labels, or floats for numbers"
        )
    whole = y.shape[:1] == (count,) and y.ndim <= 1 + numbers
    every = y.shape[: len(steps)] == steps and y.ndim <= len(steps) + numbers
    each = not whole if asked.each_step is None else asked.each_step
    if not (every if each else whole):
        raise DataError(
            f"{shown(file)}: {name} is {y.dtype} of shape {y.shape}, which fits neither {count} sequences nor their steps "
            f"{steps}{'' if asked.each_step is None else ' as asked for'}; wanted labels [n] or for every step, or numbers "
            "with one more axis"
        )
    if numbers:
        return _told_numbers(y, layout, each)
    texts = _texts(file, name, y)
    if each:
        return "labels of every step", [texts[part].tolist() for part in layout.parts]
    return "labels of whole sequences", [(text,) for text in texts.tolist()]


def _told_numbers(y: np.ndarray, layout: _Layout, each: bool) -> tuple[str, list[np.ndarray]]:
    y = y[..., None] if y.ndim == (len(layout.steps) if each else 1) else y
    said = f"{y.shape[-1]} number{'s' * (y.shape[-1] != 1)} (floats) for {'every step' if each else 'whole sequences'}"
    with np.errstate(over="ignore"):
        y = y.astype(np.float32)
    return said, [y[part] for part in layout.parts] if each else list(y)


def _texts(file: Path, name: str, y: np.ndarray) -> np.ndarray:
    try:
        texts = np.char.decode(y, "utf-8") if y.dtype.kind == "S" else y.astype(str)
        "".join(texts.ravel().tolist()).encode()
    except UnicodeError:
        raise DataError(
            f"{shown(file)}: {name} holds what is not UTF-8 (bytes, or half a character); save strings"
        ) from None
    return texts


# --- long tables --------------------------------------------------------------------------------------------------------


class _Columns(NamedTuple):
    """Which column is what; numbers are places in a row."""

    id: int | None
    time: int | None
    label: int | None
    features: list[int]


class _Steps(NamedTuple):
    """Rows of a table: of all sequences as they come, or of one in the order of time."""

    file: Path
    lines: np.ndarray  # int64 [time]: where each row was read
    values: np.ndarray  # float64 [time, channels]
    labels: list[str]  # of every step; none if they are not wanted

    def at(self, step: int) -> str:
        return _at(self.file, int(self.lines[step]))


def _tables(files: Sequence[Path], gathered: _Gathered, asked: _Asked) -> None:
    found: list[_Steps] = []
    names: Counter[str] = Counter()
    for file in files:
        parts = _table(file, gathered, asked)
        found += parts.values()
        names.update(name for name in parts if name)
    shared = sum(count > 1 for count in names.values())
    gathered.notes += [f"{shared} ids are in several files, and stand for another sequence in each"] * bool(shared)
    target = _decided(found, gathered, asked)
    for steps in found:
        with gathered.passing():
            gathered.add(steps.values, target(steps), steps.at(int(np.argmin(steps.lines))), steps.at)


def _table(file: Path, gathered: _Gathered, asked: _Asked) -> dict[str, _Steps]:
    """The sequences of one table by their ids, in the order in which these first come."""
    rows = _rows(file)
    names = next(rows, (1, []))[1]
    columns = _columns(file, names, asked)
    features = [names[column] for column in columns.features]
    gathered.channels = gathered.channels or features
    if sorted(features) != sorted(gathered.channels):
        raise DataError(
            f"{shown(file)} has the {len(features)} features {_some(features)}, and the first file the "
            f"{len(gathered.channels)} features {_some(gathered.channels)}; give files with the same columns"
        )
    gathered.agree(file, len(features), "labels")
    gathered.notes.append(_understanding(names, columns))
    columns = columns._replace(features=[names.index(name) for name in gathered.channels])
    ids, dates, steps = _read(file, names, columns, rows, gathered)
    moments = None if columns.time is None else _moments(file, names[columns.time], dates, steps.lines)
    parts: dict[str, _Steps] = {}
    moved = 0
    for name, order in _sequences(ids, moments).items():
        moved += bool((np.diff(order) < 0).any())
        labels = [steps.labels[row] for row in order.tolist()] if asked.wanted else []
        part = _Steps(file, steps.lines[order], steps.values[order], labels)
        with gathered.passing():
            if moments is not None:
                _refuse_twins(part, moments[order])
            parts[name] = part
    gathered.notes += [f"{shown(file)}: the rows of {moved} sequences were put in the order of time"] * bool(moved)
    return parts


def _read(
    file: Path, names: list[str], columns: _Columns, rows: Iterator[tuple[int, list[str]]], gathered: _Gathered
) -> tuple[list[str], list[str], _Steps]:
    """The ids and the times of the rows, and the rows."""
    ids: list[str] = []
    dates: list[str] = []
    labels: list[str] = []
    lines, values = array("q"), array("d")
    before = _before(file)
    for line, cells in rows:
        with gathered.passing():
            place = f"{before}{line}"
            if len(cells) != len(names):
                raise DataError(f"{place} has {len(cells)} cells, and there are {len(names)} columns; correct it")
            if columns.id is not None and not cells[columns.id]:
                raise DataError(f"{place} has no {names[columns.id]!r}; say which sequence it belongs to")
            values.extend(_numbers([cells[column] for column in columns.features], place))
            lines.append(line)
            ids.append("" if columns.id is None else cells[columns.id])
            dates.append("" if columns.time is None else cells[columns.time])
            labels.append("" if columns.label is None else intern(cells[columns.label]))
    if not lines:
        raise DataError(
            f"{shown(file)} has no row that can be read below the names of its columns; give a file with rows"
        )
    return ids, dates, _Steps(file, np.array(lines), np.array(values).reshape(len(lines), -1), labels)


def _columns(file: Path, names: list[str], asked: _Asked) -> _Columns:
    """Which column is what, or why that cannot be told."""
    place, some = _at(file, 1), _some(names)
    if all(map(_is_value, names)):
        raise DataError(
            f"{place} holds {some or 'nothing'}; wanted the names of the columns: id, time, label and the features"
        )
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if "" in names or twice is not None:
        fault = "a column has no name" if "" in names else f"two columns are called {twice!r}"
        raise DataError(f"{place}: {fault} among {some}; give every column a name of its own, or take it out")
    if asked.label is not None and asked.label not in names and asked.wanted:
        raise UsageError(f"{shown(file)} has no column {asked.label!r}; it has {some}")
    columns = _guessed(names, asked.label)
    if asked.wanted and columns.label is None:
        raise DataError(f"{place}: no column holds labels among {some}; say which with --label")
    if not columns.features:
        raise DataError(
            f"{place}: no column holds features, beside id, time and label, among {some}; part them by commas, of .tsv by tabs"
        )
    return columns


def _guessed(names: list[str], label: str | None) -> _Columns:
    low = [name.lower() for name in names]

    def first(wanted: Sequence[str], taken: Sequence[int | None] = ()) -> int | None:
        return next((low.index(name) for name in wanted if name in low and low.index(name) not in taken), None)

    if label is None:
        told = first(LABELS[:-1] if "z" in low else LABELS)
    else:
        told = names.index(label) if label in names else None
    series = first(IDS, (told,))
    time = first(TIMES, (told, series))
    return _Columns(series, time, told, [place for place in range(len(names)) if place not in (told, series, time)])


def _understanding(names: list[str], columns: _Columns) -> str:
    series = "each file is one sequence" if columns.id is None else f"sequences are those of {names[columns.id]!r}"
    time = "steps are in the order of the rows" if columns.time is None else f"time is {names[columns.time]!r}"
    label = "no column is a label" if columns.label is None else f"label is {names[columns.label]!r}"
    return f"{series}, {time}, {label}, features are {_some([names[column] for column in columns.features])}"


def _sequences(ids: list[str], moments: np.ndarray | None) -> dict[str, np.ndarray]:
    """The rows of each id, in the order of time."""
    numbers: dict[str, int] = {}
    codes = np.array([numbers.setdefault(name, len(numbers)) for name in ids])
    order = np.argsort(codes, kind="stable") if moments is None else np.lexsort((moments, codes))
    bounds = np.searchsorted(codes[order], np.arange(1, len(numbers)))
    return dict(zip(numbers, np.split(order, bounds), strict=True))


def _refuse_twins(steps: _Steps, moments: np.ndarray) -> None:
    twins = np.flatnonzero(np.diff(moments) == 0)
    if len(twins):
        one, other = sorted(steps.lines[twins[0] : twins[0] + 2].tolist())
        raise DataError(
            f"{_at(steps.file, other)} has the time of row {one} in the same sequence; "
            "give each step a time of its own, or say in a column id which sequence it belongs to"
        )


def _moments(file: Path, name: str, cells: list[str], lines: np.ndarray) -> np.ndarray:
    """Times as numbers that are in their order: int64 or float64 [rows]."""
    with suppress(ValueError, OverflowError):
        return np.array([int(cell) for cell in cells], np.int64)
    with suppress(ValueError):
        numbers = np.array([float(cell) for cell in cells])
        if np.isfinite(numbers).all():
            return numbers
    try:
        how = times.reader(name, cells)
        if how is not None and how.dated:
            return np.array([how.read(cell) for cell in cells], np.int64)
        row = next((row for row, cell in enumerate(cells) if not _is_time(name, cell)), 0)
    except DataError:
        raise DataError(
            f"{shown(file)}: the times {name!r}, such as {cells[0]!r}, may be day/month or month/day; "
            "write them as 2024-12-31 23:59:59"
        ) from None
    raise DataError(
        f"{_at(file, int(lines[row]))}: the time {cells[row][:40]!r} is not written as others of {name!r} are; "
        "wanted numbers alone, or dates alone as 2024-12-31 23:59:59"
    )


def _is_time(name: str, cell: str) -> bool:
    return math.isfinite(_numbers([cell], "")[0]) if _is_value(cell) else times.reader(name, [cell]) is not None


def _decided(found: list[_Steps], gathered: _Gathered, asked: _Asked) -> Callable[[_Steps], Any]:
    """How labels are taken, as all sequences together have them: of steps or of sequences, words or numbers."""
    if not asked.wanted:
        return lambda steps: None
    differ = any(len(set(steps.labels) - {""}) > 1 for steps in found)
    each = differ if asked.each_step is None else asked.each_step
    cells = {cell for steps in found for cell in steps.labels} - {""}
    numbers = all(map(_is_value, cells)) and not all(cell.lstrip("+-").isdecimal() for cell in cells)
    gathered.notes.append(
        f"{'numbers' if numbers else 'labels'} are taken for {'every step' if each else 'whole sequences'}, since they "
        + ("were asked for so" if each != differ else "differ within a sequence" if each else "never differ within one")
    )
    return lambda steps: _target(steps, each, numbers)


def _target(steps: _Steps, each: bool, numbers: bool) -> Any:
    labels = steps.labels
    other = next((step for step, label in enumerate(labels) if label != labels[0]), None)
    if not each and other is not None:
        raise DataError(
            f"{steps.at(other)} has the label {labels[other][:40]!r}, and {steps.at(0)} of the same sequence "
            f"{labels[0][:40]!r}; give a sequence one label, or take them for labels of every step (each_step)"
        )
    told = labels if each else labels[:1]
    if not numbers:
        return list(told) if each else tuple(told)
    values = np.array([float(label or "nan") for label in told], np.float32)
    return values[:, None] if each else values


def _is_value(text: str) -> bool:
    """Whether a cell is a number or missing."""
    try:
        _numbers([text], "")
    except DataError:
        return False
    return True


def _at(file: Path, line: int) -> str:
    return f"{_before(file)}{line}"


def _before(file: Path) -> str:
    """What stands before the number of a row in its place."""
    return f"{shown(file)}{', row ' if kind_of(file) == '.parquet' else ':'}"


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The cells of a table without the blanks around them, names first, and the line on which each row begins."""
    if kind_of(file) == ".parquet":
        yield from parquet(file)
        return
    texts = (line for _, line in _lines(file))
    reader, line = csv.reader(texts, delimiter=TABLES[kind_of(file)], skipinitialspace=True, strict=True), 1
    try:
        for cells in reader:
            if len(cells) > 1 or any(map(str.strip, cells)):
                yield line, [cell.strip() for cell in cells]
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{shown(file)}:{line} is no row of a table ({shown(str(error))}); look at its quotes and line ends"
        ) from None


# --- recordings ---------------------------------------------------------------------------------------------------------


def _sounds(files: Sequence[Path], gathered: _Gathered, asked: _Asked) -> None:
    if asked.label is not None or asked.each_step:
        raise UsageError("the label of a recording is the name of its folder: it has no names and no steps to ask for")
    gathered.channels = [f"mel {band}" for band in range(1, BANDS + 1)]
    first: tuple[Path, int] | None = None
    for file in files:
        folder = file.absolute().parent.name if asked.wanted else ""
        gathered.agree(file, BANDS, "labels" if folder else "")
        sound = None
        with gathered.passing():
            sound = read_sound(file)
        if sound is None:
            continue
        samples, rate = sound
        first = first or (file, rate)
        if rate != first[1]:
            raise DataError(
                f"{shown(file)} has {rate} samples a second and {shown(first[0])} has {first[1]}; "
                "bring all to one rate, with `sox IN -r RATE OUT`"
            )
        with gathered.passing():
            gathered.add(_features(file, samples, rate), (folder,) if folder else None, shown(file))
    if first is not None:
        gathered.notes.append(
            f"features are the log mel energies of {BANDS} bands up to {first[1] / 2:g} Hz, in windows of 25 ms every 10 ms; "
            "several channels are averaged" + "; the label is the name of the folder" * asked.wanted
        )


def _features(file: Path, samples: np.ndarray, rate: int) -> np.ndarray:
    try:
        return log_mel(samples, rate, bands=BANDS)
    except UsageError:
        raise DataError(
            f"{shown(file)} has {rate} samples a second, too few for {BANDS} bands; wanted 4000 or more"
        ) from None


READERS: dict[str, Callable[[Sequence[Path], _Gathered, _Asked], None]] = {
    ".ts": _ts,
    ".npz": _npz,
    ".csv": _tables,
    ".tsv": _tables,
    ".parquet": _tables,
    ".wav": _sounds,
    ".flac": _sounds,
    ".ogg": _sounds,
}
