"""Files -> bytes -> text, streamed: a file larger than the memory is read as well as a small one.

Plain files, `.gz` and `.xz`. Nothing is guessed: text is UTF-8 or it is refused, with the place and the remedy.
"""

import codecs
import gzip
import hashlib
import lzma
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from recurra.errors import DataError

BLOCK = 1 << 20  # bytes read at a time
BOMB_BYTES = 1 << 30  # a compressed file may always unfold to this much,
BOMB_RATIO = 1000  # and beyond it to this many times its own size

SYNTHETIC = "synthetic:"

OPEN: dict[str, type[gzip.GzipFile] | type[lzma.LZMAFile]] = {".gz": gzip.GzipFile, ".xz": lzma.LZMAFile}
BYTES_REMEDY = "train on bytes with --set tokens.kind=bytes"


def sources(paths: Sequence[Path | str]) -> list[Path]:
    """The files to read, in the order given; a folder stands for every file in and below it, sorted by path.

    In folders, hidden and empty files are passed over. Raises DataError if a path does not exist or is no regular file
    or folder, if a file given by name is empty, and if nothing is left to read.
    """
    if not paths:
        raise DataError("no data was given: name at least one file or folder")
    return [file for path in map(Path, paths) for file in ([path] if is_synthetic(path) else _files(path))]


def blocks(path: Path | str) -> Iterator[bytes]:
    """The content of a file, decompressed, in blocks of about 1 MiB.

    Raises DataError if the file cannot be read, if a compressed one is cut or damaged, and if it unfolds to more than
    1 GiB and more than 1000 times its own size.
    """
    if is_synthetic(path):
        raise DataError(f"{path} is a set of examples that is made, as for classify; wanted a file or a folder here")
    path = Path(path)
    try:
        if path.suffix.lower() in OPEN:
            yield from _unfolded(path)
        else:
            with path.open("rb") as file:
                while block := file.read(BLOCK):
                    yield block
    except OSError as error:
        raise _unreadable(path, error) from error


def characters(path: Path | str) -> Iterator[str]:
    """The content of a file as text: strict UTF-8, line ends as they are, a byte order mark at the start dropped.

    The text comes in parts of about a million characters that may end anywhere but inside a character. Raises DataError
    with byte offset (from 0, in the decompressed content) and line (from 1) where a byte is not UTF-8, or if the first
    block holds NUL bytes; and whatever `blocks` raises.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, line, begun = 0, 1, False
    for block in blocks(path):
        if offset == 0:
            _refuse_binary(path, block)
        text = _decoded(path, decoder, block, offset, line)
        if text:
            yield text if begun else text.removeprefix("\ufeff")
        begun = begun or text != ""
        offset, line = offset + len(block), line + block.count(b"\n")
    _decoded(path, decoder, b"", offset, line, final=True)


def fingerprint(paths: Sequence[Path | str]) -> list[dict[str, Any]]:
    """What the files are: name, bytes and sha256 of each as it lies on the disk, to refuse a resume on other data."""
    return [_fingerprint(Path(path)) for path in paths]


def is_synthetic(path: Path | str) -> bool:
    """Whether this stands for a set that is made and not read: `synthetic:NAME`."""
    return str(path).startswith(SYNTHETIC)


def synthetic_name(path: Path | str) -> str:
    """The NAME of `synthetic:NAME`."""
    return str(path).removeprefix(SYNTHETIC)


def shown(path: Path | str) -> str:
    """A path as it can be printed whatever its name holds: control characters and stray bytes are escaped."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(path))


def _files(path: Path) -> list[Path]:
    try:
        return _in_folder(path) if path.is_dir() else [_given(path)]
    except OSError as error:
        raise _unreadable(path, error) from error


def _in_folder(folder: Path) -> list[Path]:
    files = [path for path in sorted(folder.rglob("*")) if not _hidden(path.relative_to(folder)) and path.is_file()]
    found = [path for path in files if not _empty(path)]
    if not found:
        raise DataError(f"{shown(folder)} holds no file to read (hidden and empty files do not count): add text files")
    return found


def _given(path: Path) -> Path:
    if not path.exists():
        stream = "; standard input is taken by predict, and by train forecast" if str(path) == "-" else ""
        raise DataError(f"{shown(path)} does not exist: check the path{stream}")
    if not path.is_file():
        raise DataError(f"{shown(path)} is neither a file nor a folder: copy its content to a file and give that")
    if _empty(path):
        raise DataError(f"{shown(path)} is empty: give a file with content")
    return path


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _empty(path: Path) -> bool:
    return path.stat().st_size == 0 or (path.suffix.lower() in OPEN and next(blocks(path), None) is None)


def _unfolded(path: Path) -> Iterator[bytes]:
    limit = max(BOMB_BYTES, BOMB_RATIO * path.stat().st_size)
    try:
        with OPEN[path.suffix.lower()](path, "rb") as file:
            size = 0
            while block := file.read(BLOCK):
                size += len(block)
                if size > limit:
                    raise DataError(
                        f"{shown(path)} unfolds to more than {limit} bytes, over {BOMB_RATIO} times its size: "
                        "unless you trust it, leave it; if you do, decompress it and give the result"
                    )
                yield block
    except (gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError) as error:
        raise DataError(
            f"{shown(path)} is cut or damaged, or not a {path.suffix} file ({error}): fetch or compress it again"
        ) from error


def _refuse_binary(path: Path | str, block: bytes) -> None:
    if block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{shown(path)} is UTF-16, not UTF-8: convert it with `iconv -f UTF-16 -t UTF-8`")
    if (at := block.find(b"\0")) >= 0:
        raise DataError(f"{shown(path)} is a binary file (NUL at offset {at}), not text: give text, or {BYTES_REMEDY}")


def _decoded(
    path: Path | str, decoder: codecs.IncrementalDecoder, block: bytes, offset: int, line: int, final: bool = False
) -> str:
    """The text of a block that begins at `offset` and `line`; the decoder holds the bytes of a character cut before."""
    held = len(decoder.getstate()[0])
    try:
        return decoder.decode(block, final)
    except UnicodeDecodeError as error:
        byte, at = error.object[error.start], error.start - held
        line += block[: max(at, 0)].count(b"\n")
        name, charset = ("Windows-1252", "CP1252") if byte < 0xA0 else ("Latin-1", "LATIN1")
        raise DataError(
            f"{shown(path)}: byte 0x{byte:02X} at offset {offset + at} (line {line}) "
            f"is not UTF-8; it looks like {name}: convert it with `iconv -f {charset} -t UTF-8`, or {BYTES_REMEDY}"
        ) from error


def _fingerprint(path: Path) -> dict[str, Any]:
    if is_synthetic(path):
        return {"name": shown(path), "bytes": 0, "sha256": ""}
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return {"name": shown(path.name), "bytes": os.fstat(file.fileno()).st_size, "sha256": digest}
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{shown(path)} cannot be read ({error.strerror or error}): check its name, kind and permissions")
