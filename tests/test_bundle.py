"""The promise of bundles: the same bits and answers come back, or nothing does and the damaged file is named."""

import hashlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import recurra
from recurra import bundle
from recurra.errors import DamagedError, DataError
from recurra.tasks.language import Language

FILES = [*sorted(bundle.FILES), "MANIFEST.json"]
KINDS: dict[str, dict[str, Any]] = {
    "characters": {},
    "bytes": {"tokens": {"kind": "bytes"}},
    "words": {"tokens": {"kind": "words"}},
    "bpe": {"tokens": {"kind": "bpe", "size": 280}},
    "tied": {"embed": {"tied": True}},
    "one-hot": {"embed": {"kind": "onehot"}},
    "weight drop": {"model": {"recurrent_dropout": 0.3, "dropout": 0.2, "layers": 2}},
    "gru": {"cell": {"name": "gru"}},
    "elman": {"cell": {"name": "elman"}},
}


@pytest.fixture(autouse=True, scope="module")
def unflushed() -> Iterator[None]:
    """Without waiting for the disk: nothing here cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


def train(folder: Path, settings: dict[str, Any], seed: int = 0) -> Language:
    text = folder.with_suffix(".txt")
    some = random.Random(seed)
    text.write_text("".join(some.choice(["the ", "cat ", "sat.\n", "é ", "東 "]) for _ in range(400)))
    small: dict[str, Any] = {"train": {"rows": 4, "chunk": 8, "validations": 2}}
    small.update({section: {**small.get(section, {}), **fields} for section, fields in settings.items()})
    task = recurra.train("language", text, out=folder, settings=small, hidden=8, steps=4, threads=1, seed=seed)
    assert isinstance(task, Language)
    return task


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    train(folder, {})
    return folder / "best"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of another size, none of whose files is the same."""
    folder = tmp_path_factory.mktemp("runs") / "second"
    train(folder, {"model": {"layers": 2}, "tokens": {"kind": "bytes"}}, seed=1)
    return folder / "best"


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_saved_comes_back_with_the_same_bits_and_the_same_answers(kind: str, tmp_path: Path) -> None:
    trained = train(tmp_path / "run", KINDS[kind])
    bundle.save(tmp_path / "copy", trained, {})
    for place in (tmp_path / "run", tmp_path / "run" / "best", tmp_path / "copy"):
        loaded = recurra.load(place)
        assert isinstance(loaded, Language)
        before, after = bundle.weights(trained.model), bundle.weights(loaded.model)
        assert list(before) == list(after)
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert not loaded.model.training
        for prompt in ("", "the cat", "x 🎉 東"):
            assert loaded.predict(prompt) == trained.predict(prompt)
            assert loaded.generate(prompt, 20, seed=3) == trained.generate(prompt, 20, seed=3)
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == (
        tmp_path / "run" / "best" / "model.safetensors"
    ).read_bytes()


def test_a_bundle_stands_alone_without_its_run(best: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(best, tmp_path / "elsewhere")
    assert recurra.load(alone).generate("the", 10, seed=1) == recurra.load(best).generate("the", 10, seed=1)


def test_loading_draws_no_random_number(best: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    recurra.load(best)
    assert torch.equal(torch.rand(3), expected)


# Damage


def flip(data: bytes) -> bytes:
    return bytes([*data[: len(data) // 2], data[len(data) // 2] ^ 1, *data[len(data) // 2 + 1 :]])


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "one bit": flip,
    "truncated": lambda data: data[:-1],
    "cut in half": lambda data: data[: len(data) // 2],
    "appended": lambda data: data + b"\0",
    "emptied": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_reported_by_name(name: str, damage: str, best: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(best, tmp_path / "copy")
    (copy / name).write_bytes(DAMAGES[damage]((copy / name).read_bytes()))
    with pytest.raises(DamagedError, match=name.replace(".", r"\.")):
        recurra.load(copy)


@pytest.mark.parametrize("name", sorted(bundle.FILES))
def test_a_missing_a_swapped_and_a_linked_file_are_reported_by_name(
    name: str, best: Path, other: Path, tmp_path: Path
) -> None:
    for number, change in enumerate(
        [
            lambda path: path.unlink(),
            lambda path: shutil.copy(other / name, path),
            lambda path: (path.unlink(), path.symlink_to(best / name)),
            lambda path: (path.unlink(), path.mkdir()),
        ]
    ):
        copy = shutil.copytree(best, tmp_path / str(number))
        change(copy / name)
        with pytest.raises(DamagedError, match=name.replace(".", r"\.")):
            recurra.load(copy)


def test_a_manifest_that_is_gone_or_of_another_bundle_is_an_error(best: Path, other: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(best, tmp_path / "copy")
    (copy / "MANIFEST.json").unlink()
    with pytest.raises(DataError, match=r"MANIFEST\.json"):
        recurra.load(copy)
    shutil.copy(other / "MANIFEST.json", copy)
    with pytest.raises(DamagedError):
        recurra.load(copy)


def test_a_stray_file_is_reported(best: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(best, tmp_path / "copy")
    (copy / "extra.py").write_text("raise SystemExit")
    with pytest.raises(DamagedError, match=r"extra\.py"):
        recurra.load(copy)


# Files that someone wrote with intent, under a manifest that agrees with them


def resealed(folder: Path, **contents: bytes) -> Path:
    """The bundle with files replaced (`config_json=...`) and a manifest that vouches for them."""
    for name, data in contents.items():
        (folder / name.replace("_", ".")).write_bytes(data)
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "MANIFEST.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    return folder


HOSTILE: list[tuple[str, str, Any]] = [
    ("model", "hidden", 10**9),
    ("model", "hidden", 60_000),
    ("model", "hidden", -1),
    ("model", "hidden", "auto"),
    ("model", "hidden", 10**30),
    ("model", "layers", 128),
    ("model", "layers", 10**9),
    ("model", "dropout", 7),
    ("model", "dropout", "auto"),
    ("model", "hiden", 8),
    ("model", "hidden", {"__class__": "os.system"}),
    ("embed", "size", 65_536),
    ("cell", "name", "nosuch"),
    ("cell", "name", "__init__"),
    ("cell", "name", ["lstm"]),
    ("cell", "nosuch", 1),
    ("cell", "bias", False),
    ("tokens", "kind", "words"),
    ("tokens", "kind", "bytes"),
    ("train", "device", "cuda:99"),
]


@pytest.mark.parametrize(("section", "key", "value"), HOSTILE)
def test_a_hostile_config_is_refused_before_memory_is_asked_for(
    section: str, key: str, value: Any, best: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(best, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config[section][key] = value
    resealed(copy, config_json=json.dumps(config).encode())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if (section, key) in (("train", "device"), ("tokens", "kind")):  # not what a loaded task goes by
        harmless(copy)
    else:
        with pytest.raises(DamagedError, match=r"config\.json|model\.safetensors"):
            recurra.load(copy)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def harmless(folder: Path) -> None:
    """Either refused or loaded and usable."""
    try:
        recurra.load(folder).predict("the")
    except DamagedError:
        pass


@pytest.mark.parametrize(
    "content",
    [b"[]", b"null", b"{}", b'{"task": "nosuch"}', b'{"task": 1}', b'{"model": 3}', b"[" * 100_000, b'{"a":NaN}'],
)
def test_a_config_of_another_shape_is_refused(content: bytes, best: Path, tmp_path: Path) -> None:
    copy = resealed(shutil.copytree(best, tmp_path / "copy"), config_json=content)
    with pytest.raises(DamagedError):
        recurra.load(copy)


def test_an_unknown_task_is_named(best: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(best, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text()) | {"task": {"name": "../../evil"}}
    with pytest.raises(DamagedError, match=r"no task called '\.\./\.\./evil'"):
        recurra.load(resealed(copy, config_json=json.dumps(config).encode()))


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("import recurra.errors; recurra.errors.EXECUTED = True",))


def evil_torch() -> bytes:
    file = io.BytesIO()
    torch.save({"weight": Evil()}, file)
    return file.getvalue()


@pytest.mark.parametrize("content", [pickle.dumps(Evil()), evil_torch()], ids=["pickle", "torch.save"])
@pytest.mark.parametrize("name", sorted(bundle.FILES))
def test_no_file_of_a_bundle_can_execute_code(name: str, content: bytes, best: Path, tmp_path: Path) -> None:
    copy = resealed(shutil.copytree(best, tmp_path / "copy"), **{name: content})
    if name in ("README.md", "assets.json"):  # for people; nothing reads them
        harmless(copy)
    else:
        with pytest.raises(DamagedError, match=name.replace(".", r"\.")):
            recurra.load(copy)
    assert not hasattr(recurra.errors, "EXECUTED")


def test_weights_of_another_shape_name_or_type_are_refused(best: Path, other: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(best, tmp_path / "copy")
    with pytest.raises(DamagedError, match="tensor"):
        recurra.load(resealed(copy, **{"model.safetensors": (other / "model.safetensors").read_bytes()}))


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"kind": "nosuch"}', b'{"kind": "characters"}'])
def test_a_tokenizer_of_another_shape_is_refused(content: bytes, best: Path, tmp_path: Path) -> None:
    copy = resealed(shutil.copytree(best, tmp_path / "copy"), **{"tokenizer.json": content})
    with pytest.raises(DamagedError, match=r"tokenizer\.json"):
        recurra.load(copy)


def test_a_tokenizer_of_another_bundle_is_refused_by_its_size(best: Path, other: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(best, tmp_path / "copy")
    with pytest.raises(DamagedError):
        recurra.load(resealed(copy, **{"tokenizer.json": (other / "tokenizer.json").read_bytes()}))


def test_loading_predicting_and_training_touch_no_network(
    best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    task = recurra.load(best)
    task.predict("the")
    task.generate("the", 5)
    train(tmp_path / "run", {})
