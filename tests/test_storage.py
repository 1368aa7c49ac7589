"""The laws of storage: whole or not at all, verified or refused, one writer."""

import hashlib
import io
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import ENOSPC
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import recurra.errors
from recurra import storage
from recurra.errors import DamagedError, RecurraError, UsageError

SOURCES = str(Path(recurra.errors.__file__).parents[1])
NAMES = {"model.bin", "config.json", "notes.md"}


def content(step: int, size: int = 96) -> dict[str, bytes]:
    """Files that tell which step they are of, so that a mixture of two steps is seen."""
    return {"model.bin": random.Random(step).randbytes(size), "config.json": b'{"step": %d}' % step}


def putting(files: dict[str, bytes]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name, data in files.items():
            (folder / name).write_bytes(data)

    return write


def found(folder: Path, kind: str = "bundle") -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in storage.verify(folder, kind, NAMES).items()}


def leftovers(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir() if path.name.startswith((".tmp-", ".old-")))


def child(code: str, *arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": SOURCES},
    )


@pytest.fixture(autouse=True, scope="module")
def quick_disk() -> Iterator[None]:
    """No test can cut the power, and a flush is slow; one test records when it is asked for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "best"
    storage.seal(folder, putting(content(1)), "bundle")
    return folder


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoints"
    for step in (10, 20):
        storage.save_step(folder, step, putting(content(step)))
    return folder


# Sealing


def test_what_was_sealed_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "best"
    storage.seal(folder, putting(content(1)), "bundle")
    assert found(folder) == content(1)
    storage.seal(folder, putting({**content(2), "notes.md": b""}), "bundle")
    assert found(folder) == {**content(2), "notes.md": b""}
    storage.seal(folder, putting({}), "bundle")
    assert found(folder) == {}
    assert [path.name for path in folder.parent.iterdir()] == ["best"]


def test_manifest_is_the_published_format(bundle: Path) -> None:
    manifest = json.loads((bundle / "MANIFEST.json").read_text())
    files = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in sorted(content(1).items())
    }
    assert manifest == {"format_version": 1, "kind": "bundle", "files": files}


def test_a_folder_that_was_never_sealed_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(UsageError, match=r"thesis.*another name"):
        storage.seal(tmp_path / "thesis", putting(content(1)), "bundle")
    with pytest.raises(UsageError, match="is a file"):
        storage.seal(tmp_path / "thesis" / "chapter.txt", putting(content(1)), "bundle")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    storage.seal(tmp_path / "empty", putting(content(1)), "bundle")
    assert found(tmp_path / "empty") == content(1)


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: (folder / "sub").mkdir(),
        lambda folder: (folder / "link").symlink_to("elsewhere"),
        lambda folder: (folder / "MANIFEST.json").write_text("{}"),
        lambda folder: (folder / "a name").write_text(""),
        lambda folder: os.mkfifo(folder / "pipe"),
    ],
)
def test_only_plain_files_are_sealed(bundle: Path, write: Callable[[Path], None]) -> None:
    with pytest.raises(UsageError, match="plain"):
        storage.seal(bundle, write, "bundle")
    assert found(bundle) == content(1)
    assert not leftovers(bundle.parent)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_modes_obey_the_umask(tmp_path: Path, umask: int) -> None:
    def write(folder: Path) -> None:
        putting(content(1))(folder)
        (folder / "model.bin").chmod(0o600)  # as safetensors leaves it
        (folder / "config.json").chmod(0o777)

    before = os.umask(umask)
    try:
        storage.seal(tmp_path / "best", write, "bundle")
        storage.replace_file(tmp_path / "LATEST", b"x")
    finally:
        os.umask(before)
    files = [*(tmp_path / "best").iterdir(), tmp_path / "LATEST"]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}
    assert (tmp_path / "best").stat().st_mode & 0o777 == 0o777 & ~umask


def test_everything_is_flushed_before_it_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, object]] = []
    rename, replace = os.rename, os.replace

    def recorded_rename(source: Path, target: Path) -> None:
        calls.append((f"rename to {Path(target).name}", source))
        rename(source, target)

    def recorded_replace(source: Path, target: Path) -> None:
        calls.append(("replace", source))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", lambda handle: calls.append(("fsync", os.fstat(handle).st_ino)))
    monkeypatch.setattr(os, "rename", recorded_rename)
    storage.seal(bundle, putting(content(2)), "bundle")
    inode = {path.name: path.stat().st_ino for path in [*bundle.iterdir(), bundle, bundle.parent]}
    flushed = [inode["config.json"], inode["model.bin"], inode["MANIFEST.json"], inode["best"]]
    assert calls[:4] == [("fsync", number) for number in flushed]
    assert [call for call, _ in calls[4:6]] == ["rename to .old-best", "rename to best"]
    assert calls[6] == ("fsync", bundle.parent.stat().st_ino)
    assert calls[7][0].startswith("rename to .tmp-"), "the former folder goes only when the new one is on the disk"

    calls.clear()
    monkeypatch.setattr(os, "replace", recorded_replace)
    storage.replace_file(bundle.parent / "LATEST", b"x")
    written = (bundle.parent / "LATEST").stat().st_ino
    assert [call for call, _ in calls] == ["fsync", "replace", "fsync"]
    assert [calls[0][1], calls[2][1]] == [written, bundle.parent.stat().st_ino]


def test_file_system_without_folder_flush_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):  # noqa: PTH112
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    storage.seal(tmp_path / "best", putting(content(1)), "bundle")
    assert found(tmp_path / "best") == content(1)


def test_an_unsuccessful_write_is_never_called_a_success(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk keeps other bytes than it was given, and no call fails."""
    sync = storage._sync_folder

    def spoil(folder: Path) -> None:
        if folder.name.startswith(".tmp-"):
            (folder / "model.bin").write_bytes(b"\0" * 96)
        sync(folder)

    monkeypatch.setattr(storage, "_sync_folder", spoil)
    with pytest.raises(DamagedError, match=r"model\.bin"):
        storage.seal(bundle, putting(content(2)), "bundle")
    assert found(bundle) == content(1)
    assert not leftovers(bundle.parent)


def test_settle_undoes_what_a_kill_left(bundle: Path) -> None:
    aside = bundle.with_name(".old-best")
    storage.settle(bundle)
    assert found(bundle) == content(1)
    bundle.rename(aside)
    storage.settle(bundle)
    assert found(bundle) == content(1)
    shutil.copytree(bundle, aside)
    storage.settle(bundle)
    assert found(bundle) == content(1)
    assert not leftovers(bundle.parent)
    storage.settle(bundle.parent / "never written")


def test_sweep_takes_only_what_is_ours(tmp_path: Path) -> None:
    ours = [tmp_path / ".tmp-12-0123456789abcdef", tmp_path / ".tmp-3-0123456789abcdef"]
    ours[0].mkdir()
    (ours[0] / "part").write_text("x")
    ours[1].write_text("x")
    others = [tmp_path / ".tmp-mine", tmp_path / "tmp-12-0123456789abcdef", tmp_path / "data"]
    for path in others:
        path.write_text("x")
    storage.sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(others)
    storage.sweep(tmp_path / "nowhere")


# Faults: the n-th call of each kind fails, for every n


class Torn(io.FileIO):
    """A file that takes the first half of what it is given and then fails as `strike` says."""

    strike: Callable[[], None]

    def write(self, data: bytes) -> int:  # type: ignore[override]
        view = memoryview(data)
        super().write(view[: len(view) // 2])
        self.strike()
        return len(view) // 2 + super().write(view[len(view) // 2 :])


class Fault:
    """Makes the n-th call of one function raise; `struck` tells whether there was an n-th call."""

    def __init__(self, call: str, n: int, error: BaseException) -> None:
        self.call, self.left, self.error, self.struck = call, n, error, False

    def strike(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.struck = True
            raise self.error

    @contextmanager
    def at_work(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            if self.call == "write":
                patch.setattr(io, "open", self.torn(io.open))
            else:
                module, name = self.call.split(".")
                owner = {"os": os, "io": io}[module]
                patch.setattr(owner, name, self.failing(getattr(owner, name)))
            yield

    def failing(self, function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            self.strike()
            return function(*args, **kwargs)

        return call

    def torn(self, function: Callable[..., object]) -> Callable[..., object]:
        def call(path: Path, mode: str = "r", *args: object, **kwargs: object) -> object:
            if mode != "wb":
                return function(path, mode, *args, **kwargs)
            raw = Torn(path, "w")
            raw.strike = self.strike
            return io.BufferedWriter(raw)  # type: ignore[type-var]

        return call


CALLS = "os.open io.open write os.fsync os.rename os.replace os.mkdir os.chmod os.stat os.listdir os.unlink os.rmdir"
REASONS = [OSError(ENOSPC, "No space left on device"), KeyboardInterrupt()]


def trials(call: str, reason: BaseException, action: Callable[[], object]) -> Iterator[BaseException | None]:
    """Runs `action` with its 1st, 2nd, ... call failing, until no call is left; gives what came out each time."""
    for n in count(1):
        fault, raised = Fault(call, n, reason), None
        with fault.at_work():
            try:
                action()
            except (RecurraError, KeyboardInterrupt) as error:
                raised = error
        yield raised
        if not fault.struck:
            assert n > 1 or call in {"os.replace", "os.chmod", "os.unlink"}, f"{call} is never called"
            assert raised is None
            return


@pytest.mark.parametrize("reason", REASONS, ids=["full", "interrupt"])
@pytest.mark.parametrize("call", CALLS.split())
def test_former_folder_survives_every_fault(bundle: Path, call: str, reason: BaseException) -> None:
    for raised in trials(call, reason, lambda: storage.seal(bundle, putting(content(2)), "bundle")):
        if raised is None:
            assert found(bundle) == content(2)
        elif isinstance(raised, RecurraError):
            assert found(bundle) == content(1)
            assert "No space left" in str(raised)
            assert "best" in str(raised) or ".tmp-" in str(raised)
            assert not leftovers(bundle.parent)
        else:
            storage.settle(bundle)
            assert (
                found(bundle) == content(2) if leftovers(bundle.parent) else found(bundle) in (content(1), content(2))
            )
        storage.seal(bundle, putting(content(1)), "bundle")
        storage.sweep(bundle.parent)
        assert not leftovers(bundle.parent)


@pytest.mark.parametrize("reason", REASONS, ids=["full", "interrupt"])
@pytest.mark.parametrize("call", CALLS.split())
def test_former_checkpoint_survives_every_fault(tmp_path: Path, call: str, reason: BaseException) -> None:
    folder, steps = tmp_path / "checkpoints", count(2)
    storage.save_step(folder, 1, putting(content(1)), keep=1)
    step = 1

    def save() -> None:
        nonlocal step
        step = next(steps)
        storage.save_step(folder, step, putting(content(step)), keep=1)

    for raised in trials(call, reason, save):
        latest, complaints = storage.newest(folder, NAMES)
        assert latest is not None and not complaints
        assert found(latest, "checkpoint") in (
            [content(step)] if raised is None else [content(step - 1), content(step)]
        )
        if isinstance(raised, RecurraError):
            assert found(folder / f"step-{step - 1:08d}", "checkpoint") == content(step - 1)
        save()
        assert not leftovers(folder)
        assert sorted(path.name for path in folder.iterdir()) == ["LATEST", f"step-{step:08d}"]


@pytest.mark.parametrize("call", CALLS.split())
def test_replaced_file_survives_every_fault(tmp_path: Path, call: str) -> None:
    path = tmp_path / "LATEST"
    path.write_bytes(b"former")
    for raised in trials_of_file(call, lambda: storage.replace_file(path, b"new")):
        assert path.read_bytes() == (b"new" if raised is None else b"former")
        assert raised is None or "LATEST" in str(raised)
        assert [entry.name for entry in tmp_path.iterdir()] == ["LATEST"]
        path.write_bytes(b"former")


def trials_of_file(call: str, action: Callable[[], object]) -> Iterator[BaseException | None]:
    called_by_replace = {"os.open", "io.open", "write", "os.fsync", "os.replace"}
    return trials(call, REASONS[0], action) if call in called_by_replace else iter(())


# Kills

EVERY_INSTANT = """
import itertools, os, random, signal, sys
from pathlib import Path
from recurra import storage

run = Path(sys.argv[1])
names = {"model.bin", "config.json"}
os.fsync = lambda handle: None  # a kill does not lose what the kernel has taken


def save(step):
    def write(folder):
        (folder / "model.bin").write_bytes(random.Random(step).randbytes(50000))
        storage.write_json(folder / "config.json", {"step": step})
    storage.save_step(run, step, write, keep=1)
    storage.save_step(run, step, write, keep=1)  # a step that is there already is replaced


def check(steps):
    latest, complaints = storage.newest(run, names)
    assert not complaints, complaints
    step = storage.read_json(latest / "config.json")["step"]
    assert step in steps, (step, steps)
    assert (latest / "model.bin").read_bytes() == random.Random(step).randbytes(50000)


def kill_at(n):
    left = n
    def hook(event, arguments):
        nonlocal left
        if event == "open" or event.startswith(("os.", "shutil.")):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)


save(1)
for n in itertools.count(1):
    pid = os.fork()
    if not pid:
        kill_at(n)
        save(n + 1)
        os._exit(0)
    done = os.waitpid(pid, 0)[1] == 0
    check({n + 1} if done else {n, n + 1})
    if done:
        break
    save(n + 1)
    assert sorted(os.listdir(run)) == ["LATEST", f"step-{n + 1:08d}"], os.listdir(run)
print(n)
"""


def test_kill_before_every_call_leaves_a_whole_folder(tmp_path: Path) -> None:
    with child(EVERY_INSTANT, tmp_path) as process:
        instants = process.communicate()[0]
    assert process.returncode == 0
    assert int(instants) > 50


ENDLESS = """
import hashlib, os, random, sys
from pathlib import Path
from recurra import storage

run = Path(sys.argv[1])
names = {"model.bin", "config.json"}
with storage.hold(run):
    storage.sweep(run)
    storage.settle(run / "best")
    latest, _ = storage.newest(run / "checkpoints", names)
    step = storage.read_json(latest / "config.json")["step"] if latest else 0
    while True:
        step += 1
        data = os.urandom(random.randrange(300000))
        def write(folder):
            (folder / "model.bin").write_bytes(data)
            storage.write_json(folder / "config.json", {"step": step, "sha256": hashlib.sha256(data).hexdigest()})
        storage.save_step(run / "checkpoints", step, write)
        storage.seal(run / "best", write, "bundle")
        print(step, flush=True)
"""


def step_of(folder: Path, kind: str) -> int:
    files = storage.verify(folder, kind, NAMES)
    config = storage.read_json(files["config.json"])
    assert hashlib.sha256(files["model.bin"].read_bytes()).hexdigest() == config["sha256"]
    return config["step"]


@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.soak)])
def test_kill_at_any_instant_loses_nothing_reported(tmp_path: Path, kills: int) -> None:
    rng = random.Random(kills)
    for _ in range(kills):
        with child(ENDLESS, tmp_path) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline()]
            time.sleep(rng.uniform(0, 0.1))
            process.kill()
            lines += process.stdout.read().splitlines()
        reported = max(int(line) for line in lines if line.strip())
        latest, complaints = storage.newest(tmp_path / "checkpoints", NAMES)
        assert latest is not None and not complaints
        assert reported <= step_of(latest, "checkpoint") <= reported + 1
        storage.settle(tmp_path / "best")
        assert reported <= step_of(tmp_path / "best", "bundle") <= reported + 1


# Damage


def flipped(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def overwrite(path: Path, data: bytes) -> None:
    """As `write_bytes`, but the file is not emptied first, upon which some file systems flush to the disk each time."""
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()


def refused(folder: Path, *names: str, kind: str = "bundle") -> str:
    with pytest.raises(DamagedError) as caught:
        storage.verify(folder, kind, NAMES)
    message = str(caught.value)
    assert any(name in message for name in names), message
    assert "expected" in message and "found" in message and len(message) < 1000
    return message


FILES = ["model.bin", "config.json", "MANIFEST.json"]


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_found(bundle: Path, name: str) -> None:
    path = bundle / name
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        overwrite(path, flipped(data, bit))
        refused(bundle, *(FILES if name == "MANIFEST.json" else [name]))
    path.write_bytes(data)
    assert found(bundle) == content(1)


@pytest.mark.parametrize("name", FILES)
def test_every_length_but_the_right_one_is_found(bundle: Path, name: str) -> None:
    path = bundle / name
    data = path.read_bytes()
    for changed in [
        *(data[:length] for length in range(len(data))),
        *(data + more for more in (b"\0", b"\n", b" ", data)),
    ]:
        overwrite(path, changed)
        refused(bundle, name)


def hardlinked(path: Path) -> None:
    os.link(path, path.parent.parent / "second name")


def linked(path: Path) -> None:
    path.symlink_to(path.rename(path.parent.parent / "moved"))


def swapped(path: Path) -> None:
    other = path.with_name("config.json" if path.name != "config.json" else "model.bin")
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


def made_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def made_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def noised(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(path.stat().st_size))


DAMAGE = [Path.unlink, hardlinked, linked, swapped, made_a_folder, made_a_pipe, noised]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", FILES)
def test_damage_is_named_and_the_former_checkpoint_used(
    checkpoints: Path, name: str, damage: Callable[[Path], None]
) -> None:
    folder = checkpoints / "step-00000020"
    damage(folder / name)
    refused(folder, name, "config.json" if damage is swapped else name, kind="checkpoint")
    latest, complaints = storage.newest(checkpoints, NAMES)
    assert latest == checkpoints / "step-00000010"
    assert found(latest, "checkpoint") == content(10)
    assert len(complaints) == 1 and "step-00000020" in complaints[0]


@pytest.mark.parametrize("name", ["notes.md", ".DS_Store", "sub"])
def test_extra_files_are_refused(bundle: Path, name: str) -> None:
    (bundle / name).mkdir() if name == "sub" else (bundle / name).write_text("x")
    assert "move it away" in refused(bundle, name)


def test_files_of_two_folders_do_not_mix(bundle: Path, tmp_path: Path) -> None:
    """A tokenizer of another run beside the weights of this one would predict nonsense."""
    storage.seal(tmp_path / "other", putting(content(2)), "bundle")
    shutil.copyfile(tmp_path / "other" / "config.json", bundle / "config.json")
    refused(bundle, "config.json")


def test_what_is_no_sealed_folder_is_refused(bundle: Path, tmp_path: Path) -> None:
    refused(tmp_path / "missing", "missing")
    refused(bundle / "config.json", "config.json")
    (bundle / "MANIFEST.json").unlink()
    refused(bundle, "MANIFEST.json")


def test_names_outside_the_allowlist_are_refused(bundle: Path) -> None:
    with pytest.raises(DamagedError, match=r"MANIFEST\.json.*model\.bin"):
        storage.verify(bundle, "bundle", {"config.json"})


def remade(folder: Path, **changes: object) -> None:
    """The manifest, with other values, as recurra would write it."""
    value = json.loads((folder / "MANIFEST.json").read_text())
    storage.write_json(folder / "MANIFEST.json", {**value, **changes})


@pytest.mark.parametrize(
    "name", ["../x", "/etc/hostname", "..", ".", "", "a/../x", "..\\x", "C:x", "x\n", ".x", "MANIFEST.json", "x" * 5000]
)
def test_names_are_never_paths(bundle: Path, name: str) -> None:
    (bundle.parent / "x").write_bytes(b"secret")
    entry = {"bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}
    remade(bundle, files={name: entry})
    with pytest.raises(DamagedError, match=r"MANIFEST\.json: expected .*(plain file name|only)"):
        storage.verify(bundle, "bundle", {name, "model.bin"})


def test_manifest_from_the_future_asks_for_an_update(bundle: Path) -> None:
    remade(bundle, format_version=2, files=["something", "new"])
    assert "update" in refused(bundle, "MANIFEST.json")


def test_manifest_of_another_kind_is_refused(bundle: Path) -> None:
    message = refused(bundle, "MANIFEST.json", kind="checkpoint")
    assert "bundle" in message and "checkpoint" in message


ENTRY = {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}


@pytest.mark.parametrize(
    "changes",
    [
        *({"format_version": version} for version in (0, -1, True, "1", 1.0, None, [1], 10**4000)),
        *({"kind": kind} for kind in (None, 1, ["bundle"], "x" * 100_000)),
        *({"files": files} for files in (None, [], ["model.bin"], "model.bin", {"model.bin": None}, {"model.bin": []})),
        *({"files": {"model.bin": {**ENTRY, "bytes": size}}} for size in (-1, True, 1.0, "1", None, 10**30)),
        *({"files": {"model.bin": {**ENTRY, "sha256": text}}} for text in (None, 0, "", "0" * 63, "A" * 64, "0" * 65)),
        {"files": {"model.bin": {**ENTRY, "mode": 0}}},
        {"extra": 1},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_manifest_with_other_types_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    storage.seal(tmp_path / "best", putting({"model.bin": b"x"}), "bundle")
    remade(tmp_path / "best", files={"model.bin": ENTRY})
    assert found(tmp_path / "best") == {"model.bin": b"x"}
    remade(tmp_path / "best", **changes)
    refused(tmp_path / "best", "MANIFEST.json", "model.bin")


def test_manifest_that_is_huge_is_not_read(bundle: Path) -> None:
    remade(bundle, kind="x" * (1 << 20))
    assert "at most 1048576 bytes" in refused(bundle, "MANIFEST.json")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"null",
        b"[]",
        b"1",
        b"not JSON",
        b"\xff\xfe",
        b"[" * 1_000_000,
        b'{"a":' * 200_000,
        b" " * (1 << 21),
    ],
    ids=lambda data: repr(data[:8]),
)
def test_manifest_that_is_none_is_refused(bundle: Path, data: bytes) -> None:
    (bundle / "MANIFEST.json").write_bytes(data)
    refused(bundle, "MANIFEST.json")


def test_manifest_says_everything_once(bundle: Path) -> None:
    text = (bundle / "MANIFEST.json").read_text()
    for other in (text.replace('"kind": "bundle"', '"kind": "x",\n  "kind": "bundle"'), text.replace("\n", "\r\n")):
        assert json.loads(other) == json.loads(text)
        (bundle / "MANIFEST.json").write_bytes(other.encode())
        refused(bundle, "MANIFEST.json")


# Checkpoints


def test_no_checkpoint_is_no_fault(tmp_path: Path) -> None:
    assert storage.newest(tmp_path / "checkpoints", NAMES) == (None, [])
    assert storage.newest(tmp_path, NAMES) == (None, [])
    (tmp_path / "step-x").mkdir()
    (tmp_path / "step-1").mkdir()
    (tmp_path / "step-000000001").mkdir()
    assert storage.newest(tmp_path, NAMES) == (None, [])


def test_checkpoints_that_cannot_be_listed_are_not_none(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a training would start from the beginning and say nothing."""

    def refuse(path: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", str(path))

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, refuse)
    with pytest.raises(RecurraError, match="checkpoints: Permission denied"):
        storage.newest(checkpoints, NAMES)


def test_when_no_checkpoint_verifies_all_complaints_are_told(checkpoints: Path) -> None:
    (checkpoints / "step-00000020" / "model.bin").write_bytes(b"")
    (checkpoints / "step-00000010" / "config.json").unlink()
    with pytest.raises(DamagedError) as caught:
        storage.newest(checkpoints, NAMES)
    assert all(text in str(caught.value) for text in ("20/model.bin", "10/config.json", "none of the 2"))


@pytest.mark.parametrize("hint", [None, b"", b"step-00000010\n", b"step-00000099\n", b"../../etc", b"\xff"])
def test_latest_is_only_a_hint(checkpoints: Path, hint: bytes | None) -> None:
    assert (checkpoints / "LATEST").read_text() == "step-00000020\n"
    (checkpoints / "LATEST").unlink()
    if hint is not None:
        (checkpoints / "LATEST").write_bytes(hint)
    assert storage.newest(checkpoints, NAMES) == (checkpoints / "step-00000020", [])


def test_newest_is_by_number(tmp_path: Path) -> None:
    for step in (100_000_000, 99_999_999, 0):
        storage.save_step(tmp_path, step, putting(content(step)), keep=9)
    assert storage.newest(tmp_path, NAMES) == (tmp_path / "step-100000000", [])


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in folder.glob("step-*"))


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_as_many_are_kept_as_asked(tmp_path: Path, keep: int) -> None:
    for step in range(5):
        assert storage.save_step(tmp_path, step, putting(content(step)), keep) == tmp_path / f"step-{step:08d}"
        assert steps_in(tmp_path) == list(range(max(0, step + 1 - keep), step + 1))


def test_damaged_ones_do_not_count_as_kept(checkpoints: Path) -> None:
    (checkpoints / "step-00000020" / "model.bin").write_bytes(b"")
    storage.save_step(checkpoints, 30, putting(content(30)))
    assert steps_in(checkpoints) == [10, 30]


def test_the_one_just_saved_is_kept(checkpoints: Path) -> None:
    """After someone went back to an earlier step."""
    storage.save_step(checkpoints, 5, putting(content(5)))
    assert steps_in(checkpoints) == [5, 20]


def test_a_step_moved_aside_by_a_killed_writer_is_found(checkpoints: Path) -> None:
    (checkpoints / "step-00000020").rename(checkpoints / ".old-step-00000020")
    latest, complaints = storage.newest(checkpoints, NAMES)
    assert latest == checkpoints / "step-00000020" and not complaints
    assert found(latest, "checkpoint") == content(20)


# A disk that takes no more

LIMITED = """
import resource, sys
from pathlib import Path
from recurra import storage
from recurra.errors import RecurraError

run = Path(sys.argv[1])
storage.save_step(run, 1, lambda folder: (folder / "model.bin").write_bytes(b"small"))
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    storage.save_step(run, 2, lambda folder: (folder / "model.bin").write_bytes(bytes(1000000)))
except RecurraError as error:
    print(error)
storage.save_step(run, 3, lambda folder: (folder / "model.bin").write_bytes(b"small again"))
"""


def test_real_refusal_of_the_system_leaves_the_former(tmp_path: Path) -> None:
    with child(LIMITED, tmp_path) as process:
        message = process.communicate()[0]
    assert process.returncode == 0
    assert "step-00000002: File too large" in message
    assert "Free space" in message and "unchanged" in message and len(message.splitlines()) == 1
    assert steps_in(tmp_path) == [1, 3] and not leftovers(tmp_path)
    assert [found(tmp_path / f"step-{step:08d}", "checkpoint")["model.bin"] for step in (1, 3)] == [
        b"small",
        b"small again",
    ]


def test_real_refusal_while_tensors_are_written(bundle: Path) -> None:
    import torch

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    tensors = {"weight": torch.zeros(100_000)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    try:
        with pytest.raises(RecurraError, match=r"best: .*File too large.*Free space"):
            storage.seal(bundle, lambda folder: storage.write_tensors(folder / "model.bin", tensors), "bundle")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert found(bundle) == content(1)
    assert not leftovers(bundle.parent)


def test_a_place_that_cannot_be_written_to_is_named(bundle: Path) -> None:
    inside_a_file = bundle / "config.json" / "best"
    for attempt in (
        lambda: storage.seal(inside_a_file, putting(content(1)), "bundle"),
        lambda: storage.replace_file(inside_a_file, b""),
        lambda: storage.hold(inside_a_file).__enter__(),
    ):
        with pytest.raises(RecurraError, match=r"config\.json/best: .*[Cc]hoose another place"):
            attempt()


# One writer

HOLDER = """
import sys, time
from pathlib import Path
from recurra import storage

with storage.hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_second_writer_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with child(HOLDER, run) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        for _ in range(2):
            with (
                pytest.raises(RecurraError, match=rf"writes to {run} \(process {process.pid}\); .*--out"),
                storage.hold(run),
            ):
                pass
        process.kill()
    with storage.hold(run):
        pass


def test_lock_is_given_back_whatever_happens(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), storage.hold(tmp_path):
        _ = 1 / 0
    with storage.hold(tmp_path):
        with pytest.raises(RecurraError, match=f"process {os.getpid()}"), storage.hold(tmp_path):
            pass
        with pytest.raises(RecurraError), storage.hold(tmp_path):
            pass
    with storage.hold(tmp_path):
        (tmp_path / ".lock.pid").write_bytes(b"\xff nonsense")
        with pytest.raises(RecurraError, match=f"writes to {tmp_path}; wait"), storage.hold(tmp_path):
            pass


# Tensors and JSON


def test_tensors_come_back_as_they_went(tmp_path: Path) -> None:
    import torch

    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "plain": base,
        "shared": base,
        "part": base[1:3],
        "transposed": base.T,
        "column": base[:, 2],
        "expanded": torch.ones(1).expand(5),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 3),
        "flags": torch.tensor([True, False]),
        "half": torch.tensor([1.5, float("nan"), -0.0], dtype=torch.bfloat16),
        "double": torch.tensor([1e300, float("inf")], dtype=torch.float64),
        "bytes": torch.get_rng_state(),
        "weight": torch.nn.Parameter(torch.randn(3, 3)),
        "conjugate": torch.tensor([1 + 2j, 3 - 1j]).conj(),
        "negated": torch._neg_view(torch.ones(3)),
        "große Schicht/ß.0": torch.ones(2),
    }
    storage.write_tensors(tmp_path / "x", tensors)
    loaded = storage.read_tensors(tmp_path / "x")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape, name
        assert torch.allclose(loaded[name], tensor.detach(), rtol=0, atol=0, equal_nan=True), name
    assert len({tensor.data_ptr() for tensor in loaded.values() if tensor.numel()}) == len(tensors) - 1
    storage.write_tensors(tmp_path / "none", {})
    assert storage.read_tensors(tmp_path / "none") == {}


def test_loaded_tensors_do_not_follow_the_file(tmp_path: Path) -> None:
    import torch

    storage.write_tensors(tmp_path / "x", {"weight": torch.ones(1000)})
    loaded = storage.read_tensors(tmp_path / "x")["weight"]
    with (tmp_path / "x").open("r+b") as file:
        file.seek(500)
        file.write(b"\xff" * 1000)
    assert torch.equal(loaded, torch.ones(1000))


def test_damaged_tensors_never_crash(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "model.safetensors"
    storage.write_tensors(path, {"a": torch.ones(3), "b": torch.zeros(2, 2, dtype=torch.int64)})
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    cuts = [data[:length] for length in range(len(data))]
    flips = [flipped(data, bit) for bit in range(0, 8 * header, 3)]
    refusals = 0
    for changed in [*cuts, *flips, data + b"\0", b"[" * 10_000, (1 << 62).to_bytes(8, "little") + data]:
        overwrite(path, changed)
        try:
            storage.read_tensors(path)
        except DamagedError as error:
            assert "model.safetensors" in str(error)
            refusals += 1
    assert refusals > len(cuts) + len(flips) // 2
    for nothing in (tmp_path / "missing", tmp_path):
        with pytest.raises(DamagedError, match=nothing.name):
            storage.read_tensors(nothing)


numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(value=values)
def test_json_comes_back_as_it_went(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    storage.write_json(path, value)
    back = storage.read_json(path)
    assert repr(back) == repr(value), "types, signs of zero and the order of keys too"


def test_json_is_readable_text(tmp_path: Path) -> None:
    storage.write_json(tmp_path / "x", {"b": "größer", "a": [1]})
    assert (tmp_path / "x").read_bytes().decode() == '{\n  "b": "größer",\n  "a": [\n    1\n  ]\n}\n'


@pytest.mark.parametrize("value", [float("nan"), {"best": float("inf")}, [-float("inf")], "\ud800"], ids=repr)
def test_json_refuses_what_it_cannot_say(tmp_path: Path, value: object) -> None:
    with pytest.raises(RecurraError, match=r"state\.json: expected finite"):
        storage.write_json(tmp_path / "state.json", value)
    assert not (tmp_path / "state.json").exists()


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"{", b'{"a": 1,}', b"1 2", b"\xff", b'"\xed\xa0\x80"', b"\xef\xbb\xbf1", "1".encode("utf-16")),
        *(b"NaN", b"-Infinity", b"[1e999]", b"1" * 10_000, b"[" * 200_000, b'{"a":' * 200_000, b" " * 3_000_000),
    ],
    ids=lambda data: repr(data[:8]),
)
def test_damaged_json_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=r"state\.json: expected"):
        storage.read_json(path, limit_bytes=2_000_000)


def test_json_limit_is_the_last_length_allowed(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1234")
    assert storage.read_json(tmp_path / "x", limit_bytes=4) == 1234
    with pytest.raises(DamagedError, match="at most 3 bytes"):
        storage.read_json(tmp_path / "x", limit_bytes=3)
    with pytest.raises(DamagedError, match="missing"):
        storage.read_json(tmp_path / "missing")


def test_storage_needs_no_torch_until_tensors_come() -> None:
    code = "import sys, recurra.storage; sys.exit(bool({'torch', 'filelock', 'safetensors'} & set(sys.modules)))"
    with child(code) as process:
        process.communicate()
    assert process.returncode == 0
