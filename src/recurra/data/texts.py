"""Texts as slices of files, tokenised once into a folder and memory-mapped from then on."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recurra.data import read
from recurra.data.feed import Corpus
from recurra.data.tokens import Bytes, Tokens
from recurra.errors import DataError

Chunk = str | bytes
Reader = Callable[[Path], Iterator[Chunk]]


@dataclass(frozen=True)
class Slice:
    """Part of a file: its units (characters, or bytes for the byte tokens) from `begin` to `end`, None meaning its end."""

    path: Path
    begin: int = 0
    end: int | None = None

    def chunks(self, reader: Reader) -> Iterator[Chunk]:
        at = 0
        for chunk in reader(self.path):
            low, high = max(self.begin - at, 0), len(chunk) if self.end is None else self.end - at
            if high <= 0:
                return
            if chunk[low:high]:
                yield chunk[low:high]
            at += len(chunk)


def reader_for(kind: str) -> Reader:
    """How files are read for a kind of tokens: bytes take any file, all others want UTF-8."""
    return read.blocks if kind == "bytes" else read.characters


def split(paths: Sequence[Path], share: float, reader: Reader) -> tuple[list[Slice], list[Slice]]:
    """The texts, and the last `share` of all their units kept back. Only one file is cut in two."""
    sizes = [sum(len(chunk) for chunk in reader(path)) for path in paths]
    total, at = sum(sizes), 0
    cut = int(total * (1 - share))
    if cut < 1 or total - cut < 2:
        raise DataError(
            f"the text has {total} character{'s' * (total != 1)} in all; wanted at least {int(2 / share) + 1}, "
            f"so that {share:.0%} of it can be kept for validation: give more text, or a file of its own with --valid"
        )
    kept: list[Slice] = []
    held: list[Slice] = []
    for path, size in zip(paths, sizes, strict=True):
        here = min(max(cut - at, 0), size)
        if here:
            kept.append(Slice(path, 0, None if here == size else here))
        if here < size:
            held.append(Slice(path, here))
        at += size
    return kept, held


def write_corpus(path: Path, slices: Sequence[Slice], tokens: Tokens, reader: Reader) -> dict[str, object]:
    """Tokenise the slices into the file `path` (raw ids) and return its description for `open_corpus`.

    An end mark stands before each text that is read from its first unit and after each read to its last.
    """
    mark = np.array([tokens.end], tokens.dtype)
    bounds, characters = [0], 0
    with path.open("wb") as out:
        for piece in slices:
            count = 0
            if piece.begin == 0:
                count += _put(out, mark)
            counted = _Counted(piece.chunks(reader))
            for ids in encoded(tokens, counted):
                count += _put(out, ids.astype(tokens.dtype, copy=False))
            if piece.end is None:
                count += _put(out, mark)
            characters += counted.characters
            bounds.append(bounds[-1] + count)
    return {"dtype": np.dtype(tokens.dtype).name, "bounds": bounds, "characters": characters}


def open_corpus(path: Path, description: dict) -> Corpus:
    """The corpus that `write_corpus` left, as a memory map."""
    dtype = np.dtype(description["dtype"])
    ids = np.memmap(path, dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)
    return Corpus(ids, np.asarray(description["bounds"], np.int64))


def encoded(tokens: Tokens, chunks: Iterator[Chunk]) -> Iterator[np.ndarray]:
    """The ids of a text that comes in chunks."""
    if isinstance(tokens, Bytes):
        return (tokens.encode_bytes(chunk if isinstance(chunk, bytes) else chunk.encode()) for chunk in chunks)
    return tokens.encode_stream(chunk for chunk in chunks if isinstance(chunk, str))


class _Counted:
    """Chunks, with the characters that went by counted. Of bytes, those count that begin a UTF-8 character."""

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        self._chunks, self.characters = chunks, 0

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        chunk = next(self._chunks)
        if isinstance(chunk, bytes):
            self.characters += int(((np.frombuffer(chunk, np.uint8) & 0xC0) != 0x80).sum())
        else:
            self.characters += len(chunk)
        return chunk


def _put(out, ids: np.ndarray) -> int:  # type: ignore[no-untyped-def]
    out.write(ids.tobytes())
    return len(ids)


def encode_all(slices: Sequence[Slice], tokens: Tokens, reader: Reader) -> tuple[Corpus, int]:
    """The slices as a corpus in memory, and how many characters they have."""
    parts, bounds, characters = [], [0], 0
    mark = np.array([tokens.end], tokens.dtype)
    for piece in slices:
        counted = _Counted(piece.chunks(reader))
        whole = np.concatenate([mark, *encoded(tokens, counted), mark])
        parts.append(whole)
        bounds.append(bounds[-1] + len(whole))
        characters += counted.characters
    return Corpus(np.concatenate(parts), np.array(bounds, np.int64)), characters
