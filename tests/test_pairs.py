"""Pairs of texts, from one table or from two files."""

import gzip
import json
from pathlib import Path

import pytest

from recurra.data.examples import Examples
from recurra.data.pairs import pairs
from recurra.errors import DataError

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
SIDES = [("a dog", "un perro"), ("the cat", "el gato"), ("a dog and a cat", "un perro, un gato")]


def two(folder: Path, one: str, other: str) -> list[Path]:
    paths = [folder / "x.en", folder / "x.es"]
    for path, content in zip(paths, (one, other), strict=True):
        path.write_text(content, encoding="utf-8", newline="")
    return paths


def read(path: Path, content: str, **options: str | bool) -> Examples:
    data = content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return pairs([path], **options)  # type: ignore[arg-type]


def test_two_files_and_a_table_give_the_same_pairs(tmp_path: Path) -> None:
    sides = ["a dog\nthe cat\n", "un perro\r\nel gato"]
    found = pairs(two(tmp_path, *sides))
    table = read(tmp_path / "x.tsv", "en\tes\na dog\tun perro\nthe cat\tel gato\n", text="en", label="es")
    assert found.inputs == table.inputs == ["a dog", "the cat"]
    assert found.targets == table.targets == [("un perro",), ("el gato",)]
    assert found.places == [f"{tmp_path / 'x.en'}:1", f"{tmp_path / 'x.en'}:2"]


@pytest.mark.parametrize("pack", ["", ".gz"])
@pytest.mark.parametrize(
    ("kind", "row", "columns"),
    [
        ("tsv", "{0}\t{1}", ("1", "2")),
        ("tsv", "{0}\t{1}", ("-2", "-1")),
        ("tsv", "package\t{1}\t{0}", ("3", "2")),
        ("tsv", "package\tpara\t{0}\t{1}", ("3", "4")),
        ("csv", '"{0}","{1}"', ("1", "2")),
    ],
)
def test_columns_of_a_table_without_names_are_numbered(
    tmp_path: Path, kind: str, row: str, columns: tuple[str, str], pack: str
) -> None:
    content = "".join(row.format(*pair) + "\n" for pair in SIDES)
    found = read(tmp_path / f"x.{kind}{pack}", content, text=columns[0], label=columns[1])
    assert list(zip(found.inputs, found.targets or [], strict=True)) == [(one, (other,)) for one, other in SIDES]
    assert "there is no line of names: columns are numbered" in found.notes


def test_columns_with_names_may_be_told_by_them(tmp_path: Path) -> None:
    csv = "id,en,es\n" + "".join(f'{at},"{one}","{other}"\n' for at, (one, other) in enumerate(SIDES))
    jsonl = "".join(json.dumps({"es": other, "en": one}) + "\n" for one, other in SIDES)
    for name, content in (("x.csv", csv), ("x.csv.gz", csv), ("x.jsonl", jsonl), ("x.ndjson.gz", jsonl)):
        found = read(tmp_path / name, content, text="en", label="es")
        assert list(zip(found.inputs, found.targets or [], strict=True)) == [(one, (other,)) for one, other in SIDES]


def test_a_list_of_targets_is_several_and_an_empty_one_is_none(tmp_path: Path) -> None:
    content = '{"en": "a", "es": ["x", "y"]}\n{"en": "b", "es": []}\n{"en": "c", "es": "z"}\n'
    found = read(tmp_path / "x.jsonl", content, text="en", label="es", tolerant=True)
    assert (found.inputs, found.targets) == (["a", "c"], [("x", "y"), ("z",)])
    assert found.problems == [f"{tmp_path / 'x.jsonl'}:2 has an empty list of targets"]
    with pytest.raises(DataError, match=r"x.jsonl:2 has an empty list of targets"):
        pairs([tmp_path / "x.jsonl"], text="en", label="es")


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ("a\nb\nc\n", "x\ny\n", ["x.en has 3 lines", "x.es has 2", "x.en:3 has no partner"]),
        ("a\n", "x\ny\n", ["x.es:2 has no partner"]),
        ("a\n\nc\n", "x\ny\nz\n", ["x.en:2 is empty"]),
        ("a\nb\n", "x\n \n", ["x.es:2 is empty"]),
    ],
)
def test_sides_that_do_not_go_together_are_refused(one: str, other: str, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        pairs(two(tmp_path, one, other))
    assert all(word in str(caught.value) for word in words), caught.value


def test_empty_sides_are_passed_over_where_that_is_asked_for(tmp_path: Path) -> None:
    found = pairs(two(tmp_path, "a\n\nc\n", "x\ny\n\n"), tolerant=True)
    assert found.inputs == ["a"] and len(found.problems) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a\tx\nb\ty\tz\nc\tw\n", "x.tsv:2 has 3 columns, and the first row has 2"),
        ("a\tx\nb\nc\tw\n", "x.tsv:2 has 1 columns, and the first row has 2"),
        ("a\tx\nb\ty\n\tw\n", "x.tsv:3 has no text"),
        ("a\tx\nb\ty\nc\t \n", "x.tsv:3 has no label"),
    ],
)
def test_a_row_of_a_table_that_is_no_pair_is_said_with_its_line(content: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        read(tmp_path / "x.tsv", content, text="1", label="2")


@pytest.mark.parametrize("count", [1, 3])
def test_files_that_are_not_two_are_no_pairs_and_the_remedy_is_said(tmp_path: Path, count: int) -> None:
    with pytest.raises(DataError, match=f"^{count} files of plain text were given .* --valid val.de --valid val.en$"):
        pairs((two(tmp_path, "a\n", "b\n") * 2)[:count])


@pytest.mark.parametrize(("copies", "noted"), [(0, False), (1, False), (2, True), (9, True)])
def test_copies_are_noted_where_they_are_more_than_a_tenth(tmp_path: Path, copies: int, noted: bool) -> None:
    told = [(f"a {at}", f"a {at}" if at < copies else f"b {at}") for at in range(10)]
    table = read(tmp_path / "x.tsv", "".join(f"{one} \t {other}\n" for one, other in told), text="1", label="2")
    files = pairs(two(tmp_path, *("".join(f" {side}\n" for side in some) for some in zip(*told, strict=True))))
    said = f"{copies} of 10 targets are a copy of their source: are these the columns?"
    assert (said in table.notes, said in files.notes) == (noted, noted)
    assert len(table) == len(files) == 10


def test_a_side_given_twice_is_refused(tmp_path: Path) -> None:
    content = "".join(f"{at}\ta {at}\ta {at}\n" for at in range(10))
    with pytest.raises(DataError, match=r"10 of 10 targets are a copy of their source, the first at .*x.tsv:1"):
        read(tmp_path / "x.tsv", content, text="2", label="3")
    with pytest.raises(DataError, match=r"2 of 2 targets are a copy"):
        pairs([two(tmp_path, "a\nb\n", "")[0]] * 2)


def test_to_predict_one_side_is_enough(tmp_path: Path) -> None:
    found = read(tmp_path / "x.tsv", "en\tes\na dog\ta dog\n", text="en", wanted=False)
    assert found.inputs == ["a dog"] and found.targets is None
    lines = pairs(two(tmp_path, "a\nb\n", "")[:1], wanted=False)
    assert lines.inputs == ["a", "b"] and lines.targets is None


@pytest.mark.shared
@pytest.mark.parametrize(
    ("names", "columns", "count", "first"),
    [
        (["tatoeba-en-es/test.tsv.gz"], ("1", "2"), 2_965, ("Why me?", "¿Por qué yo?")),
        (["chatterbot-pairs/pt.tsv.gz"], ("2", "3"), 452, ("você é linda", "eu sei")),
        (
            ["multi30k-en-de/val.en.gz", "multi30k-en-de/val.de.gz"],
            (None, None),
            1_014,
            (
                "A group of men are loading cotton onto a truck",
                "Eine Gruppe von Männern lädt Baumwolle auf einen Lastwagen",
            ),
        ),
        (
            ["debian-descriptions/summary-en.valid.tsv.gz"],
            ("3", "2"),
            1_109,
            (
                "A VPN daemon that has many features of OpenVPN and Tinc and is optimized for small code size and small number of "
                "dependencies. Fastd became popular on small devices like routers.",
                "Fast and Secure Tunneling Daemon",
            ),
        ),
    ],
)
def test_real_pairs_have_the_counts_of_their_source(
    names: list[str], columns: tuple[str | None, str | None], count: int, first: tuple[str, str]
) -> None:
    if not (SHARED / names[0]).exists():
        pytest.skip("the shared data sets are absent")
    found = pairs([SHARED / name for name in names], text=columns[0], label=columns[1])
    assert len(found) == count and found.targets is not None
    assert (found.inputs[0], *found.targets[0]) == first


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "Hi.\tHola.\nI am.\tSoy.\nGo.\tVe.\n"),
        ("a.csv", "Hi.,Hola.\nI am.,Soy.\nGo.,Ve.\n"),
        ("a.csv", "text,translation\nHi.,Hola.\nI am.,Soy.\nGo.,Ve.\n"),
        ("a.csv", "target,source\nHola.,Hi.\nSoy.,I am.\nVe.,Go.\n"),
        (
            "a.jsonl",
            "".join(
                f'{{"en": "{a}", "es": "{b}"}}\n' for a, b in [("Hi.", "Hola."), ("I am.", "Soy."), ("Go.", "Ve.")]
            ),
        ),
    ],
)
def test_of_two_columns_the_first_is_the_source(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    found = pairs([tmp_path / name])
    assert found.inputs == ["Hi.", "I am.", "Go."] and found.targets == [("Hola.",), ("Soy.",), ("Ve.",)]
