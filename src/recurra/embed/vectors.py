"""Word vectors: read from every common format, asked for neighbours and analogies, and held against published tests.

    folder with words.txt and vectors.npy   recurra's own: the numbers stay on the disk until they are needed (memory-mapped)
    text                                    word2vec and fastText `.vec` (a line `words size` first), GloVe (without it)
    .bin                                    word2vec's binary format, and fastText's with the subwords of its vectors

Text and word2vec's binary may be inside `.gz` or `.xz`.
"""

import io
import mmap
import struct
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple, final

import numpy as np

from recurra.data.read import OPEN, blocks, shown
from recurra.errors import DataError, UsageError
from recurra.storage import replace_file

Metric = Literal["cosine", "euclidean"]
METRICS = ("cosine", "euclidean")
FASTTEXT = 793712314  # the number that a fastText model begins with
LINES = 4096  # of a text file whose numbers are read at once


class Neighbour(NamedTuple):
    word: str
    value: float  # cosine, or euclidean distance


@final
class Vectors:
    """`words` and their vectors, `values` float32 [words, size]."""

    def __init__(self, words: Sequence[str], values: np.ndarray) -> None:
        if values.ndim != 2 or len(words) != len(values):
            raise UsageError(
                f"there were {len(words)} words and an array of shape {values.shape}, wanted [words, size]"
            )
        self.words, self.values = list(words), values
        self.place: dict[str, int] = {}
        for number, word in enumerate(self.words):
            self.place.setdefault(word, number)

    def __len__(self) -> int:
        return len(self.words)

    @property
    def size(self) -> int:
        return self.values.shape[1]

    def __contains__(self, word: str) -> bool:
        return word in self.place

    def __getitem__(self, word: str) -> np.ndarray:
        """The vector [size] of a word. Raises UsageError for one that is not there, with those that are written like it."""
        return np.asarray(self.values[self._known(word)], np.float32)

    def near(self, word: str, count: int = 10, metric: Metric = "cosine") -> list[Neighbour]:
        """The `count` words nearest to a word, itself left out."""
        return self.nearest(self[word], count, metric, leave_out=[word])

    def analogy(self, like: Sequence[str], unlike: Sequence[str], count: int = 10) -> list[Neighbour]:
        """The words nearest to a sum of directions, those of `like` added and those of `unlike` taken away, the given words
        left out: like=["king", "woman"], unlike=["man"] asks what is to woman as king is to man (Mikolov et al. 2013)."""
        units = self.directions
        wanted = sum(units[self._known(word)] for word in like) - sum(units[self._known(word)] for word in unlike)
        return self.nearest(np.asarray(wanted, np.float32), count, leave_out=[*like, *unlike])

    def nearest(
        self, vector: np.ndarray, count: int = 10, metric: Metric = "cosine", leave_out: Collection[str] = ()
    ) -> list[Neighbour]:
        """The words nearest to a vector [size], best first."""
        if metric not in METRICS:
            raise UsageError(f"there is no metric called {metric!r}; there are {', '.join(METRICS)}")
        if metric == "cosine":
            values = self.directions @ (vector / max(float(np.linalg.norm(vector)), 1e-12))
            order = np.argsort(-values, kind="stable")
        else:
            values = np.sqrt(np.maximum(self._squares() - 2 * (self.values @ vector) + vector @ vector, 0))
            order = np.argsort(values, kind="stable")
        out = {self.place[word] for word in leave_out if word in self.place}
        best = [place for place in order[: count + len(out)].tolist() if place not in out][:count]
        return [Neighbour(self.words[place], float(values[place])) for place in best]

    def only(self, words: Collection[str]) -> "Vectors":
        """Those of the words that are there, in the order of these vectors."""
        places = sorted(self.place[word] for word in set(words) if word in self.place)
        return Vectors([self.words[place] for place in places], np.asarray(self.values[places], np.float32))

    def covered(self, words: Collection[str]) -> float:
        """The share of the words that have a vector."""
        return sum(word in self.place for word in words) / max(1, len(words))

    def save(self, folder: Path | str) -> None:
        """Write words.txt and vectors.npy into a folder."""
        wrong = next((word for word in self.words if not word or any(char.isspace() for char in word)), None)
        if wrong is not None:
            raise UsageError(f"the word {wrong!r} holds a blank and cannot stand in a list of words")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        numbers = io.BytesIO()
        np.save(numbers, np.asarray(self.values, np.float32))
        replace_file(folder / "vectors.npy", numbers.getvalue())
        replace_file(folder / "words.txt", "\n".join(self.words).encode())

    def _known(self, word: str) -> int:
        if word not in self.place:
            alike = [one for one in self.words if one.lower() == word.lower() or one.startswith(word)][:3]
            raise UsageError(
                f"there is no vector of {word!r} among {len(self):,} words"
                + (f"; there is {', '.join(alike)}" if alike else "")
            )
        return self.place[word]

    @cached_property
    def directions(self) -> np.ndarray:
        """The vectors with length one [words, size]."""
        lengths = np.sqrt(self._squares())[:, None]
        return np.asarray(self.values, np.float32) / np.maximum(lengths, 1e-12)

    def _squares(self) -> np.ndarray:
        return np.einsum("ws,ws->w", self.values, self.values, dtype=np.float32)


def page(vectors: Vectors) -> str:
    """A self-contained page of HTML with the words at their two largest principal components."""
    import plotly.graph_objects as go

    if len(vectors) < 3:
        raise UsageError(f"a map of {len(vectors)} words shows nothing; wanted at least 3")
    centred = vectors.values - vectors.values.mean(0)
    _, spread, axes = np.linalg.svd(centred, full_matrices=False)
    places = centred @ axes[:2].T
    share = float((spread[:2] ** 2).sum() / (spread**2).sum())
    words = go.Scatter(x=places[:, 0].tolist(), y=places[:, 1].tolist(), text=vectors.words, mode="markers+text")
    figure = go.Figure(words)
    figure.update_traces(textposition="top center", marker_size=4)
    figure.update_layout(
        title=f"{len(vectors)} words; the two axes hold {share:.0%} of the variance", template="plotly_white"
    )
    return figure.to_html(include_plotlyjs=True, full_html=True)


# --- reading ------------------------------------------------------------------------------------------------------------


class _Wanted:
    """The words to be kept, asked for in the order of the file: these, and the first ones of all."""

    def __init__(self, words: Collection[str], first: int) -> None:
        self._words, self._left = frozenset(words), first

    def __contains__(self, word: str) -> bool:
        self._left -= 1
        return self._left >= 0 or word in self._words


def load(path: Path | str, only: Collection[str] | None = None, first: int = 0) -> Vectors:
    """The vectors in a file or folder of any kind that the module names; with `only`, of these words alone and of the `first`
    words of the file, which are the most frequent as a rule: the others are passed over as they are read. Raises DataError
    with the place of what is wrong."""
    path = Path(path)
    wanted = None if only is None else _Wanted(only, first)
    if path.is_dir():
        return _from_folder(path, wanted)
    kind = Path(path.stem).suffix.lower() if path.suffix.lower() in OPEN else path.suffix.lower()
    if kind == ".bin":
        found = _from_fasttext(path, wanted) if _begins_as_fasttext(path) else _from_binary(path, wanted)
    else:
        found = _from_text(path, wanted)
    if not len(found) and only is None:
        raise DataError(f"{shown(path)} holds no vector")
    return found


def _from_folder(folder: Path, wanted: _Wanted | None) -> Vectors:
    numbers = next((file for file in sorted(folder.glob("vectors.npy*")) if file.suffix in (".npy", *OPEN)), None)
    listed = next((file for file in sorted(folder.glob("words.txt*")) if file.suffix in (".txt", *OPEN)), None)
    if numbers is None or listed is None:
        raise DataError(f"{shown(folder)} holds no words.txt and vectors.npy; give the file of the vectors itself")
    words = b"".join(blocks(listed)).decode().split("\n")
    words = words[:-1] if words and not words[-1] else words
    try:
        if numbers.suffix == ".npy":
            values = np.load(numbers, mmap_mode="r", allow_pickle=False)
        else:
            values = np.load(io.BytesIO(b"".join(blocks(numbers))), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{shown(numbers)} is no array of NumPy ({error})") from error
    if values.ndim != 2 or len(values) != len(words):
        raise DataError(
            f"{shown(folder)} holds {len(words)} words and an array of shape {values.shape}; wanted one row a word"
        )
    values = values if values.dtype == np.float32 else values.astype(np.float32)
    found = Vectors(words, values)
    return found if wanted is None else found.only([word for word in words if word in wanted])


def _from_text(path: Path, wanted: _Wanted | None) -> Vectors:
    """Words and numbers apart, and the numbers of many lines at once: that is what makes it quick."""
    lines = _lines(path)
    first = next(lines, b"")
    head = first.split()
    size = int(head[1]) if len(head) == 2 and all(part.isdigit() for part in head) else 0
    words: list[str] = []
    parts: list[np.ndarray] = []
    number = 1
    rest: Iterator[bytes] = lines if size else chain([first], lines)
    if not size:
        number, size = 0, len(head) - 1
    if size < 1:
        raise DataError(f"{shown(path)}, line 1 is {first[:60]!r}; wanted `word number number ...`, or `words size`")
    while True:
        begin = number + 1
        some: list[bytes] = []
        for line in rest:
            number += 1
            some.append(line)
            if len(some) == LINES:
                break
        if not some:
            break
        found, values = _numbers(path, some, begin, size, wanted)
        words += found
        parts.append(values)
    return Vectors(words, np.concatenate(parts) if parts else np.empty((0, size), np.float32))


def _numbers(
    path: Path, lines: list[bytes], begin: int, size: int, wanted: _Wanted | None
) -> tuple[list[str], np.ndarray]:
    words, numbers = [], []
    for place, whole in enumerate(lines):
        line = whole.rstrip()
        word, _, values = line.partition(b" ")
        if not line or (wanted is not None and word.decode(errors="replace") not in wanted):
            continue
        if values.count(b" ") != size - 1:  # a word with blanks in it, as GloVe has some; or not what it should be
            word, *tail = line.rsplit(b" ", size)
            values = b" ".join(tail)
            if len(tail) != size:
                raise DataError(
                    f"{shown(path)}, line {begin + place} has {len(tail)} numbers, wanted a word and {size}"
                )
        words.append(word.decode(errors="replace"))
        numbers.append(values)
    try:
        read = np.array(b" ".join(numbers).split(), dtype=np.float32)
    except ValueError as error:
        raise DataError(f"{shown(path)}, lines {begin} to {begin + len(lines) - 1}: {error}") from None
    return words, read.reshape(len(words), size)


def _lines(path: Path) -> Iterator[bytes]:
    rest = b""
    for block in blocks(path):
        *whole, rest = (rest + block).split(b"\n")
        yield from whole
    if rest:
        yield rest


def _from_binary(path: Path, wanted: _Wanted | None) -> Vectors:
    """word2vec's: `words size`, a line end, and for each word its bytes, a blank and `size` floats."""
    content = _content(path)
    end = content.find(b"\n", 0, 100)
    head = content[: max(end, 0)].split()
    if len(head) != 2 or not all(part.isdigit() for part in head):
        raise DataError(f"{shown(path)} begins with {content[:20]!r}, wanted `words size` as word2vec writes it")
    count, size = map(int, head)
    words, numbers, at = [], bytearray(), end + 1
    for number in range(count):
        blank = content.find(b" ", at, at + 2000)
        after = blank + 1 + 4 * size
        if blank < 0 or after > len(content):
            raise DataError(f"{shown(path)} ends within word {number + 1:,} of {count:,}; it was cut, get it anew")
        word = content[at:blank].lstrip(b"\n").decode(errors="replace")
        if wanted is None or word in wanted:
            words.append(word)
            numbers += content[blank + 1 : after]
        at = after
    return Vectors(words, np.frombuffer(numbers, "<f4").reshape(len(words), size))


def _content(path: Path) -> bytes | mmap.mmap:
    if path.suffix.lower() in OPEN:
        return b"".join(blocks(path))
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise DataError(f"{shown(path)} cannot be read: {error}") from error


def _begins_as_fasttext(path: Path) -> bool:
    return next(blocks(path), b"")[:4] == struct.pack("<i", FASTTEXT)


class _Reader:
    """A place in the bytes of a file."""

    def __init__(self, path: Path, content: bytes | mmap.mmap) -> None:
        self.path, self.content, self.at = path, content, 0

    def take(self, form: str) -> tuple[int, ...]:
        try:
            values = struct.unpack_from(form, self.content, self.at)
        except struct.error:
            raise DataError(f"{shown(self.path)} ends at byte {self.at:,} where more should come; it was cut") from None
        self.at += struct.calcsize(form)
        return values

    def word(self) -> str:
        end = self.content.find(b"\0", self.at)
        word = self.content[self.at : end].decode(errors="replace")
        self.at = end + 1
        return word


def _from_fasttext(path: Path, wanted: _Wanted | None) -> Vectors:
    """The mean of the vector of each word and those of its subwords, as fastText gives it out (Bojanowski et al. 2017)."""
    reader = _Reader(path, _content(path))
    _, version = reader.take("<ii")
    size, *_, buckets, least, most, _ = reader.take("<12i")
    reader.take("<d")
    if version < 11:
        raise DataError(f"{shown(path)} is of fastText's format {version}, wanted 11 or later")
    _, count, labels, _, pruned = reader.take("<iiiqq")
    words = []
    for _ in range(count + labels):
        words.append(reader.word())
        reader.take("<qb")
    for _ in range(max(pruned, 0)):
        reader.take("<ii")
    if reader.take("<b")[0]:
        raise DataError(f"{shown(path)} holds quantised vectors, which are not read; give the model before `quantize`")
    rows, columns = reader.take("<qq")
    if (rows, columns) != (count + labels + buckets, size) or reader.at + 4 * rows * columns > len(reader.content):
        wanted_rows = f"{count + labels + buckets:,} x {size}"
        raise DataError(
            f"{shown(path)} holds {rows:,} x {columns} numbers, wanted {wanted_rows}; it was cut or damaged"
        )
    matrix = np.frombuffer(reader.content, "<f4", rows * columns, reader.at).reshape(rows, columns)
    found = [(number, word) for number, word in enumerate(words[:count]) if wanted is None or word in wanted]
    values = np.empty((len(found), size), np.float32)
    for row, (number, word) in enumerate(found):
        parts = subwords(word, least, most) if buckets and word != "</s>" else []  # the end of a line has none
        places = [number, *(count + _hash(part) % buckets for part in parts)]
        values[row] = matrix[places].mean(0)
    return Vectors([word for _, word in found], values)


def subwords(word: str, least: int, most: int) -> list[str]:
    """The parts of `least` to `most` characters of `<word>`, one character alone only inside; none where most is 0."""
    marked = f"<{word}>"
    return [
        marked[start : start + length]
        for start in range(len(marked))
        for length in range(max(least, 1), most + 1)
        if start + length <= len(marked) and not (length == 1 and (start == 0 or start + length == len(marked)))
    ]


def _hash(part: str) -> int:
    """FNV-1a with 32 bits over signed bytes, as fastText has it."""
    value = 2166136261
    for byte in part.encode():
        value = ((value ^ (byte if byte < 128 else byte | 0xFFFFFF00)) * 16777619) & 0xFFFFFFFF
    return value
