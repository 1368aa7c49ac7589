"""Pictures and captions, read from tables, folders, zips and arrays that the tests write."""

import csv
import gzip
import io
import json
import lzma
import re
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.data import pictures as module
from recurra.data.examples import Examples
from recurra.data.pictures import captions
from recurra.errors import DataError, UsageError

Image = pytest.importorskip("PIL.Image")

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
RED, GREEN, BLUE, WHITE = (200, 30, 40), (20, 180, 60), (30, 60, 220), (255, 255, 255)


def plain(colour: Any, height: int = 8, width: int = 6, mode: str = "RGB") -> Any:
    return Image.new(mode, (width, height), colour)


def encoded(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def table(path: Path, rows: Sequence[Sequence[object]], names: Sequence[str] | None = ("image", "caption")) -> Path:
    """A table of the kind that its name says."""
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind == ".jsonl":
        content = "".join(json.dumps(dict(zip(names or (), row, strict=True))) + "\n" for row in rows).encode()
    elif kind == ".parquet":
        polars = pytest.importorskip("polars")
        polars.DataFrame(dict(zip(names or (), zip(*rows, strict=True), strict=True))).write_parquet(path)
        return path
    else:
        text = io.StringIO()
        writer = csv.writer(text, delimiter="\t" if kind == ".tsv" else ",", lineterminator="\n")
        writer.writerows([names, *rows] if names else rows)
        content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


ROWS = [("a/red.png", "a red picture"), ("green.png", "all green"), ("a/red.png", "nothing but red"), ("blue.png", "b")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a").mkdir()
    for name, colour in {"a/red.png": RED, "green.png": GREEN, "blue.png": BLUE}.items():
        (tmp_path / name).write_bytes(encoded(plain(colour)))
    return tmp_path


def only(examples: Examples, row: int, colour: tuple[int, int, int]) -> None:
    assert examples.inputs[row].dtype == np.uint8
    np.testing.assert_array_equal(examples.inputs[row], np.full((8, 6, 3), colour))


# --- tables and where their pictures are ---


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet", "t.csv.gz", "t.jsonl.gz"])
def test_rows_of_one_picture_are_captions_of_it(folder: Path, name: str) -> None:
    found = captions([table(folder / name, ROWS)])
    assert found.kind == "picture" and len(found) == 3 and not found.problems and found.heads is None
    assert found.targets == [("a red picture", "nothing but red"), ("all green",), ("b",)]
    for row, colour in enumerate((RED, GREEN, BLUE)):
        only(found, row, colour)
    first = 1 if "jsonl" in name or "parquet" in name else 2
    assert found.places == [f"{folder / name}:{line}" for line in (first, first + 1, first + 3)]


def test_a_folder_and_a_zip_hold_the_same(folder: Path) -> None:
    zipped = folder / "elsewhere.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        for name in ("a/red.png", "green.png", "blue.png"):
            archive.write(folder / name, name)
    there = table(folder / "t.csv", ROWS)
    (folder / "empty").mkdir()
    alone = table(folder / "empty" / "t.csv", ROWS)
    one, other = captions([there]), captions([zipped, alone])
    np.testing.assert_array_equal(one.inputs, other.inputs)
    assert one.targets == other.targets and one.notes == other.notes


def test_two_tables_with_a_zip_each_are_one_set(tmp_path: Path) -> None:
    paths = []
    for part, colour in (("x", RED), ("y", GREEN)):
        with zipfile.ZipFile(tmp_path / f"{part}.zip", "w") as archive:
            archive.writestr(f"{part}.png", encoded(plain(colour)))
        paths += [table(tmp_path / f"{part}.csv", [(f"{part}.png", f"this is {part}")]), tmp_path / f"{part}.zip"]
    found = captions(paths)
    assert found.targets == [("this is x",), ("this is y",)]
    only(found, 0, RED)
    only(found, 1, GREEN)


def test_the_same_name_in_two_folders_is_two_pictures(tmp_path: Path) -> None:
    tables = []
    for part, colour in (("x", RED), ("y", GREEN)):
        (tmp_path / part).mkdir()
        (tmp_path / part / "p.png").write_bytes(encoded(plain(colour)))
        tables.append(table(tmp_path / part / "t.csv", [("p.png", part)]))
    found = captions(tables)
    assert found.targets == [("x",), ("y",)]
    only(found, 1, GREEN)


def test_a_picture_of_a_zip_is_one_whatever_table_names_it(folder: Path) -> None:
    with zipfile.ZipFile(folder / "z.zip", "w") as archive:
        archive.write(folder / "blue.png", "p.png")
    found = captions(
        [table(folder / "t.csv", [("p.png", "1")]), table(folder / "a" / "t.csv", [("p.png", "2")]), folder / "z.zip"]
    )
    assert found.targets == [("1", "2")]


def test_each_picture_is_read_once_not_once_a_caption(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bytes] = []
    whole = module._decoded
    monkeypatch.setattr(module, "_decoded", lambda content: (calls.append(content), whole(content))[1])
    captions([table(folder / "t.csv", ROWS)])
    assert len(calls) == 3


def test_blanks_around_names_and_captions_do_not_count(folder: Path) -> None:
    assert captions([table(folder / "t.csv", [(" blue.png ", " b ")])]).targets == [("b",)]


def test_a_list_is_several_captions(folder: Path) -> None:
    found = captions([table(folder / "t.jsonl", [("blue.png", ["one", " two "]), ("green.png", "three")])])
    assert found.targets == [("one", "two"), ("three",)]


# --- which columns ---


@pytest.mark.parametrize(
    ("names", "row", "options"),
    [
        (("filename", "sentence"), ("blue.png", "b"), {}),
        (("Caption", "Path"), ("b", "blue.png"), {}),
        (("id", "imagen", "leyenda"), ("7", "blue.png", "b"), {}),
        (("file_name", "text", "split"), ("blue.png", "b", "train"), {}),
        (("image", "sentence", "label"), ("blue.png", "b", "true"), {}),
        (("what", "how", "why"), ("w", "blue.png", "b"), {"label": "why"}),
        (("image", "how", "why"), ("b", "blue.png", "w"), {"label": "1", "text": "2"}),
        (("image", "en", "es"), ("blue.png", "w", "b"), {"label": "es"}),
        (("image", "caption", "es"), ("blue.png", "w", "b"), {"label": "-1"}),
        (("image", "photo", "caption"), ("gone.png", "blue.png", "b"), {"text": "photo"}),
        (("image", "path"), ("b", "blue.png"), {"label": "image"}),
        (None, ("blue.png", "b"), {}),
        (None, ("b", "blue.png"), {}),
    ],
)
def test_columns_are_found(folder: Path, names: Any, row: Any, options: dict[str, str]) -> None:
    found = captions([table(folder / "t.csv", [row], names)], **options)
    assert found.targets == [("b",)]
    only(found, 0, BLUE)


@pytest.mark.parametrize(
    ("names", "row", "options", "words"),
    [
        (("what", "how"), ("x", "y"), {}, "which column names the pictures cannot be told"),
        (
            ("image", "en", "es"),
            ("blue.png", "x", "y"),
            {},
            "which column holds the captions cannot be told.*'es' such as 'y'",
        ),
        (("image", "caption"), ("blue.png", "x"), {"label": "fr"}, "no column 'fr'"),
        (("image", "caption"), ("blue.png", "x"), {"text": "photo"}, "no column 'photo'"),
        (("image", "caption"), ("blue.png", "x"), {"text": "1", "label": "image"}, "are both column 'image'"),
    ],
)
def test_columns_that_cannot_be_told_are_asked_for(
    folder: Path, names: Any, row: Any, options: Any, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        captions([table(folder / "t.csv", [row], names)], **options)


def test_what_was_understood_is_said(folder: Path) -> None:
    found = captions(
        [table(folder / "t.csv", [("blue.png", "b", "x")], ("image", "caption", "split")), folder / "LICENSE"]
    )
    assert found.notes == [
        "pictures are column 'image', captions are column 'caption'; not read: 'split'",
        "pictures are fitted into 8 x 6 pixels (height x width), with white beside them",
        f"not read: {folder / 'LICENSE'}",
    ]


# --- what is wrong with rows ---


def listed(folder: Path, *rows: tuple[str, Any], good: int = 0) -> Path:
    return table(folder / "t.jsonl", [*rows, *[("blue.png", f"blue {number}") for number in range(good)]])


PROBLEMS: list[tuple[str, Any, bytes | None, str]] = [
    ("gone.png", "x", None, "t.jsonl:1: gone.png is not there"),
    ("", "x", None, "t.jsonl:1 names no picture"),
    ("blue.png", " ", None, "t.jsonl:1 has no caption"),
    ("blue.png", [], None, "t.jsonl:1 has no caption"),
    ("a", "x", None, "t.jsonl:1: a is not there"),
    ("n" * 300 + ".png", "x", None, "n.png (cannot be read: File name too long|is not there)"),
    ("nul\0.png", "x", None, r"nul\\x00.png is not there"),
    ("bad.png", "x", b"no picture at all", "t.jsonl:1: bad.png cannot be read: it is none of PNG, JPEG"),
    ("bad.png", "x", b"", "t.jsonl:1: bad.png cannot be read: it is none of PNG"),
    ("bad.png", "x", encoded(plain(RED, 50, 50))[:90], "t.jsonl:1: bad.png cannot be read: "),
    (
        "bad.jpg",
        "x",
        encoded(Image.fromarray(noise(50, 50)), "JPEG")[:-100],
        "t.jsonl:1: bad.jpg cannot be read: .*truncated",
    ),
    ("bad.gif", "x", encoded(plain(RED, 50, 50), "GIF")[:-30], "t.jsonl:1: bad.gif cannot be read: "),
    (
        "bad.tif",
        "x",
        encoded(plain(0.5, mode="F"), "TIFF"),
        "t.jsonl:1: bad.tif cannot be read: its numbers are of mode F",
    ),
    ("bad.eps", "x", encoded(plain(RED), "EPS"), "t.jsonl:1: bad.eps cannot be read: it is none of PNG"),
]


@pytest.mark.parametrize(("name", "said", "content", "words"), PROBLEMS, ids=range(len(PROBLEMS)))
@pytest.mark.parametrize("tolerant", [False, True])
def test_what_cannot_be_used_is_left_out_and_listed(
    folder: Path, name: str, said: Any, content: bytes | None, words: str, tolerant: bool
) -> None:
    if content is not None:
        (folder / name).write_bytes(content)
    found = captions([listed(folder, (name, said), good=9)], tolerant=tolerant)
    assert found.targets == [tuple(f"blue {number}" for number in range(9))]
    only(found, 0, BLUE)
    (problem,) = found.problems
    assert re.search(words, problem), problem
    assert found.notes[-1] == f"1 of 10 rows are left out, the first: {problem}"


def test_more_than_a_tenth_is_refused_unless_that_is_tolerated(folder: Path) -> None:
    with pytest.raises(DataError, match=r"2 of 19 rows cannot be used: .*t.jsonl:1: x is not there; .*t.jsonl:2: y is"):
        captions([listed(folder, ("x", "1"), ("y", "2"), good=17)])
    assert len(captions([listed(folder, ("x", "1"), ("y", "2"), good=18)]).problems) == 2
    found = captions([listed(folder, ("x", "1"), ("y", "2"), good=1)], tolerant=True)
    assert found.targets == [("blue 0",)] and len(found.problems) == 2
    nothing = captions([listed(folder, ("x", "1"))], tolerant=True)
    assert len(nothing) == 0 and nothing.targets == [] and len(nothing.problems) == 1


def test_a_missing_picture_counts_with_all_its_captions_and_is_listed_once(folder: Path) -> None:
    with pytest.raises(DataError, match=r"^3 of 12 rows cannot be used: [^;]*gone.png is not there\. Names") as caught:
        captions([listed(folder, *[("gone.png", str(number)) for number in range(3)], good=9)])
    assert "t.jsonl:1" in str(caught.value)


def test_the_first_ten_are_listed(folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        captions([listed(folder, *[(f"{number}.png", "x") for number in range(14)])])
    assert "9.png is not there (and 4 more)" in str(caught.value) and "10.png" not in str(caught.value)


def test_lines_that_are_no_rows_are_refused_at_once(folder: Path) -> None:
    path = listed(folder, good=30)
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(DataError, match=r"t.jsonl:31 is no JSON"):
        captions([path])
    found = captions([path], tolerant=True)
    assert len(found) == 1 and "t.jsonl:31 is no JSON" in found.problems[0]


@pytest.mark.parametrize("content", ["image,caption\n", ""])
def test_a_table_of_nothing_is_refused(folder: Path, content: str) -> None:
    (folder / "t.csv").write_text(content)
    with pytest.raises(DataError, match=r"t.csv holds no row"):
        captions([folder / "t.csv"])


def test_a_picture_that_unfolds_without_measure_is_not_unfolded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 1000)
    for side, words in ((40, "exceeds limit of 1000 pixels"), (60, "exceeds limit of 2000 pixels")):
        (folder / "bomb.png").write_bytes(encoded(plain(RED, side, side)))
        found = captions([listed(folder, ("bomb.png", "x"), good=9)])
        assert "bomb.png cannot be read: Image size" in found.problems[0] and words in found.problems[0]


@pytest.mark.parametrize("zipped", [False, True])
def test_a_file_larger_than_any_picture_is_not_read(
    folder: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "large.png").write_bytes(bytes(9000))
    monkeypatch.setattr(module, "BYTES", 8999)
    paths = [listed(folder, ("large.png", "x"), good=9)]
    if zipped:
        with zipfile.ZipFile(folder / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("large.png", "blue.png"):
                archive.write(folder / name, name)
        paths.append(folder / "z.zip")
    (problem,) = captions(paths).problems
    assert problem.endswith("large.png cannot be read: it has 9000 bytes, and 8999 are the most")


def test_damage_in_a_zip_is_told_of_the_picture_and_of_the_zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "z.zip", "w") as archive:
        archive.write(folder / "blue.png", "blue.png")
        archive.writestr("bad.png", b"0123456789" * 20)
    content = (folder / "z.zip").read_bytes()
    (folder / "z.zip").write_bytes(content.replace(b"0123456789", b"0123456788", 1))
    path = listed(folder, ("bad.png", "x"), ("a/red.png", "y"), good=18)
    found = captions([path, folder / "z.zip"])
    assert "bad.png cannot be read: Bad CRC-32" in found.problems[0]
    assert found.problems[1].endswith("a/red.png is not in z.zip")
    (folder / "z.zip").write_bytes(content[:-30])
    with pytest.raises(DataError, match=r"z.zip is no zip that can be read"):
        captions([path, folder / "z.zip"])


# --- what pictures look like when they are read ---


def read(folder: Path, content: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
    (folder / "one").write_bytes(content)
    return captions([table(folder / "one.csv", [("one", "x")])], size=size).inputs[0]


def test_a_picture_of_that_size_is_read_to_the_bit(tmp_path: Path) -> None:
    pixels = noise(20, 30)
    for kind in ("PNG", "BMP", "PPM", "TIFF"):
        np.testing.assert_array_equal(read(tmp_path, encoded(Image.fromarray(pixels), kind)), pixels)


def test_grey_is_three_channels_alike(tmp_path: Path) -> None:
    pixels = noise(9, 7, 1)[..., 0]
    found = read(tmp_path, encoded(Image.fromarray(pixels)))
    np.testing.assert_array_equal(found, np.stack([pixels] * 3, -1))
    np.testing.assert_array_equal(read(tmp_path, encoded(Image.fromarray(pixels > 99))), found * 0 + 255 * (found > 99))
    deep = Image.fromarray(pixels.astype(np.uint16) * 256 + pixels[::-1])
    np.testing.assert_array_equal(read(tmp_path, encoded(deep)), found)
    np.testing.assert_array_equal(read(tmp_path, encoded(deep, "TIFF")), found)


def test_what_is_transparent_stands_on_white(tmp_path: Path) -> None:
    pixels = noise(11, 13, 4)
    share = pixels[..., 3:] / 255
    found = read(tmp_path, encoded(Image.fromarray(pixels)))
    assert abs(found - (share * pixels[..., :3] + (1 - share) * 255)).max() <= 1
    grey = read(tmp_path, encoded(Image.merge("LA", [Image.fromarray(pixels[..., channel]) for channel in (2, 3)])))
    assert abs(grey[..., 0] - (share * pixels[..., 2:3] + (1 - share) * 255)[..., 0]).max() <= 1


def test_palettes_have_their_colours_and_may_be_transparent(tmp_path: Path) -> None:
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    image = Image.fromarray(indices).convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette([*RED, *GREEN, *BLUE])
    colours = np.array([RED, GREEN, BLUE], np.uint8)[indices]
    for kind in ("PNG", "GIF"):
        np.testing.assert_array_equal(read(tmp_path, encoded(image, kind)), colours)
        clear = read(tmp_path, encoded(image, kind, transparency=1))
        np.testing.assert_array_equal(clear, np.where(indices[..., None] == 1, 255, colours))


def test_a_jpeg_is_near_and_one_of_print_has_its_colours(tmp_path: Path) -> None:
    assert abs(read(tmp_path, encoded(plain(RED), "JPEG")).astype(int) - RED).max() <= 3
    found = read(tmp_path, encoded(plain((0, 255, 255, 0), mode="CMYK"), "JPEG"))
    assert abs(found.astype(int) - (255, 0, 0)).max() <= 3


def test_of_an_animation_the_first_frame_is_read(tmp_path: Path) -> None:
    frames = [plain(colour) for colour in (RED, GREEN, BLUE)]
    found = read(tmp_path, encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    np.testing.assert_array_equal(found, np.full((8, 6, 3), RED))


def test_photographs_are_turned_as_they_say(tmp_path: Path) -> None:
    pixels = noise(16, 24)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the top of the scene is the right side of the file
    found = read(tmp_path, encoded(Image.fromarray(pixels), "PNG", exif=exif))
    np.testing.assert_array_equal(found, np.rot90(pixels, -1))


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(100, 400, (32, 128)), (300, 200, (128, 85)), (128, 20, (128, 20)), (1, 900, (1, 128))],
)
def test_the_first_picture_says_the_size_but_at_most_128(
    tmp_path: Path, height: int, width: int, size: tuple[int, int]
) -> None:
    assert read(tmp_path, encoded(plain(RED, height, width))).shape == (*size, 3)


def test_one_that_cannot_be_read_says_no_size(folder: Path) -> None:
    assert captions([listed(folder, ("x", "1"), ("blue.png", "2"))], tolerant=True).inputs[0].shape == (8, 6, 3)


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(1, 60)] * 4))
def test_others_are_fitted_in_the_middle_on_white(
    tmp_path_factory: pytest.TempPathFactory, sides: tuple[int, ...]
) -> None:
    """A red picture gives a red rectangle that touches two opposite sides, has its proportions and lies in the middle."""
    height, width, tall, wide = sides
    found = read(tmp_path_factory.mktemp("p"), encoded(plain(RED, height, width)), size=(tall, wide))
    assert found.shape == (tall, wide, 3)
    rows, columns = (np.flatnonzero((found == RED).all(2).any(axis)) for axis in (1, 0))
    inner = len(rows), len(columns)
    scale = min(tall / height, wide / width)
    assert inner == (max(1, round(scale * height)), max(1, round(scale * width)))
    assert (inner[0] == tall) or (inner[1] == wide)
    assert rows[0] == (tall - inner[0]) // 2 and columns[0] == (wide - inner[1]) // 2
    assert (found == RED).all(2).sum() == inner[0] * inner[1]
    assert (found == WHITE).all(2).sum() == tall * wide - inner[0] * inner[1]


def test_a_picture_made_smaller_has_the_means_of_its_pixels(tmp_path: Path) -> None:
    pixels = np.kron(noise(8, 8), np.ones((16, 16, 1), np.uint8))
    small = read(tmp_path, encoded(Image.fromarray(pixels)), size=(2, 2))
    means = pixels.reshape(2, 64, 2, 64, 3).mean((1, 3))
    assert abs(small - means).max() < 25, "bicubic weights reach a little over the border"


# --- pictures without captions ---


def test_captions_that_are_not_wanted_are_passed_over(folder: Path) -> None:
    rows = [("blue.png", ""), ("green.png", "g"), ("blue.png", "b")]
    found = captions([table(folder / "t.csv", rows)], wanted=False)
    assert found.targets is None and len(found) == 2
    only(found, 0, BLUE)
    assert len(captions([table(folder / "t.csv", [["blue.png"]], ["image"])], wanted=False, label="caption")) == 1


def test_pictures_alone_are_read_where_captions_are_not_wanted(folder: Path) -> None:
    (folder / "bad.png").write_bytes(b"")
    found = captions([folder / "green.png", folder / "bad.png", folder / "a" / "red.png"], wanted=False, tolerant=True)
    assert found.places == [str(folder / "green.png"), str(folder / "a" / "red.png")]
    only(found, 1, RED)
    assert found.problems == [
        f"{folder / 'bad.png'} cannot be read: it is none of PNG, JPEG, GIF, BMP, PPM, TIFF, WEBP"
    ]
    with pytest.raises(DataError, match="no table is among what was given"):
        captions([folder / "green.png"])


def test_beside_a_table_pictures_are_those_that_it_names(folder: Path) -> None:
    path = table(folder / "t.csv", ROWS[:1])
    assert len(captions([path, folder / "green.png", folder / "a" / "red.png"])) == 1


def test_without_pillow_the_remedy_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError, match=r"pip install 'recurra\[vision\]'"):
        captions([table(folder / "t.csv", ROWS)])


# --- features ---


def saved(path: Path, values: np.ndarray) -> Path:
    content = io.BytesIO()
    (np.savez if ".npz" in path.name else np.save)(content, values)
    pack: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".xz": lzma.compress}
    path.write_bytes(pack.get(path.suffix, bytes)(content.getvalue()))
    return path


def told(folder: Path, count: int, name: str = "t.tsv") -> Path:
    return table(folder / name, [(number, f"{name} {number}") for number in range(count)], ("code", "caption"))


@pytest.mark.parametrize("name", ["f.npy", "f.npz", "f.npy.xz", "f.npy.gz"])
@pytest.mark.parametrize("shape", [(5, 3), (5, 4, 3)])
@pytest.mark.parametrize("kind", [np.float16, np.float64, np.int32])
def test_features_go_with_the_rows_of_their_numbers(
    tmp_path: Path, name: str, shape: tuple[int, ...], kind: Any
) -> None:
    values = (10 * np.random.default_rng(0).standard_normal(shape)).astype(kind)
    found = captions([saved(tmp_path / name, values), told(tmp_path, 5)])
    assert found.kind == "series" and found.targets == [(f"t.tsv {number}",) for number in range(5)]
    assert found.places == [f"{tmp_path / 't.tsv'}:{line}" for line in range(2, 7)]
    assert all(one.dtype == np.float32 for one in found.inputs)
    np.testing.assert_array_equal(found.inputs, values.reshape(5, -1, 3).astype(np.float32))


def test_rows_that_are_left_out_take_their_features_with_them(tmp_path: Path) -> None:
    values = np.arange(40, dtype=np.float32).reshape(20, 2)
    path = table(tmp_path / "t.jsonl", [(f"c {number}" if number != 3 else "",) for number in range(20)], ("caption",))
    path.write_text(path.read_text().replace('{"caption": "c 7"}', "{"))
    found = captions([path, saved(tmp_path / "f.npy", values)], tolerant=True)
    assert len(found) == 18 and len(found.problems) == 2
    for one, (said,) in zip(found.inputs, found.targets or [], strict=True):
        np.testing.assert_array_equal(one, values[int(said.split()[1])][None])


def test_two_tables_have_two_arrays_in_their_order(tmp_path: Path) -> None:
    arrays = [saved(tmp_path / f"{count}.npy", np.full((count, 2), count)) for count in (2, 3)]
    tables = [told(tmp_path, count, f"{count}.tsv") for count in (2, 3)]
    found = captions([tables[0], *arrays, tables[1]])
    assert [int(one[0, 0]) for one in found.inputs] == [2, 2, 3, 3, 3]
    assert [said for (said,) in found.targets or []] == ["2.tsv 0", "2.tsv 1", "3.tsv 0", "3.tsv 1", "3.tsv 2"]
    with pytest.raises(DataError, match=r"2.tsv has 2 rows and .*3.npy the features of 3 images"):
        captions([*tables, *reversed(arrays)])
    with pytest.raises(DataError, match="2 tables were given and 1 arrays"):
        captions([*tables, arrays[0]])


def test_features_alone_are_read_where_captions_are_not_wanted(tmp_path: Path) -> None:
    found = captions([saved(tmp_path / "f.npy", np.ones((3, 2)))], wanted=False)
    assert found.targets is None and found.places == [f"{tmp_path / 'f.npy'}:{number}" for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.ones(5), r"holds float64 \[5\], wanted numbers \[images, size\]"),
        (np.ones((5, 0)), "wanted numbers"),
        (np.ones((5, 2), bool), "holds bool"),
        (np.full((5, 2), "x"), "wanted numbers"),
        (np.array([[1, 2]] * 3 + [[np.nan, 1]] + [[1, 1]]), "image 4 has a feature that is not finite"),
        (np.full((5, 2), 1e300), "image 1 has a feature that is not finite"),
        (np.ones((4, 2)), "has 5 rows and .* the features of 4 images"),
    ],
)
def test_arrays_that_are_no_features_are_refused(tmp_path: Path, values: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        captions([told(tmp_path, 5), saved(tmp_path / "f.npy", values)])


def test_arrays_of_two_sizes_do_not_go_together(tmp_path: Path) -> None:
    arrays = [saved(tmp_path / "a.npy", np.ones((2, 5))), saved(tmp_path / "b.npy", np.ones((2, 4, 5)))]
    with pytest.raises(DataError, match=r"b.npy has 4 x 5 numbers an image and .*a.npy has 1 x 5"):
        captions([told(tmp_path, 2, "x.tsv"), told(tmp_path, 2, "y.tsv"), *arrays])
    content = io.BytesIO()
    np.savez(content, one=np.ones((2, 5)), two=np.ones((2, 5)))
    (tmp_path / "c.npz").write_bytes(content.getvalue())
    with pytest.raises(DataError, match="holds the arrays one, two"):
        captions([told(tmp_path, 2), tmp_path / "c.npz"])


# --- real sets ---


@pytest.mark.shared
def test_real_sets_have_the_counts_of_their_sources() -> None:
    if not (SHARED / "nlvr-captions").exists():
        pytest.skip("the shared data sets are absent")
    found = captions([SHARED / "nlvr-captions" / name for name in ("dev.jsonl.gz", "dev-images.zip")])
    assert len(found) == 989 and found.inputs[0].shape == (32, 128, 3) and not found.problems
    emoji = [SHARED / "emoji-captions" / name for name in ("captions.tsv.gz", "effnetlite0-pooled.npy.xz")]
    found = captions(emoji, label="es")
    assert len(found) == 3786 and found.inputs[0].shape == (1, 1280) and found.targets[0] == ("Teclas: #",)  # type: ignore[index]
    with pytest.raises(UsageError, match="which column holds the captions cannot be told"):
        captions(emoji)
