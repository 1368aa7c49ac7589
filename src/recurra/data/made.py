"""What sets that are made and not read have in common: their parts, and the record that they come in."""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, get_args

from recurra.data.examples import Examples, Kind
from recurra.errors import UsageError

Part = Literal["train", "valid", "test"]
PARTS: tuple[Part, ...] = get_args(Part)
ONE_WAY = "; who reads from both ends sees the answer coming: train with --set task.bidirectional=false"


def part_of(text: str) -> Part:
    """The one part in which a text may stand, whatever the seed: by its hash."""
    return PARTS[hashlib.sha256(text.encode()).digest()[0] % len(PARTS)]


def at_least(name: str, length: int, least: int) -> None:
    """Raise UsageError where a set of this length has no room for what it is about."""
    if length < least:
        raise UsageError(
            f"the set {name!r} was given a length of {length}, wanted at least {least}: {name}:{2 * least}"
        )


def made(
    name: str, kind: Kind, part: Part, inputs: list[Any], targets: list[Any], note: str, channels: Sequence[str] = ()
) -> Examples:
    """The examples of a set; `note` says in words what they are."""
    places = [f"synthetic:{name} {part}:{number}" for number in range(1, len(inputs) + 1)]
    return Examples(kind, inputs, targets, None, places, list(channels), [f"made, not read: {note}"])
