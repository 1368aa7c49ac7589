"""Files -> pairs of texts: a table with a column for each side, a file for each side, or dialogues."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from recurra.data.dialogues import CONTEXT, Speaker, dialogues, turns_column
from recurra.data.examples import Examples
from recurra.data.labelled import JSON_LINES, TABLES, kind_of, labelled, numbered, settle
from recurra.data.read import shown
from recurra.errors import DataError, UsageError

SOME_COPIES, MOST_COPIES = 0.1, 0.9  # of the pairs: more are said, more are refused


def pairs(
    paths: Sequence[Path],
    *,
    text: str | None = None,
    label: str | None = None,
    context: int | None = None,
    speaker: Speaker | None = None,
    wanted: bool = True,
    tolerant: bool = False,
) -> Examples:
    """The texts of one side as inputs and, where they are `wanted`, those of the other as targets: one for each, or several where
    a table has a list of them.

    Tables are read as `labelled` reads them, with `text` and `label` the columns of the two sides; of two columns, the first is the
    source. A `.jsonl` file with lists
    of turns under `text`, or under a usual name where neither is said, is read as `dialogues` reads it, with `context` turns (2)
    and targets of one `speaker` or all. Two other files are the two sides, line by line, the source first.

    Raises DataError where two files have not the same number of lines, where a side is empty (with `tolerant` such pairs are
    left out and noted in `problems`), where more than nine tenths of the targets are a copy of their source, and what
    `labelled` and `dialogues` raise; UsageError where `context` or `speaker` is given for targets that are no turns, or `label`
    for turns.
    """
    kind = kind_of(Path(paths[0]))
    column = turns_column(Path(paths[0]), text) if kind in JSON_LINES and (text or not label) else None
    if column is not None:
        if label is not None and wanted:
            raise UsageError(
                f"{shown(paths[0])}: label was given as {label!r}, and {column!r} holds turns, which are both sides: leave "
                "label out, or name a column of texts as text"
            )
        turns = CONTEXT if context is None else context
        return dialogues(paths, column, context=turns, speaker=speaker, wanted=wanted, tolerant=tolerant)
    if wanted and (context is not None or speaker is not None):
        raise UsageError(
            f"{shown(paths[0])} holds no dialogues, and context and speaker are for them: leave both out, or give a .jsonl file "
            "with a list of turns in each object, and name its column with --text"
        )
    if not wanted:
        return labelled(paths, text=text, label=label, wanted=False, tolerant=tolerant, pairs=True)
    if kind in TABLES:
        return _distinct(
            paths, _filled(labelled(paths, text=text, label=label, tolerant=tolerant, pairs=True), tolerant)
        )
    return _distinct(paths, _side_by_side(paths, tolerant))


def _side_by_side(paths: Sequence[Path], tolerant: bool) -> Examples:
    """The lines of one file with those of the other."""
    if len(paths) != 2:
        raise DataError(
            f"{len(paths)} files of plain text were given ({shown(paths[0])} first), wanted two: the sources, and the same "
            "number of lines of targets; or a table with both (.tsv, .csv, .jsonl). Of training, each wants its own option: "
            "--valid val.de --valid val.en"
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


def _filled(found: Examples, tolerant: bool) -> Examples:
    """Without the rows that have an empty list of targets, which is well as a list of labels."""
    rows = [row for row, texts in enumerate(found.targets or ()) if texts]
    if len(rows) == len(found):
        return found
    empty = [
        f"{place} has an empty list of targets"
        for place, texts in zip(found.places, found.targets or (), strict=True)
        if not texts
    ]
    settle(empty, tolerant)
    return replace(found.take(rows), problems=found.problems + empty)


def _distinct(paths: Sequence[Path], found: Examples) -> Examples:
    """The same pairs, with a note where many targets are a copy of their source. Raises DataError where nearly all are."""
    copies = [
        row
        for row, (source, texts) in enumerate(zip(found.inputs, found.targets or (), strict=True))
        if source.strip() in texts
    ]
    said = f"{len(copies):,} of {len(found):,} targets are a copy of their source"
    if len(copies) > MOST_COPIES * len(found):
        raise DataError(
            f"{shown(paths[0])}: {said}, the first at {found.places[copies[0]]}: are these the columns? Name two that differ, with "
            "--text and --label, or give two files that differ"
        )
    if len(copies) > SOME_COPIES * len(found):
        return replace(found, notes=[*found.notes, f"{said}: are these the columns?"])
    return found
