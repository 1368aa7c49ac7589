"""Shapes: every picture against its pixels, every sentence against the picture."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.data.shapes import COLOURS, GAP, SHAPES, SIDE, SIZES, Box, Scene, Thing, relation, scenes
from recurra.data.synthetic import SYNTHETIC, synthetic
from recurra.errors import UsageError

MADE = scenes(np.random.default_rng(0), 300)
RELATIONS = ("above", "below", "to the left of", "to the right of")


def painted(scene: Scene) -> dict[str, np.ndarray]:
    """Which pixels are nearer to each colour than to the others and to white: boolean [64, 64] by its name."""
    palette = np.array([*COLOURS.values(), (255, 255, 255)], float)
    nearest = ((scene.picture[:, :, None].astype(float) - palette) ** 2).sum(-1).argmin(-1)
    return {colour: nearest == number for number, colour in enumerate(COLOURS)}


def inside(box: Box) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[box.top : box.bottom, box.left : box.right] = True
    return mask


def read_back(scene: Scene) -> list[Thing]:
    """The objects, found in the pixels: those of a colour that are connected, what box they fill, and how much of it."""
    found = []
    for colour, mask in painted(scene).items():
        left = {(int(row), int(column)) for row, column in np.argwhere(mask)}
        while left:
            piece, edge = set(), {next(iter(left))}
            while edge:
                piece |= edge
                left -= edge
                edge = {(r + dr, c + dc) for r, c in edge for dr, dc in ((0, 1), (1, 0), (0, -1), (-1, 0))} & left
            rows, columns = zip(*piece, strict=True)
            box = Box(min(rows), min(columns), max(rows) + 1, max(columns) + 1)
            share = len(piece) / ((box.bottom - box.top) * (box.right - box.left))
            shape = min(
                {"square": 1.0, "circle": np.pi / 4, "triangle": 0.5}.items(), key=lambda one: abs(one[1] - share)
            )
            found.append(Thing(colour, shape[0], box))
    return found


@pytest.mark.parametrize("scene", MADE[:60])
def test_the_pixels_show_the_objects_and_nothing_else(scene: Scene) -> None:
    assert scene.picture.shape == (SIDE, SIDE, 3) and scene.picture.dtype == np.uint8
    assert sorted(read_back(scene)) == sorted(scene.things)
    for thing in scene.things:
        middle = scene.picture[(thing.box.top + thing.box.bottom) // 2, (thing.box.left + thing.box.right) // 2]
        assert abs(middle.astype(int) - COLOURS[thing.colour]).max() < 40
        assert SIZES[0] <= thing.box.bottom - thing.box.top == thing.box.right - thing.box.left <= SIZES[1]
    white = ~np.any([inside(thing.box) for thing in scene.things], 0)
    assert scene.picture[white].min() > 215 and 0.5 < scene.picture[white].astype(float).std() < 10


def test_a_triangle_points_upward() -> None:
    for scene in MADE:
        for thing in scene.things:
            widths = painted(scene)[thing.colour][
                thing.box.top : thing.box.bottom, thing.box.left : thing.box.right
            ].sum(1)
            if thing.shape == "triangle":
                assert widths[0] <= 2 and widths[-1] == len(widths) and (np.diff(widths) >= 0).all()
            else:
                np.testing.assert_array_equal(widths, widths[::-1])


def test_objects_keep_apart_and_no_two_are_alike() -> None:
    for scene in MADE:
        assert len({thing[:2] for thing in scene.things}) == len(scene.things) in (2, 3)
        for one, other in permutations(scene.things, 2):
            wide = Box(one.box.top - GAP, one.box.left - GAP, one.box.bottom + GAP, one.box.right + GAP)
            cut = [max(wide.top, other.box.top), max(wide.left, other.box.left)]
            end = [min(wide.bottom, other.box.bottom), min(wide.right, other.box.right)]
            assert cut[0] >= end[0] or cut[1] >= end[1], "the white around one is not crossed by another"


def centre(mask: np.ndarray) -> np.ndarray:
    return np.argwhere(mask).mean(0)


def test_every_sentence_is_true_and_no_other_relation_would_be() -> None:
    """From the pixels alone: the means of the rows and columns of the colour's pixels within the named box."""
    seen = set()
    for scene in MADE:
        by_kind = {
            f"a {thing.colour} {thing.shape}": painted(scene)[thing.colour] & inside(thing.box)
            for thing in scene.things
        }
        assert len(scene.true) == len(set(scene.true)) == len(scene.things) * (len(scene.things) - 1)
        for sentence in scene.true:
            (said,) = [word for word in RELATIONS if f" {word} " in sentence]
            one, other = (by_kind[name] for name in sentence.split(f" {said} "))
            down, right = centre(one) - centre(other)
            assert said == (RELATIONS[int(down > 0)] if abs(down) > abs(right) else RELATIONS[2 + int(right > 0)])
            axis = int(abs(down) < abs(right))
            spans = [np.argwhere(mask)[:, axis] for mask in (one, other)]
            assert spans[0].min() > spans[1].max() or spans[1].min() > spans[0].max(), "a line of white parts them"
            seen.add(said)
    assert seen == set(RELATIONS)


def test_words_name_the_objects_whose_boxes_are_told() -> None:
    for scene in MADE:
        words = scene.caption.split(" ")
        assert scene.true[0] == scene.caption
        for named, at in zip(scene.objects, (1, len(words) - 2), strict=True):
            assert named.words == (at, at + 1)
            assert [words[place] for place in named.words] == list(named.thing[:2])
            assert named.thing in scene.things


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=4, max_size=4), st.integers(1, 24), st.integers(1, 24))
def test_a_relation_turned_round_is_its_opposite(corners: list[int], size: int, other: int) -> None:
    one = Box(corners[0], corners[1], corners[0] + size, corners[1] + size)
    two = Box(corners[2], corners[3], corners[2] + other, corners[3] + other)
    opposite = dict(zip(RELATIONS, (RELATIONS[place] for place in (1, 0, 3, 2)), strict=True)) | {None: None}
    assert relation(one, two) == opposite[relation(two, one)]
    turned = [Box(box.left, box.top, box.right, box.bottom) for box in (one, two)]
    mirrored = {"above": "to the left of", "below": "to the right of"}
    mirrored |= {after: before for before, after in mirrored.items()}
    clear = abs(sum(one[0::2]) - sum(two[0::2])) != abs(sum(one[1::2]) - sum(two[1::2]))
    if clear:
        assert relation(*turned) == (mirrored | {None: None})[relation(one, two)]


def test_a_diagonal_has_no_relation() -> None:
    assert relation(Box(0, 0, 10, 10), Box(20, 20, 30, 30)) is None
    assert relation(Box(0, 0, 10, 10), Box(20, 10, 30, 20)) == "above"
    assert relation(Box(0, 0, 10, 10), Box(11, 0, 21, 10)) is None, "too near"
    assert relation(Box(0, 50, 10, 60), Box(5, 20, 15, 30)) == "to the right of"


def test_all_kinds_and_numbers_occur() -> None:
    assert {len(scene.things) for scene in MADE} == {2, 3}
    assert {thing[:2] for scene in MADE for thing in scene.things} == {(c, s) for c in COLOURS for s in SHAPES}
    corners = np.array([thing.box for scene in MADE for thing in scene.things])
    assert corners.min() == 0 and corners.max() == SIDE


def test_there_are_enough_to_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SYNTHETIC, "shapes", lambda draw, part, count: count)
    assert [synthetic("shapes", part) for part in ("train", "valid", "test")] == [4000, 1000, 1000]


def test_the_set_of_that_name_is_these_scenes() -> None:
    some = synthetic("shapes", "valid", 20, seed=5)
    made = scenes(np.random.default_rng([5, 1]), 20)
    assert some.kind == "picture" and some.targets == [scene.true for scene in made]
    np.testing.assert_array_equal(some.inputs, [scene.picture for scene in made])
    assert some.places[16] == "synthetic:shapes valid:17"
    with pytest.raises(UsageError, match="no length to be chosen"):
        synthetic("shapes:9", "train")
