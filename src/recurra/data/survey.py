"""What a text looks like, and what is wrong with it, before an hour is spent on it."""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recurra.data import read
from recurra.data.examples import Examples
from recurra.data.feed import Buckets
from recurra.data.vocabulary import words

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


def survey_examples(parts: dict[str, Examples], lengths: dict[str, np.ndarray], longest: int | None) -> dict[str, Any]:
    """Counts over examples, whose numbers of steps are given, and under "warnings" what deserves a look, in words."""
    train, own = parts["train"], lengths["train"]
    report: dict[str, Any] = {
        "kind": train.kind,
        "examples": [f"{name}: {len(part):,}" for name, part in parts.items()],
        "notes": train.notes,
        "steps_median": int(np.median(own)),
        "steps_95_percent": int(np.quantile(own, 0.95)),
        "steps_longest": int(own.max()),
        "padding": Buckets(own, 32).padding(),
    }
    warnings = _length_warnings(own, longest)
    if train.kind == "series":
        report["channels"] = train.inputs[0].shape[1]
        warnings += _channel_warnings(train)
    elif train.kind == "picture":
        report["pixels"] = "{} x {}".format(*train.inputs[0].shape[:2])
    else:
        texts = {
            name: [words(one) if isinstance(one, str) else one for one in part.inputs] for name, part in parts.items()
        }
        report["words"] = sum(map(len, texts["train"]))
        known = {word for text in texts["train"] for word in text}
        report["different_words"] = len(known)
        for name in ("valid", "test"):
            if name in texts:
                all_of = [word for text in texts[name] for word in text]
                report[f"unknown_words_{name}"] = sum(word not in known for word in all_of) / max(1, len(all_of))
    warnings += _duplicates(parts)
    return {**report, "warnings": warnings}


def _length_warnings(lengths: np.ndarray, longest: int | None) -> list[str]:
    found = []
    if (lengths == 0).any():
        found.append(f"{int((lengths == 0).sum()):,} examples have no step")
    if longest is not None and (lengths > longest).any():
        found.append(
            f"{(lengths > longest).mean():.1%} of the examples are longer than data.longest={longest} and would be cut"
        )
    if longest is None and lengths.max() > 20 * max(1, np.median(lengths)) and lengths.max() > 500:
        found.append(
            f"the longest example has {int(lengths.max()):,} steps, the median {int(np.median(lengths)):,}: --set data.longest="
            f"{int(np.quantile(lengths, 0.99))} would cut 1 % of them and save time"
        )
    return found


def _channel_warnings(train: Examples) -> list[str]:
    steps = np.concatenate(train.inputs)
    names = train.channels or [f"channel {at}" for at in range(1, steps.shape[1] + 1)]
    constant = [name for name, spread in zip(names, np.ptp(steps, axis=0), strict=True) if spread == 0]
    found = [f"{', '.join(constant[:5])}: always the same number"] if constant else []
    labels = [one[0] for one in train.targets or [] if isinstance(one, tuple) and len(one) == 1]
    numbers = {label: at for at, label in enumerate(dict.fromkeys(labels))}
    if len(labels) == len(train) and 1 < len(numbers) < len(train):
        codes = np.array([numbers[label] for label in labels])
        ends = np.stack([one.mean(0) for one in train.inputs])
        for at, name in enumerate(names):
            within = max((np.ptp(ends[codes == code, at]) for code in range(len(numbers))), default=0.0)
            if within == 0 and np.ptp(ends[:, at]) > 0:
                found.append(f"{name} has one mean for each label: does it give the label away?")
    return found


def _duplicates(parts: dict[str, Examples]) -> list[str]:
    seen = {name: [_key(one) for one in part.inputs] for name, part in parts.items()}
    own = set(seen["train"])
    found = []
    if len(own) < len(seen["train"]):
        found.append(f"{len(seen['train']) - len(own):,} training examples occur twice or more")
    for name in ("valid", "test"):
        both = sum(key in own for key in seen.get(name, ()))
        if both:
            found.append(
                f"{both:,} of {len(seen[name]):,} examples of {name} are in the training data too: its score is flattered"
            )
    return found


def _key(example: Any) -> bytes:
    if isinstance(example, np.ndarray):
        return hashlib.blake2b(np.ascontiguousarray(example).tobytes(), digest_size=12).digest()
    return _digest(example if isinstance(example, str) else "\n".join(example))
