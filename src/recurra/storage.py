"""Storage: folders that are written whole or not at all, and verified before they are used.

A sealed folder holds plain files and `MANIFEST.json`, which names each of them with its size and SHA-256:

    {"format_version": 1, "kind": "checkpoint", "files": {"model.safetensors": {"bytes": 1024, "sha256": "..."}}}

It is written under a temporary name, flushed to the disk, read back, and renamed. At every instant a kill leaves the
former folder or the new one; the one exception, between two renames, is undone by `settle`. Names beside it that begin
with `.tmp-` or `.old-` belong to this module. Checkpoints are sealed folders `step-00012000`, the newest of which that
verifies is the one to go on from.
"""

import hashlib
import json
import math
import os
import re
import reprlib
import secrets
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from errno import EACCES, EINVAL, ENOTSUP
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recurra.errors import DamagedError, RecurraError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "MANIFEST.json"
FORMAT_VERSION = 1
MANIFEST_BYTES = 1 << 20
JSON_BYTES = 64 << 20

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_STEP = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,})")
_STRAY = re.compile(r"\.tmp-[0-9]+-[0-9a-f]{16}")
_NO_FOLDER_SYNC = {EACCES, EINVAL, ENOTSUP}


# Sealed folders


def seal(folder: Path, write: Callable[[Path], None], kind: str) -> None:
    """Make `folder` of the plain files that `write(temporary folder)` puts down; it appears whole or not at all.

    A sealed folder of that name is replaced. After any failure it is as it was. Missing parents are created. One writer
    at a time: see `hold`.

    Raises UsageError where `folder` is something that was never sealed, which is not deleted, and where `write` leaves
    anything but plain files; RecurraError where the operating system refuses, a full disk for one; DamagedError where
    what was written does not read back.
    """
    with _explained(folder):
        _refuse_foreign(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _settle(folder)
        temporary = _temporary(folder.parent)
        try:
            temporary.mkdir()
            write(temporary)
            _write_manifest(temporary, kind)
            _intact(temporary, kind)
            _put(temporary, folder)
        except BaseException:
            with suppress(OSError):
                shutil.rmtree(temporary, ignore_errors=True)
                _settle(folder)
            raise


def settle(folder: Path) -> None:
    """Undo what a kill in the middle of `seal` may leave: bring `folder` back, or remove the one it has replaced.

    To be called before a sealed folder is looked for, by its only writer: see `hold`.
    """
    with _explained(folder):
        _settle(folder)


def sweep(parent: Path) -> None:
    """Remove the temporary files and folders that killed writers have left in `parent`.

    To be called by its only writer, between writes: see `hold`. What cannot be removed stays.
    """
    with suppress(OSError):
        for path in [path for path in parent.iterdir() if _STRAY.fullmatch(path.name)]:
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def verify(folder: Path, kind: str, names: Collection[str]) -> dict[str, Path]:
    """The files of a sealed folder, name -> path, after each was compared with the manifest by size and SHA-256.

    `names` are the files that a folder of this `kind` may hold; it need not hold all of them.

    Raises DamagedError, which names the file, for whatever is not as `seal` wrote it: missing, cut, changed, a link,
    not in `names`, not in the manifest, or a manifest of another kind or of a newer format.
    """
    files = _read_manifest(folder, kind)
    for name in files:
        if name not in names:
            raise _damaged(folder / MANIFEST, f"only {', '.join(sorted(names))}", f"an entry {name!r}")
    return _compare(folder, files)


def _intact(folder: Path, kind: str) -> None:
    _compare(folder, _read_manifest(folder, kind))


def _refuse_foreign(folder: Path) -> None:
    if not folder.is_dir():
        if folder.exists():
            raise UsageError(f"{folder}: is a file, a folder is to be written there; give another name or move it away")
    elif not (folder / MANIFEST).exists() and any(folder.iterdir()):
        raise UsageError(
            f"{folder}: holds files but no {MANIFEST}, so recurra did not write it and will not replace it; "
            "give another name or move it away"
        )


def _temporary(parent: Path) -> Path:
    return parent / f".tmp-{os.getpid()}-{secrets.token_hex(8)}"


def _aside(folder: Path) -> Path:
    return folder.with_name(f".old-{folder.name}")


def _put(temporary: Path, folder: Path) -> None:
    if folder.exists():
        folder.rename(_aside(folder))
    temporary.rename(folder)
    with suppress(OSError):  # the folder is in its place and verified: nothing from here on can make the save fail
        _sync_folder(folder.parent)
    _discard(_aside(folder))


def _settle(folder: Path) -> None:
    old = _aside(folder)
    if old.exists() and folder.exists():
        _discard(old)
    elif old.exists():
        old.rename(folder)
        _sync_folder(folder.parent)


def _discard(folder: Path) -> None:
    """Remove a folder at one instant, by a rename; what a kill or an error leaves of it is for `sweep`."""
    gone = _temporary(folder.parent)
    with suppress(OSError):
        folder.rename(gone)
        gone.unlink() if gone.is_symlink() else shutil.rmtree(gone)


def _write_manifest(folder: Path, kind: str) -> None:
    mode = folder.stat().st_mode & 0o666  # the umask, asked without setting it: that would reach other threads
    files = {}
    for path in sorted(folder.iterdir()):
        if not _NAME.fullmatch(path.name) or path.name == MANIFEST or not stat.S_ISREG(path.lstat().st_mode):
            raise UsageError(f"{path}: a sealed folder takes plain files with plain names, and the {MANIFEST} is ours")
        path.chmod(mode)
        _sync_file(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": _digest(path)}
    write_json(folder / MANIFEST, {"format_version": FORMAT_VERSION, "kind": kind, "files": files})
    _sync_file(folder / MANIFEST)
    _sync_folder(folder)


def _read_manifest(folder: Path, kind: str) -> dict[str, tuple[int, str]]:
    path = folder / MANIFEST
    _plain(path)
    data = _read(path, MANIFEST_BYTES)
    value = _parse(path, data)
    version = value.get("format_version") if isinstance(value, dict) else None
    if type(version) is int and version > FORMAT_VERSION:
        raise DamagedError(
            f"{path}: expected format version {FORMAT_VERSION} or older, found {reprlib.repr(version)}; "
            "it was written by a newer recurra: update this one (pip install --upgrade recurra)"
        )
    if type(version) is not int or version != FORMAT_VERSION:
        raise _damaged(path, f"format version {FORMAT_VERSION}", reprlib.repr(version))
    if value.get("kind") != kind:
        raise _damaged(path, f"the manifest of a {kind}", f"one of kind {reprlib.repr(value.get('kind'))}")
    if list(value) != ["format_version", "kind", "files"] or not isinstance(value["files"], dict):
        raise _damaged(path, "format_version, kind and a table of files", f"the keys {reprlib.repr(list(value))}")
    files = {name: _entry(path, name, entry) for name, entry in value["files"].items()}
    if data != _encode(value):  # one meaning has one spelling, so that no changed byte and no doubled key goes unseen
        raise _damaged(path, "the bytes that recurra writes", "the same content in another spelling")
    return files


def _entry(path: Path, name: str, entry: Any) -> tuple[int, str]:
    """One file of a manifest: its size in bytes and its SHA-256."""
    if not _NAME.fullmatch(name) or name == MANIFEST:
        raise _damaged(path, "plain file names", reprlib.repr(name))
    if not isinstance(entry, dict) or list(entry) != ["bytes", "sha256"]:
        raise _damaged(path, f"bytes and sha256 for {name}", reprlib.repr(entry))
    size, digest = entry.values()
    if type(size) is not int or size < 0:
        raise _damaged(path, f"a count of bytes for {name}", reprlib.repr(size))
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise _damaged(path, f"64 hexadecimal digits for {name}", reprlib.repr(digest))
    return size, digest


def _compare(folder: Path, files: dict[str, tuple[int, str]]) -> dict[str, Path]:
    for name, (size, _) in files.items():
        found = _plain(folder / name).st_size
        if found != size:
            raise _damaged(folder / name, f"{size} bytes", f"{found}")
    with _readable(folder):
        strays = sorted({path.name for path in folder.iterdir()} - {MANIFEST, *files})
    if strays:
        raise _damaged(folder, f"only files that {MANIFEST} lists", f"{strays[0]!r} as well", "move it away")
    for name, (_, expected) in files.items():
        with _readable(folder / name):
            digest = _digest(folder / name)
        if digest != expected:
            raise _damaged(folder / name, f"content with SHA-256 {expected[:16]}...", f"{digest[:16]}...")
    return {name: folder / name for name in files}


def _plain(path: Path) -> os.stat_result:
    """What is known of a file that is no link of any kind: what a link leads to could change after it was verified."""
    with _readable(path):
        info = path.lstat()
    if stat.S_ISLNK(info.st_mode):
        raise _damaged(path, "a plain file", "a symbolic link")
    if not stat.S_ISREG(info.st_mode):
        raise _damaged(path, "a plain file", "a folder, a device or a pipe")
    if info.st_nlink > 1:
        raise _damaged(path, "a file with one name", f"one with {info.st_nlink} names (hard links)", "copy the folder")
    return info


# Files


def write_tensors(path: Path, tensors: dict[str, "Tensor"]) -> None:
    """Write `tensors` to a new safetensors file: on CPU, contiguous, copied where they share memory.

    Raises OSError, which `seal` explains.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    taken: set[int] = set()
    apart = {name: _apart(tensor, taken) for name, tensor in tensors.items()}
    try:
        save_file(apart, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error


def read_tensors(path: Path) -> dict[str, "Tensor"]:
    """The tensors of a safetensors file, on CPU, in memory of their own: the file may change or go afterwards.

    Raises DamagedError.
    """
    from safetensors.torch import load_file

    try:
        # Not mapped into memory: a mapped tensor follows later changes of the file, which was verified before them.
        return load_file(path, backend="pread")
    except Exception as error:
        raise _damaged(path, "a safetensors file", repr(str(error)[:200])) from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as UTF-8 JSON, indented by 2, keys in their order.

    Raises RecurraError for NaN, infinities and text that is no Unicode; OSError, which `seal` explains.
    """
    try:
        data = _encode(value)
    except ValueError as error:
        raise RecurraError(f"{path}: expected finite numbers and valid text to write as JSON: {error}") from error
    path.write_bytes(data)


def read_json(path: Path, limit_bytes: int = JSON_BYTES) -> Any:
    """The value in a JSON file of at most `limit_bytes`.

    Raises DamagedError: no such file, too long, not UTF-8, not JSON, not finite, nested without end.
    """
    return _parse(path, _read(path, limit_bytes))


def cache() -> Path:
    """The folder for what can be computed again, shared by all runs: `$XDG_CACHE_HOME/recurra`, or `~/.cache/recurra`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recurra"


def replace_file(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader finds, and a kill leaves, the former content or the new one.

    Raises RecurraError where the operating system refuses; the former content is still there then.
    """
    temporary = _temporary(path.parent)
    with _explained(path):
        try:
            temporary.write_bytes(data)
            _sync_file(temporary)
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        with suppress(OSError):
            _sync_folder(path.parent)


def _apart(tensor: "Tensor", taken: set[int]) -> "Tensor":
    """The numbers of `tensor` in memory that none of the `taken` storages is, as the file format needs them."""
    # A conjugate or negated view holds the numbers of its base and a mark, which the format would drop without a word.
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    if plain.untyped_storage().data_ptr() in taken:
        plain = plain.clone()
    taken.add(plain.untyped_storage().data_ptr())
    return plain


def _encode(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _parse(path: Path, data: bytes) -> Any:
    try:
        return json.loads(data.decode(), parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "JSON in UTF-8", str(error)) from error


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"a number that is not finite: {reprlib.repr(text)}")
    return number


def _read(path: Path, limit_bytes: int) -> bytes:
    with _readable(path), path.open("rb") as file:
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise _damaged(path, f"at most {limit_bytes} bytes", "more")
    return data


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_file(path: Path) -> None:
    with path.open("r+b") as file:  # Windows flushes only what is open for writing
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Flush the names in `folder` to the disk, on the file systems that know how."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


# Checkpoints


def save_step(checkpoints: Path, step: int, write: Callable[[Path], None], keep: int = 2) -> Path:
    """Seal the checkpoint of `step`, name it in `LATEST`, remove all but the `keep` newest intact; give its folder.

    The one just saved is always kept. Raises what `seal` raises; the former checkpoints are there then.
    """
    sweep(checkpoints)  # first of all: a disk may be full of what a killed writer has left
    folder = checkpoints / f"step-{step:08d}"
    seal(folder, write, "checkpoint")
    replace_file(checkpoints / "LATEST", f"{folder.name}\n".encode())
    with suppress(OSError):
        _prune(checkpoints, folder, keep)
    return folder


def newest(checkpoints: Path, names: Collection[str]) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, or None where there is none at all, and what is wrong with newer ones.

    `names` are the files that a checkpoint may hold. `LATEST` is a hint for people and not read: it may be lost or old.
    To be called by the only writer: see `hold`. Raises DamagedError where there are checkpoints and none verifies.
    """
    with _explained(checkpoints):
        folders = _steps(checkpoints)
    complaints: list[str] = []
    for folder in folders:
        try:
            verify(folder, "checkpoint", names)
        except DamagedError as error:
            complaints.append(str(error))
        else:
            return folder, complaints
    if complaints:
        raise DamagedError(
            f"{checkpoints}: none of the {len(folders)} checkpoints is as it was written; "
            "restore one from a copy, or start again in another place\n" + "\n".join(complaints)
        )
    return None, []


def _steps(checkpoints: Path) -> list[Path]:
    """The checkpoints, damaged ones too, newest first."""
    try:
        names = [path.name for path in checkpoints.iterdir()]
    except FileNotFoundError:
        return []
    names = [name.removeprefix(".old-") for name in names]
    steps = {int(match[1]): checkpoints / name for name in names if (match := _STEP.fullmatch(name))}
    for folder in steps.values():
        _settle(folder)
    return [steps[step] for step in sorted(steps, reverse=True)]


def _prune(checkpoints: Path, saved: Path, keep: int) -> None:
    kept = 1
    for folder in _steps(checkpoints):
        if folder == saved:
            continue
        if kept < keep and _usable(folder):
            kept += 1
        else:
            _discard(folder)


def _usable(checkpoint: Path) -> bool:
    try:
        _intact(checkpoint, "checkpoint")
    except DamagedError:
        return False
    return True


# One writer


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Be the only writer of `folder`, which is created where it is missing, until the block ends or the process dies.

    Raises RecurraError where another process holds it, and where the folder cannot be written to.
    """
    from filelock import FileLock, Timeout

    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", blocking=False)
        # Beside the lock, not in it: some versions of filelock empty the lock file on every attempt to take it.
        holder = folder / ".lock.pid"
        try:
            lock.acquire()
        except Timeout:
            raise RecurraError(
                f"another training writes to {folder}{_process(holder)}; wait for it, or give another --out"
            ) from None
    try:
        replace_file(holder, str(os.getpid()).encode())
        yield
    finally:
        with suppress(OSError):
            holder.unlink()
        lock.release()


def _process(holder: Path) -> str:
    with suppress(OSError, ValueError):
        return f" (process {int(holder.read_bytes()[:20])})"
    return ""


# What is said when something fails


@contextmanager
def _explained(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RecurraError(
            f"{place}: {_reason(error)}; what was there before is unchanged. {_remedy(error)}"
        ) from error


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _damaged(path, "a file that can be read", error.strerror or str(error)) from error


def _remedy(error: OSError) -> str:
    if isinstance(error, IsADirectoryError | NotADirectoryError | FileExistsError):
        return "Choose another place"
    return "Free space on that disk, or choose a place that can be written to"


def _reason(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{reason} ({error.filename})" if error.filename else reason


def _damaged(
    path: Path, expected: str, found: str, remedy: str = "restore it from a copy, or write it anew"
) -> DamagedError:
    return DamagedError(f"{path}: expected {expected}, found {found}; {remedy}")
