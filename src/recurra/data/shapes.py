"""Coloured shapes on white, and sentences that are true of them: pictures to say something of, whose every pixel is known."""

from collections.abc import Sequence
from itertools import combinations, permutations
from typing import NamedTuple

import numpy as np

from recurra.data.examples import Examples

SIDE = 64  # pixels of a picture, each way
SIZES = (12, 22)  # pixels of an object, the least and the most, each way
GAP = 2  # pixels of white between two objects, at least
CLEAR = 2  # how many times as far the centres lie apart along a relation as across it, at least
NOISE = 6.0  # standard deviation of the noise, of 255
SHAPES = ("circle", "square", "triangle")
COLOURS = {"red": (215, 40, 40), "green": (40, 160, 70), "blue": (45, 80, 215), "yellow": (240, 210, 40)}


class Box(NamedTuple):
    """The pixels [top, bottom) x [left, right)."""

    top: int
    left: int
    bottom: int
    right: int


class Thing(NamedTuple):
    """An object of a picture: what it is, and the box that it just fills."""

    colour: str
    shape: str
    box: Box


class Named(NamedTuple):
    """An object that a sentence names, and the places of its colour and its shape among the words of the sentence."""

    thing: Thing
    words: tuple[int, int]


class Scene(NamedTuple):
    """A picture and what is said of it.

    picture  uint8 [64, 64, 3]
    caption  a sentence that names two objects, in words parted by one blank
    objects  these two, in the order of the sentence
    true     all sentences of this form that are true of the picture, `caption` first
    things   all objects of the picture
    """

    picture: np.ndarray
    caption: str
    objects: tuple[Named, Named]
    true: tuple[str, ...]
    things: tuple[Thing, ...]


def scenes(draw: np.random.Generator, count: int) -> list[Scene]:
    """`count` pictures of two or three circles, squares and triangles, each of another colour or shape, with sentences such as
    "a red circle above a blue square". No two objects touch, and of any two exactly one relation holds: the centres lie at
    least twice as far apart along it as across it, and a white line parts the two."""
    return [_scene(draw) for _ in range(count)]


def shapes(draw: np.random.Generator, part: str, count: int) -> Examples:
    """The pictures of `scenes`; the captions are all the sentences that are true of one, that of the scene first."""
    made = scenes(draw, count)
    return Examples(
        "picture",
        [scene.picture for scene in made],
        [scene.true for scene in made],
        None,
        [f"synthetic:shapes {part}:{number}" for number in range(1, count + 1)],
        notes=["made, not read: coloured shapes, and sentences on where two of them stand"],
    )


def relation(one: Box, other: Box) -> str | None:
    """Where `one` stands as seen from `other`; None where no relation of the four holds clearly."""
    down = (one.top + one.bottom - other.top - other.bottom) / 2
    right = (one.left + one.right - other.left - other.right) / 2
    if abs(down) >= CLEAR * abs(right) and max(one.top, other.top) - min(one.bottom, other.bottom) >= GAP:
        return "below" if down > 0 else "above"
    if abs(right) >= CLEAR * abs(down) and max(one.left, other.left) - min(one.right, other.right) >= GAP:
        return "to the right of" if right > 0 else "to the left of"
    return None


def _scene(draw: np.random.Generator) -> Scene:
    kinds = draw.permutation(len(COLOURS) * len(SHAPES))[: draw.integers(2, 4)]
    boxes = _boxes(draw, len(kinds))
    things = tuple(
        Thing(list(COLOURS)[kind // len(SHAPES)], SHAPES[kind % len(SHAPES)], box)
        for kind, box in zip(kinds.tolist(), boxes, strict=True)
    )
    pairs = list(permutations(things, 2))
    said = [_said(*pairs[place]) for place in draw.permutation(len(pairs))]
    return Scene(_painted(draw, things), *said[0], tuple(caption for caption, _ in said), things)


def _boxes(draw: np.random.Generator, count: int) -> list[Box]:
    """Boxes of which any two stand in a relation: drawn until they do."""
    while True:
        sizes = draw.integers(SIZES[0], SIZES[1] + 1, count)
        corners = draw.integers(0, SIDE - sizes[:, None] + 1, (count, 2))
        boxes = [
            Box(top, left, top + size, left + size)
            for (top, left), size in zip(corners.tolist(), sizes.tolist(), strict=True)
        ]
        if all(relation(*pair) for pair in combinations(boxes, 2)):
            return boxes


def _said(one: Thing, other: Thing) -> tuple[str, tuple[Named, Named]]:
    """The sentence on where `one` stands, and which of its words name the two."""
    caption = f"a {one.colour} {one.shape} {relation(one.box, other.box)} a {other.colour} {other.shape}"
    last = len(caption.split()) - 1
    return caption, (Named(one, (1, 2)), Named(other, (last - 1, last)))


def _painted(draw: np.random.Generator, things: Sequence[Thing]) -> np.ndarray:
    picture = np.full((SIDE, SIDE, 3), 255.0)
    for thing in things:
        top, left, bottom, right = thing.box
        picture[top:bottom, left:right][_mask(thing.shape, bottom - top)] = COLOURS[thing.colour]
    return (picture + NOISE * draw.standard_normal(picture.shape)).clip(0, 255).round().astype(np.uint8)


def _mask(shape: str, size: int) -> np.ndarray:
    """Which pixels of its box a shape covers, boolean [size, size]: those whose centres lie in it."""
    down, right = np.mgrid[:size, :size] + 0.5 - size / 2
    if shape == "circle":
        return down**2 + right**2 <= (size / 2) ** 2
    return 2 * abs(right) <= down + (size + 1) / 2 if shape == "triangle" else np.ones((size, size), bool)
