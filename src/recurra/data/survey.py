"""What a text looks like, and what is wrong with it, before an hour is spent on it."""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recurra.data import read

LINE_KEPT = 2_000


def survey(paths: Sequence[Path | str], valid_share: float) -> dict[str, Any]:
    """Counts over texts (files, characters, lines, alphabet) and, under "warnings", what deserves a look, in words.

    Reads everything once, in pieces. Raises DataError where a file cannot be read as text.
    """
    files = read.sources(paths)
    alphabet: Counter[str] = Counter()
    lines: Counter[bytes] = Counter()
    longest = blank = 0
    for path in files:
        tail, cut = "", 0  # the line so far, and how many of its characters were let go
        for chunk in read.characters(path):
            alphabet.update(chunk)
            *whole, tail = (tail + chunk).split("\n") if "\n" in chunk else [tail + chunk]
            if whole:
                longest, cut = max(longest, cut + len(whole[0]), *map(len, whole)), 0
            longest = max(longest, cut + len(tail))
            blank += sum(not line.strip() for line in whole)
            lines.update(_digest(line) for line in whole if len(line.strip()) > 20)
            if len(tail) >= 1 << 20:
                cut, tail = cut + len(tail) - LINE_KEPT, tail[-LINE_KEPT:]
    characters = sum(alphabet.values())
    repeated = sum(count - 1 for count in lines.values())
    report = {
        "files": len(files),
        "characters": characters,
        "alphabet": len(alphabet),
        "lines": alphabet["\n"] + 1,
        "longest_line": longest,
        "words": None,
        "validation_characters": characters - int(characters * (1 - valid_share)),
        "most_common": [[char, count] for char, count in alphabet.most_common(12)],
        "rare": sum(1 for count in alphabet.values() if count < 5),
        "repeated_lines": repeated,
    }
    del report["words"]
    return {**report, "warnings": _warnings(report, alphabet, sum(lines.values()))}


def _digest(line: str) -> bytes:
    return hashlib.blake2b(line.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _warnings(report: dict[str, Any], alphabet: Counter[str], long_lines: int) -> list[str]:
    words = []
    if report["characters"] < 100_000:
        words.append(
            f"{report['characters']:,} characters are few: a character model wants 100,000 and more, and will learn this by heart."
        )
    if long_lines and report["repeated_lines"] > 0.05 * long_lines:
        words.append(
            f"{report['repeated_lines']:,} of {long_lines:,} longer lines occur before, word for word: what is repeated in the "
            "validation text flatters the score."
        )
    if report["longest_line"] > 100_000:
        words.append(f"The longest line has {report['longest_line']:,} characters: is this a text?")
    odd = [c for c in alphabet if unicodedata.category(c) in ("Cc", "Co", "Cn") and c not in "\n\t\r"]
    if odd:
        words.append(
            f"{len(odd)} kinds of control or unassigned characters, such as {odd[0]!r} ({alphabet[odd[0]]} times)."
        )
    if alphabet["\ufffd"]:
        words.append(f"U+FFFD occurs {alphabet[chr(0xFFFD)]:,} times: the text was damaged by an earlier conversion.")
    if report["alphabet"] > 1_000:
        words.append(f"{report['alphabet']:,} different characters: --set tokens.kind=bpe or bytes may serve better.")
    if "\r" in alphabet:
        words.append("The lines end as on Windows (CR LF); the network will write them so too.")
    return words
