"""How sequences become numbers for a network: by a vocabulary, or by the scales of their channels."""

from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
from torch import Tensor, nn

from recurra import storage, vision
from recurra.config import Config
from recurra.data import tokens as tokenisers
from recurra.data.examples import Examples, Kind
from recurra.data.feed import Ragged
from recurra.data.pictures import resized
from recurra.data.tokens import TOKENS, Tokens
from recurra.data.vocabulary import Vocabulary, words
from recurra.embed import vectors
from recurra.errors import DamagedError, DataError, UsageError
from recurra.models import AsTheyAre, OneHot, Spelled, Table

FEATURES = 64  # of a word whose vector is not given
WORDS = 20_000  # that have an id of their own
MOST_VECTORS = 50_000  # words that are taken from a file of vectors without being in the training texts
LETTERS = 24  # of a word that are read


class Encoded(NamedTuple):
    """Sequences as numbers: ids or features of each step, and the letters of each word where they are read. A picture is a
    sequence of rows of pixels."""

    steps: Ragged
    letters: Ragged | None

    def padded(self, rows: np.ndarray) -> tuple[Any, Tensor]:
        """Inputs for the network, and the lengths of the rows."""
        steps, lengths = self.steps.padded(rows)
        return (steps if self.letters is None else (steps, self.letters.padded(rows)[0].long())), lengths


class Picture(NamedTuple):
    """The size of pictures in pixels, and the name of the pretrained network whose features stand for them, or None."""

    height: int
    width: int
    backbone: str | None


@final
class Inputs:
    """What is learnt of the inputs from the training examples, and the way from an example to numbers.

    Texts become ids of words (`Vocabulary`) or of other tokens, lists of words become ids of words, and series are scaled: of
    each channel the mean is taken away and the standard deviation divided out. Pictures stay as they are, or become the features
    of a pretrained network.
    """

    def __init__(
        self,
        kind: Kind,
        tokens: Vocabulary | Tokens | None = None,
        letters: str = "",
        scale: tuple[np.ndarray, np.ndarray] | None = None,
        picture: Picture | None = None,
    ) -> None:
        self.kind, self.tokens, self.letters, self.scale, self.picture = kind, tokens, letters, scale, picture
        self._letter = {letter: id for id, letter in enumerate(letters, 2)}  # 0 is no letter, 1 another one

    @classmethod
    def learn(cls, config: Config, train: Examples, letters: bool = False) -> "Inputs":
        """With `letters`, the letters of each word are read too. Raises UsageError where the config does not fit the examples."""
        if train.kind == "series":
            if config.embed.vectors is not None or config.tokens.kind != "auto":
                raise UsageError("these examples are series of numbers: they have no tokens and no word vectors")
            return cls("series", scale=scale_of(np.concatenate(train.inputs)))
        kind = _kind(config, train)
        if train.kind == "text" and kind != "words":
            kept = train.inputs
            return cls("text", TOKENS[kind].learn(lambda: iter(kept), config.tokens.size))
        if kind != "words":
            raise UsageError(f"these examples come in words, and tokens.kind was {kind}; leave it out")
        texts = [words(text) for text in train.inputs] if train.kind == "text" else train.inputs
        size, lower = config.tokens.size or WORDS, config.tokens.lower
        lower = (train.kind == "text" or letters) if lower == "auto" else lower
        known = Vocabulary.learn(texts, size, lower, _words_of(config, texts, lower))
        spelled = "".join(sorted({letter for text in texts for word in text for letter in word})) if letters else ""
        return cls(train.kind, known, spelled)

    def encode(self, examples: Examples, longest: int | None = None) -> Encoded:
        """Raises DataError where the examples are of another kind than those of the training."""
        if examples.kind != self.kind:
            raise DataError(f"the network was trained on {self.kind} and these examples are {examples.kind}")
        if self.picture is not None:
            return self._pictures(examples.inputs, self.picture)
        parts = [self._steps(one, place)[:longest] for one, place in zip(examples.inputs, examples.places, strict=True)]
        empty = np.zeros((0, len(self.scale[0])), np.float32) if self.scale is not None else np.zeros(0, np.int64)
        letters = [self._spelled(one[:longest]) for one in examples.inputs] if self.letters else None
        return Encoded(
            Ragged.of(parts, empty),
            Ragged.of(letters, np.zeros((0, LETTERS), np.int32)) if letters is not None else None,
        )

    def shown(self, example: Any) -> list[str]:
        """The steps of an example of words or text, as the network sees them."""
        if isinstance(self.tokens, Tokens):
            return [self.tokens.text(int(id)) for id in self.tokens.encode(example)]
        return words(example) if self.kind == "text" else list(example)

    def unknown(self, encoded: Encoded) -> float:
        """The share of words that have no id of their own."""
        ids = encoded.steps.values
        return float((ids == 0).mean()) if isinstance(self.tokens, Vocabulary) and len(ids) else 0.0

    def vocabulary(self) -> dict[int, str]:
        """The words by their ids, for their vectors. Raises UsageError where there are none."""
        if not isinstance(self.tokens, Vocabulary):
            raise UsageError("word vectors were given, and the network does not read words; leave out --vectors")
        return dict(enumerate(self.tokens.words, 1))

    def embedding(self, config: Config) -> nn.Module:
        """The first layer of the network."""
        if self.scale is not None:
            return AsTheyAre(len(self.scale[0]))
        assert self.tokens is not None
        if config.embed.word_dropout and not (isinstance(self.tokens, Vocabulary) and config.embed.kind == "table"):
            raise UsageError(
                "embed.word_dropout takes words for unknown ones, and the network reads none; leave it out"
            )
        if config.embed.kind == "onehot":
            return OneHot(self.tokens.size)
        learnt = self.tokens.seen if isinstance(self.tokens, Vocabulary) else self.tokens.size
        table = Table(learnt, self.tokens.size - learnt, int(config.embed.size), config.embed.word_dropout)
        return Spelled(table, len(self.letters) + 2) if self.letters else table

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the vocabulary into `folder`; returns what else is to be kept, for JSON."""
        if isinstance(self.tokens, Vocabulary):
            storage.write_json(folder / "tokenizer.json", self.tokens.content())
        elif self.tokens is not None:
            self.tokens.save(folder / "tokenizer.json")
        scale = [part.astype(float).tolist() for part in self.scale] if self.scale is not None else None
        return {"kind": self.kind, "letters": self.letters, "scale": scale, "picture": self.picture}

    @classmethod
    def load(cls, folder: Path, kept: Any) -> "Inputs":
        """The inverse of `save`. Raises DamagedError."""
        try:
            if kept["scale"] is not None:
                mean, std = (np.array(part, np.float32) for part in kept["scale"])
                return cls(kept["kind"], scale=(mean, std))
            if kept["picture"] is not None:
                return cls(kept["kind"], picture=Picture(*kept["picture"]))
            return cls(kept["kind"], _tokens(folder / "tokenizer.json"), str(kept["letters"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(f"{folder}: what is kept of the inputs is not as it was written: {error}") from error

    def _pictures(self, pictures: list[np.ndarray], wanted: Picture) -> Encoded:
        size = (wanted.height, wanted.width)
        pictures = [one if one.shape[:2] == size else resized(one, size) for one in pictures]
        if wanted.backbone is None or not pictures:
            return Encoded(Ragged.of(pictures, np.zeros((0, wanted.width, 3), np.uint8)), None)
        found = vision.features(pictures, wanted.backbone, storage.cache() / "features").values
        return Encoded(Ragged.of(list(found), found[0]), None)

    def _steps(self, example: Any, place: str) -> np.ndarray:
        if self.scale is not None:
            if example.shape[1] != len(self.scale[0]):
                raise DataError(
                    f"{place} has {example.shape[1]} channels, and the network was trained on {len(self.scale[0])}"
                )
            return ((example - self.scale[0]) / self.scale[1]).astype(np.float32)
        if isinstance(self.tokens, Vocabulary):
            return self.tokens.encode(words(example) if self.kind == "text" else example)
        assert self.tokens is not None
        return self.tokens.encode(example).astype(np.int64)

    def _spelled(self, text: list[str]) -> np.ndarray:
        out = np.zeros((len(text), LETTERS), np.int32)
        for at, word in enumerate(text):
            ids = [self._letter.get(letter, 1) for letter in word[:LETTERS]]
            out[at, : len(ids)] = ids
        return out


def scale_of(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column, 1 where it is always the same."""
    spread = rows.std(0, dtype=np.float64)
    return rows.mean(0, dtype=np.float64), np.where(spread > 0, spread, 1.0)


def _kind(config: Config, train: Examples) -> str:
    """What texts are read by: words, or characters where a text is about one word (signs, codes, scripts without blanks)."""
    if config.tokens.kind != "auto":
        return config.tokens.kind
    some = train.inputs[:1000]
    if (
        train.kind == "text"
        and sum(len(words(text)) for text in some) < 1.5 * len(some)
        and config.embed.vectors is None
    ):
        return "characters"
    return "words"


def _tokens(path: Path) -> Vocabulary | Tokens:
    if not path.exists():
        raise ValueError("there is no tokenizer.json")
    content = storage.read_json(path)
    if isinstance(content, dict) and content.get("kind") == "vocabulary":
        return Vocabulary.restored(content)
    return tokenisers.load(path)


def _words_of(config: Config, texts: list[list[str]], lower: bool) -> list[str]:
    """The words that have a vector: those of the training texts, and the first of the file."""
    if config.embed.vectors is None:
        return []
    if config.embed.kind != "table":
        raise UsageError("word vectors start a table of words, and embed.kind was onehot; leave one of them out")
    seen = {word.lower() if lower else word for text in texts for word in text}
    found = vectors.load(config.embed.vectors, {*seen, *(word.lower() for word in seen)}, first=MOST_VECTORS)
    here = [word for word in seen if word in found or word.lower() in found]
    return sorted(here) + [
        word for word in found.words if (word.lower() if lower else word) == word and word not in seen
    ]
