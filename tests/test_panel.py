"""Panels: what stands in a table of numbers in time comes out on a regular grid, or is refused with its place."""

import gzip
import random
import re
import zipfile
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import polars
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recurra.data import times
from recurra.data.labelled import labelled
from recurra.data.panel import Columns, Panel, calendar, joined, panel, season
from recurra.data.times import Frequency
from recurra.errors import DataError, UsageError

LONG = "unique_id,ds,y\na,2024-01-01,1\na,2024-01-02,2\nb,2024-01-05,7\na,2024-01-03,3\nb,2024-01-06,8\n"


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(folder: Path, text: str | bytes, name: str = "t.csv", **columns: object) -> Panel:
    return panel([write(folder / name, text)], Columns(**columns))


def refusal(folder: Path, text: str | bytes, name: str = "t.csv", **columns: object) -> str:
    with pytest.raises((DataError, UsageError)) as caught:
        read(folder, text, name, **columns)
    return str(caught.value)


def test_a_long_table_in_any_order_is_series_by_name_and_time(tmp_path: Path) -> None:
    found = read(tmp_path, LONG)
    assert found.names == ["a", "b"] and found.variables == ["y"]
    assert found.values[:, 0].tolist() == [1, 2, 3, 7, 8] and found.bounds.tolist() == [0, 3, 5]
    assert [found.stamp(1, step) for step in range(3)] == ["2024-01-05", "2024-01-06", "2024-01-07"]
    assert found.frequency == Frequency("time", times.DAY)
    assert any("series are named by the column 'unique_id'" in note for note in found.notes)


@pytest.mark.parametrize("pack", ["plain", "gzip", "crlf", "bom", "tabs", "semicolons", "parquet"])
def test_every_way_of_writing_a_table_gives_the_same_series(tmp_path: Path, pack: str) -> None:
    plain = read(tmp_path, LONG)
    if pack == "parquet":
        polars.read_csv(LONG.encode(), try_parse_dates=True).write_parquet(tmp_path / "t.parquet")
        found = panel([tmp_path / "t.parquet"])
    else:
        text = {
            "plain": LONG.encode(),
            "gzip": gzip.compress(LONG.encode()),
            "crlf": LONG.replace("\n", "\r\n").encode(),
            "bom": LONG.encode("utf-8-sig"),
            "tabs": LONG.replace(",", "\t").encode(),
            "semicolons": LONG.replace(",", ";").encode(),
        }[pack]
        found = read(tmp_path, text, "t.csv.gz" if pack == "gzip" else "t.csv")
    assert found.names == plain.names and found.frequency == plain.frequency
    np.testing.assert_array_equal(found.values, plain.values)
    np.testing.assert_array_equal(found.starts, plain.starts)


def test_a_wide_table_is_one_series_of_several_variables_or_several_series(tmp_path: Path) -> None:
    text = "date,a,b,weather\n2024-01-01 00:00,1,,rain\n2024-01-01 01:00,2,5,sun\n2024-01-01 02:00,3,6,sun\n"
    together = read(tmp_path, text)
    assert together.variables == ["a", "b"] and len(together) == 1
    assert together.values.tolist() == [[1, 5], [2, 5], [3, 6]] and together.seen.tolist() == [[True, False]] + 2 * [
        [True, True]
    ]
    assert any("left out: weather" in note for note in together.notes)
    assert any("1 of 6 values were missing" in note for note in together.notes)
    apart = read(tmp_path, text, univariate=True)
    assert apart.names == ["a", "b"] and apart.variables == ["y"] and apart.bounds.tolist() == [0, 3, 5]
    assert apart.stamp(1, 0) == "2024-01-01 01:00:00", "a series begins with its first value"


def test_gaps_are_put_in_filled_and_said(tmp_path: Path) -> None:
    found = read(tmp_path, "ds,y\n0,0\n1,1\n2,2\n5,5\n6,nan\n7,7\n8,NA\n")
    assert found.values[:, 0].tolist() == [0, 1, 2, 2, 2, 5, 5, 7, 7]
    assert found.seen[:, 0].tolist() == [True, True, True, False, False, True, False, True, False]
    assert found.lengths.tolist() == [8]
    assert any("2 steps were not there" in note for note in found.notes)
    assert any("3 of 9 values were missing" in note for note in found.notes)
    assert any("1 steps at the ends" in note for note in found.notes)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sets(st.integers(0, 60), min_size=31), st.integers(1, 7), st.integers(-9, 9), st.randoms(use_true_random=False)
)
def test_whatever_is_missing_what_was_there_is_where_it_was(
    tmp_path: Path, kept: set, step: int, start: int, rng
) -> None:
    rows = [f"{start + step * at},{at * at}" for at in sorted(kept)]
    rng.shuffle(rows)
    found = panel([write(tmp_path / "t.csv", "ds,y\n" + "\n".join(rows))], Columns(), Frequency("step", step))
    places = np.array(sorted(kept)) - min(kept)
    assert np.flatnonzero(found.seen[:, 0]).tolist() == places.tolist()
    assert found.values[places, 0].tolist() == [at * at for at in sorted(kept)]
    assert found.stamp(0, 0) == str(start + step * min(kept))


@pytest.mark.parametrize(
    ("first", "step", "count", "frequency", "shown"),
    [
        (datetime(2024, 1, 31), "1mo", 5, Frequency("month", 1, 31), ["2024-01-31", "2024-02-29", "2024-03-31"]),
        (datetime(1990, 1, 1), "3mo", 8, Frequency("month", 3, 1), ["1990-01-01", "1990-04-01", "1990-07-01"]),
        (datetime(1990, 1, 1), "1y", 8, Frequency("month", 12, 1), ["1990-01-01", "1991-01-01", "1992-01-01"]),
        (datetime(2024, 1, 4), "1w", 5, Frequency("time", 7 * times.DAY), ["2024-01-04", "2024-01-11"]),
        (datetime(2024, 3, 30), "15m", 9, Frequency("time", 900 * times.SECOND), ["2024-03-30 00:00:00"]),
        (datetime(2024, 1, 4), "1bd", 9, Frequency("weekday", 1), ["2024-01-04", "2024-01-05", "2024-01-08"]),
    ],
)  # fmt: skip
def test_the_step_is_found_from_the_dates(
    tmp_path: Path, first: datetime, step: str, count: int, frequency: Frequency, shown: list[str]
) -> None:
    if step == "1bd":
        days = (first + timedelta(n) for n in range(100))
        dates = [day for day in days if day.weekday() < 5][:count]
    else:
        offsets = [re.sub("[0-9]+", lambda size, n=n: str(n * int(size[0])), step) for n in range(count)]
        dates = [polars.Series([first]).dt.offset_by(offset)[0] for offset in offsets]
    found = read(tmp_path, "ds,y\n" + "".join(f"{date},{n}\n" for n, date in enumerate(dates)))
    assert found.frequency == frequency and found.values[:, 0].tolist() == list(range(count))
    assert [found.stamp(0, n) for n in range(len(shown))] == shown


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1949-01", "1949-02"], ["1949-01-01", "1949-02-01"]),
        (["19580329", "19580405"], ["1958-03-29", "1958-04-05"]),
        (["13.01.2024", "14.01.2024"], ["2024-01-13", "2024-01-14"]),
        (["1990Q1", "1990Q2"], ["1990-01-01", "1990-04-01"]),
        (["Jan-1-1995", "Feb-1-1995"], ["1995-01-01", "1995-02-01"]),
        (
            ["2021-05-01T00:00:00+02:00", "2021-05-01T01:00:00+02:00"],
            ["2021-04-30 22:00:00+00:00", "2021-04-30 23:00:00+00:00"],
        ),
        (["1700", "1701"], ["1700", "1701"]),
        (["-3", "4"], ["-3", "4"]),
    ],
)
def test_times_are_read_as_they_are_written(tmp_path: Path, cells: list[str], expected: list[str]) -> None:
    found = read(tmp_path, "ds,y\n" + "".join(f"{cell},1\n" for cell in cells))
    assert [found.stamp(0, 0), found.stamp(0, 1)] == expected


def test_a_date_that_may_be_two_is_refused_until_it_is_said(tmp_path: Path) -> None:
    text = "ds,y\n01/02/2024,1\n02/02/2024,2\n03/02/2024,3\n"
    assert "day/month or month/day" in refusal(tmp_path, text)
    assert read(tmp_path, text, dates="%d/%m/%Y").stamp(0, 1) == "2024-02-02"
    assert read(tmp_path, text, dates="%m/%d/%Y").frequency == Frequency("month", 1, 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("ds,y\n", "has no row"),
        ("ds,y\n1,2\n1,3\n", "t.csv:3 has the same time as"),
        ("unique_id,ds,y\na,1,1\nb,1,2\na,1,2\n", "t.csv:4 has the same time as"),
        ("unique_id,ds,y\na,1,1\n,2,2\n", "t.csv:3 has an empty cell where the series is named"),
        ("ds,y,y\n1,2,3\n", "names the column 'y' twice"),
        ("ds,y\n1,2\n2,3,4\n", "t.csv:3 has 3 cells"),
        ("ds,y\n1,2\n2,inf\n", "t.csv:3: 'y' is 'inf', too large"),
        ("ds,y\n1,2\n2,1e39\n", "too large"),
        ("ds,y\n" + "".join(f"{n},1\n" for n in range(300)) + "300,two\n", "t.csv:302: 'y' is 'two', which is no number"),
        ("ds,y\n" + "".join(f"{n},1\n" for n in range(9)) + "9,two\n10,1\n", "t.csv:11: 'y' is 'two', which is no number"),
        ("ds;y\n" + "".join(f"{n};1\n" for n in range(300)) + "300;1,5\n", "write a point"),
        ("ds,y\n" + "".join(f"{n},1\n" for n in range(300)) + "soon,1\n", "t.csv:302: 'soon' is no time"),
        ("ds,y\n0,1\n1,1\n2,1\n50,1\n51,1\n400,1\n", "too few to fill the rest"),
        ("ds,y\n0,1\n1,1\n2,1\n3,1\n99999999999,1\n", "too few to fill the rest"),
        ("ds,y\n0,1\n10,1\n11,1\n20,1\n30,1\n40,1\n", "fall on the same step"),
        ("ds,y\n1,\n2,\n", "has no value of 'y' at all"),
        ("ds,name\n1,a\n2,b\n", "has no column of numbers"),
        ('ds,y\n1,"2\n', "mend its quotes"),
        (b"ds,y\n1,\xff\n", "is not UTF-8"),
        (b"ds,y\n1,\x00\n", "binary"),
        ("ds,y\n999999999999999999999999,1\n", "no time"),
    ],
)  # fmt: skip
def test_bad_tables_are_refused_with_their_place(tmp_path: Path, text: str | bytes, words: str) -> None:
    assert words in refusal(tmp_path, text)


def test_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    assert "has no column 'x'" in refusal(tmp_path, LONG, target=("x",))
    assert "two roles" in refusal(tmp_path, LONG, target=("y",), known=("y",))
    assert "task.univariate" in refusal(tmp_path, LONG, univariate=True)
    assert "wanted a number and one of" in refusal(tmp_path, LONG, frequency="fortnight")
    assert "leave it out" in refusal(tmp_path, LONG, frequency="2step")
    assert "no times could be read" in refusal(tmp_path, LONG, time="unique_id", id="y")
    assert "is no table" in refusal(tmp_path, LONG, "t.xlsx")
    assert "no whole Parquet file" in refusal(tmp_path, LONG, "t.parquet")


def test_hostile_names_are_shown_escaped(tmp_path: Path) -> None:
    text = 'unique_id,ds,y\n"\x1b[31ma",1,\n"\x1b[31ma",2,\n'
    assert "\x1b" not in refusal(tmp_path, text)


def test_known_covariates_may_go_on_after_the_last_value(tmp_path: Path) -> None:
    text = "unique_id,ds,y,promo,size\n" + "".join(f"a,{n},{n if n < 4 else ''},{n % 2},9\n" for n in range(6))
    found = read(tmp_path, text, known=("promo",), static=("size",))
    assert (
        found.lengths.tolist() == [4]
        and found.known[:, 0].tolist() == [0, 1, 0, 1, 0, 1]
        and found.static.tolist() == [[9]]
    )
    longer = found.extended(2)
    assert longer.bounds.tolist() == [0, 6] and not longer.seen[4:].any() and longer.known[4:, 0].tolist() == [0, 1]
    with pytest.raises(DataError, match="promo for 2 steps after its last value, wanted 3"):
        found.extended(3)
    assert "static column has one number" in refusal(tmp_path, text.replace("a,3,3,1,9", "a,3,3,1,8"), static=("size",))


def test_arrays_are_series_too(tmp_path: Path) -> None:
    values = np.arange(12.0).reshape(6, 2)
    np.save(tmp_path / "one.npy", values)
    np.savez(tmp_path / "two.npz", values=values, bounds=np.array([0, 2, 6]))
    assert panel([tmp_path / "one.npy"]).bounds.tolist() == [0, 6]
    found = panel([tmp_path / "two.npz"])
    assert found.bounds.tolist() == [0, 2, 6] and found.names == ["1", "2"] and found.variables == ["1", "2"]
    np.savez(tmp_path / "bad.npz", values=values, bounds=np.array([0, 2, 5]))
    np.savez(tmp_path / "b.npz", values=values)
    for name, words in [
        ("bad.npz", "do not go from 0"),
        ("t.npy", "holds no arrays"),
        ("b.npz", "no .npz of `values`"),
    ]:
        with pytest.raises(DataError, match=words):
            panel([tmp_path / name if name.endswith("npz") else write(tmp_path / name, b"none")])
    with pytest.raises(UsageError, match="no named columns"):
        panel([tmp_path / "one.npy"], Columns(target=("y",)))


def test_a_later_file_goes_on_where_the_first_ends(tmp_path: Path) -> None:
    first = read(tmp_path, "unique_id,ds,y\na,0,0\na,1,1\nb,0,5\nb,1,6\n", "1.csv")
    more = read(tmp_path, "unique_id,ds,y\na,3,3\na,4,4\nb,1,9\nb,2,8\nc,7,7\nc,8,8\n", "2.csv")
    whole, begins = joined([first, more])
    assert whole.names == ["a", "b", "b", "c"] and begins[:, 1].tolist() == [2, 2, 0, 0]
    assert whole.values[:5, 0].tolist() == [0, 1, 1, 3, 4] and not whole.seen[2, 0], "the gap is filled"


def test_a_file_that_repeats_what_is_known_begins_where_it_is_new_or_where_it_repeats(tmp_path: Path) -> None:
    first = read(tmp_path, "ds,y\n" + "".join(f"{n},{n}\n" for n in range(6)), "1.csv")
    more = read(tmp_path, "ds,y\n" + "".join(f"{n},{n}\n" for n in range(4, 9)), "2.csv")
    for repeats, begin in [(False, 6), (True, 4)]:
        whole, begins = joined([first, more], repeats)
        assert len(whole) == 1 and begins[0, 1] == begin and whole.values[:, 0].tolist() == list(range(9))
    assert len(joined([first, first])[0]) == 2 and len(joined([first, first], repeats=True)[0]) == 1
    other = read(tmp_path, "ds,z\n0,1\n1,2\n", "3.csv")
    with pytest.raises(DataError, match="same columns"):
        joined([first, other])


def test_the_season_is_that_of_the_calendar_or_the_first_high_peak(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wave = [10 * np.sin(2 * np.pi * n / 12) + rng.normal() for n in range(240)]
    plain = read(tmp_path, "ds,y\n" + "".join(f"{n},{y}\n" for n, y in enumerate(wave)))
    assert season(plain, plain.lengths)[0] == 12
    noise = read(tmp_path, "ds,y\n" + "".join(f"{n},{rng.normal()}\n" for n in range(240)))
    assert season(noise, noise.lengths)[0] == 1
    for text, steps in [("1h", 24), ("15min", 96), ("1d", 7), ("1b", 5), ("1w", 52), ("1mo", 12), ("1q", 4), ("1y", 1)]:
        assert times.season_of(times.given(text, True)) == steps


def test_the_calendar_says_hour_weekday_and_time_of_the_year(tmp_path: Path) -> None:
    dates = [datetime(2024, 1, 1) + timedelta(hours=6 * n) for n in range(8)]  # a Monday
    hours = read(tmp_path, "ds,y\n" + "".join(f"{date},1\n" for date in dates))
    waves, names = calendar(hours)
    sine = waves[:, names.index("sine of the day")]
    np.testing.assert_allclose(sine, [0, 1, 0, -1, 0, 1, 0, -1], atol=1e-6)
    np.testing.assert_allclose(waves[0, names.index("cosine of the year")], 1, atol=1e-6)
    assert waves[0, names.index("sine of the week")] != waves[7, names.index("sine of the week")]
    with pytest.raises(UsageError, match="wants dates"):
        calendar(read(tmp_path, "ds,y\n1,1\n2,2\n"))


def days(count: int, first: datetime = datetime(2023, 1, 1)) -> list[str]:
    return [str((first + timedelta(n)).date()) for n in range(count)]


def column(cells: list[str]) -> str:
    return "ds,y\n" + "".join(f"{cell},{n}\n" for n, cell in enumerate(cells))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=2, max_size=2), min_size=4, max_size=25), st.integers(1, 24))
def test_what_comes_later_changes_nothing_that_is_filled_before(there: list[list[bool]], at: int) -> None:
    kept = np.array([[True, True], *there, [True, True]])
    rng = np.random.default_rng(at)
    values = np.where(kept, rng.normal(size=kept.shape), np.nan)
    later = np.where(np.arange(len(kept))[:, None] >= at, values + 1000, values)
    one, other = (joined([of(part), of(part[-1:] * 0 + 1, len(part))])[0].values for part in (values, later))
    np.testing.assert_array_equal(one[:at], other[:at])
    np.testing.assert_array_equal(one[: len(kept)][kept], values[kept])


def of(values: np.ndarray, start: int = 0) -> Panel:
    nothing = np.zeros((1, 0))
    here, step = ~np.isnan(values), Frequency("step", 1)
    names = [str(at) for at in range(values.shape[1])]
    bounds, known = np.array([0, len(values)]), np.zeros((len(values), 0))
    return Panel(["a"], names, values, here, bounds, np.array([start]), step, known, [], nothing, [], here[:1, 0])


@pytest.mark.parametrize("bad", ["", "31/12/2023", "2023-02-30", "2023-01-05T00:00+01:00"])
@pytest.mark.parametrize("row", [0, 50, 119])
def test_a_cell_that_is_no_time_is_refused_with_its_line(tmp_path: Path, bad: str, row: int) -> None:
    cells = days(120)
    cells[row] = bad
    said = refusal(tmp_path, column(cells))
    assert re.search(r"t\.csv:(\d+): '(.*)' is no time", said) and "task.time=rows" in said
    if row == 50:
        assert f"t.csv:52: {bad!r} is no time" in said


def test_a_column_named_like_a_time_is_never_a_variable_unasked(tmp_path: Path) -> None:
    text = "time,y\n" + "".join(f"{n / 10},{n}\n" for n in range(30))
    assert "no times could be read in the column 'time', such as '0.0'" in refusal(tmp_path, text)
    assert read(tmp_path, text, time="rows", target=("y",)).variables == ["y"]
    assert read(tmp_path, text, time="rows", target=("time", "y")).variables == ["time", "y"]


def test_how_a_table_was_understood_reads_another_alike(tmp_path: Path) -> None:
    first = read(tmp_path, column([f"{d:02d}/01/2024" for d in range(1, 32)]))
    assert first.columns is not None and first.columns.dates == "%d/%m/%Y" and first.columns.id is None
    again = panel(
        [write(tmp_path / "u.csv", "series,ds,y\n1,01/02/2024,1\n2,02/02/2024,2\n")], first.columns, first.frequency
    )
    assert again.stamp(0, 1) == "2024-02-02" and again.names == ["series"]


@pytest.mark.parametrize(("unit", "count", "ahead"), [("d", 7, "2024-04-01"), ("mo", 14, "2025-04-01")])
def test_days_and_months_with_zones_are_those_of_the_calendar_there(
    tmp_path: Path, unit: str, count: int, ahead: str
) -> None:
    zone = ZoneInfo("Europe/Berlin")
    local = [datetime(2024, 3, 25 + n, tzinfo=zone) for n in range(count)] if unit == "d" else [
        datetime(2024 + (n + 1) // 12, (n + 1) % 12 + 1, 1, tzinfo=zone) for n in range(count)
    ]  # fmt: skip
    for frequency in (None, f"1{unit}"):
        found = read(tmp_path, column([when.isoformat() for when in local]), frequency=frequency)
        assert found.seen.all() and not any("moved" in note for note in found.notes)
        assert [found.stamp(0, n) for n in range(count)] == [str(when.date()) for when in local]
        assert found.stamp(0, count) == ahead


def test_hours_with_zones_are_those_of_utc_and_say_so(tmp_path: Path) -> None:
    zone = ZoneInfo("Europe/Berlin")
    hours = [(datetime(2024, 3, 30, tzinfo=ZoneInfo("UTC")) + timedelta(hours=n)).astimezone(zone) for n in range(48)]
    found = read(tmp_path, column([when.isoformat() for when in hours]))
    assert found.stamp(0, 47) == "2024-03-31 23:00:00+00:00" and found.seen.all()
    assert "one step is 1 hour in UTC" in found.notes
    plain = write(tmp_path / "p.csv", column(["2024-04-01 00:00", "2024-04-01 01:00"]))
    with pytest.raises(DataError, match="no zones here, and had some before"):
        panel([plain], Columns(), found.frequency)


@pytest.mark.parametrize("months", [1, 3, 12])
def test_ends_of_months_are_kept_where_the_frequency_is_said(tmp_path: Path, months: int) -> None:
    dates = polars.Series([datetime(2021, 1, 31)]).dt.offset_by("2mo").dt.month_end()
    ends = [dates.dt.offset_by(f"{months * n}mo").dt.month_end()[0].date() for n in range(6)]
    for said in (None, f"{months}mo"):
        found = read(tmp_path, column([str(end) for end in ends[:5]]), frequency=said)
        assert found.frequency == Frequency("month", months, 31) and found.stamp(0, 5) == str(ends[5])
    assert read(tmp_path, column(["2022-04-30", "2022-06-30"]), frequency="2mo").stamp(0, 2) == "2022-08-31"
    from_february = read(tmp_path, column(["2023-02-28", "2023-03-28", "2023-04-28"]), frequency="1mo")
    assert from_february.stamp(0, 3) == "2023-05-28"


def test_four_weeks_with_a_gap_are_no_months(tmp_path: Path) -> None:
    dates = [day for n, day in enumerate(days(28 * 20)[::28]) if n != 5]
    found = read(tmp_path, column(dates))
    assert found.frequency == Frequency("time", 28 * times.DAY) and found.seen[:, 0].sum() == 19


def test_times_without_end_are_refused_in_words(tmp_path: Path) -> None:
    last = read(tmp_path, column([f"9999-12-{day}" for day in range(20, 32)]))
    month = read(tmp_path, column([f"9999-{month:02d}-01" for month in range(1, 13)]))
    for found in (last, month):
        with pytest.raises(DataError, match="outside the years 1 to 9999"):
            found.stamp(0, 12)
    assert "is no time" in refusal(tmp_path, column([str(k) for k in (-(2**62) + 1, 3, 2**62 - 1)]))


@pytest.mark.parametrize(
    ("name", "text", "variables"),
    [
        ("a.tsv", "ds\ty, EUR, net\n", ["y, EUR, net"]),
        ("a.csv", '"ds";"value, EUR, net"\n', ["value, EUR, net"]),
        ("a.csv", "\n\nds;y\n", ["y"]),
        ("a.csv", "ds,y,\n", ["y"]),
    ],
)
def test_separators_are_those_between_names(tmp_path: Path, name: str, text: str, variables: list[str]) -> None:
    mark = next(mark for mark in "\t;," if mark in re.sub('"[^"]*"', "", text))
    rows = "".join(mark.join([str(n), str(n % 3), *[""] * text.endswith(",\n")]) + "\n" for n in range(9))
    assert read(tmp_path, text + rows, name).variables == variables
    assert f"{name}:{len(text.splitlines()) + 10} has" in refusal(tmp_path, text + rows + mark * 5 + "\n", name)


def test_underscores_are_no_part_of_numbers(tmp_path: Path) -> None:
    rows = "".join(f"{n},{n}\n" for n in range(250))
    assert "'1_000', which is no number" in refusal(tmp_path, "ds,y\n" + rows + "250,1_000\n")
    assert "'1_000' is no time" in refusal(tmp_path, "ds,y\n" + rows + "1_000,1\n")


def test_numbers_keep_their_digits(tmp_path: Path) -> None:
    found = read(tmp_path, "ds,y\n" + "".join(f"{n},{1_700_000_000 + n}\n" for n in range(9)))
    assert np.diff(found.values[:, 0]).tolist() == [1] * 8


def test_what_is_known_ahead_ends_where_it_has_a_gap(tmp_path: Path) -> None:
    rows = [f"a,{n},{n if 3 <= n < 20 else ''},{n % 2 if n not in (5, 22) else ''}" for n in range(25)]
    found = read(tmp_path, "unique_id,ds,y,p\n" + "\n".join(rows), known=("p",))
    assert len(found.known) == 19 and found.lengths.tolist() == [17]
    for said in (
        "3 steps at the starts", "3 steps after the last values have gaps in p", "1 values of p were missing",
    ):  # fmt: skip
        assert any(said in note for note in found.notes), said
    with pytest.raises(DataError, match="p for 2 steps after its last value, wanted 3"):
        found.extended(3)


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([(5, 9)], "they hold nothing new"),
        ([(t, t) for t in range(-4, 2)], "they begin before it"),
        ([(t, t) for t in range(40, 45)], "the gap between them is longer"),
        ([(t, t + 1) for t in range(8, 15)], "where both have values these differ"),
    ],
)
def test_a_series_that_does_not_go_on_is_said_with_its_reason(tmp_path: Path, rows: list, why: str) -> None:
    first = read(tmp_path, "unique_id,ds,y\n" + "".join(f"a,{t},{t if t != 5 else 9}\n" for t in range(10)), "1.csv")
    more = panel(
        [write(tmp_path / "2.csv", "unique_id,ds,y\n" + "".join(f"a,{t},{y}\n" for t, y in rows))],
        Columns(),
        first.frequency,
    )
    whole, _ = joined([first, more])
    assert any(why in note and "1 series of a later file" in note for note in whole.notes)
    assert whole.same.tolist() == [True, False], "only the first is what others of its name are"
    again, begins = joined([whole, first], repeats=True)
    assert len(begins) >= 2 and len(again.same) == len(again), "two of one name in a part stay two"


def test_damaged_arrays_are_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", values=np.arange(300.0)[:, None], bounds=np.array([0, 300]))
    np.save(tmp_path / "a.npy", np.arange(300.0))
    rng = random.Random(0)
    for kind in ("npz", "npy"):
        whole = (tmp_path / f"a.{kind}").read_bytes()
        for _ in range(150):
            content = bytearray(whole)
            for _ in range(rng.randint(1, 4)):
                content[rng.randrange(min(200, len(content)))] = rng.randrange(256)
            try:
                panel([write(tmp_path / f"b.{kind}", bytes(content))])
            except DataError:
                pass
    monkeypatch.setattr("recurra.data.tables.BOMB_BYTES", 1000)
    monkeypatch.setattr("recurra.data.tables.BOMB_RATIO", 10)
    np.savez_compressed(tmp_path / "bomb.npz", values=np.zeros((9_000, 1)), bounds=np.array([0, 9_000]))
    assert zipfile.is_zipfile(tmp_path / "bomb.npz")
    with pytest.raises(DataError, match="over 10 times their size"):
        panel([tmp_path / "bomb.npz"])
    with pytest.raises(DataError, match="holds no arrays"):
        header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999999999, 1), }".ljust(117) + b"\n"
        panel([write(tmp_path / "c.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)])


@pytest.mark.parametrize("reader", [panel, labelled])
def test_a_date_that_no_calendar_has_is_refused_in_words(tmp_path: Path, reader: object) -> None:
    far = polars.Series([2**31 - 5, 2**31 - 4], dtype=polars.Date)
    polars.DataFrame({"text": far, "ds": far, "label": ["1", "2"]}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="no whole Parquet file"):
        reader([tmp_path / "t.parquet"])
