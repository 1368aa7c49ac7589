"""The page of the cells is made from the cells."""

from pathlib import Path

from recurra.bench import cells
from recurra.cells import CELLS

PAGE = Path(__file__).parent.parent / "docs" / "cells.md"


def test_the_page_shows_every_cell_as_its_docstring_does() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, kind in CELLS.items():
        told = cells.described(kind)
        assert f"## {name}\n\n{told['summary']}\n" in page, f"{name}: run `make docs`"
        assert "\n".join(["```", *told["equations"], "```"]) in page, f"{name}: run `make docs`"
        assert told["notes"] in page, f"{name}: run `make docs`"
        assert f"- parameters: `{told['formula']}`" in page, f"{name}: run `make docs`"
        assert f"- reference: {told['reference']}\n" in page, f"{name}: run `make docs`"


def test_the_bench_times_every_cell_and_counts_its_parameters() -> None:
    records = cells.compare(0.0, laws=False)
    assert [record["cell"] for record in records] == list(CELLS)
    assert all(record["milliseconds"] > 0 for record in records)
    assert [record["cell"] for record in records if not record["parameters"]] == ["reservoir"]  # it does not learn
    assert next(record for record in records if record["cell"] == "elman")["beside_elman"] == 1
    assert all(name in cells.table(records) for name in CELLS)
