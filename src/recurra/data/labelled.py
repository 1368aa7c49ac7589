"""Files -> texts with a label of the whole text: tables, JSON lines, lines with fastText's marks, a folder for each class."""

import csv
import io
import json
import math
import re
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from recurra.data.arrays import is_number
from recurra.data.examples import Examples
from recurra.data.read import OPEN, blocks, characters, shown
from recurra.data.tables import parquet
from recurra.errors import DataError, UsageError

TEXT_NAMES = (
    *("text", "sentence", "review", "comment", "question", "utterance", "content", "body", "message", "tweet", "title"),
    *("texto", "frase", "oración", "reseña", "comentario", "comentário", "pregunta", "pergunta", "mensaje", "mensagem"),
)
LABEL_NAMES = (
    *("label", "labels", "class", "category", "sentiment", "target", "y", "stars", "rating", "intent", "coarse"),
    *("polarity", "topic", "emotion", "etiqueta", "clase", "classe", "categoría", "categoria", "sentimiento", "rótulo"),
)
MARK = re.compile(r"\s*__label__(\S+)")  # of fastText
JSON_LINES = (".jsonl", ".ndjson")
TABLES = (".csv", ".tsv", *JSON_LINES, ".parquet")
OTHER_KINDS = {
    ".json": "write one object a line and call it .jsonl",
    ".xlsx": "save it as .csv (UTF-8)",
    ".xls": "save it as .csv (UTF-8)",
    ".ods": "save it as .csv (UTF-8)",
}
LONGEST_CELL = (1 << 31) - 1  # characters; the csv module refuses more than 131,072 unless told
# A quoted cell of a table with tabs: the tabs or the line ends in it are text, not both, so that two stray quotes in two
# rows are not taken for one cell that swallows what lies between them.
QUOTED = re.compile(r'(?:(?<=[\t\n])|\A)"(?:(?:[^"\n]|"")*+|(?:[^"\t]|"")*+)"(?=[\t\r\n]|\Z)')

Problem = tuple[int, str]  # line, and in words with its place what is wrong there


class Wish(NamedTuple):
    """What the caller said of the columns."""

    text: str | None
    label: str | None
    separator: str | None
    wanted: bool
    pairs: bool = False  # of two columns the first is the text and the second what goes with it


class Row(NamedTuple):
    line: int
    text: str
    labels: tuple[str, ...] | None  # None: there is none


class Part(NamedTuple):
    """What one file holds."""

    rows: list[Row]
    problems: list[Problem]
    notes: list[str]


class Table(NamedTuple):
    names: list[str] | None  # of the columns
    rows: list[tuple[int, dict[int, Any]]]  # line; column from 0 -> cell
    problems: list[Problem]
    notes: list[str]


class Column(NamedTuple):
    """What a guess goes by."""

    length: float  # mean characters of its cells, 0 where they are no texts
    distinct: int
    numeric: bool
    example: str


def labelled(
    paths: Sequence[Path],
    *,
    text: str | None = None,
    label: str | None = None,
    separator: str | None = None,
    wanted: bool = True,
    tolerant: bool = False,
    pairs: bool = False,
) -> Examples:
    """The texts of the files with their labels, in the order of the files; `.gz` and `.xz` around any of them.

    `.csv`, `.tsv`, `.parquet`, and `.jsonl` or `.ndjson` with an object a line: `text` and `label` name their columns, or
    say their numbers from 1 or from the end (-1); what is not said is guessed from the names, else from the content (of two
    columns of `pairs`, the first is the text and the second the label). A
    label is one string, without white space around it, in as many parts as `separator` cuts it into; or a list of them.
    Files of other kinds hold a text a line, after fastText's marks `__label__a`; where they lie in two folders or more
    and have no marks, each file is a text and the name of its folder the label.

    With `wanted=False` there are no targets, and labels are passed over. Rows that cannot be read, and those without text
    or label, raise DataError with the place of the first; with `tolerant` they are left out and listed in `problems`.
    How the files were understood is said in `notes`. Raises UsageError where the columns cannot be told.
    """
    wish = Wish(text, label, separator, wanted, pairs)
    if _folder_per_class(paths):
        parts = [_whole(path, wish, tolerant) for path in paths]
    else:
        parts = [_part(path, wish) for path in paths]
    kept: list[Row] = []
    places: list[str] = []
    problems: list[str] = []
    for path, part in zip(paths, parts, strict=True):
        name = shown(path)
        lacks = [(row.line, f"{name}:{row.line} {lack}") for row in part.rows if (lack := _lack(row, wanted))]
        problems += [words for _, words in sorted(part.problems + lacks)]
        good = [row for row in part.rows if not _lack(row, wanted)]
        kept += good
        places += [f"{name}:{row.line}" for row in good]
    settle(problems, tolerant)
    return Examples(
        "text",
        [row.text for row in kept],
        [row.labels for row in kept] if wanted else None,
        None,
        places,
        notes=joined([(path, part.notes) for path, part in zip(paths, parts, strict=True)]),
        problems=problems,
    )


def kind_of(path: Path) -> str:
    """The suffix in small letters, without that of a compression: `.csv` of `a.csv.gz`.

    Raises DataError for kinds that hold such data but are not read, with the remedy.
    """
    kind = Path(path.stem).suffix.lower() if path.suffix.lower() in OPEN else path.suffix.lower()
    if kind in OTHER_KINDS:
        raise DataError(f"{shown(path)}: files of kind {kind} are not read: {OTHER_KINDS[kind]}")
    return kind


def numbered(path: Path) -> list[tuple[int, str]]:
    """The lines of a text with their numbers from 1, without line ends (LF or CR LF); the end of a file ends no line."""
    lines = "".join(characters(path)).split("\n")
    if lines[-1] == "":
        lines.pop()
    return [(number, line.removesuffix("\r")) for number, line in enumerate(lines, 1)]


def objects(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The objects of a file that has one a line, with their lines; instead of one, in words, why there is none.

    Blank lines are passed over.
    """
    for number, line in numbered(path):
        if line.strip():
            yield number, _object(line)


def settle(problems: Sequence[str], tolerant: bool) -> None:
    """Raise DataError with the first of the problems and their number, unless they are tolerated."""
    if problems and not tolerant:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{more}: correct or remove what cannot be read")


def joined(notes: Sequence[tuple[Path, list[str]]]) -> list[str]:
    """The notes of several files: each once where they are alike for all, with the names of the files where not."""
    if all(some == notes[0][1] for _, some in notes):
        return notes[0][1] if notes else []
    return [f"{shown(path)}: {note}" for path, some in notes for note in some]


def counted(count: int, what: str) -> list[str]:
    """A note of something that occurred `count` times; none if it did not."""
    return [f"{count} {what}"] if count else []


def _object(line: str) -> dict[str, Any] | str:
    try:
        value = json.loads(line, parse_constant=lambda _: None)
        if "\\u" in line:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        return f"is no JSON: {error.msg} at character {error.colno}"
    except UnicodeEncodeError:
        return "holds half of a surrogate pair, which is no character"
    except (RecursionError, ValueError) as error:
        return f"is JSON that cannot be read: {error}"
    return value if isinstance(value, dict) else "is JSON, but no object: wanted one {...} a line"


def _lack(row: Row, wanted: bool) -> str:
    """What a row lacks, in words."""
    if not row.text.strip():
        return "has no text"
    return "has no label" if wanted and row.labels is None else ""


# Texts in lines and files


def _folder_per_class(paths: Sequence[Path]) -> bool:
    """Whether plain texts lie in two folders or more; one of each is looked into for marks."""
    folders = {path.absolute().parent: path for path in paths}
    return (
        len(folders) > 1
        and not any(kind_of(path) in (*TABLES, ".ft") for path in paths)
        and not any(
            next(blocks(path), b"").lstrip(BOM_UTF8 + b" \r\n").startswith(b"__label__") for path in folders.values()
        )
    )


def _whole(path: Path, wish: Wish, tolerant: bool) -> Part:
    """A file that is one text, in the folder of its class."""
    _refuse_columns(path, wish)
    notes = ["each file is one text" + (", and the name of its folder the label" if wish.wanted else "")]
    try:
        text = "".join(characters(path)).rstrip("\r\n")
    except DataError as error:
        if not tolerant:
            raise
        return Part([], [(1, str(error))], notes)
    return Part([Row(1, text, (path.absolute().parent.name,))], [], notes)


def _part(path: Path, wish: Wish) -> Part:
    return _from_table(path, table_of(path), wish) if kind_of(path) in TABLES else _lines(path, wish)


def _lines(path: Path, wish: Wish) -> Part:
    """A text a line, after its marks; or a table, whatever its name, where every line has as many tabs and no mark."""
    lines = numbered(path)
    filled = [(number, line) for number, line in lines if line.strip()]
    marked = sum(bool(MARK.match(line)) for _, line in filled)
    tabs = {line.count("\t") for _, line in filled}
    if not marked and (wish.wanted or wish.text) and len(tabs) == 1 and tabs != {0}:
        return _from_table(path, _delimited(path, tabs=True), wish)
    _refuse_columns(path, wish)
    if wish.wanted and not marked:
        raise DataError(
            f"{shown(path)}: no line begins with a label: wanted __label__NAME before each text, or a table named .csv, "
            ".tsv, .jsonl or .parquet, or a folder for each class"
        )
    rows = [Row(number, *_unmarked(line)) for number, line in filled]
    if wish.wanted:
        notes = ["each line is one text, after its marks __label__"]
    else:
        notes = ["each line is one text", *counted(marked, "lines have marks __label__, which are not read")]
    return Part(rows, [], notes + counted(len(lines) - len(filled), "blank lines are passed over"))


def _unmarked(line: str) -> tuple[str, tuple[str, ...] | None]:
    labels, at = [], 0
    while mark := MARK.match(line, at):
        labels.append(mark[1])
        at = mark.end()
    return (line[at:].strip(), tuple(labels)) if labels else (line, None)


def _refuse_columns(path: Path, wish: Wish) -> None:
    if wish.text is not None or wish.label is not None:
        raise UsageError(
            f"{shown(path)} is read as plain text, which has no columns: leave text and label out, or name it .csv or .tsv"
        )


# Tables


def table_of(path: Path) -> Table:
    """The table in a file of one of the kinds `TABLES`; where its first row may be names, it is still among the rows."""
    kind = kind_of(path)
    if kind in (".csv", ".tsv"):
        return _delimited(path, tabs=kind == ".tsv")
    return _parquet(path) if kind == ".parquet" else _json_lines(path)


def _delimited(path: Path, tabs: bool) -> Table:
    """A file with tabs; or with commas or, if its first line has none, semicolons or tabs. The first row may hold names."""
    text = "".join(characters(path))
    first = text.partition("\n")[0]
    mark = "\t" if tabs else next((mark for mark in ",;\t" if mark in first), ",")
    quoted = not tabs or ('"' in text and '"' not in QUOTED.sub("", text))
    reader = csv.reader(
        io.StringIO(text), delimiter=mark, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=True
    )
    rows: list[tuple[int, dict[int, Any]]] = []
    problems: list[Problem] = []
    name, blank, width = shown(path), 0, 0
    with _long_cells():
        found = list(_records(reader))
    for line, cells in found:
        if isinstance(cells, str):
            problems.append((line, f"{name}:{line} {cells}"))
        elif not any(map(str.strip, cells)):
            blank += 1
        elif len(cells) != (width := width or len(cells)):
            problems.append((line, f"{name}:{line} has {len(cells)} columns, and the first row has {width}"))
        else:
            rows.append((line, dict(enumerate(cells))))
    notes = counted(blank, "blank lines are passed over")
    if mark != ("\t" if tabs else ","):
        notes.append(f"columns are parted by {'semicolons' if mark == ';' else 'tabs'}")
    if tabs and quoted:
        notes.append('quotes (") around cells are taken off')
    return Table(None, rows, problems, notes)


@contextmanager
def _long_cells() -> Iterator[None]:
    """Within this context the csv module takes cells of any length."""
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _records(reader: Any) -> Iterator[tuple[int, list[str] | str]]:
    """The rows with the lines that they begin in; instead of one, in words, why there is none."""
    while True:
        line = reader.line_num + 1
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, _in_words(error)


def _in_words(error: csv.Error) -> str:
    said = str(error)
    if "unexpected end" in said:
        return "opens a quote that is never closed, and all that follows lies in it"
    if "expected after" in said:
        return "goes on after a closing quote: a quote inside a quoted cell is written twice"
    return "has a carriage return inside a cell" if "new-line" in said else f"cannot be read: {said}"


def _json_lines(path: Path) -> Table:
    at: dict[str, int] = {}
    rows, problems, name = [], [], shown(path)
    for line, found in objects(path):
        if isinstance(found, str):
            problems.append((line, f"{name}:{line} {found}"))
        else:
            rows.append((line, {at.setdefault(key, len(at)): cell for key, cell in found.items()}))
    return Table(list(at), rows, problems, [])


def _parquet(path: Path) -> Table:
    rows = parquet(path, text=False)
    names = next(rows)[1]
    return Table(names, [(number, dict(enumerate(cells))) for number, cells in rows], [], [])


def _from_table(path: Path, table: Table, wish: Wish) -> Part:
    if not table.rows:
        if table.problems:
            return Part([], table.problems, table.notes)
        raise DataError(f"{shown(path)} holds no row: give a file with texts")
    if table.names is None:
        table = headed(table, wish)
        if not table.rows:
            raise DataError(f"{shown(path)} holds only the names of columns: give a file with texts")
    text, label = _chosen(path, table, wish)
    rows = [
        Row(
            line, written(cells.get(text)) or "", None if label is None else labels_in(cells.get(label), wish.separator)
        )
        for line, cells in table.rows
    ]
    return Part(rows, table.problems, [understood(table, {"text is": text, "label is": label}), *table.notes])


def understood(table: Table, used: Mapping[str, int | None]) -> str:
    """In words what each column is taken for, such as text and label, and which are not read."""
    said = ", ".join(f"{what} column {title(table, at)}" for what, at in used.items() if at is not None)
    rest = [title(table, at) for at in range(width_of(table)) if at not in used.values()] if table.rows else []
    some = ", ".join(rest[:12]) + (" ..." if len(rest) > 12 else "")
    return said + (f"; not read: {some}" if rest else "")


def labels_in(cell: Any, separator: str | None) -> tuple[str, ...] | None:
    """The labels in a cell; None if it holds none, or what is no label. An empty list is one: of no label."""
    if isinstance(cell, list):
        words = [(written(one) or "").strip() for one in cell]
        return tuple(words) if all(words) else None
    word = written(cell) or ""
    parts = [part.strip() for part in (word.split(separator) if separator else [word])]
    return tuple(part for part in parts if part) or None


def written(cell: Any) -> str | None:
    """A cell as it is written; None for nothing, NaN, and what is built of parts."""
    if cell is None or isinstance(cell, list | dict) or (isinstance(cell, float) and math.isnan(cell)):
        return None
    return str(cell).lower() if isinstance(cell, bool) else str(cell)


# Which columns


def headed(table: Table, wish: Wish) -> Table:
    """The first row taken as the names of the columns, if it looks like them."""
    first = list(table.rows[0][1].values())
    below = [[cells[column] for _, cells in table.rows[1:]] for column in range(len(first))]
    if not _are_names(first, below, wish):
        return table._replace(notes=["there is no line of names: columns are numbered", *table.notes])
    return table._replace(names=[cell.strip() for cell in first], rows=table.rows[1:])


def _are_names(first: list[str], below: list[list[str]], wish: Wish) -> bool:
    """Whether a row names columns: as the caller does, or by a name that is known and occurs nowhere below it, or like
    names over a column of other stuff: of numbers, or of words that recur."""
    if {name for name in (wish.text, wish.label) if name and not is_number(name)} & {cell.strip() for cell in first}:
        return True
    if any(cell in column for cell, column in zip(first, below, strict=True)):
        return False
    if any(cell.strip().casefold() in (*TEXT_NAMES, *LABEL_NAMES) for cell in first):
        return True
    if len(first) == 1:
        return False
    short = all(0 < len(cell) <= 40 and len(cell.split()) <= 3 and not is_number(cell) for cell in first)
    return short and any(
        column and (all(map(is_number, column)) or 2 * len(set(column)) <= len(column)) for column in below
    )


def _chosen(path: Path, table: Table, wish: Wish) -> tuple[int, int | None]:
    """The columns of text and label: as said, else by name, else by content. The label is None if it is not wanted."""
    text = None if wish.text is None else asked_column(path, table, wish.text)
    label = None if wish.label is None or not wish.wanted else asked_column(path, table, wish.label)
    if label is None:
        label = named_column(path, table, LABEL_NAMES, text)
    if text is None:
        text = named_column(path, table, TEXT_NAMES, label)
    if wish.pairs and width_of(table) == 2:
        text = (0 if label is None else 1 - label) if text is None else text
        label = 1 - text if label is None else label
    if text is None or (label is None and wish.wanted):
        text, label = _by_content(path, table, text, label, wish.wanted)
    if text == label:
        raise UsageError(f"{shown(path)}: text and label were both given as column {title(table, text)}: name two")
    return text, label if wish.wanted else None


def asked_column(path: Path, table: Table, asked: str) -> int:
    """The column of this name, or of this number: from 1, or from the last at -1. Raises UsageError."""
    if table.names and asked in table.names:
        return _only(path, table.names, asked)
    width = width_of(table)
    number = int(asked) if re.fullmatch(r"-?[0-9]{1,9}", asked) else 0
    if not 1 <= abs(number) <= width:
        raise UsageError(f"{shown(path)} has no column {asked!r}; {listed(table)}")
    return number - 1 if number > 0 else width + number


def named_column(path: Path, table: Table, wanted: Iterable[str], taken: int | None) -> int | None:
    """The first column that has one of the wanted names and is not taken. Raises UsageError where two have it."""
    names = [name.strip().casefold() for name in table.names or []]
    found = next((name for name in wanted if name in names and names.index(name) != taken), None)
    return None if found is None else _only(path, names, found)


def _only(path: Path, names: list[str], name: str) -> int:
    if names.count(name) > 1:
        raise UsageError(
            f"{shown(path)} has {names.count(name)} columns {name!r}: say by number which, such as --text 1"
        )
    return names.index(name)


def _by_content(path: Path, table: Table, text: int | None, label: int | None, wanted: bool) -> tuple[int, int | None]:
    """The text is the longest column that does not mostly repeat itself, the label the only other that does."""
    columns = _columns(table)
    rows = len(table.rows)
    few = {column for column, about in columns.items() if about.distinct <= max(rows / 2, 10)}
    if text is None:
        able = {column for column, about in columns.items() if about.length and not about.numeric} - {label}
        pool = sorted((able - few) or able, key=lambda column: -columns[column].length)
        if not pool or (len(pool) > 1 and columns[pool[1]].length > 0.7 * columns[pool[0]].length):
            raise UsageError(f"{shown(path)}: which column is the text cannot be told; {listed(table)}")
        text = pool[0]
    if label is None and wanted:
        others = set(columns) - {text}
        able = few & others or {column for column in others if columns[column].numeric}
        if len(able) != 1:
            raise UsageError(f"{shown(path)}: which column is the label cannot be told; {listed(table)}")
        label = able.pop()
    return text, label


def _columns(table: Table) -> dict[int, Column]:
    """What each column looks like, in one pass."""
    values: dict[int, list[Any]] = {}
    for _, cells in table.rows:
        for column, cell in cells.items():
            values.setdefault(column, []).append(cell)
    return {column: _looks(cells) for column, cells in sorted(values.items())}


def _looks(cells: list[Any]) -> Column:
    texts = [cell for cell in cells if isinstance(cell, str)]
    words = list(map(str, cells))
    return Column(
        sum(map(len, texts)) / len(cells), len(set(words)), all(map(is_number, words)), next(filter(None, words), "")
    )


def listed(table: Table) -> str:
    """In words the columns with an example of each, for an error that asks which."""
    columns = _columns(table)
    some = [f"{title(table, column)} such as {_cut(about.example)}" for column, about in columns.items()]
    return (
        f"its columns: {'; '.join(some[:12])}{' ...' if len(some) > 12 else ''}. "
        f"Say which with --text {'NAME' if table.names else 'NUMBER'} --label {'NAME' if table.names else 'NUMBER'}"
    )


def _cut(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def title(table: Table, column: int) -> str:
    """What a column is called: its name, or its number from 1."""
    return _cut(table.names[column]) if table.names else str(column + 1)


def width_of(table: Table) -> int:
    """How many columns there are."""
    return len(table.names or table.rows[0][1])
