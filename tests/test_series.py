"""Series: the same sequences come out of every kind of file, and what is wrong is named with its place."""

import gzip
import io
import lzma
import math
import os
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recurra.data.examples import Examples
from recurra.data.read import BOMB_BYTES, sources
from recurra.data.series import filled, is_series, series
from recurra.data.sound import log_mel, read_sound
from recurra.errors import DataError, UsageError

SHARED = Path(__file__).parents[2] / "shared" / "data"
REUSE = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
Sequences = list[tuple[np.ndarray, str]]


@st.composite
def sequences(draw: st.DrawFn) -> Sequences:
    """Ragged sequences of one number of channels, labelled a or b."""
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    channels = draw(st.integers(1, 3))
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    labels = draw(st.lists(st.sampled_from("ab"), min_size=len(lengths), max_size=len(lengths)))
    return [
        (rng.normal(size=(length, channels)).astype(np.float32), label)
        for length, label in zip(lengths, labels, strict=True)
    ]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def zipped(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def as_ts(path: Path, some: Sequences) -> Path:
    lines = [":".join([*(",".join(map(repr, map(float, column))) for column in x.T), label]) for x, label in some]
    head = (
        f"# made\n@problemName x\n@univariate false\n@dimensions {some[0][0].shape[1]}\n@classLabel true a b\n@data\n"
    )
    return write(path, head + "\n".join(lines) + "\n")


def as_padded(path: Path, some: Sequences) -> Path:
    x = np.zeros((len(some), max(len(one) for one, _ in some), some[0][0].shape[1]), np.float32)
    for row, (one, _) in enumerate(some):
        x[row, : len(one)] = one
    return zipped(path, x=x, lengths=[len(one) for one, _ in some], y=[label for _, label in some])


def as_ragged(path: Path, some: Sequences) -> Path:
    bounds = np.cumsum([0, *(len(one) for one, _ in some)])
    return zipped(path, values=np.concatenate([one for one, _ in some]), bounds=bounds, y=[label for _, label in some])


def frame(some: Sequences) -> polars.DataFrame:
    rows = [
        {"id": f"s{number}", "time": step, "label": label, **{f"c{at}": float(v) for at, v in enumerate(values)}}
        for number, (x, label) in enumerate(some)
        for step, values in enumerate(x)
    ]
    return polars.DataFrame(rows)


def as_csv(path: Path, some: Sequences) -> Path:
    frame(some).write_csv(path)
    return path


def as_tsv(path: Path, some: Sequences) -> Path:
    frame(some).write_csv(path, separator="\t")
    return path


def as_parquet(path: Path, some: Sequences) -> Path:
    frame(some).write_parquet(path)
    return path


WRITERS: dict[str, Callable[[Path, Sequences], Path]] = {
    "a.ts": as_ts,
    "padded.npz": as_padded,
    "ragged.npz": as_ragged,
    "a.csv": as_csv,
    "a.tsv": as_tsv,
    "a.parquet": as_parquet,
}


def same(found: Examples, some: Sequences) -> None:
    assert found.kind == "series"
    assert len(found) == len(found.places) == len(some)
    for values, (wanted, _) in zip(found.inputs, some, strict=True):
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, wanted)
    assert found.targets == [(label,) for _, label in some]
    assert found.heads is None and found.problems == []


def refusal(path: Path, kind: type[Exception] = DataError, **asked: Any) -> str:
    with pytest.raises(kind) as caught:
        series([path], **asked)
    return str(caught.value)


@pytest.mark.parametrize("name", WRITERS)
@REUSE
@given(some=sequences())
def test_every_kind_of_file_gives_the_same_sequences(tmp_path: Path, name: str, some: Sequences) -> None:
    path = WRITERS[name](tmp_path / name, some)
    same(series([path]), some)
    twice = series([path, path])
    same(twice, some + some)
    assert series([path], wanted=False).targets is None
    assert is_series([path])


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("pack", [".gz", ".xz"])
def test_every_kind_is_read_compressed(tmp_path: Path, name: str, pack: str) -> None:
    some: Sequences = [(np.array([[1, 2], [3, 4]], np.float32), "a"), (np.array([[5, 6]], np.float32), "b")]
    whole = WRITERS[name](tmp_path / name, some).read_bytes()
    path = write(tmp_path / (name + pack), (gzip if pack == ".gz" else lzma).compress(whole))
    same(series([path]), some)
    assert is_series([path])
    write(path, path.read_bytes()[:-9])
    assert "damaged" in refusal(path)


@pytest.mark.parametrize("name", ["a.ts", "a.csv", "a.tsv"])
def test_line_ends_blank_lines_and_a_byte_order_mark_change_nothing(tmp_path: Path, name: str) -> None:
    some: Sequences = [(np.array([[1, 2], [3, 4]], np.float32), "a"), (np.array([[5, 6]], np.float32), "b")]
    whole = WRITERS[name](tmp_path / name, some).read_bytes()
    same(series([write(tmp_path / name, b"\xef\xbb\xbf" + whole.replace(b"\n", b"\r\n"))]), some)
    same(series([write(tmp_path / name, whole.replace(b"\n", b"\n\n").rstrip())]), some)


@given(st.lists(st.lists(st.sampled_from([1.0, 2.0, 3.0, math.nan]), min_size=3, max_size=3), min_size=1, max_size=8))
def test_a_gap_is_filled_from_before_then_from_after_then_with_zero(rows: list[list[float]]) -> None:
    values = np.array(rows, np.float32)
    wanted = values.copy()
    for channel in wanted.T:
        for order in (range(1, len(channel)), range(len(channel) - 2, -1, -1)):
            for step in order:
                if math.isnan(channel[step]):
                    channel[step] = channel[step - 1 if order.step == 1 else step + 1]
        channel[np.isnan(channel)] = 0
    found = filled(values)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted)


def test_what_was_filled_is_said_and_counted(tmp_path: Path) -> None:
    content = "@univariate false\n@dimensions 2\n@classLabel true a\n@data\n?,1,NaN,2:,,,:a\n3,4:5,?:a\n"
    found = series([write(tmp_path / "a.ts", content)])
    np.testing.assert_array_equal(found.inputs[0], [[1, 0], [1, 0], [1, 0], [2, 0]])
    np.testing.assert_array_equal(found.inputs[1], [[3, 5], [4, 5]])
    assert any("7 missing values" in note and "channel 1 2, channel 2 5" in note for note in found.notes)
    table = "id,time,speed,wind,heat,label\n1,1,NA,0,1,x\n1,2,5,0,,x\n1,3,null,0,3,x\n"
    found = series([write(tmp_path / "a.csv", table)])
    np.testing.assert_array_equal(found.inputs[0], [[5, 0, 1], [5, 0, 1], [5, 0, 3]])
    assert any("3 missing values" in note and "'speed' 2, 'heat' 1" in note for note in found.notes)
    gap = np.array([[[1.0], [np.nan]]])
    found = series([zipped(tmp_path / "a.npz", x=gap, y=[0])])
    assert found.inputs[0].tolist() == [[1], [1]]
    assert np.isnan(gap).any()
    assert not any("missing" in note for note in series([as_csv(tmp_path / "b.csv", [(np.ones((2, 1)), "a")])]).notes)


# --- .ts ----------------------------------------------------------------------------------------------------------------

HEAD = "@univariate false\n@dimensions 2\n@classLabel true a b\n@data\n"


def test_places_are_lines_and_comments_count(tmp_path: Path) -> None:
    found = series([write(tmp_path / "a.ts", "#one\n% two\n" + HEAD + "#three\n1:2:a\n%four\n3,4:5,6:b\n")])
    assert found.places == [f"{tmp_path}/a.ts:8", f"{tmp_path}/a.ts:10"]
    np.testing.assert_array_equal(found.inputs[1], [[3, 5], [4, 6]])


def test_a_regression_set_tells_numbers(tmp_path: Path) -> None:
    found = series([write(tmp_path / "a.ts", "@TargetLabel TRUE\n@univariate true\n@DATA\n1,2:0.5\n3:-7\n")])
    assert [target.tolist() for target in found.targets or []] == [[0.5], [-7]]
    assert found.targets is not None and found.targets[0].dtype == np.float32


def test_the_first_line_tells_the_dimensions_where_the_header_does_not(tmp_path: Path) -> None:
    found = series([write(tmp_path / "a.ts", "@classLabel true a\n@data\n1,2:3,4:5,6:a\n")])
    assert found.inputs[0].shape == (2, 3)
    bare = write(tmp_path / "b.ts", "@classLabel false\n@data\n1,2:3,4\n")
    assert series([bare], wanted=False).inputs[0].shape == (2, 2)
    assert "b.ts holds no labels" in refusal(bare)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (HEAD + "1:2:a\n1:a\n", "a.ts:6 has 1 dimension and a label, wanted 2; it may have been cut"),
        (HEAD + "1:2:3:a\n", "a.ts:5 has 3 dimensions"),
        (HEAD + "1,2:1,2", "a.ts:5 has 1 dimension"),
        (HEAD + "1:2:c\n", "a.ts:5 has the label 'c', and @classLabel names a, b"),
        (HEAD + "1:2:\n", "a.ts:5 has the label ''"),
        (HEAD + "1,2:3:a\n", "a.ts:5 has dimensions of 1 and of 2 steps"),
        (HEAD + "1,x:3,4:a\n", "a.ts:5: 'x' is no number"),
        (HEAD + "1,inf:3,4:a\n", "a.ts:5, step 2: channel 1 is infinite"),
        (HEAD + "1,2:3,1e39:a\n", "a.ts:5, step 2: channel 2 is infinite or too large"),
        (HEAD + "::a\n", "a.ts:5 is a sequence of no steps"),
        (HEAD + "(0,1),(1,2):(0,1),(1,2):a\n", "a.ts:5 holds time stamps"),
        (HEAD, "no line after @data"),
        ("@timestamps true\n" + HEAD + "1:2:a", "above line 5: @timeStamps true; give values without"),
        ("@univariate true\n", "no line @data"),
        ("@univariate true\n1,2:a\n@data\n", "a.ts:2 begins '1,2:a"),
        ("const a: number = 1\n", "a.ts:1 begins 'const a"),
        ("@classLabel true\n@data\n1:a", "no class is named"),
        ("@classLabel true a\n@targetLabel true\n@data\n1:a", "both @classLabel and @targetLabel"),
        ("@univariate true\n@dimensions 2\n@data\n1:a", "@univariate true and 2 dimensions"),
        ("@dimensions 99999999999999999999\n@data\n1:a", "wanted one number of at least 1"),
        ("@dimension 0\n@data\n1:a", "@dimension '0'"),
        (
            "@equalLength true\n@seriesLength 3\n@classLabel true a\n@data\n1,2:a",
            "a.ts:5 has 2 steps and @seriesLength is 3",
        ),
        ("@targetLabel true\n@data\n1,2:?\n", "a.ts:3 has no label, or no finite number"),
        ("@targetLabel true\n@data\n1,2:x\n", "a.ts:3: 'x' is no number"),
        (HEAD.encode() + b"1:2:\xe9", "byte 0xE9 at offset 63 (line 5) is not UTF-8"),
        (b"\x47\x40\x00\x10\0\0", "binary file"),
        ("\n" * 3, "no line @data"),
    ],
)
def test_a_wrong_ts_file_is_refused_with_its_line(tmp_path: Path, content: str | bytes, said: str) -> None:
    assert said in refusal(write(tmp_path / "a.ts", content))


def test_options_of_other_kinds_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ts", HEAD + "1:2:a\n")
    assert len(series([path], each_step=False)) == 1
    for asked in ({"label": "a"}, {"each_step": True}):
        assert "tells of whole sequences" in refusal(path, UsageError, **asked)
        assert "the name of its folder" in refusal(write(tmp_path / "a.wav", b""), UsageError, **asked)


# --- .npz ---------------------------------------------------------------------------------------------------------------

X = np.arange(12, dtype=np.float32).reshape(2, 3, 2)


def test_y_is_understood_by_its_kind_and_shape(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"

    def told(**asked: Any) -> list[Any]:
        found = series([path], **asked)
        return [target.tolist() if isinstance(target, np.ndarray) else target for target in found.targets or []]

    for y, wanted, said in [
        (np.array([3, 7], np.uint8), [("3",), ("7",)], "labels of whole sequences"),
        (np.array([True, False]), [("True",), ("False",)], "labels of whole"),
        (np.array(["ñ", "b"]), [("ñ",), ("b",)], "labels of whole"),
        (np.array([b"a", b"b"]), [("a",), ("b",)], "labels of whole"),
        (np.array([1.0, 2.0]), [[1], [2]], "1 number (floats) for whole sequences"),
        (np.array([[1, 2, 3], [4, 5, 6.0]]), [[1, 2, 3], [4, 5, 6]], "3 numbers (floats) for whole sequences"),
        (np.array([[1, 2, 3], [4, 5, 6]]), [["1", "2", "3"], ["4", "5", "6"]], "labels of every step"),
        (np.ones((2, 3, 1)), [[[1], [1], [1]]] * 2, "1 number (floats) for every step"),
    ]:
        zipped(path, X=X, y=y)
        assert told() == wanted
        assert any(said in note for note in series([path]).notes)
    zipped(path, x=X, y=np.array([[1, 2, 3], [4, 5, 6.0]]))
    assert told(each_step=True) == [[[1], [2], [3]], [[4], [5], [6]]]
    zipped(path, x=X, y=[0, 1], other=["u", "v"])
    assert told(label="other") == [("u",), ("v",)]
    assert "no array 'z'; it holds x, y, other" in refusal(path, UsageError, label="z")
    assert series([path], label="z", wanted=False).targets is None


def test_y_of_steps_is_cut_as_x_is(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.npz", x=X, lengths=[1, 3], y=[["a", "", ""], ["a", "b", "c"]])
    assert series([path]).targets == [["a"], ["a", "b", "c"]]
    values = np.arange(4)
    path = zipped(tmp_path / "b.npz", values=values, offsets=[0, 1, 4], y=["a", "b", "c", "d"])
    found = series([path])
    assert found.targets == [["a"], ["b", "c", "d"]]
    assert [one.tolist() for one in found.inputs] == [[[0]], [[1], [2], [3]]]
    path = zipped(tmp_path / "b.npz", values=values, bounds=[0, 1, 4], y=np.array([0, 1, 2, 3.5]))
    assert [target.tolist() for target in series([path]).targets or []] == [[[0]], [[1], [2], [3.5]]]
    assert [one.shape for one in series([zipped(path, x=np.ones((4, 5)), y=[1, 2, 3, 4])]).inputs] == [(5, 1)] * 4


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"z": X}, "holds the arrays z; wanted x [n, time, channels]"),
        ({"x": X[0, 0], "y": [0]}, "x is float32 of shape (2,); wanted numbers [n, time, channels]"),
        ({"x": X[None], "y": [0]}, "shape (1, 2, 3, 2)"),
        ({"x": np.array(["a", "b"]), "y": [0]}, "x is <U1"),
        ({"x": X.astype(complex), "y": [0, 1]}, "x is complex128"),
        ({"x": X[:0], "y": []}, "shape (0, 3, 2)"),
        ({"x": X}, "holds no labels"),
        ({"x": X, "y": [0, 1, 2]}, "y is int64 of shape (3,), which fits neither 2 sequences nor their steps (2, 3)"),
        ({"x": X, "y": [[0], [1]]}, "shape (2, 1)"),
        ({"x": X, "y": np.array(3)}, "shape ()"),
        ({"x": X, "y": [1j, 2]}, "y is complex128; wanted integers or strings"),
        ({"x": X, "y": [1.0, np.nan]}, "a.npz, row 2 has no label, or no finite number"),
        ({"x": X, "y": ["a", ""]}, "a.npz, row 2 has no label"),
        ({"x": X, "y": [["a", "b", "c"], ["a", "", "c"]]}, "a.npz, row 2, step 2 has no label"),
        ({"x": X, "y": [b"\xff", b"a"]}, "not UTF-8"),
        ({"x": np.where(X == 9, np.inf, X), "y": [0, 1]}, "a.npz, row 2, step 2: channel 2 is infinite"),
        ({"x": X, "y": [0, 1], "lengths": [1, 4]}, "lengths of shape (2,) do not fit; wanted 2 whole numbers up to 3"),
        ({"x": X, "y": [0, 1], "lengths": [1.0, 2]}, "lengths of shape (2,) do not fit"),
        ({"x": X, "y": [0, 1], "lengths": [-1, 2]}, "do not fit"),
        ({"x": X, "y": [0, 1], "lengths": [3]}, "lengths of shape (1,)"),
        ({"x": X, "y": [0, 1], "lengths": [3, 0]}, "a.npz, row 2 is a sequence of no steps"),
        ({"values": X[0], "y": [0]}, "do not cut the 3 steps"),
        ({"values": X[0], "bounds": [0, 2], "y": [0]}, "bounds of shape (2,) do not cut the 3 steps"),
        ({"values": X[0], "bounds": [0, 2, 1, 3], "y": [0, 1, 2]}, "rise from 0 to 3"),
        ({"values": X[0], "bounds": [0.0, 3], "y": [0]}, "do not cut"),
        ({"values": X[0], "offsets": [0, 0, 3], "y": [0, 1]}, "row 1 is a sequence of no steps"),
        ({"values": X, "bounds": [0, 2], "y": [0]}, "wanted numbers [total, channels]"),
    ],
)
def test_a_wrong_npz_is_refused_in_words(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    assert said in refusal(zipped(tmp_path / "a.npz", **arrays))


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["HARM"],)


def test_no_code_in_an_npz_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARM", str(tmp_path / "harm"))
    path = zipped(tmp_path / "a.npz", x=np.array([[Harmful()]], object), y=[0])
    assert "holds no arrays that can be read (Object arrays cannot be loaded" in refusal(path)
    assert not (tmp_path / "harm").exists()


def test_a_damaged_or_hostile_npz_is_refused(tmp_path: Path) -> None:
    whole = zipped(tmp_path / "a.npz", x=X, y=[0, 1]).read_bytes()
    flipped = whole[:150] + bytes(255 - byte for byte in whole[150:170]) + whole[170:]
    for content in (whole[:-30], whole[:50], flipped, b"text", b""):
        assert "holds no arrays that can be read" in refusal(write(tmp_path / "b.npz", content))
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": (1 << 50, 9)})
        archive.writestr("x.npy", head.getvalue())
    assert "holds no arrays that can be read" in refusal(tmp_path / "c.npz")
    assert "gone.npz cannot be read (No such file or directory)" in refusal(tmp_path / "gone.npz")


def test_an_npz_that_unfolds_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recurra.data.tables.BOMB_BYTES", 1000)
    monkeypatch.setattr("recurra.data.tables.BOMB_RATIO", 20)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((1000, 10, 1)), y=np.zeros(1000, int))
    assert "unfold to" in refusal(tmp_path / "a.npz")
    monkeypatch.setattr("recurra.data.tables.BOMB_BYTES", BOMB_BYTES)
    assert len(series([tmp_path / "a.npz"])) == 1000


# --- long tables --------------------------------------------------------------------------------------------------------


@REUSE
@given(some=sequences(), seed=st.integers(0, 99))
def test_the_order_of_rows_does_not_matter_and_a_change_is_said(tmp_path: Path, some: Sequences, seed: int) -> None:
    table = frame(some).with_row_index("row")
    mixed = table.sample(fraction=1, shuffle=True, seed=seed)
    mixed.drop("row").write_csv(tmp_path / "a.csv")
    found = series([tmp_path / "a.csv"])
    by_id = {f"s{number}": one for number, one in enumerate(some)}
    order = mixed["id"].unique(maintain_order=True).to_list()
    same(found, [by_id[name] for name in order])
    lines = dict(zip(mixed["id"].to_list()[::-1], range(len(mixed) + 1, 1, -1), strict=True))
    assert found.places == [f"{tmp_path}/a.csv:{lines[name]}" for name in order]
    moved = sum(mixed.filter(id=name)["time"].to_list() != list(range(len(by_id[name][0]))) for name in order)
    assert [note for note in found.notes if "order of time" in note] == [
        f"{tmp_path}/a.csv: the rows of {moved} sequences were put in the order of time"
    ] * bool(moved)


def test_labels_that_differ_are_of_steps(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id,t,v,class\n1,1,1,a\n1,2,2,b\n2,1,3,a\n")
    found = series([path])
    assert found.targets == [["a", "b"], ["a"]]
    assert any("every step, since they differ" in note for note in found.notes)
    assert any(
        "sequences are those of 'id', time is 't', label is 'class', features are v" in note for note in found.notes
    )
    assert "a.csv:3 has the label 'b', and " in refusal(path, each_step=False)
    path = write(tmp_path / "a.csv", "id,t,v,class\n1,1,1,a\n1,2,2,a\n2,1,3,b\n")
    assert series([path]).targets == [("a",), ("b",)]
    found = series([path], each_step=True)
    assert found.targets == [["a", "a"], ["b"]]
    assert any("every step, since they were asked for so" in note for note in found.notes)


def test_labels_with_a_decimal_point_are_numbers(tmp_path: Path) -> None:
    head = "id,t,v,y\n"
    found = series([write(tmp_path / "a.csv", head + "1,1,1,2\n2,1,2,0.5\n")])
    assert [target.tolist() for target in found.targets or []] == [[2], [0.5]]
    found = series([write(tmp_path / "a.csv", head + "1,1,1,2\n1,2,2,-1e-1\n2,1,2,3\n")])
    assert [target.tolist() for target in found.targets or []] == [[[2], [np.float32(-0.1)]], [[3]]]
    assert series([write(tmp_path / "a.csv", head + "1,1,1,2\n2,1,2,-05\n")]).targets == [("2",), ("-05",)]
    assert series([write(tmp_path / "a.csv", head + "1,1,1,2\n2,1,2,0.5x\n")]).targets == [("2",), ("0.5x",)]
    polars.DataFrame({"id": [1, 2], "t": [1, 1], "v": [1, 2], "y": [2.0, 3.0]}).write_parquet(tmp_path / "a.parquet")
    found = series([tmp_path / "a.parquet"])
    assert [target.tolist() for target in found.targets or []] == [[2], [3]]
    assert found.places[1] == f"{tmp_path}/a.parquet, row 2"


def test_the_kind_of_labels_is_decided_over_all_files(tmp_path: Path) -> None:
    one = write(tmp_path / "1.csv", "id,t,v,y\n1,1,1,2\n1,2,1,2\n")
    other = write(tmp_path / "2.csv", "y,id,v,t\n0.5,1,1,2\n1,1,1,3\n")
    found = series([one, other])
    assert [target.tolist() for target in found.targets or []] == [[[2], [2]], [[0.5], [1]]]
    assert any("1 ids are in several files" in note for note in found.notes)


def test_times_may_be_numbers_or_dates(tmp_path: Path) -> None:
    for later, earlier in [
        ("10", "9"),
        ("1.5", "-2e0"),
        ("1700000000000000001", "1700000000000000000"),
        ("2024-03-01 00:00:00", "2024-02-29"),
        ("2024-01-01T10:00:00+00:00", "2024-01-01T10:30:00+02:00"),
    ]:
        path = write(tmp_path / "a.csv", f"id,time,v,label\n1,{later},2,a\n1,{earlier},1,a\n")
        assert series([path]).inputs[0].tolist() == [[1], [2]]
    moments = ["2024-01-02", "2024-01-01"]
    table = polars.DataFrame({"id": [1, 1], "date": moments, "v": [2, 1], "label": ["a", "a"]})
    table.with_columns(polars.col("date").str.to_datetime()).write_parquet(tmp_path / "a.parquet")
    assert series([tmp_path / "a.parquet"]).inputs[0].tolist() == [[1], [2]]


def test_without_ids_a_file_is_a_sequence_and_without_times_rows_are_in_order(tmp_path: Path) -> None:
    one, other = (write(tmp_path / f"{n}.tsv", f"v\tlabel\n2\t{n}\n1\t{n}\n") for n in "ab")
    found = series([one, other])
    assert [x.tolist() for x in found.inputs] == [[[2], [1]], [[2], [1]]]
    assert found.targets == [("a",), ("b",)]
    assert found.notes[0] == (
        "each file is one sequence, steps are in the order of the rows, label is 'label', features are v"
    )


def test_names_are_told_apart_however_they_are_written(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", ' Unique_ID , "DS",X,y,Label\n1, 1 ,1,2, a \n')
    found = series([path])
    assert (found.channels, found.targets) == (["X", "y"], [("a",)])
    path = write(tmp_path / "a.csv", "id,time,x,y,z\n1,1,1,2,3\n")
    assert "no column holds labels among id, time, x, y, z; say which with --label" in refusal(path)
    assert series([path], wanted=False).channels == ["x", "y", "z"]
    assert series([path], label="x").targets == [("1",)]
    assert "no column 'w'; it has id, time, x, y, z" in refusal(path, UsageError, label="w")
    assert series([path], label="w", wanted=False).channels == ["x", "y", "z"]
    path = write(tmp_path / "a.csv", "id,time,x,label\n1,1,1,\n")
    found = series([path], wanted=False)
    assert (found.targets, found.channels) == (None, ["x"])


def test_columns_are_matched_by_name_across_files(tmp_path: Path) -> None:
    one = write(tmp_path / "1.csv", "id,t,b,a,label\n1,1,2,1,x\n")
    other = write(tmp_path / "2.csv", "a,b,id,t,label\n1,2,1,1,x\n")
    assert [x.tolist() for x in series([one, other]).inputs] == [[[2, 1]], [[2, 1]]]
    strange = write(tmp_path / "3.csv", "a,c,id,t,label\n1,2,1,1,x\n")
    with pytest.raises(DataError, match=r"3.csv has the 2 features a, c, and the first file the 2 features b, a"):
        series([one, strange])


LONG = "id,time,v,w,label\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LONG + "1,1,1,1,a\n1,2,x,1,a\n", "a.csv:3: 'x' is no number"),
        (LONG + '1,1,1,1,"a\nb"\n1,2,x,1,a\n', "a.csv:4: 'x' is no number"),
        (LONG + "1,1,1,1,a\n1,2,1,-inf,a\n", "a.csv:3: 'w' is infinite"),
        (LONG + "1,2,1,1,a\n1,1,1e40,1,a\n", "a.csv:3: 'v' is infinite or too large"),
        (LONG + "1,1,1,1,a\n1,2,1,1\n", "a.csv:3 has 4 cells, and there are 5 columns"),
        (LONG + "1,1,1,1,a,b\n", "a.csv:2 has 6 cells"),
        (LONG + "1,1,1,1,a\n2,1,1,1,a\n1,1.0,1,1,a\n", "a.csv:4 has the time of row 2 in the same sequence"),
        (LONG + ",1,1,1,a\n", "a.csv:2 has no 'id'"),
        (LONG + "1,1,1,1,a\n1,2,1,1,\n", "a.csv:3 has the label '', and "),
        (LONG + "1,1,1,1,\n", "a.csv:2 has no label"),
        (LONG + "1,1,1,1,a\n1,2,1,1,b\n2,1,1,1,\n", "a.csv:4 has no label"),
        (LONG + "1,1,1,1,a\n1,soon,1,1,a\n", "a.csv:3: the time 'soon' is not written as others"),
        (LONG + "1,1,1,1,a\n1,2024-01-01,1,1,a\n", "is not written as others"),
        (LONG + f"1,1,1,1,a\n1,{'9' * 400},1,1,a\n", "a.csv:3: the time '9999"),
        (LONG + "1,1.5,1,1,a\n1,soon,1,1,a\n", "a.csv:3: the time 'soon'"),
        (LONG + "1,,1,1,a\n", "a.csv:2: the time ''"),
        (LONG + "1,inf,1,1,a\n", "a.csv:2: the time 'inf'"),
        (LONG + "1,01/02/2024,1,1,a\n", "may be day/month or month/day"),
        (LONG, "has no row that can be read"),
        ("1,2,3\n4,5,6\n", "a.csv:1 holds 1, 2, 3; wanted the names"),
        ("id,time,v,v,label\n1,1,1,1,a\n", "two columns are called 'v'"),
        (",id,time,v,label\n0,1,1,1,a\n", "a column has no name"),
        ("id,time,label\n1,1,a\n", "no column holds features"),
        ("id;time;v;label\n1;1;1;a\n", "no column holds labels among id;time;v;label"),
        ("id,time,v\n1,1,1\n", "no column holds labels"),
        (LONG + '1,1,1,1,"a\n', "a.csv:2 is no row of a table (unexpected end of data)"),
        (LONG + '1,1,1,1,"a"b\n', "a.csv:2 is no row of a table"),
        (LONG.replace("\n", "\r") + "1,1,1,1,a\r", "a.csv:1 is no row of a table"),
        (LONG + "1,1,1,1," + "a" * 200_000, "a.csv:2 is no row of a table (field larger"),
        (LONG.encode() + b"1,1,1,1,\xe9\n", "(line 2) is not UTF-8"),
        (LONG.encode("utf-16"), "UTF-16"),
        ("\n\n", "holds nothing; wanted the names"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(tmp_path: Path, content: str | bytes, said: str) -> None:
    assert said in refusal(write(tmp_path / "a.csv", content))


def test_a_wrong_parquet_is_refused_in_words(tmp_path: Path) -> None:
    whole = as_parquet(tmp_path / "a.parquet", [(np.ones((9, 2)), "a")]).read_bytes()
    for content in (whole[:-20], whole[:9], b"text", b"", b"PAR1" + b"x" * 99 + b"PAR1"):
        assert "b.parquet is no whole Parquet file" in refusal(write(tmp_path / "b.parquet", content))
    polars.DataFrame({"id": [1], "v": [[1, 2]], "label": ["a"]}).write_parquet(tmp_path / "b.parquet")
    assert "b.parquet is no whole Parquet file of numbers and words (cannot cast List" in refusal(
        tmp_path / "b.parquet"
    )
    nothing = polars.DataFrame({"id": [1, 1], "v": [None, 2.5], "label": ["a", "a"]})
    nothing.write_parquet(tmp_path / "b.parquet")
    assert series([tmp_path / "b.parquet"]).inputs[0].tolist() == [[2.5], [2.5]]


# --- what all have in common --------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_passed_over_where_that_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ts", HEAD + "1:2:a\n1:b\n3:x:a\n4:5:b\n::a\n6:7:z\n")
    found = series([path], tolerant=True)
    assert [x.tolist() for x in found.inputs] == [[[1, 2]], [[4, 5]]]
    assert found.targets == [("a",), ("b",)]
    assert [problem.split()[0].rsplit(":")[1] for problem in found.problems] == ["6", "7", "9", "10"]
    assert len(series([path], tolerant=True, wanted=False)) == 3
    path = write(
        tmp_path / "a.csv", LONG + "1,1,1,1,a\n1,2,x,1,a\n1,3,3,3,a\n2,1,1,1,a\n2,1,1,1,a\n3,1,1,inf,b\n4,1,1,1,\n"
    )
    found = series([path], tolerant=True)
    assert [x.tolist() for x in found.inputs] == [[[1, 1], [3, 3]]]
    assert len(found.problems) == 4
    path = zipped(tmp_path / "a.npz", x=X, lengths=[0, 2], y=["a", "b"])
    found = series([path], tolerant=True)
    assert (found.targets, found.places) == ([("b",)], [f"{path}, row 2"])
    assert found.problems == [f"{path}, row 1 is a sequence of no steps; take it out"]
    path = write(tmp_path / "b.ts", HEAD + "1:b\n")
    assert "no sequence could be read: " in refusal(path, tolerant=True)


@pytest.mark.parametrize("tolerant", [False, True])
@pytest.mark.parametrize("name", ["a.ts", "padded.npz", "ragged.npz"])
def test_files_of_other_channels_are_refused_with_both(tmp_path: Path, name: str, tolerant: bool) -> None:
    one = WRITERS[name](tmp_path / name, [(np.ones((2, 2)), "a")])
    other = WRITERS[name](tmp_path / f"other-{name}", [(np.ones((2, 1)), "a")])
    with pytest.raises(DataError, match=rf"other-{name} has 1 channel and .*/{name} has 2"):
        series([one, other], tolerant=tolerant)


def test_files_that_tell_of_other_things_are_refused_with_both(tmp_path: Path) -> None:
    one, other = zipped(tmp_path / "1.npz", x=X, y=[0, 1]), zipped(tmp_path / "2.npz", x=X, y=[0.5, 1])
    with pytest.raises(
        DataError, match=r"2.npz holds 1 number \(floats\) for whole sequences and .*1.npz labels of whole"
    ):
        series([one, other])
    assert len(series([one, other], wanted=False)) == 4


def test_kinds_are_not_mixed_and_strange_ones_are_named(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, "x") for name in ("a.ts", "a.csv", "a.docx", "a.json", "a")]
    with pytest.raises(DataError, match=r"a.ts and .*a.csv are of two kinds"):
        series(paths[:2])
    for path in (paths[2], paths[4]):
        assert "is of no kind that holds sequences of numbers: wanted .ts, .npz, .csv" in refusal(path)
    assert ".jsonl" in refusal(paths[3])
    with pytest.raises(DataError, match="no data was given"):
        series([])


def test_a_hostile_name_is_printed_tamely(tmp_path: Path) -> None:
    name = os.fsdecode(b"a\x1b[2J\n\xe9.ts")
    message = refusal(write(tmp_path / name, HEAD + "1:a\n"))
    assert message.isprintable()
    message = refusal(write(tmp_path / "a.csv", "id,\x1b[2J,\n1,2,3\n"))
    assert message.isprintable() and "\\x1b[2J" in message
    found = series([write(tmp_path / name, HEAD + "1:2:a\n")])
    assert found.places[0].isprintable()


def test_tables_of_texts_are_no_series(tmp_path: Path) -> None:
    for content, wanted in [
        ("id,time,v,label\n1,1,2.5,a\n", True),
        ("time,v\n1,\n", True),
        ("id,text,label\n1,good film,a\n", False),
        ("text,label\ngood,1\n", False),
        ("v,label\n1,a\n", False),
        ("id,time\n1,1\n", False),
        ("1,2\n3,4\n", False),
        ('id,time,"v\n', False),
        ("", False),
    ]:
        path = write(tmp_path / "a.csv", content)
        assert is_series([path]) == wanted
        assert not is_series([path], text="v")
    assert not is_series([tmp_path / "a.txt"]) and not is_series([Path("synthetic:parity")])
    assert is_series([tmp_path / "a.flac"])


# --- recordings ---------------------------------------------------------------------------------------------------------


def recorded(path: Path, seconds: float, rate: int = 8000, seed: int = 0) -> Path:
    soundfile = pytest.importorskip("soundfile")
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(seed).normal(0, 0.1, round(seconds * rate)), rate)
    return path


def test_recordings_are_labelled_by_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(tmp_path / "set" / "yes" / "1.wav", 0.3)
    recorded(tmp_path / "set" / "no" / "deep.flac", 0.5)
    found = series(sources([tmp_path / "set"]))
    assert found.targets == [("no",), ("yes",)]
    assert found.places[0].endswith("set/no/deep.flac")
    assert [len(x) for x in found.inputs] == [48, 28]
    np.testing.assert_array_equal(found.inputs[1], log_mel(*read_sound(tmp_path / "set" / "yes" / "1.wav")))
    assert len(found.channels) == 40
    assert any("up to 4000 Hz" in note and "name of the folder" in note for note in found.notes)
    assert series(sources([tmp_path / "set"]), wanted=False).targets is None
    monkeypatch.chdir(tmp_path / "set" / "yes")
    assert series([Path("1.wav")]).targets == [("yes",)]


def test_recordings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    one, other = recorded(tmp_path / "a" / "1.wav", 0.1), recorded(tmp_path / "b" / "2.wav", 0.1, 16000)
    with pytest.raises(
        DataError, match=r"2.wav has 16000 samples a second and .*1.wav has 8000; bring all to one rate"
    ):
        series([one, other], tolerant=True)
    assert "few.wav has 1000 samples a second, too few for 40 bands" in refusal(recorded(tmp_path / "few.wav", 1, 1000))
    empty = recorded(tmp_path / "a" / "0.wav", 0)
    assert "0.wav is a sequence of no steps" in refusal(empty)
    broken = write(tmp_path / "a" / "bad.wav", b"text")
    assert "bad.wav is no recording" in refusal(broken)
    found = series([empty, broken, one], tolerant=True)
    assert (len(found), len(found.problems)) == (1, 2)


# --- real sets ----------------------------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.skipif(not (SHARED / "ucr").is_dir(), reason="the shared sets are not here")
@pytest.mark.parametrize(
    ("name", "train", "test", "channels", "classes", "lengths"),
    [
        ("JapaneseVowels", 270, 370, 12, 9, (7, 29)),
        ("BasicMotions", 40, 40, 6, 4, (100, 100)),
        ("ItalyPowerDemand", 67, 1029, 1, 2, (24, 24)),
        ("GunPoint", 50, 150, 1, 2, (150, 150)),
    ],
)
def test_the_sets_of_the_archive_are_read_whole(
    name: str, train: int, test: int, channels: int, classes: int, lengths: tuple[int, int]
) -> None:
    parts = [series([SHARED / "ucr" / f"{name}_{part}.ts.gz"]) for part in ("TRAIN", "TEST")]
    assert [len(part) for part in parts] == [train, test]
    inputs = [one for part in parts for one in part.inputs]
    assert {one.shape[1] for one in inputs} == {channels}
    assert (min(map(len, inputs)), max(map(len, inputs))) == lengths
    assert all(len(Counter(part.targets)) == classes for part in parts)


def test_half_characters_and_underscores_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((2, 3)), y=np.array(["\ud800", "a"]))
    assert "y holds what is not UTF-8" in refusal(tmp_path / "a.npz")
    assert "'1_000' is no number" in refusal(write(tmp_path / "a.csv", "id,time,x,label\na,1,1,p\na,2,1_000,p\n"))
