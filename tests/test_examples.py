"""Every example runs, and the public names are what they say."""

import runpy
from pathlib import Path

import pytest

import recurra

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path, capsys) -> None:
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_hello_learns_ello(capsys) -> None:
    runpy.run_path(str(EXAMPLES[0].parent / "hello.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.rsplit(" ", 1)[1] for line in lines] == list("ello")


def test_every_public_name_is_importable() -> None:
    for name in recurra.__all__:
        assert getattr(recurra, name) is not None
    with pytest.raises(AttributeError):
        _ = recurra.no_such_name
