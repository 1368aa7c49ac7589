"""Files -> rows of numbers: arrays of NumPy, tables and pictures."""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recurra.data.read import OPEN, blocks, characters, shown, sources
from recurra.errors import DataError, UsageError

TABLES = {".csv": ",", ".tsv": "\t"}
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".pgm", ".ppm", ".tif", ".tiff", ".webp")


class Rows(NamedTuple):
    values: np.ndarray  # float32 [rows, numbers]
    shape: tuple[int, ...]  # of a row as it was in its file: (height, width) of a picture


def rows(paths: Sequence[Path | str], label: str | None = None) -> Rows:
    """All rows of the files, in their order; a folder stands for the files in it.

    `.npy` and `.npz` (its only array): the first axis counts rows. `.csv` and `.tsv`: numbers, a line of names before them if
    there is one; `label` names a column (or says its number from 1, or from the end: -1) that is left out. Pictures: one row
    each, grey, 0 black to 1 white. `.gz` and `.xz` around any of them. Raises DataError for what cannot be read and where
    rows are not of one shape.
    """
    found = [(file, _rows_of(file, label)) for file in sources(paths)]
    first = found[0][1]
    for file, part in found[1:]:
        if part.shape != first.shape:
            raise DataError(
                f"{shown(file)} has rows of {_times(part.shape)} numbers and {shown(found[0][0])} of {_times(first.shape)}; "
                "give files of one shape"
            )
    return Rows(np.concatenate([part.values for _, part in found]), first.shape)


def _rows_of(file: Path, label: str | None) -> Rows:
    kind = Path(file.stem).suffix.lower() if file.suffix.lower() in OPEN else file.suffix.lower()
    if kind in (".npy", ".npz"):
        array = _array(file, kind)
    elif kind in TABLES:
        array = _table(file, TABLES[kind], label)
    elif kind in PICTURES:
        array = _picture(file)[None]
    else:
        raise DataError(
            f"{shown(file)} is of no kind that holds rows of numbers: wanted .npy, .npz, {', '.join((*TABLES, *PICTURES))}"
        )
    if array.ndim < 2 or not array.size:
        raise DataError(
            f"{shown(file)} holds an array of shape {array.shape}, wanted [rows, numbers] with at least one row"
        )
    values = array.reshape(len(array), -1).astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError(
            f"{shown(file)} has a number in row {int(np.argmin(np.isfinite(values).all(1))) + 1} that is not finite"
        )
    return Rows(values, array.shape[1:])


def _array(file: Path, kind: str) -> np.ndarray:
    content = io.BytesIO(b"".join(blocks(file)))
    try:
        array = np.load(content, allow_pickle=False)
        if kind == ".npz":
            if len(array.files) != 1:
                raise DataError(
                    f"{shown(file)} holds the arrays {', '.join(array.files)}; save the one that is meant as .npy"
                )
            array = array[array.files[0]]
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{shown(file)} is no array of NumPy ({error}); save it with numpy.save") from error
    if not np.issubdtype(array.dtype, np.number) and array.dtype != bool:
        raise DataError(f"{shown(file)} holds {array.dtype}, wanted numbers")
    return array


def _table(file: Path, separator: str, label: str | None) -> np.ndarray:
    lines = "".join(characters(file)).splitlines()
    cells = [(number, line.split(separator)) for number, line in enumerate(lines, 1) if line.strip()]
    names = cells.pop(0)[1] if cells and not all(map(is_number, cells[0][1])) else None
    if not cells:
        raise DataError(f"{shown(file)} has no line of numbers")
    width = len(names or cells[0][1])
    left_out = None if label is None else _column(file, label, names, width)
    table = np.empty((len(cells), width - (label is not None)), np.float32)
    for row, (number, parts) in enumerate(cells):
        if len(parts) != width:
            raise DataError(f"{shown(file)}, line {number} has {len(parts)} columns, and the first has {width}")
        kept = [part for place, part in enumerate(parts) if place != left_out]
        wrong = next((part for part in kept if not is_number(part)), None)
        if wrong is not None:
            raise DataError(f"{shown(file)}, line {number}: {wrong!r} is no number; leave its column out with --label")
        table[row] = [float(part) for part in kept]
    return table


def _column(file: Path, label: str, names: list[str] | None, width: int) -> int:
    if names and label in names:
        return names.index(label)
    number = int(label) if label.lstrip("-").isdigit() else 0
    if not 1 <= abs(number) <= width:
        raise UsageError(
            f"{shown(file)} has no column {label!r}; it has {width}"
            + (f": {', '.join(names[:8])}{' ...' if width > 8 else ''}" if names else " and no names: give its number")
        )
    return number - 1 if number > 0 else width + number


def _picture(file: Path) -> np.ndarray:
    image: Any
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise UsageError("pictures are read by Pillow, which is not installed: pip install 'recurra[vision]'") from None
    try:
        with Image.open(io.BytesIO(b"".join(blocks(file)))) as image:
            return np.asarray(image.convert("L"), np.float32) / 255
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{shown(file)} is no picture that Pillow reads: {error}") from error


def is_number(text: str) -> bool:
    """Whether a text is one number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
