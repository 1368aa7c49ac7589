"""Times of series: how they are written, the regular step between them, and what a calendar says of them."""

import calendar
import re
from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import NamedTuple

import numpy as np

from recurra.errors import DataError, UsageError

FORMATS = (
    *("%Y/%m/%d", "%Y/%m/%d %H:%M", "%Y/%m/%d %H:%M:%S", "%Y-%m", "%Y/%m", "%b-%d-%Y", "%d %b %Y", "%b %Y"),
    *("%d.%m.%Y", "%d.%m.%Y %H:%M", "%d.%m.%Y %H:%M:%S", "%d/%m/%Y", "%d/%m/%Y %H:%M", "%d/%m/%Y %H:%M:%S"),
    *("%m/%d/%Y", "%m/%d/%Y %H:%M", "%m/%d/%Y %H:%M:%S"),
)
EPOCH, MICROSECOND = datetime(1970, 1, 1), timedelta(microseconds=1)
SECOND, DAY = 1_000_000, 86_400_000_000  # in microseconds
MONTH = 30.436875 * DAY
SIZES = {"week": 7 * DAY, "day": DAY, "hour": 3600 * SECOND, "minute": 60 * SECOND, "second": SECOND}


class Frequency(NamedTuple):
    """The step of a grid: `length` times the unit.

    unit   step     times are plain whole numbers
           time     dates; a unit is a microsecond
           weekday  dates from Monday to Friday; a unit is such a day
           month    dates; a unit is a month, and `day` is the day of the month (31: its last)
    zoned  the times were written with zones, and are those of UTC; steps of a day or more go by the local dates instead
    """

    unit: str
    length: int
    day: int = 1
    zoned: bool = False

    @property
    def by_date(self) -> bool:
        """Whether a step is a day or more."""
        return self.unit in ("month", "weekday") or (self.unit == "time" and self.length >= DAY)

    def __str__(self) -> str:
        if self.unit == "step":
            return str(self.length)
        fitting = [(name, self.length // size) for name, size in SIZES.items() if self.length % size == 0]
        name, count = (self.unit, self.length) if self.unit != "time" else (*fitting, ("microsecond", self.length))[0]
        return f"{count} {name}{'s' if count > 1 else ''}{' in UTC' if self.zoned else ''}"


UNITS = {
    **{name: Frequency("time", SIZES[size]) for name, size in zip(("s", "min", "h", "d", "w"), reversed(SIZES), strict=True)},
    "b": Frequency("weekday", 1), "mo": Frequency("month", 1), "q": Frequency("month", 3), "y": Frequency("month", 12),
    "step": Frequency("step", 1),
}  # fmt: skip


class Reader(NamedTuple):
    """How the cells of a column are read as times: to microseconds since 1970 if they are dates, else as they are; `ValueError`
    for others. `written` is what `reader` takes as `dates` to make the same reader; times with zones are those of UTC, and
    `local` reads what the clock on the wall said."""

    read: Callable[[str], int]
    dated: bool
    how: str
    written: str
    local: Callable[[str], int] | None = None


def reader(name: str, cells: list[str], dates: str | None = None) -> Reader | None:
    """How to read such cells of the column `name` as times; None where they are none.

    `dates` is how they are written, as in strptime, or `steps` for plain numbers, and `iso`,
    `iso with zones` and `quarters`; without it whole numbers (unless all are
    dates as 20240131), ISO dates and times, quarters as 1990Q1, and some formats are tried. Raises DataError where the day
    may be the month.
    """
    if dates is not None:
        given = EXACT.get(dates) or _dates(dates)
        return given if _all_read(given, cells) else None
    compact = _dates("%Y%m%d")._replace(how="dates written %Y%m%d (task.dates=steps: plain numbers)")
    exact = [compact] if all(re.fullmatch(r"[12]\d{7}", cell) for cell in cells) else []
    exact += EXACT.values()
    found = next((one for one in exact if _all_read(one, cells)), None)
    if found is not None:
        return found
    fitting = [form for form in FORMATS if _all_read(_dates(form), cells)]
    if len({form.replace("%m", "%d") for form in fitting}) < len(fitting):
        raise DataError(
            f"the dates of the column {name!r}, such as {cells[0]!r}, may be day/month or month/day; "
            f"say it with task.dates='{fitting[0]}' or '{fitting[-1]}'"
        )
    return _dates(fitting[0]) if fitting else None


def stamp(frequency: Frequency, time: int) -> str:
    """A time, in units of the frequency since 1970 (or a plain number), as it is written. Raises DataError after the year 9999."""
    try:
        return _stamp(frequency, time)
    except (OverflowError, ValueError):
        raise DataError(
            "the times lie outside the years 1 to 9999, where dates end; say how they are written with task.dates"
        ) from None


def _stamp(frequency: Frequency, time: int) -> str:
    if frequency.unit == "step":
        return str(time)
    if frequency.unit == "weekday":
        return str(np.busday_offset("1970-01-01", time, roll="forward"))
    if frequency.unit == "month":
        year, month = 1970 + time // 12, time % 12 + 1
        return str(date(year, month, min(frequency.day, calendar.monthrange(year, month)[1])))
    when = EPOCH + time * MICROSECOND
    if frequency.length % DAY == 0 and time % DAY == 0:
        return str(when.date())
    return f"{when}+00:00" if frequency.zoned else str(when)


def in_units(times: np.ndarray, frequency: Frequency) -> np.ndarray:
    """Times as `Reader.read` gives them, int64, in units of the frequency. A Saturday is the Monday after it."""
    dates = times.astype("datetime64[us]")
    if frequency.unit == "month":
        return dates.astype("datetime64[M]").astype(np.int64)
    if frequency.unit == "weekday":
        return np.busday_count(np.datetime64("1970-01-01"), dates.astype("datetime64[D]"))
    return times


def guessed(times: np.ndarray, gaps: np.ndarray, dated: bool) -> Frequency:
    """The frequency of times whose neighbours are `gaps` apart: the most common gap if it is over half of them, else the
    middle one; months, years and working days are known by their calendar."""
    sizes, counts = np.unique(gaps, return_counts=True)
    usual = int(sizes[counts.argmax()]) if 2 * counts.max() > len(gaps) else max(1, int(np.median(gaps)))
    if not dated:
        return Frequency("step", usual)
    weekly = usual % (7 * DAY) == 0 and (sizes % usual == 0).all()
    if np.median(gaps) >= 28 * DAY and not weekly:
        return Frequency("month", max(1, round(usual / MONTH)), day_of(times))
    weekdays = (times // DAY + 3) % 7
    if usual == DAY and weekdays.max() < 5 and 3 * DAY in sizes:
        return Frequency("weekday", 1)
    return Frequency("time", usual)


def day_of(times: np.ndarray) -> int:
    """The day of the month of dates, in microseconds: the latest, or 31 where each is the last of its month."""
    dates = times.astype("datetime64[us]").astype("datetime64[D]")
    if ((dates + 1).astype("datetime64[M]") > dates.astype("datetime64[M]")).all():
        return 31
    return int((dates - dates.astype("datetime64[M]")).astype(np.int64).max()) + 1


def given(text: str, dated: bool) -> Frequency:
    """The frequency that a user writes, such as 15min. Raises UsageError."""
    found = re.fullmatch(r"(\d{0,9})\s*([a-z]+)", text.strip().lower())
    if found is None or found[2] not in UNITS or int(found[1] or 1) == 0:
        raise UsageError(f"task.frequency was {text!r}, wanted a number and one of {', '.join(UNITS)}, such as 15min")
    unit = UNITS[found[2]]
    if (unit.unit == "step") == dated:
        raise UsageError(
            f"task.frequency was {text!r}, and times are {'dates' if dated else 'plain numbers'}; leave it out"
        )
    return unit._replace(length=unit.length * int(found[1] or 1))


def season_of(frequency: Frequency) -> int | None:
    """The usual season, in steps: a day of hours and minutes, a week of days, a year of the rest; None for plain steps."""
    if frequency.unit == "weekday":
        return 5
    if frequency.unit == "month":
        return max(1, 12 // frequency.length)
    if frequency.unit == "time":
        if frequency.length >= 7 * DAY:
            return max(1, round(12 * MONTH / frequency.length))
        return 7 if frequency.length >= DAY else max(1, round(DAY / frequency.length))
    return None


def waves(frequency: Frequency, times: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Sine and cosine of the hour in the day, the day in the week and the time in the year, as far as a step is shorter than
    these, for times in units of the frequency: float32 `[times, features]`, and their names."""
    phases: dict[str, np.ndarray] = {}
    if frequency.unit == "month":
        phases["year"] = times % 12 / 12
    else:
        days = times.astype("datetime64[us]")
        if frequency.unit == "weekday":
            days = np.busday_offset("1970-01-01", times, roll="forward").astype("datetime64[us]")
        exact = days.astype(np.int64)
        if frequency.unit == "time" and frequency.length < DAY:
            phases["day"] = exact % DAY / DAY
        if frequency.length < 7 * DAY:
            phases["week"] = exact // DAY % 7 / 7
        phases["year"] = (days - days.astype("datetime64[Y]")).astype(np.int64) / (12 * MONTH)
    both = [wave(2 * np.pi * phase) for phase in phases.values() for wave in (np.sin, np.cos)]
    return np.stack(both, 1).astype(np.float32), [
        f"{wave} of the {name}" for name in phases for wave in ("sine", "cosine")
    ]


def _all_read(how: Reader, cells: list[str]) -> bool:
    try:
        return [how.read(cell) for cell in cells] != []
    except (ValueError, OverflowError):
        return False


def _read_by(parse: Callable[[str], datetime], how: str, written: str, zoned: bool) -> Reader:
    def utc(text: str) -> int:
        when = parse(text)
        if (when.tzinfo is not None) != zoned:
            raise ValueError("some have a zone and some have none")
        return _microseconds(when) - (when.utcoffset() or timedelta()) // MICROSECOND

    return Reader(utc, True, how, written, (lambda text: _microseconds(parse(text))) if zoned else None)


def _dates(form: str) -> Reader:
    return _read_by(lambda text: datetime.strptime(text, form), f"dates written {form}", form, "%z" in form)


def _whole(text: str) -> int:
    if "_" in text:
        raise ValueError("no whole number")
    return int(text)


def _quarter(text: str) -> int:
    found = re.fullmatch(r"(\d{4})[ -]?[Qq]([1-4])", text)
    if found is None:
        raise ValueError("no quarter")
    return _microseconds(datetime(int(found[1]), 3 * int(found[2]) - 2, 1))


def _microseconds(when: datetime) -> int:
    """From 1970 to what a clock says, whatever its zone."""
    return (when.replace(tzinfo=None) - EPOCH) // MICROSECOND


EXACT = {
    one.written: one
    for one in (
        Reader(_whole, False, "whole numbers", "steps"),
        _read_by(datetime.fromisoformat, "dates", "iso", zoned=False),
        _read_by(datetime.fromisoformat, "dates with zones", "iso with zones", zoned=True),
        Reader(_quarter, True, "quarters", "quarters"),
    )
}
