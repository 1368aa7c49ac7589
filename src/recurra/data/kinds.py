"""Which reader a file is for."""

from collections.abc import Sequence
from pathlib import Path

from recurra.data import read
from recurra.data.series import IDS, READERS, TIMES

SEPARATORS = {".csv": ",", ".tsv": "\t"}


def suffix(path: Path) -> str:
    """The ending of a file's name in small letters, without the `.gz` or `.xz` around it."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() in read.OPEN else path.suffix.lower()


def holds_series(paths: Sequence[Path]) -> bool:
    """Whether the first file holds sequences of numbers: it is of a kind that holds nothing else, or a table with a column of
    names of sequences and one of times."""
    first = Path(paths[0])
    kind = suffix(first)
    if kind not in READERS:
        return False
    if kind not in (*SEPARATORS, ".parquet"):
        return True
    names = {name.strip().strip('"').lower() for name in _header(first, kind)}
    return bool(names & set(IDS)) and bool(names & set(TIMES))


def _header(path: Path, kind: str) -> list[str]:
    if kind == ".parquet":
        import polars

        return list(polars.read_parquet_schema(path))
    line = next(read.characters(path), "").split("\n", 1)[0]
    return line.strip().split(SEPARATORS[kind])
