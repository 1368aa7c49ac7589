"""What the readers of tables and arrays share: Parquet and NumPy files, numbers in cells, and what stands for missing ones."""

import io
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from recurra.data.read import BOMB_BYTES, BOMB_RATIO, blocks, shown
from recurra.errors import DataError

# What zipfile and numpy raise for a file that is damaged, hostile or none of theirs.
READING = (
    *(ValueError, EOFError, OSError, KeyError, MemoryError, RuntimeError, OverflowError, TypeError),
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, SyntaxError),
)


def parquet(file: Path, text: bool = True) -> Iterator[tuple[int, list[Any]]]:
    """The names of the columns, and the rows with their numbers from 1; with `text` every cell as text, nothing as "", so that
    a table means the same whatever file it is in. Raises DataError for what is damaged, or cannot be text."""
    import polars

    try:
        frame = polars.read_parquet(io.BytesIO(b"".join(blocks(file))))
        yield 0, frame.columns
        whole = polars.all().cast(polars.String).fill_null("") if text else polars.all()
        parts = (part.select(whole) for part in frame.iter_slices(10_000))
        yield from enumerate((list(cells) for part in parts for cells in part.iter_rows()), 1)
    except (
        polars.exceptions.PolarsError,
        polars.exceptions.PanicException,
        ValueError,
        OverflowError,
        OSError,
    ) as error:
        why = str(error).split("\n", 1)[0]
        raise DataError(
            f"{shown(file)} is no whole Parquet file of numbers and words ({shown(why)}); write it again"
        ) from None


def arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by their names, or that of a .npy file as `values`. Raises DataError for what is damaged, holds
    objects, or unfolds to more than 1 GiB and more than 1000 times its own size."""
    content = io.BytesIO(b"".join(blocks(file)))
    try:
        if zipfile.is_zipfile(content):
            with zipfile.ZipFile(content) as archive:
                size = sum(one.file_size for one in archive.infolist())
                limit = max(BOMB_BYTES, BOMB_RATIO * sum(one.compress_size for one in archive.infolist()))
            if size > limit:
                raise MemoryError(f"they unfold to {size} bytes, over {BOMB_RATIO} times their size")
        content.seek(0)
        found = np.load(content, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return {"values": found}
        return {name: one for name in found.files if isinstance(one := found[name], np.ndarray)}
    except READING as error:
        raise DataError(
            f"{shown(file)} holds no arrays that can be read ({shown(str(error))}); save numbers and strings with "
            "numpy.savez, or one array with numpy.save"
        ) from error


def numeral(cell: str) -> float:
    """The number of a cell. Raises ValueError; also for underscores, which Python reads over and others do not."""
    if "_" in cell:
        raise ValueError("no number")
    return float(cell)


def filled(values: np.ndarray) -> np.ndarray:
    """Values [time, channels] in which every NaN is the last number before it in its channel, else the first after it, else 0."""
    missing, steps = np.isnan(values), np.arange(len(values))[:, None]
    before = np.maximum.accumulate(np.where(missing, -1, steps))
    after = np.minimum.accumulate(np.where(missing, len(values), steps)[::-1])[::-1]
    source = np.where(before >= 0, before, after)
    found = np.take_along_axis(values, np.minimum(source, len(values) - 1), 0)
    return np.where(source == len(values), 0, found).astype(values.dtype)
