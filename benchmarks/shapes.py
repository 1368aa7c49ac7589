"""Where a captioner looks: of the words that name an object, how many were written while it looked at that object.

    recurra train caption synthetic:shapes --steps 4000 --out RUN ...   (all of it in writing.md)
    python benchmarks/shapes.py RUN

The pictures are new ones, whose every pixel is known. A word counts as looked at where more than half of its attention lies on
places, of 8 x 8 pixels, that the named object touches; one that names what is not in the picture does not count as looked at.
"""

import sys
from pathlib import Path

import numpy as np

import recurra
from recurra.data.examples import Examples
from recurra.data.shapes import COLOURS, SHAPES, Box, scenes
from recurra.data.tokens import BLANK
from recurra.tasks.caption import Caption
from recurra.tasks.looks import Pixels

PICTURES, SEED, PLACE = 300, 2026, 8


def main(run: Path) -> None:
    task = recurra.load(run)
    if not isinstance(task, Caption):
        sys.exit(f"{run} was trained to {task.name}, wanted caption")
    drawn = scenes(np.random.default_rng(SEED), PICTURES)
    part = task.part(Examples("picture", [one.picture for one in drawn], None, None, [""] * PICTURES))
    on, most, named, right = 0, 0, 0, 0
    for row, scene in enumerate(drawn):
        found, look = task.looked(part, row, task.search(width=5))
        words = [word.strip(f"{BLANK} ") for word in look.written]
        right += task.tokens.decode(found[0].tokens).strip() in scene.true
        assert isinstance(look.source, Pixels)
        boxes = {(thing.colour, thing.shape): thing.box for thing in scene.things}
        for at, word in enumerate(words[:-1]):
            if word in COLOURS and words[at + 1] in SHAPES:
                box = boxes.get((word, words[at + 1]))
                for place in (at, at + 1):
                    named += 1
                    if box is not None:
                        touched = touches(box, look.source.grid)
                        on += look.weights[place][touched].sum() > 0.5
                        most += bool(touched[look.weights[place].argmax()])
    print(f"{right / PICTURES:.1%} of {PICTURES} sentences are true of their picture")
    print(f"{on / named:.1%} of {named} words that name an object: most of the attention is on it")
    print(f"{most / named:.1%}: the place that is looked at most is on it")


def touches(box: Box, grid: tuple[int, int]) -> np.ndarray:
    """Boolean `[places]`: which places have a pixel of the box."""
    rows, columns = np.indices(grid) * PLACE
    down = (rows < box.bottom) & (rows + PLACE > box.top)
    return (down & (columns < box.right) & (columns + PLACE > box.left)).flatten()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
