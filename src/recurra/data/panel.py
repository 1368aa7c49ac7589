"""Tables of numbers in time -> series on a regular grid: what a forecast is made from."""

import csv
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recurra.data import times
from recurra.data.read import OPEN, characters, shown, sources
from recurra.data.tables import arrays, filled, numeral, parquet
from recurra.data.times import Frequency, Reader
from recurra.errors import DataError, UsageError

SEPARATORS = (",", ";", "\t", "|")
MISSING = frozenset({"", "na", "n/a", "nan", "null", "none"})
IDS = ("unique_id", "item_id", "series_id", "series", "id", "item", "ts_id")
TIMES = ("ds", "date", "datetime", "timestamp", "time", "day", "month", "year", "step", "t", "index")
TARGETS = ("y", "value", "target")
ARRAYS = (".npy", ".npz")
HEAD = 200  # rows from which the columns are understood
MOST_FILLED = 0.5  # of the steps of a panel that may be made up
LARGEST = float(np.finfo(np.float32).max)
FURTHEST = 2**60  # of times, so that differences and what lies ahead are numbers of 64 bits


@dataclass(frozen=True)
class Columns:
    """Which columns are what, by their names; what is not given is guessed, and said.

    id         the name of a row's series; a file without it holds one series
    time       when the row was; `rows` for no column: the rows are steps as they come
    target     what is to be forecast; several are the variables of one series
    known      numbers that are known ahead, such as holidays and prices
    static     numbers that stay the same within a series
    univariate each target is a series of its own, of one variable
    dates      how times are written, as in strptime; `steps`: they are plain whole numbers; and what else `times.reader` takes
    frequency  the step of the grid: 15min, 1h, 1d, 1w, 1mo, 1q, 1y, 1b (Monday to Friday), 1step
    understood this is how a table was read, so nothing is guessed: without `id` it holds one series
    """

    id: str | None = None
    time: str | None = None
    target: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    static: tuple[str, ...] = ()
    univariate: bool = False
    dates: str | None = None
    frequency: str | None = None
    understood: bool = False


@dataclass(frozen=True)
class Panel:
    """Series on a regular grid, one after another: series k is `values[bounds[k]:bounds[k + 1]]`.

    names      of the series
    variables  what each step holds
    values     float64 `[total, variables]`; what was missing is filled with the value before, at the head with the first: nothing
               there tells of later steps
    seen       bool `[total, variables]`: what was there; a forecast is scored on nothing else
    bounds     int64 `[series + 1]`
    starts     int64 `[series]`: the time of each first step, in units of the frequency
    frequency  the step of the grid
    known      float64 `[total, covariates]`: what is known ahead, filled linearly; steps without a value at the end of a series
               are its future
    known_names
    static     float64 `[series, covariates]`
    static_names
    same       bool `[series]`: whether a series is what others of its name are elsewhere, as a column of names says it
    notes      how the files were understood and what was filled, in words
    columns    how the table was understood; None where there was none
    """

    names: list[str]
    variables: list[str]
    values: np.ndarray
    seen: np.ndarray
    bounds: np.ndarray
    starts: np.ndarray
    frequency: Frequency
    known: np.ndarray
    known_names: list[str]
    static: np.ndarray
    static_names: list[str]
    same: np.ndarray
    notes: list[str] = field(default_factory=list)
    columns: Columns | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def lengths(self) -> np.ndarray:
        """Steps of each series up to its last value, int64 `[series]`."""
        last = np.where(self.seen.any(1), np.arange(len(self.seen)), -1)
        return np.maximum.reduceat(last, self.bounds[:-1]) + 1 - self.bounds[:-1]

    def stamp(self, series: int, step: int) -> str:
        """The time of a step of a series, as it is written: a whole number, a date, or date and time."""
        return times.stamp(self.frequency, int(self.starts[series]) + step * self.frequency.length)

    def extended(self, steps: int) -> "Panel":
        """The same with each series ended `steps` after its last value. Raises DataError where covariates that are said to be
        known are not known so far."""
        lengths, parts = self.lengths, []
        for k, length in enumerate(lengths):
            begin, end = int(self.bounds[k]), int(self.bounds[k + 1])
            if self.known_names and end - begin - length < steps:
                raise DataError(
                    f"the series {shown(self.names[k])} has {', '.join(self.known_names)} for {end - begin - length} steps after "
                    f"its last value, wanted {steps}: add rows that have them and no value of {', '.join(self.variables)}"
                )
            parts.append(np.minimum(np.arange(begin, begin + length + steps), end - 1))
        rows = np.concatenate(parts)
        future = np.concatenate([np.arange(length + steps) >= length for length in lengths])
        seen = self.seen[rows] & ~future[:, None]
        bounds = np.cumsum([0, *(lengths + steps)])
        return replace(self, values=self.values[rows], seen=seen, known=self.known[rows], bounds=bounds)


class _Table(NamedTuple):
    """The rows of some files, sorted by series and time: `[rows]` and `[rows, columns]` arrays, and where each row was read."""

    names: list[str]
    codes: np.ndarray
    times: np.ndarray
    local: np.ndarray  # the same as clocks said it there, where times have zones
    dated: bool
    zoned: bool
    values: np.ndarray  # float64, NaN where missing; targets, then known, then static
    files: list[Path]
    places: np.ndarray  # [rows, 2]: number of the file, line

    def place(self, row: int) -> str:
        file, line = self.places[row]
        return f"{shown(self.files[file])}:{line}"


class _Roles(NamedTuple):
    """The places of the columns, how times are read, and what is to be said of how all that was found."""

    id: int | None
    time: int | None
    target: list[str]
    known: list[str]
    static: list[str]
    numbers: list[int]  # the places of target, known and static
    reader: Reader | None
    notes: list[str]


def panel(paths: Sequence[Path | str], columns: Columns = Columns(), frequency: Frequency | None = None) -> Panel:
    """The series of CSV, TSV, Parquet and NumPy files (also .gz, .xz) with the same columns.

    Long: a column names the series, one the time, and others the values (`unique_id, ds, y`). Wide: a column for the time, if
    any, and one for each variable. Rows may come in any order. `.npy`: `[steps, variables]`, one series; `.npz`: the same as
    `values`, with `bounds` `[series + 1]` where each series begins and ends. `frequency` overrules the guess and
    `columns.frequency`.

    Raises DataError with file and line for what is no number, no time, infinite, there twice, or too irregular to be put on
    a grid; UsageError for columns that do not exist.
    """
    files = sources(paths)
    if _kind(files[0]) in ARRAYS:
        return _of_arrays(files, columns)
    header, first = _opened(files[0])
    head = list(islice(first, HEAD))
    if not head:
        raise DataError(f"{shown(files[0])} has no row under its names; give a table with rows")
    roles = _roles(files[0], header, head, columns)
    table = _table(files, header, chain(head, first), roles)
    _refuse_twice(table)
    frequency, moments = _on_units(table, columns.frequency, frequency)
    found = _gridded(table, moments, frequency, roles, columns.univariate)
    return replace(found, columns=_understood(columns, header, roles))


def joined(parts: Sequence[Panel], repeats: bool = False) -> tuple[Panel, np.ndarray]:
    """Panels of the same columns as one, and where each begins in each series: int64 `[series, parts]`.

    A series of a later part continues the one of the same name before it if it begins after its end and the gap between them
    is not longer than itself, or if it repeats its values and has more; then it begins where it has more, or with `repeats`,
    where it begins to repeat. Otherwise it is a series of its own, of the same name, and that is said. Raises DataError where
    columns or frequencies differ.
    """
    first, newest = parts[0], dict[str, int]()
    chains: list[_Chain] = []
    cuts: list[list[int]] = []
    apart: Counter[str] = Counter()
    for number, part in enumerate(parts):
        _refuse_other(first, part)
        earlier = dict(newest)
        for cut, one in zip(cuts, chains, strict=True):
            cut.append(len(one.values))
        for piece in _chains(part, whole=number == len(parts) - 1):
            name = piece.name
            at = earlier.get(name)
            found = None if at is None else _continued(chains[at], piece, first.frequency.length, repeats)
            if at is not None and isinstance(found, tuple):
                chains[at], begin = found
                cuts[at][-1] = begin if repeats else cuts[at][-1]
                continue
            if isinstance(found, str):
                apart[found] += 1
            newest[name] = len(chains)
            chains.append(piece)
            cuts.append([0] * (number + 1))
    notes = list(dict.fromkeys(note for part in parts for note in part.notes))
    notes += [
        f"{count:,} series of a later file have the name of one before and do not go on from it, as {why}; they count as their own"
        for why, count in apart.items()
    ]
    same = np.concatenate([first.same, np.zeros(len(chains) - len(first), bool)])
    panel = _assembled(
        [one.name for one in chains], first.variables, [one.values for one in chains], [one.start for one in chains],
        first.frequency, [one.known for one in chains], first.known_names,
        np.stack([one.static for one in chains]), first.static_names, same,
    )  # fmt: skip
    return replace(panel, notes=notes, columns=first.columns), np.array(cuts, np.int64)


def season(panel: Panel, until: Sequence[int] | np.ndarray) -> tuple[int, str]:
    """The number of steps after which the series repeat, and how it was found, in words.

    From the frequency where times are dates (`times.season_of`). For plain steps: the first lag at which the mean
    autocorrelation of the differenced series (of their first `until` steps) has a peak of at least 0.8 of its highest, if
    that is above 0.2; else 1.
    """
    known = times.season_of(panel.frequency)
    if known:
        return known, f"the season is {known} steps, as one step is {panel.frequency}"
    lag = _repetition(panel, until)
    if lag == 1:
        return 1, "no season was found: seasonal naive is the last value (task.season says one)"
    return lag, f"the season is {lag} steps, by the first high peak of the autocorrelation (task.season says another)"


def calendar(panel: Panel) -> tuple[np.ndarray, list[str]]:
    """What a calendar says of each step, `times.waves`: float32 `[total, features]`, and names. Raises UsageError where times
    are no dates."""
    if panel.frequency.unit == "step":
        raise UsageError("task.calendar wants dates, and the times are plain numbers; leave it out")
    sizes = np.diff(panel.bounds)
    steps = np.arange(int(panel.bounds[-1])) - np.repeat(panel.bounds[:-1], sizes)
    return times.waves(panel.frequency, np.repeat(panel.starts, sizes) + steps * panel.frequency.length)


# Reading


def _opened(file: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The names of the columns of a file, and its rows with their lines. A file without names has 1, 2 and so on."""
    kind = _kind(file)
    if kind in (".parquet", ".pq"):
        rows = parquet(file)
        return next(rows)[1], rows
    if kind not in (".csv", ".tsv", ".txt"):
        raise DataError(
            f"{shown(file)} is no table that is read here: wanted .csv, .tsv, .parquet, .npy or .npz (also .gz, .xz)"
        )
    rows = _cells(file)
    number, header = next(rows, (0, []))
    if not header:
        raise DataError(f"{shown(file)} has no line of names; give a table")
    if all(cell.strip() and _number(cell) is not None for cell in header):
        return [str(place) for place in range(1, len(header) + 1)], chain([(number, header)], rows)
    names = [cell.strip() for cell in header]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{shown(file)}:{number} names the column {twice!r} twice; give each its own name")
    return names, rows


def _cells(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Lines of a table of text as cells, each with the line where it ends; blank lines are passed over."""
    lines = _lines(file)
    skipped, first = next(((at, line) for at, line in enumerate(lines) if line.strip()), (0, ""))
    bare = re.sub('"[^"]*"', "", first)
    separator = "\t" if _kind(file) == ".tsv" else max(SEPARATORS, key=bare.count)
    reader = csv.reader(chain([first], lines), delimiter=separator, strict=True)
    width = None
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{shown(file)}:{skipped + reader.line_num} is no line of a table ({error}); mend its quotes"
            ) from None
        if cells is None:
            return
        if not any(cells) and len(cells) <= 1:
            continue
        width = width or len(cells)
        if len(cells) != width:
            raise DataError(
                f"{shown(file)}:{skipped + reader.line_num} has {len(cells)} cells, and the first line has {width}; mend it"
            )
        yield skipped + reader.line_num, cells


def _lines(file: Path) -> Iterator[str]:
    rest = ""
    for text in characters(file):
        *whole, rest = (rest + text).split("\n")
        yield from (line + "\n" for line in whole)
    if rest:
        yield rest


def _number(cell: str) -> float | None:
    """NaN where it is missing, None where it is no number."""
    try:
        return numeral(cell)
    except ValueError:
        return np.nan if cell.strip().lower() in MISSING else None


def of_array(name: str, values: np.ndarray, variables: list[str], frequency: Frequency) -> Panel:
    """One series `[steps, variables]` with NaN where something is missing; its steps count from 0."""
    nothing, none = np.zeros((len(values), 0)), np.zeros((1, 0))
    step = frequency if frequency.unit == "step" else times.UNITS["step"]
    return _assembled([name], variables, [values], [0], step, [nothing], [], none, [], np.zeros(1, bool))


def holds_arrays(paths: Sequence[Path | str]) -> bool:
    """Whether the files are arrays of NumPy, which have no named columns."""
    return _kind(sources(paths)[0]) in ARRAYS


def _kind(file: Path) -> str:
    return Path(file.stem).suffix.lower() if file.suffix.lower() in OPEN else file.suffix.lower()


def _of_arrays(files: list[Path], columns: Columns) -> Panel:
    """The series of files of NumPy, named by their numbers from 1 on."""
    if columns != Columns(frequency=columns.frequency):
        raise UsageError(
            f"{shown(files[0])} is an array and has no named columns; leave task.id, task.time and the like out"
        )
    series = [part for file in files for part in _array(file)]
    widths = {part.shape[1] for part in series}
    if len(widths) > 1:
        raise DataError(
            f"the files have series of {', '.join(map(str, sorted(widths)))} variables; give files of one kind"
        )
    names, nothing = [str(number) for number in range(1, len(series) + 1)], np.zeros((len(series), 0))
    variables = [str(number) for number in range(1, widths.pop() + 1)]
    known = [np.zeros((len(part), 0)) for part in series]
    step = times.UNITS["step"]
    same, notes = np.zeros(len(series), bool), ["arrays: steps count from 0"]
    return _assembled(names, variables, series, [0] * len(series), step, known, [], nothing, [], same, notes)


def _array(file: Path) -> list[np.ndarray]:
    if _kind(file) not in ARRAYS:
        raise DataError(f"{shown(file)} is no array, and the files before it are; give files of one kind")
    found = arrays(file)
    if "values" not in found or (_kind(file) == ".npz" and "bounds" not in found):
        raise DataError(
            f"{shown(file)} is no .npy of [steps, variables] and no .npz of `values` and `bounds`; it holds "
            f"{_some(list(found))}; write it again"
        )
    values = found["values"]
    values = values[:, None] if values.ndim == 1 else values
    bounds = found.get("bounds", np.array([0, values.shape[0] if values.ndim else 0]))
    if values.ndim != 2 or not values.size or values.dtype.kind not in "biuf":
        raise DataError(
            f"{shown(file)} holds {values.dtype} of shape {values.shape}, wanted numbers [steps, variables]"
        )
    if (
        bounds.ndim != 1
        or bounds.dtype.kind not in "iu"
        or len(bounds) < 2
        or bounds[0] != 0
        or bounds[-1] != len(values)
    ):
        raise DataError(f"{shown(file)} has bounds that do not go from 0 to its {len(values)} steps; write them anew")
    if (bounds[1:] <= bounds[:-1]).any():
        raise DataError(f"{shown(file)} has a series without steps; leave it out")
    if (np.abs(values.astype(np.float64)) > LARGEST).any():
        raise DataError(f"{shown(file)} has an infinite number; put NaN for what is missing")
    return [part.astype(np.float64) for part in np.split(values, bounds[1:-1].astype(np.int64))]


# Understanding the columns


def _roles(file: Path, header: list[str], head: list[tuple[int, list[str]]], given: Columns) -> _Roles:
    place = {name: at for at, name in enumerate(header)}
    wanted = [name for name in (given.id, *given.target, *given.known, *given.static) if name is not None]
    for name in [*wanted, *([given.time] if given.time not in (None, "rows") else [])]:
        if name not in place:
            raise UsageError(f"{shown(file)} has no column {name!r}; it has {_some(header)}")
    guess = None if given.understood else next((name for name in header if name.lower() in IDS), None)
    id = given.id if given.id is not None else guess
    time, reader, notes = _time(file, header, head, given, id)
    free = [name for name in header if name not in (id, time, *given.known, *given.static)]
    numeric = [name for name in free if name and _numeric(head, place[name])]
    target = list(given.target)
    if not target:
        named = [name for name in numeric if name.lower() in TARGETS] if id is not None else []
        target = named[:1] or numeric or [name for name in free if name and _numeric(head, place[name], 0.5)]
    if not target:
        raise DataError(f"{shown(file)} has no column of numbers to forecast; it has {_some(header)}")
    columns = [*target, *given.known, *given.static]
    if twice := next((name for name in columns if columns.count(name) > 1 or name in (id, time)), None):
        raise UsageError(f"the column {twice!r} was given two roles; give it one")
    if given.univariate and (id is not None or given.known or given.static):
        raise UsageError(
            "task.univariate makes each column of a wide table a series; it takes no id, known or static columns"
        )
    notes += [f"series are named by the column {id!r}"] if id is not None else []
    notes.append(f"to be forecast: {_some(target)}")
    if left := [name for name in free if name not in target]:
        notes.append(f"left out: {_some(left)} (task.target, task.known and task.static take columns in)")
    return _Roles(
        None if id is None else place[id], None if time is None else place[time],
        target, list(given.known), list(given.static), [place[name] for name in columns], reader, notes,
    )  # fmt: skip


def _time(
    file: Path, header: list[str], head: list[tuple[int, list[str]]], given: Columns, id: str | None
) -> tuple[str | None, Reader | None, list[str]]:
    """The column of the time, how it is read, and that in words."""
    if given.time == "rows":
        return None, None, ["rows are steps, as they come"]
    free = [name for name in header if name not in (id, *given.target, *given.known, *given.static)]
    named = [name for name in free if name.lower() in TIMES]
    named += [name for name in free if re.search("date|time", name.lower()) and name not in named]
    others = [name for name in free if name not in named and not _numeric(head, header.index(name))]
    others += [name for name in free[:1] if not name]  # a nameless first column, as data frames write their index
    for name in [given.time] if given.time is not None else [*named, *others]:
        cells = [(line, row[header.index(name)].strip()) for line, row in head]
        reader = times.reader(name, [cell for _, cell in cells], given.dates)
        if reader is not None:
            return name, reader, [f"time is the column {name!r}, read as {reader.how}"]
        if name == given.time or name in named:
            _refuse_some(file, name, cells, given.dates)
    if given.time is not None or given.dates is not None or named:
        asked = given.time if given.time is not None else named[0] if named and given.dates is None else None
        raise DataError(
            f"{shown(file)}: no times could be read in {'any column' if asked is None else f'the column {asked!r}'}"
            f"{'' if asked is None else f', such as {head[0][1][header.index(asked)]!r}'}"
            f"{'' if given.dates is None else f', written as {given.dates!r}'}; say how they are written, as in "
            "task.dates='%d/%m/%Y %H:%M', which column they are in with task.time, or take task.time=rows, where every row is a "
            "step; steps that are numbers are whole ones"
        )
    return None, None, ["no column of times was found: rows are steps, as they come"]


def _refuse_some(file: Path, name: str, cells: list[tuple[int, str]], dates: str | None) -> None:
    """Raise DataError with the first cell that is no time, in a column where the first or the last one is."""
    ends = (times.reader(name, [cells[at][1]], dates) for at in (0, -1) if cells[at][1])
    how = next((one for one in ends if one is not None), None)
    if how is None:
        return
    wrong = next((one for one in cells if times.reader(name, [one[1]], how.written) is None), cells[0])
    raise _no_time(file, wrong[0], wrong[1], how)


def _numeric(head: list[tuple[int, list[str]]], at: int, share: float = 1.0) -> bool:
    """Whether a column holds numbers, in so many of its cells: reading names those that are none."""
    return sum(_number(row[at]) is not None for _, row in head) >= share * len(head)


def _understood(given: Columns, header: list[str], roles: _Roles) -> Columns:
    """The columns as they were found, so that other files are read alike."""
    return replace(
        given,
        id=None if roles.id is None else header[roles.id],
        time="rows" if roles.time is None else header[roles.time],
        target=given.target if given.univariate else tuple(roles.target),
        dates=None if roles.reader is None else roles.reader.written,
        understood=True,
    )


# Rows


def _table(files: list[Path], header: list[str], first: Iterable[tuple[int, list[str]]], roles: _Roles) -> _Table:
    """All rows of all files, sorted by series and time."""
    codes: dict[str, int] = {}
    known: dict[str, tuple[int, int]] = {}
    whose, when, where, flat = array("q"), array("q"), array("q"), array("d")
    clock = array("q")
    for number, file in enumerate(files):
        if number and roles.reader is None:
            raise DataError(f"{shown(file)}: without times only one file can be read; join the files")
        rows = _rows_like(file, files[0], header) if number else first
        for step, (line, cells) in enumerate(rows):
            name = "series" if roles.id is None else cells[roles.id].strip()
            if not name:
                raise DataError(f"{shown(file)}:{line} has an empty cell where the series is named; fill it in")
            whose.append(codes.setdefault(name, len(codes)))
            time, local = _when(file, line, cells, roles, known) if roles.reader is not None else (step, step)
            when.append(time)
            clock.append(local)
            where.extend((number, line))
            flat.extend(_values(file, line, cells, header, roles.numbers))
    owners, moments, local_times = (np.frombuffer(one, np.int64) for one in (whose, when, clock))
    order = np.lexsort((moments, owners))
    if roles.reader is None:  # each series counts its own rows
        moments = local_times = _counted(owners, order)
    values = np.frombuffer(flat, np.float64).reshape(len(owners), len(roles.numbers))
    places = np.frombuffer(where, np.int64).reshape(-1, 2)
    return _Table(
        list(codes), owners[order], moments[order], local_times[order], roles.reader is not None and roles.reader.dated,
        roles.reader is not None and roles.reader.local is not None, values[order], files, places[order],
    )  # fmt: skip


def _counted(owners: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The number of each row within its series."""
    counted, sizes = np.empty(len(owners), np.int64), np.bincount(owners)
    counted[order] = np.concatenate([np.arange(size) for size in sizes])
    return counted


def _rows_like(file: Path, first: Path, header: list[str]) -> Iterator[tuple[int, list[str]]]:
    names, rows = _opened(file)
    if names != header:
        raise DataError(
            f"{shown(file)} has the columns {_some(names)}, and {shown(first)} has {_some(header)}; give the same columns"
        )
    return rows


def _when(file: Path, line: int, cells: list[str], roles: _Roles, known: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """The time of a row, and as clocks said it there; many rows share one, so each is read once."""
    assert roles.reader is not None and roles.time is not None
    cell = cells[roles.time].strip()
    found = known.get(cell)
    if found is None:
        try:
            time = roles.reader.read(cell)
            if abs(time) > FURTHEST:
                raise OverflowError
        except (ValueError, OverflowError):
            raise _no_time(file, line, cell, roles.reader) from None
        found = known[cell] = (time, time if roles.reader.local is None else roles.reader.local(cell))
    return found


def _no_time(file: Path, line: int, cell: str, how: Reader) -> DataError:
    return DataError(
        f"{shown(file)}:{line}: {cell!r} is no time as other rows have it ({how.how}); mend it, say how times are written with "
        "task.dates, or take task.time=rows, where every row is a step"
    )


def _values(file: Path, line: int, cells: list[str], header: list[str], numbers: list[int]) -> list[float]:
    try:
        found = [numeral(cells[at]) for at in numbers]
    except ValueError:
        found = [_value(file, line, header[at], cells[at]) for at in numbers]
    for value, at in zip(found, numbers, strict=True):
        if abs(value) > LARGEST:
            raise DataError(f"{shown(file)}:{line}: {header[at]!r} is {cells[at]!r}, too large; leave the cell empty")
    return found


def _value(file: Path, line: int, name: str, cell: str) -> float:
    value = _number(cell)
    if value is None:
        comma = "; write a point and no comma" if re.fullmatch(r"-?\d+,\d+", cell.strip()) else ""
        raise DataError(
            f"{shown(file)}:{line}: {name!r} is {cell!r}, which is no number{comma}; a missing one is an empty cell or NaN"
        )
    return value


# The grid


def _gridded(table: _Table, moments: np.ndarray, frequency: Frequency, roles: _Roles, univariate: bool) -> Panel:
    notes = [*roles.notes, f"one step is {frequency}" if table.dated else f"times go up in steps of {frequency}"]
    edges = [0, *(np.flatnonzero(np.diff(table.codes)) + 1).tolist(), len(table.codes)]
    spans = list(pairwise(edges))
    places = [_places(table, moments, span, frequency) for span in spans]
    parts, missing = [], []
    for (begin, end), here in zip(spans, places, strict=True):
        grid = np.full((int(here[-1]) + 1, table.values.shape[1]), np.nan)
        grid[here] = table.values[begin:end]
        parts.append(grid)
        missing.append(len(grid) - len(here))
    rows = len(table.codes)
    if sum(missing) > MOST_FILLED * (rows + sum(missing)):
        raise _too_irregular(table, 0, rows, rows + sum(missing), frequency)
    if moved := _moved(moments, spans, places, frequency):
        notes.append(f"{moved:,} of {rows:,} times were moved to the nearest step of the grid")
    if sum(missing):
        most = int(np.argmax(missing))
        notes.append(
            f"{sum(missing):,} steps were not there in {sum(map(bool, missing)):,} of {len(parts):,} series and are put in"
            + (f" ({missing[most]:,} in {shown(table.names[most])!r})" if len(parts) > 1 else "")
        )
    first, last = len(roles.target), len(roles.target) + len(roles.known)
    names, variables, static = table.names, roles.target, _static(table, roles, spans)
    series, known = [part[:, :first] for part in parts], [part[:, first:last] for part in parts]
    starts = [int(moments[begin]) for begin, _ in spans]
    if univariate:
        names, variables, static = list(roles.target), ["y"], np.zeros((first, 0))
        series, known, starts = [series[0][:, [at]] for at in range(first)], known * first, starts * first
    same = np.full(len(names), univariate or roles.id is not None)
    return _assembled(
        names, variables, series, starts, frequency, known, roles.known, static, roles.static, same, notes
    )


def _places(table: _Table, moments: np.ndarray, span: tuple[int, int], frequency: Frequency) -> np.ndarray:
    """The steps of the rows of a series. Raises DataError where two fall on the same, or where they are too far apart."""
    begin, end = span
    places = np.rint((moments[begin:end] - moments[begin]) / frequency.length).astype(np.int64)
    if (clash := np.flatnonzero(np.diff(places) == 0)).size:
        at = begin + int(clash[0])
        raise DataError(
            f"{table.place(at)} and {table.place(at + 1)} fall on the same step of a grid of {frequency}; "
            "say a shorter step with task.frequency, or take task.time=rows, where every row is a step"
        )
    if places[-1] >= 50 * len(places) + 10_000:
        raise _too_irregular(table, begin, len(places), int(places[-1]) + 1, frequency)
    return places


def _moved(moments: np.ndarray, spans: list[tuple[int, int]], places: list[np.ndarray], frequency: Frequency) -> int:
    """How many times do not lie on the grid of their series."""
    pairs = zip(spans, places, strict=True)
    return sum(int((moments[a:b] - moments[a] != here * frequency.length).sum()) for (a, b), here in pairs)


def _assembled(
    names: list[str], variables: list[str], series: list[np.ndarray], starts: list[int], frequency: Frequency,
    known: list[np.ndarray], known_names: list[str], static: np.ndarray, static_names: list[str], same: np.ndarray,
    notes: Sequence[str] = (),
) -> Panel:  # fmt: skip
    """The panel of series `[steps, variables]` with NaN where nothing is; leading steps without any value are cut off, as is the
    future from where something known ahead is missing, and what else is missing is filled; all that is said."""
    heads = [_first_seen(name, part, variables) for name, part in zip(names, series, strict=True)]
    ends = [_last_known(part, ahead) for part, ahead in zip(series, known, strict=True)]
    said = list(notes)
    if cut := sum(heads):
        said.append(f"{cut:,} steps at the starts of series have no value and are left out")
    if cut := sum(map(len, series)) - sum(ends):
        said.append(f"{cut:,} steps after the last values have gaps in {_some(known_names)} and are left out")
    series = [part[head:end] for part, head, end in zip(series, heads, ends, strict=True)]
    known = [part[head:end] for part, head, end in zip(known, heads, ends, strict=True)]
    begins = [start + head * frequency.length for start, head in zip(starts, heads, strict=True)]
    seen = np.concatenate([~np.isnan(part) for part in series])
    future = sum(len(part) - int(np.flatnonzero(~np.isnan(part).all(1))[-1]) - 1 for part in series)
    if missing := int((~seen).sum()) - future * len(variables):
        said.append(
            f"{missing:,} of {seen.size:,} values were missing and are filled with the value before, at the head with the first"
        )
    if missing := sum(int(np.isnan(part).sum()) for part in known):
        said.append(
            f"{missing:,} values of {_some(known_names)} were missing and are filled: linear, the nearest at the edges"
        )
    if future:
        said.append(f"{future:,} steps at the ends of series have no value and are taken as their future")
    return Panel(
        names, variables,
        np.concatenate([filled(part) for part in series]), seen,
        np.cumsum([0, *map(len, series)]), np.array(begins, np.int64), frequency,
        np.concatenate([_interpolated(part, known_names, name) for part, name in zip(known, names, strict=True)]), known_names,
        static, static_names, same, said,
    )  # fmt: skip


def _first_seen(name: str, part: np.ndarray, variables: list[str]) -> int:
    """The first step with a value. Raises DataError where a variable has none."""
    seen = ~np.isnan(part)
    if not seen.any(0).all():
        empty = variables[int(np.argmin(seen.any(0)))]
        raise DataError(f"the series {shown(name)!r} has no value of {shown(empty)!r} at all; leave one of them out")
    return int(np.flatnonzero(seen.any(1))[0])


def _last_known(part: np.ndarray, ahead: np.ndarray) -> int:
    """The end of a series: after its last value, as far as all is there that is known ahead."""
    last = int(np.flatnonzero(~np.isnan(part).all(1))[-1]) + 1
    gaps = np.flatnonzero(np.isnan(ahead[last:]).any(1))
    return last + int(gaps[0]) if gaps.size else len(part)


def _interpolated(part: np.ndarray, columns: list[str], name: str) -> np.ndarray:
    """`[steps, columns]` with NaN replaced: linear between the neighbours, the nearest at the edges."""
    out, steps = np.empty(part.shape), np.arange(len(part))
    for at, column in enumerate(columns):
        seen = ~np.isnan(part[:, at])
        if not seen.any():
            raise DataError(
                f"the series {shown(name)!r} has no value of {shown(column)!r} at all; leave one of them out"
            )
        out[:, at] = part[:, at] if seen.all() else np.interp(steps, steps[seen], part[seen, at])
    return out


def _refuse_twice(table: _Table) -> None:
    same = np.flatnonzero((np.diff(table.codes) == 0) & (np.diff(table.times) == 0))
    if same.size:
        at = int(same[0])
        several = "; or name the column that tells series apart with task.id, or take task.time=rows, where every row is a step"
        raise DataError(
            f"{table.place(at + 1)} has the same time as {table.place(at)}; leave one of them out"
            + (several if len(table.names) == 1 else "")
        )


def _on_units(table: _Table, asked: str | None, before: Frequency | None) -> tuple[Frequency, np.ndarray]:
    """The frequency, by that of files before, what is asked for, or the times themselves; and the times in its units."""
    frequency = before or _own_frequency(table, asked)
    if (frequency.unit == "step") == table.dated:
        raise DataError(
            f"times are {'dates' if table.dated else 'plain numbers'} here, and one step was {frequency} before; "
            "give times of the same kind, or say how they are written with task.dates"
        )
    if not frequency.by_date and frequency.zoned != table.zoned:
        raise DataError(
            f"times have {'zones' if table.zoned else 'no zones'} here, and had {'none' if table.zoned else 'some'} before; "
            "write all of them alike"
        )
    moments = table.local if frequency.by_date else table.times
    return frequency, times.in_units(moments, frequency) if table.dated else moments


def _own_frequency(table: _Table, asked: str | None) -> Frequency:
    inside = np.diff(table.codes) == 0
    if asked is not None:
        frequency = times.given(asked, table.dated)
        frequency = frequency._replace(day=times.day_of(table.local)) if frequency.unit == "month" else frequency
    elif inside.any():
        frequency = times.guessed(table.local, np.diff(table.local)[inside], table.dated)
        if not frequency.by_date:
            frequency = times.guessed(table.times, np.diff(table.times)[inside], table.dated)
    else:
        frequency = times.UNITS["d" if table.dated else "step"]
    return frequency._replace(zoned=table.zoned and not frequency.by_date)


def _too_irregular(table: _Table, row: int, rows: int, steps: int, frequency: Frequency) -> DataError:
    return DataError(
        f"{table.place(row)}: the rows from here on stand on {rows:,} of {steps:,} steps of a grid of {frequency}, too few to "
        "fill the rest; say a longer step with task.frequency, or take task.time=rows, where every row is a step"
    )


def _static(table: _Table, roles: _Roles, spans: list[tuple[int, int]]) -> np.ndarray:
    """The static covariates `[series, covariates]`. Raises DataError where one changes or is missing."""
    first = len(roles.target) + len(roles.known)
    out = np.empty((len(spans), len(roles.static)))
    for k, (begin, end) in enumerate(spans):
        for at, name in enumerate(roles.static):
            column = table.values[begin:end, first + at]
            odd = np.flatnonzero(~(column == column[0]))
            if odd.size:
                raise DataError(
                    f"{table.place(begin + int(odd[0]))}: {name!r} is {column[odd[0]]:g}, and the series begins with "
                    f"{column[0]:g}; a static column has one number in all rows of a series"
                )
            out[k, at] = column[0]
    return out


# Joining


class _Chain(NamedTuple):
    """A series as far as it is known: `[steps, ...]` arrays with NaN where nothing is."""

    name: str
    start: int
    values: np.ndarray
    known: np.ndarray
    static: np.ndarray


def _chains(panel: Panel, whole: bool) -> Iterator[_Chain]:
    """The series of a panel; their futures are left out unless `whole`."""
    ends = panel.bounds[1:] if whole else panel.bounds[:-1] + panel.lengths
    for k, (begin, end) in enumerate(zip(panel.bounds[:-1], ends, strict=True)):
        values = np.where(panel.seen[begin:end], panel.values[begin:end], np.nan)
        yield _Chain(panel.names[k], int(panel.starts[k]), values, panel.known[begin:end], panel.static[k])


def _continued(before: _Chain, after: _Chain, length: int, repeats: bool) -> tuple[_Chain, int] | str:
    """`before` with `after` behind it, and the step where `after` begins; or in words why that is another series. Only with
    `repeats` it may hold nothing new."""
    at, odd = divmod(after.start - before.start, length)
    gap, size = at - len(before.values), len(after.values)
    if odd:
        return "their times lie between its steps"
    if at < 0 or gap > size:
        return "they begin before it" if at < 0 else "the gap between them is longer than they are"
    again = min(max(0, -gap), size)  # steps that both have
    if again and not np.array_equal(before.values[at : at + again], after.values[:again], equal_nan=True):
        return "where both have values these differ"
    if again == size and not repeats:
        return "they hold nothing new"
    nothing = lambda like: np.full((max(0, gap), like.shape[1]), np.nan)  # noqa: E731
    values = np.concatenate([before.values, nothing(after.values), after.values[again:]])
    known = np.concatenate([before.known, nothing(after.known), after.known[again:]])
    return before._replace(values=values, known=known), at


def _refuse_other(first: Panel, part: Panel) -> None:
    for what in ("variables", "known_names", "static_names", "frequency"):
        if getattr(first, what) != getattr(part, what):
            raise DataError(
                f"the files of one part have the {what.replace('_names', ' covariates')} {getattr(part, what)}, those before "
                f"{getattr(first, what)}; give files with the same columns and frequency"
            )


# Seasons


def _repetition(panel: Panel, until: Sequence[int] | np.ndarray) -> int:
    """The lag of the first high peak of the mean autocorrelation of (at most 200 of) the series, differenced."""
    found = []
    long = np.flatnonzero(np.asarray(until) > 3)
    longest = min(400, int(np.median(np.asarray(until)[long])) // 3) if long.size else 0
    for k in long[np.unique(np.linspace(0, len(long) - 1, 200).astype(int))] if long.size else ():
        steps = np.diff(panel.values[panel.bounds[k] : panel.bounds[k] + int(until[k])], axis=0)
        for column in steps.T:
            centred = column[-5_000:] - column[-5_000:].mean()
            power = np.abs(np.fft.rfft(centred, 2 * len(centred))) ** 2
            correlation = np.fft.irfft(power)[: longest + 1]
            if len(correlation) > longest and correlation[0] > 0:
                found.append(correlation / correlation[0])
    if not found or longest < 3:
        return 1
    mean = np.mean(found, axis=0)
    inner = mean[2:-1]
    peaks = np.flatnonzero((inner > mean[1:-2]) & (inner >= mean[3:])) + 2
    high = peaks[mean[peaks] >= max(0.2, 0.8 * mean[peaks].max(initial=0.0))]
    return int(high[0]) if high.size else 1


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:8])) + (f" and {len(names) - 8:,} more" if len(names) > 8 else "")
