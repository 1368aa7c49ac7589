"""Files -> pairs of texts: a table with a column for each side, or a file for each side."""

from collections.abc import Sequence
from pathlib import Path

from recurra.data.examples import Examples
from recurra.data.labelled import kind_of, labelled, numbered, settle
from recurra.data.read import shown
from recurra.errors import DataError

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


def pairs(
    paths: Sequence[Path],
    *,
    text: str | None = None,
    label: str | None = None,
    wanted: bool = True,
    tolerant: bool = False,
) -> Examples:
    """The texts of one side as inputs and, where they are `wanted`, those of the other as targets.

    Tables are read as `labelled` reads them, with `text` and `label` the columns of the two sides. Two other files are the two
    sides, line by line, the source first. Raises DataError where they have not the same number of lines, where a side is empty
    (with `tolerant` such pairs are left out and noted in `problems`), and what `labelled` raises.
    """
    if not wanted or kind_of(Path(paths[0])) in TABLES:
        return labelled(paths, text=text, label=label, wanted=wanted, tolerant=tolerant)
    if len(paths) != 2:
        raise DataError(
            f"{len(paths)} files of plain text were given ({shown(paths[0])} first), wanted two: the sources, and the same "
            "number of lines of targets; or a table with both"
        )
    sides = [numbered(Path(path)) for path in paths]
    if len(sides[0]) != len(sides[1]):
        longer = paths[int(len(sides[1]) > len(sides[0]))]
        raise DataError(
            f"{shown(paths[0])} has {len(sides[0])} lines and {shown(paths[1])} has {len(sides[1])}: "
            f"{shown(longer)}:{min(map(len, sides)) + 1} has no partner; wanted as many lines in both"
        )
    rows = [(line, one.strip(), other.strip()) for (line, one), (_, other) in zip(*sides, strict=True)]
    problems = [f"{shown(paths[int(bool(one))])}:{line} is empty" for line, one, other in rows if not (one and other)]
    settle(problems, tolerant)
    kept = [row for row in rows if row[1] and row[2]]
    return Examples(
        "text",
        [one for _, one, _ in kept],
        [(other,) for _, _, other in kept],
        None,
        [f"{shown(paths[0])}:{line}" for line, _, _ in kept],
        notes=[f"each line of {shown(paths[0])} goes with the same line of {shown(paths[1])}"],
        problems=problems,
    )
