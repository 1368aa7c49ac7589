"""Pairs of texts, from one table or from two files."""

from pathlib import Path

import pytest

from recurra.data.pairs import pairs
from recurra.errors import DataError


def two(folder: Path, one: str, other: str) -> list[Path]:
    paths = [folder / "x.en", folder / "x.es"]
    for path, content in zip(paths, (one, other), strict=True):
        path.write_text(content, encoding="utf-8", newline="")
    return paths


def test_two_files_and_a_table_give_the_same_pairs(tmp_path: Path) -> None:
    sides = ["a dog\nthe cat\n", "un perro\r\nel gato"]
    found = pairs(two(tmp_path, *sides))
    (tmp_path / "x.tsv").write_text("en\tes\na dog\tun perro\nthe cat\tel gato\n")
    table = pairs([tmp_path / "x.tsv"], text="en", label="es")
    assert found.inputs == table.inputs == ["a dog", "the cat"]
    assert found.targets == table.targets == [("un perro",), ("el gato",)]
    assert found.places == [f"{tmp_path / 'x.en'}:1", f"{tmp_path / 'x.en'}:2"]


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


def test_one_file_of_plain_text_is_no_pair(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 files of plain text were given"):
        pairs(two(tmp_path, "a\n", "b\n")[:1])
