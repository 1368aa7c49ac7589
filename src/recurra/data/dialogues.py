"""Dialogues -> pairs: what was said last, and what is said next."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from recurra.data.examples import Examples
from recurra.data.labelled import JSON_LINES, counted, kind_of, objects, settle
from recurra.data.read import shown
from recurra.errors import DataError, UsageError

COLUMNS = ("turns", "dialogue", "dialog", "conversation")
CONTEXT = 2  # turns
SAID = ("text", "utterance", "content", "message", "value")  # what a turn that is an object calls its text
BY = ("speaker", "role", "from", "author", "agent")  # and who says it

Speaker = Literal["first", "second"]


class Turn(NamedTuple):
    number: int  # from 1
    text: str  # in one line; empty where nothing is said
    speaker: str | None  # None: it does not say


def dialogues(
    paths: Sequence[Path],
    column: str = COLUMNS[0],
    *,
    context: int = CONTEXT,
    speaker: Speaker | None = None,
    wanted: bool = True,
    tolerant: bool = False,
) -> Examples:
    """Each turn but the first of a dialogue as a target, and the `context` turns before it, or what there is of them, as its
    source: one a line, white space inside a turn made single blanks.

    A file has a JSON object a line, which holds under `column` a list of turns: texts, or objects with a text (`SAID`) and
    perhaps a speaker (`BY`). With `speaker`, targets are only the turns of who speaks first, or of who is the second to speak;
    where turns do not say who speaks, two take turns. With `wanted=False` each dialogue gives one source, which ends with its
    last turn, whoever speaks, and no target. Empty turns are passed over. A place names the turn that is to be written.

    Lines that are no such dialogue, and, where targets are wanted, those of one turn, raise DataError with the place of the
    first; with `tolerant` they are left out and listed in `problems`. Raises DataError where no pair is left, and UsageError
    for options that do not exist.
    """
    _check(paths, context, speaker)
    rows: list[tuple[str, str, tuple[str, ...]]] = []
    problems: list[str] = []
    count = silent = 0
    for path in paths:
        for line, content in objects(path):
            place = f"{shown(path)}:{line}"
            turns = _dialogue(content, column, wanted, speaker is not None)
            if isinstance(turns, str):
                problems.append(f"{place} {turns}")
                continue
            said = [turn for turn in turns if turn.text]
            count, silent = count + 1, silent + len(turns) - len(said)
            for at in _answers(turns, said, speaker) if wanted else [len(said)]:
                source = "\n".join(turn.text for turn in said[max(0, at - context) : at])
                number = said[at].number if wanted else len(turns) + 1
                rows.append((f"{place} turn {number}", source, tuple(turn.text for turn in said[at : at + 1])))
    settle(problems, tolerant)
    if not (rows or problems):
        some = f"{count} dialogues in which the {speaker} speaker never answers" if count else "no dialogue"
        raise DataError(f"{shown(paths[0])} holds {some}: give objects with a list of two turns or more, one a line")
    return Examples(
        "text",
        [source for _, source, _ in rows],
        [target for _, _, target in rows] if wanted else None,
        None,
        [place for place, _, _ in rows],
        notes=[
            _understood(column, context, speaker if wanted else None),
            *counted(silent, "empty turns are passed over"),
        ],
        problems=problems,
    )


def turns_column(path: Path, asked: str | None) -> str | None:
    """Where the objects of a JSON-lines file hold lists of turns: under the name that is `asked` for, else under a usual one;
    None where nowhere."""
    names = COLUMNS if asked is None else (asked,)
    contents = [content for _, content in objects(path) if isinstance(content, dict)]
    return next((name for name in names if any(isinstance(content.get(name), list) for content in contents)), None)


def _check(paths: Sequence[Path], context: int, speaker: str | None) -> None:
    if context < 1:
        raise UsageError(f"context was given as {context} turns: wanted 1 or more")
    if speaker is not None and speaker not in get_args(Speaker):
        raise UsageError(f"speaker was given as {speaker!r}: wanted first or second")
    odd = next((path for path in paths if kind_of(path) not in JSON_LINES), None)
    if odd is not None:
        raise DataError(
            f"{shown(odd)} was given as dialogues: wanted a .jsonl file, an object with a list of turns a line"
        )


def _understood(column: str, context: int, speaker: str | None) -> str:
    before = f"up to {context} turns" if context > 1 else "the turn"
    whose = f" of the {speaker} speaker" if speaker else ""
    return f"turns are under {column!r}: text is {before} before each turn{whose}, label is that turn"


def _dialogue(content: dict[str, Any] | str, column: str, wanted: bool, named: bool) -> list[Turn] | str:
    """The turns of a line; instead of them, in words, what is wrong. With `named`, all turns say who speaks, or none."""
    if isinstance(content, str):
        return content
    cells = content.get(column)
    if not isinstance(cells, list):
        return f"has no list of turns under {column!r}"
    turns: list[Turn] = []
    for number, cell in enumerate(cells, 1):
        turn = _turn(number, cell)
        if turn is None:
            return f"has a turn {number} that is no text: wanted a text, or an object with a text as {', '.join(SAID)}"
        turns.append(turn)
    if sum(bool(turn.text) for turn in turns) < 1 + wanted:
        return "has one turn only, which nobody answers" if any(turn.text for turn in turns) else "has no turn"
    silent = [turn.number for turn in turns if turn.speaker is None]
    if named and 0 < len(silent) < len(turns):
        return f"has a turn {silent[0]} that does not say who speaks, and others do"
    return turns


def _turn(number: int, cell: Any) -> Turn | None:
    """A turn; None if it has no text."""
    text, speaker = cell, None
    if isinstance(cell, dict):
        text = next((cell[name] for name in SAID if name in cell), None)
        speaker = next((str(cell[name]) for name in BY if cell.get(name) is not None), None)
    return Turn(number, " ".join(text.split()), speaker) if isinstance(text, str) else None


def _answers(turns: list[Turn], said: list[Turn], speaker: Speaker | None) -> list[int]:
    """The places in `said`, which are the turns that are not empty, of those that are targets."""
    voices = [str(turn.number % 2) if turn.speaker is None else turn.speaker for turn in turns]
    order = list(dict.fromkeys(voices))
    chosen = {None: order, "first": order[:1], "second": order[1:2]}[speaker]
    return [at for at, turn in enumerate(said) if at and voices[turn.number - 1] in chosen]
