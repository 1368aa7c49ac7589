"""Reading: what is on the disk comes out as it is, or is refused with its place."""

import gzip
import hashlib
import lzma
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recurra.data import read
from recurra.errors import DataError

TEXT = "Ünïcode, 漢字, e\u0301, 👩‍👩‍👧, \r\n mixed \r line \n ends\u2028 and \U0001d518 astral.\n"
PACK = {"book.txt": bytes, "book.txt.gz": gzip.compress, "book.txt.xz": lzma.compress}


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        list(read.characters(path))
    return str(caught.value)


@pytest.mark.parametrize("name", PACK)
def test_a_file_is_the_same_plain_and_compressed(tmp_path: Path, name: str) -> None:
    text = TEXT * 40_000
    path = write(tmp_path / name, PACK[name](text.encode()))
    assert "".join(read.characters(path)) == text
    assert max(map(len, read.blocks(path))) <= read.BLOCK < len(text.encode())


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff")), block=st.integers(1, 9))
def test_a_character_may_lie_across_any_border(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, block: int
) -> None:
    monkeypatch.setattr(read, "BLOCK", block)
    path = write(tmp_path / "a.txt", text.encode())
    assert "".join(read.characters(path)) == text
    assert "".join(read.characters(write(tmp_path / "b.txt", text.encode("utf-8-sig")))) == text


@pytest.mark.parametrize("block", [1, 3, 100])
def test_only_the_first_byte_order_mark_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(read, "BLOCK", block)
    path = write(tmp_path / "a.txt", "\ufeff\ufeffone\ufeff".encode())
    assert "".join(read.characters(path)) == "\ufeffone\ufeff"


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.text(st.sampled_from("a\n\ré漢👩"), max_size=20),
    stray=st.sampled_from([b"\xe9", b"\x93", b"\xff", b"\xc3", b"\xf0\x9f"]),
    after=st.sampled_from([b"", b"a", b"\n\n", b"bcd\n"]),
    block=st.integers(1, 7),
)
def test_a_stray_byte_is_named_with_its_exact_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, stray: bytes, after: bytes, block: int
) -> None:
    monkeypatch.setattr(read, "BLOCK", block)
    head = before.encode()
    message = refusal(write(tmp_path / "a.txt", head + stray + after))
    assert f"byte 0x{stray[0]:02X} at offset {len(head)} (line {1 + before.count(chr(10))})" in message


def test_the_place_is_exact_beyond_the_first_real_block(tmp_path: Path) -> None:
    line = "漢字 and more\n".encode()
    head = line * 100_000
    message = refusal(write(tmp_path / "book.txt.gz", gzip.compress(head + b"caf\xe9\n", 1)))
    assert f"byte 0xE9 at offset {len(head) + 3} (line 100001) is not UTF-8" in message
    assert "book.txt.gz" in message
    assert "iconv -f LATIN1 -t UTF-8" in message
    assert "--set tokens.kind=bytes" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x93quoted\x94", "iconv -f CP1252"),
        ("word".encode("utf-16"), "iconv -f UTF-16"),
        (b"\x7fELF\0\0", "binary file (NUL at offset 4)"),
    ],
)
def test_other_encodings_and_binary_files_are_told_apart(tmp_path: Path, content: bytes, said: str) -> None:
    assert said in refusal(write(tmp_path / "a", content))


@pytest.mark.parametrize("name", ["a.gz", "a.xz"])
@pytest.mark.parametrize("harm", ["cut", "altered", "spoilt", "no archive at all"])
def test_a_damaged_archive_is_named(tmp_path: Path, name: str, harm: str) -> None:
    whole = (gzip if name == "a.gz" else lzma).compress(TEXT.encode() * 100)
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes(255 - byte for byte in whole[middle : middle + 8]) + whole[middle + 8 :]
    path = write(
        tmp_path / name,
        {"cut": whole[:-9], "altered": flipped, "spoilt": whole[:10] + b"\xff" * 50}.get(harm, b"plain text"),
    )
    assert str(path) in refusal(path)
    assert "damaged" in refusal(path)


@pytest.mark.parametrize("name", ["a.gz", "a.xz"])
def test_a_bomb_is_stopped_and_an_honest_file_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = write(tmp_path / name, (gzip if name == "a.gz" else lzma).compress(b"a" * 3_000_000))
    monkeypatch.setattr(read, "BOMB_BYTES", 1 << 20)
    monkeypatch.setattr(read, "BOMB_RATIO", 10)
    assert "unfolds to more than" in refusal(path)
    monkeypatch.setattr(read, "BOMB_BYTES", 1 << 22)
    assert sum(map(len, read.blocks(path))) == 3_000_000
    monkeypatch.setattr(read, "BOMB_BYTES", 1 << 10)
    monkeypatch.setattr(read, "BOMB_RATIO", 10_000)
    assert sum(map(len, read.blocks(path))) == 3_000_000


def test_a_folder_stands_for_its_files_in_order(tmp_path: Path) -> None:
    kept = [write(tmp_path / "data" / name, b"x") for name in ("a.txt", "b/c.md", "b/d", "z.log")]
    for name in (".hidden", ".git/config", "b/.cache/x"):
        write(tmp_path / "data" / name, b"x")
    write(tmp_path / "data" / "empty.txt", b"")
    write(tmp_path / "data" / "nothing.txt.gz", gzip.compress(b""))
    first = write(tmp_path / "zz.txt", b"x")
    assert read.sources([first, str(tmp_path / "data")]) == [first, *kept]


def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    empty, void = write(tmp_path / "empty.txt", b""), write(tmp_path / "void.xz", lzma.compress(b""))
    (tmp_path / "folder" / "in").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe")
    for path, said in [
        (empty, "is empty"),
        (void, "is empty"),
        (tmp_path / "folder", "holds no file"),
        (tmp_path / "pipe", "neither a file nor a folder"),
        (tmp_path / "gone.txt", "does not exist"),
        (tmp_path / ("n" * 300), "cannot be read"),
        (tmp_path / "with\0nul", "does not exist"),
    ]:
        with pytest.raises(DataError, match=said):
            read.sources([path])
    with pytest.raises(DataError, match="no data was given"):
        read.sources([])
    with pytest.raises(DataError, match="cannot be read"):
        list(read.blocks(tmp_path / "gone.txt"))
    with pytest.raises(DataError, match="cannot be read"):
        read.fingerprint([tmp_path / "gone.txt"])


def test_a_hostile_name_is_printed_tamely(tmp_path: Path) -> None:
    message = refusal(write(tmp_path / os.fsdecode(b"a\x1b[2J\n\xe9.txt"), b"\xe9"))
    assert message.isprintable()
    message.encode()
    assert "\\x1b[2J\\n" in message


def test_a_fingerprint_tells_files_apart(tmp_path: Path) -> None:
    content = bytes(range(200)) * 15
    path, other = write(tmp_path / "a.txt", content), write(tmp_path / "b" / "a.txt", content[:-1] + b"?")
    mark, changed = read.fingerprint([path, str(other)])
    assert mark == {"name": "a.txt", "bytes": 3000, "sha256": hashlib.sha256(content).hexdigest()}
    assert changed["sha256"] != mark["sha256"]
