"""Panels: what stands in a table of numbers in time comes out on a regular grid, or is refused with its place."""

import gzip
import re
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recurra.data import times
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
    assert found.values[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 7]
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
        (["2021-05-01T00:00:00+02:00", "2021-05-01T01:00:00+02:00"], ["2021-04-30 22:00:00", "2021-04-30 23:00:00"]),
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
    assert "no Parquet file" in refusal(tmp_path, LONG, "t.parquet")


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
    for name, words in [("bad.npz", "do not go from 0"), ("t.npy", "no .npy")]:
        with pytest.raises(DataError, match=words):
            panel([tmp_path / name if name == "bad.npz" else write(tmp_path / name, b"none")])
    with pytest.raises(UsageError, match="no named columns"):
        panel([tmp_path / "one.npy"], Columns(target=("y",)))


def test_a_later_file_goes_on_where_the_first_ends(tmp_path: Path) -> None:
    first = read(tmp_path, "unique_id,ds,y\na,0,0\na,1,1\nb,0,5\nb,1,6\n", "1.csv")
    more = read(tmp_path, "unique_id,ds,y\na,3,3\na,4,4\nb,1,9\nb,2,8\nc,7,7\nc,8,8\n", "2.csv")
    whole, begins = joined([first, more])
    assert whole.names == ["a", "b", "b", "c"] and begins[:, 1].tolist() == [2, 2, 0, 0]
    assert whole.values[:5, 0].tolist() == [0, 1, 2, 3, 4] and not whole.seen[2, 0], "the gap is filled"


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
