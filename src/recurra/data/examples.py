"""Examples: what the tasks on whole sequences read, whatever file it came from."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Kind = Literal["text", "words", "series", "picture"]


@dataclass(frozen=True)
class Examples:
    """Sequences and what is to be said of each.

    kind      text     inputs[i] is a str
              words    inputs[i] is a list of str
              series   inputs[i] is float32 [time, channels], or the features of the places of a picture [places, size]
              picture  inputs[i] is uint8 [height, width, 3], all of one size
    targets   targets[i] is what is to be said of sequence i, as it was written: a tuple of str for one label or several
              of the whole sequence; a list of str, one for each step; float32 [outputs] or [time, outputs] for numbers.
              None where the file holds none
    heads     heads[i] is one more label of the whole sequence, beside those of its steps (an intent beside its slots);
              None where there are none
    places    where example i was read, for messages: `reviews.csv:17`
    channels  the names of the channels of a series, where they have some
    notes     how the files were understood, in words, for people: "text is the column 'review', label is 'stars'"
    problems  lines that could not be read, in words with their places, where the reader was told to go on past them
    """

    kind: Kind
    inputs: list[Any]
    targets: list[Any] | None
    heads: list[str] | None
    places: list[str]
    channels: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows: "np.ndarray | list[int]") -> "Examples":
        """The examples with these indices, in this order."""
        some = [int(row) for row in rows]
        pick = lambda items: None if items is None else [items[row] for row in some]  # noqa: E731
        return Examples(
            self.kind,
            [self.inputs[row] for row in some],
            pick(self.targets),
            pick(self.heads),
            [self.places[row] for row in some],
            self.channels,
            self.notes,
            self.problems,
        )
