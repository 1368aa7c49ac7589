"""Text <-> ids. Four kinds of tokens behind one interface; every text can be written in each of them.

    Bytes        the 256 bytes of UTF-8, or of anything
    Characters   the characters of the training text
    Words        its frequent words, marks, emoji and white space; the rest is spelled
    BPE          byte pair encoding (Sennrich et al. 2016), learnt and applied by the `tokenizers` library

A character outside the vocabulary of `Characters` or `Words` is written as the hexadecimal digits of its UTF-8 bytes:
two ids a byte out of 16 extra ids. Sixteen rather than 256 extra ids keep the softmax small.
"""

import codecs
import json
import re
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, final

import numpy as np

from recurra.data.read import shown
from recurra.errors import DamagedError, UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Chunks = Callable[[], Iterator[str]]

LARGEST = 2_000_000  # entries of a vocabulary
FILE_BYTES = 1 << 28  # of a tokenizer file
PART = 1 << 18  # characters of a text that are tokenised at a time,
UNBROKEN = 1 << 20  # and those that may be held back in search of white space
LONGEST = 64  # characters of a piece that may enter the vocabulary of Words
PIECES_COUNTED = 5_000_000  # distinct pieces counted at a time
BPE_TEXT = 1 << 26  # characters that BPE learns from

BLANK = "\u2423"  # how a blank is shown
JOINS = "\u200d\ufe0f"  # hold an emoji together: nothing to see, nothing to escape
END = "<end>"  # the end mark where it has to be shown; never found in a text
DIGITS = range(1, 17)  # the ids of the hexadecimal digits in Characters and Words


class Tokens(ABC):
    """A vocabulary, and the two ways between text and ids.

    `end` is the id of the mark that stands before the first and after the last token of each text; it writes nothing.
    `written[id]` is the UTF-8 that a token writes; the ids in `digits` write half a byte each.
    """

    kind: ClassVar[str]

    def __init__(self, written: Sequence[bytes], end: int, digits: range = range(0)) -> None:
        self.written, self.end, self.digits = list(written), end, digits
        self._writes = self.written + [bytes([byte]) for byte in range(256)]  # the bytes that pairs of digits stand for

    @classmethod
    @abstractmethod
    def learn(cls, chunks: Chunks, size: int | None = None) -> Self:
        """Choose the vocabulary from a text. `chunks()` streams it, cut anywhere, and may be called several times.

        Raises UsageError if `size` does not fit the kind.
        """

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, `[tokens]` of `dtype`, without end marks."""

    @classmethod
    @abstractmethod
    def _restored(cls, content: dict[str, Any]) -> Self:
        """The inverse of `content`; raises ValueError saying what is wrong."""

    @abstractmethod
    def content(self) -> dict[str, Any]:
        """What `save` writes, for JSON."""

    @property
    def size(self) -> int:
        """The number of ids."""
        return len(self.written)

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """The smaller of uint16 and uint32 that holds every id."""
        return np.uint16 if self.size <= 1 << 16 else np.uint32

    def encode_stream(self, chunks: Iterable[str]) -> Iterator[np.ndarray]:
        """The ids of a text that comes in chunks, cut anywhere: joined, the same as those of the whole text.

        Words and BPE differ from the whole only where more than a million characters go by without white space.
        """
        return (self.encode(part) for part in _parts(chunks))

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text that the ids write; what is not UTF-8 becomes U+FFFD.

        An end mark writes nothing, and no character goes across it. Raises UsageError for an id that does not exist.
        """
        ids = np.asarray(ids).astype(np.int64)
        wrong = ids[(ids < 0) | (ids >= self.size)]
        if wrong.size:
            raise self._no_such(int(wrong[0]))
        texts = np.split(ids, np.flatnonzero(ids == self.end))
        return "".join(self._bytes(text).decode("utf-8", "replace") for text in texts)

    def decoder(self) -> "Decoder":
        """For text that is made token by token."""
        return Decoder(self)

    def text(self, id: int) -> str:
        """One token in readable form, for pictures and tables: spaces visible, control characters and bytes escaped."""
        if not 0 <= id < self.size:
            raise self._no_such(id)
        if id == self.end:
            return END
        if id in self.digits:
            return f"<0x{self.digits.index(id):X}_>"
        try:
            return visible(self.written[id].decode().replace(" ", BLANK))
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in self.written[id])

    def save(self, path: Path) -> None:
        """Write the vocabulary to one JSON file, by custom called `tokenizer.json`; `load` reads it."""
        path.write_text(json.dumps(self.content(), ensure_ascii=False), encoding="utf-8")

    def _bytes(self, ids: np.ndarray) -> bytes:
        """What int64 ids write. Digits pair up from the start of each run; one left over is 0xFF, never valid UTF-8."""
        if not self.digits:
            return b"".join(map(self.written.__getitem__, ids.tolist()))
        at = np.flatnonzero((ids >= self.digits.start) & (ids < self.digits.stop))
        order = np.arange(len(at))
        begins = np.maximum.accumulate(np.where(np.diff(at, prepend=-2) > 1, order, 0))
        first = (order - begins) % 2 == 0
        paired = first & (np.diff(at, append=-2) == 1)
        value = ids[at] - self.digits.start
        byte = np.where(paired, value * 16 + np.append(value, 0)[1:], 0xFF)
        ids = ids.copy()
        ids[at] = np.where(first, self.size + byte, self.end)
        return b"".join(map(self._writes.__getitem__, ids.tolist()))

    def _no_such(self, id: int) -> UsageError:
        return UsageError(f"there is no token {id}: the ids of these {self.kind} go from 0 to {self.size - 1}")


@final
class Decoder:
    """Text out of ids that come one by one; joined, it is the same as `Tokens.decode` of them all."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._half = b""  # the first hexadecimal digit of a byte

    def feed(self, id: int) -> str:
        """The text that has become complete with this token: whole characters only, often none."""
        id, tokens = int(id), self._tokens
        if not 0 <= id < tokens.size:
            raise tokens._no_such(id)
        if id == tokens.end:
            return self.flush()
        if id in tokens.digits:
            return self._digit(b"%X" % tokens.digits.index(id))
        return self._utf8.decode(self._halved() + tokens.written[id])

    def flush(self) -> str:
        """What was held back, as U+FFFD, since the rest of it will not come."""
        text = self._utf8.decode(self._halved(), final=True)
        self._utf8.reset()
        return text

    def _digit(self, digit: bytes) -> str:
        if not self._half:
            self._half = digit
            return ""
        byte, self._half = bytes.fromhex((self._half + digit).decode()), b""
        return self._utf8.decode(byte)

    def _halved(self) -> bytes:
        """0xFF, which is never valid UTF-8, if a byte has only come by half."""
        half, self._half = self._half, b""
        return b"\xff" if half else b""


@final
class Bytes(Tokens):
    """The 256 bytes, ids 0 to 255, and the end mark, 256. Nothing is learnt."""

    kind = "bytes"

    def __init__(self) -> None:
        super().__init__([bytes([byte]) for byte in range(256)] + [b""], end=256)

    @classmethod
    def learn(cls, chunks: Chunks, size: int | None = None) -> Self:
        if size not in (None, 257):
            raise UsageError(
                f"tokens.size was {size}; bytes always have 257 ids: leave it out, or take another tokens.kind"
            )
        return cls()

    def encode(self, text: str) -> np.ndarray:
        return self.encode_bytes(text.encode("utf-8", "surrogatepass"))

    def encode_bytes(self, block: bytes) -> np.ndarray:
        """The ids of raw bytes, for files that are not text."""
        return np.frombuffer(block, np.uint8).astype(self.dtype)

    @classmethod
    def _restored(cls, content: dict[str, Any]) -> Self:
        _check_keys(content, {"format", "kind"})
        return cls()

    def content(self) -> dict[str, Any]:
        return {"format": 1, "kind": self.kind}


@final
class Characters(Tokens):
    """The `size` most frequent characters (Unicode code points) of the training text, 4096 unless told.

    Ids: the end mark, 16 hexadecimal digits, then the characters by falling count, then code point.
    """

    kind = "characters"

    def __init__(self, characters: str) -> None:
        super().__init__(_spelling(characters), end=0, digits=DIGITS)
        self.characters = characters
        self._id_of = np.zeros(sys.maxunicode + 1, self.dtype)  # 0 stands for a character that is not in the vocabulary
        self._id_of[_code_points(characters)] = np.arange(DIGITS.stop, self.size)

    @classmethod
    def learn(cls, chunks: Chunks, size: int | None = None) -> Self:
        return cls(_frequent_characters(chunks(), _checked(size, 4096, least=1)))

    def encode(self, text: str) -> np.ndarray:
        points = _code_points(text)
        ids = self._id_of[points]
        unknown = ids == 0
        if not unknown.any():
            return ids
        lengths = 1 + (points > 0x7F) + (points > 0x7FF).astype(np.int64) + (points > 0xFFFF)  # of the UTF-8
        spelled = np.repeat(unknown, np.where(unknown, 2 * lengths, 1))
        out = np.empty(len(spelled), self.dtype)
        out[~spelled] = ids[~unknown]
        out[spelled] = _digits(points[unknown])
        return out

    @classmethod
    def _restored(cls, content: dict[str, Any]) -> Self:
        _check_keys(content, {"format", "kind", "characters"})
        return cls(_checked_characters(content["characters"]))

    def content(self) -> dict[str, Any]:
        return {"format": 1, "kind": self.kind, "characters": self.characters}


_MARKS = (  # what goes on inside a word but is no letter to `re`: combining marks, vowel signs, joiners
    "\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u0730-\u074a"
    "\u0900-\u0963\u0966-\u109f\u1700-\u1cff\u1dc0-\u1dff\u200c\u200d\u302a-\u302f\u3099\u309a\ua8e0-\ua8f1\ufe20-\ufe2f"
)
_PICTURES = (
    "\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u21ff\u2300-\u23ff\u2600-\u27bf\u2934\u2935\u2b00-\u2bff\u3030\u303d"
    "\u3297\u3299\U0001f000-\U0001faff"
)
WORD = rf"[\w{_MARKS}]"
_PICTURE = f"[{_PICTURES}][\ufe0f\u20e3\U0001f3fb-\U0001f3ff]*[\U000e0020-\U000e007f]*"
EMOJI = "|".join(
    [
        "[\U0001f1e6-\U0001f1ff]{2}",  # a flag
        "[0-9#*]\ufe0f?\u20e3",  # a keycap
        f"{_PICTURE}(?:\u200d{_PICTURE})*",  # an emoji with its modifiers, or several joined
    ]
)
_PIECE = re.compile(
    "|".join(
        [
            EMOJI,
            f" ?[@#]?{WORD}+(?:['\u2019]{WORD}+)*",  # a word, a handle, a hashtag
            rf"\s+(?= [@#]?{WORD})|\s+",  # white space; its last blank goes to the word after it
            rf"(?:(?![@#]{WORD})[^\s\w{_MARKS}{_PICTURES}])+",  # marks
        ]
    )
)


@final
class Words(Tokens):
    """The `size` most frequent pieces of the training text that occur twice, 20,000 unless told, and its characters.

    A text is cut into words (with the blank before them), handles and hashtags, emoji, runs of marks and white space;
    the pieces join to the text. A piece that is not in the vocabulary is spelled by its characters, at most 4096 of
    which are ids, and a character that is not by its bytes. Ids: as in `Characters`, then the pieces by falling count.
    """

    kind = "words"

    def __init__(self, characters: str, pieces: Sequence[str]) -> None:
        written = _spelling(characters) + [piece.encode() for piece in pieces]
        super().__init__(written, end=0, digits=DIGITS)
        self.characters, self.pieces = characters, list(pieces)
        self._id_of = {piece: id for id, piece in enumerate([*characters, *pieces], DIGITS.stop)}

    @staticmethod
    def split(text: str) -> list[str]:
        """The pieces of a text; joined, they are the text."""
        return _PIECE.findall(text)

    @classmethod
    def learn(cls, chunks: Chunks, size: int | None = None) -> Self:
        size = _checked(size, 20_000, least=1)
        characters = _frequent_characters(chunks(), 4096)
        counts = _counted(cls.split(part) for part in _parts(chunks()))
        alphabet = set(characters)
        able = [
            piece for piece, count in counts.items() if count > 1 and piece not in alphabet and len(piece) <= LONGEST
        ]
        able = [piece for piece in able if not _has_surrogates(piece)]
        return cls(characters, sorted(able, key=lambda piece: (-counts[piece], piece))[:size])

    def encode(self, text: str) -> np.ndarray:
        ids: list[int] = []
        for piece in self.split(text):
            known = self._id_of.get(piece)
            if known is None:
                ids.extend(self._spelled(piece))
            else:
                ids.append(known)
        return np.array(ids, self.dtype)

    def _spelled(self, piece: str) -> Iterator[int]:
        for character in piece:
            if (known := self._id_of.get(character)) is not None:
                yield known
            else:
                for byte in character.encode("utf-8", "surrogatepass"):
                    yield DIGITS.start + (byte >> 4)
                    yield DIGITS.start + (byte & 15)

    @classmethod
    def _restored(cls, content: dict[str, Any]) -> Self:
        _check_keys(content, {"format", "kind", "characters", "pieces"})
        characters, pieces = _checked_characters(content["characters"]), content["pieces"]
        if type(pieces) is not list or not all(type(piece) is str and piece for piece in pieces):
            raise ValueError("the pieces are not a list of texts")
        if len(pieces) > LARGEST:
            raise ValueError(f"the vocabulary has more than {LARGEST} entries")
        if len({*pieces, *characters}) < len(pieces) + len(characters):
            raise ValueError("a piece stands in the vocabulary twice")
        if any(map(_has_surrogates, pieces)):
            raise ValueError("a piece is not valid Unicode")
        return cls(characters, pieces)

    def content(self) -> dict[str, Any]:
        return {"format": 1, "kind": self.kind, "characters": self.characters, "pieces": self.pieces}


_BPE_FRAME: dict[
    str, Any
] = {  # everything in a file of the `tokenizers` library but vocabulary and merges, as we write it
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
        {
            "id": 0,
            "content": END,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
    ],
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "post_processor": None,
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
}
_BPE_MODEL: dict[str, Any] = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}


@final
class BPE(Tokens):
    """Byte pair encoding over the bytes of UTF-8, cut as GPT-2 does; `size` ids in all, 4096 unless told, at least 257.

    Learnt from the first 64 million characters. Ids: the end mark, the 256 bytes, then the merges in the order learnt.
    """

    kind = "bpe"

    def __init__(self, tokenizer: "Tokenizer") -> None:
        byte_of = {char: byte for byte, char in enumerate(_byte_level())}
        vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
        super().__init__(
            [b"" if id == 0 else bytes(map(byte_of.__getitem__, token)) for token, id in vocabulary], end=0
        )
        self._tokenizer = tokenizer
        self._tokenizer.encode_special_tokens = True  # "<end>" in a text is five characters, not the end

    @classmethod
    def learn(cls, chunks: Chunks, size: int | None = None) -> Self:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=_checked(size, 4096, least=257),
            show_progress=False,
            special_tokens=[END],
            initial_alphabet=sorted(_byte_level()),
        )
        text = map(_without_surrogates, _parts(_first(chunks(), BPE_TEXT)))
        tokenizer.train_from_iterator(text, trainer)
        return cls(tokenizer)

    def encode(self, text: str) -> np.ndarray:
        (encoding,) = self._tokenizer.encode_batch_fast([_without_surrogates(text)])  # fast: without offsets
        return np.array(encoding.ids, self.dtype)

    @classmethod
    def _restored(cls, content: dict[str, Any]) -> Self:
        from tokenizers import Tokenizer

        _check_bpe(content)
        try:
            return cls(Tokenizer.from_str(json.dumps(content)))
        except Exception as error:  # the library raises nothing more precise
            raise ValueError(f"the tokenizers library refuses it ({error})") from error

    def content(self) -> dict[str, Any]:
        return json.loads(self._tokenizer.to_str())


TOKENS: dict[str, type[Tokens]] = {"bytes": Bytes, "characters": Characters, "words": Words, "bpe": BPE}


def load(path: Path | str) -> Tokens:
    """The tokens that `Tokens.save` wrote. Raises DamagedError for a file that is not as it was written."""
    path = Path(path)
    try:
        return restored(_read_json(path))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(
            f"{shown(path)} is not a sound tokenizer file: {error}; put back the one from the run"
        ) from error


def restored(content: dict[str, Any]) -> Tokens:
    """The tokens of what `Tokens.content` gave. Raises ValueError that says what is wrong with it."""
    if "model" in content:
        return BPE._restored(content)
    if content.get("format") != 1:
        raise ValueError(f"its format is {content.get('format')!r}, this version of recurra reads 1")
    if content.get("kind") not in ("bytes", "characters", "words"):
        raise ValueError(f"there are no tokens of kind {content.get('kind')!r}")
    return TOKENS[content["kind"]]._restored(content)


def _read_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > FILE_BYTES:
        raise ValueError(f"it has more than {FILE_BYTES} bytes")
    content = json.loads(path.read_bytes(), object_pairs_hook=_once)
    if type(content) is not dict:
        raise ValueError("it holds no JSON object")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("a key stands in an object twice")
    return entries


def _check_keys(content: dict[str, Any], wanted: set[str]) -> None:
    if set(content) != wanted:
        raise ValueError(f"its keys are {', '.join(sorted(content))}, wanted {', '.join(sorted(wanted))}")


def _checked_characters(characters: Any) -> str:
    if type(characters) is not str or _has_surrogates(characters):
        raise ValueError("the characters are not a text of valid Unicode")
    if len(set(characters)) < len(characters):
        raise ValueError("a character stands in the vocabulary twice")
    return characters


def _check_bpe(content: dict[str, Any]) -> None:
    """Let pass only what `BPE.learn` makes: other parts of the library take patterns from it and panic on some."""
    model = content["model"]
    if type(model) is not dict:
        raise ValueError("the model is no JSON object")
    vocabulary, merges = model.get("vocab"), model.get("merges")
    frame = {key: value for key, value in content.items() if key != "model"}
    rest = {key: value for key, value in model.items() if key not in ("vocab", "merges")}
    for given, wanted in ((frame, _BPE_FRAME), (rest, _BPE_MODEL)):
        _check_keys(given, set(wanted))
        for key, value in wanted.items():
            if json.dumps(given[key], sort_keys=True) != json.dumps(value, sort_keys=True):
                raise ValueError(f"its {key} is {given[key]!r:.200}, wanted {value!r}")
    if type(vocabulary) is not dict or type(merges) is not list:
        raise ValueError("the vocabulary is no JSON object, or the merges are no list")
    _check_vocabulary(vocabulary)
    _check_merges(merges, vocabulary)


def _check_vocabulary(vocabulary: dict[str, Any]) -> None:
    if len(vocabulary) > LARGEST:
        raise ValueError(f"the vocabulary has more than {LARGEST} entries")
    if any(type(id) is not int for id in vocabulary.values()) or set(vocabulary.values()) != set(
        range(len(vocabulary))
    ):
        raise ValueError("the ids are not the numbers from 0 on, each once")
    alphabet = set(_byte_level())
    if vocabulary.get(END) != 0 or not alphabet <= set(vocabulary):
        raise ValueError("the end mark or one of the 256 bytes is missing")
    if not all(token and alphabet.issuperset(token) for token in vocabulary):
        raise ValueError("a token is not made of bytes")


def _check_merges(merges: list[Any], vocabulary: dict[str, Any]) -> None:
    for merge in merges:
        if type(merge) is not list or len(merge) != 2 or not all(type(token) is str for token in merge):
            raise ValueError("a merge is not a pair of tokens")
        left, right = merge
        if not (left in vocabulary and right in vocabulary and left + right in vocabulary) or left + right == END:
            raise ValueError(f"the merge of {left!r:.100} and {right!r:.100} does not fit the vocabulary")
    if len({tuple(merge) for merge in merges}) < len(merges):
        raise ValueError("a merge is listed twice")


def _byte_level() -> list[str]:
    """The printable character that GPT-2 writes for each byte: itself where it is one, else those from U+0100 on."""
    spare = iter(range(256, 512))
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


_BORDER = re.compile(r".*\S(?=[ \t\r\n])", re.DOTALL)


def _parts(chunks: Iterable[str]) -> Iterator[str]:
    """The same text cut before white space, where no piece of Words or BPE goes across, whatever the chunks were.

    Where more than `UNBROKEN` characters go by without such a place, the cut is wherever they end.
    """
    tail = ""
    for part in _even(chunks):
        text = tail + part
        border = _BORDER.match(text)
        cut = border.end() if border else len(text) if len(text) > UNBROKEN else 0
        if cut:
            yield text[:cut]
        tail = text[cut:]
    if tail:
        yield tail


def _even(chunks: Iterable[str]) -> Iterator[str]:
    """The same text in parts of `PART` to twice `PART` characters, the last one shorter."""
    waiting: list[str] = []
    length = 0
    for chunk in chunks:
        for start in range(0, len(chunk), PART):
            waiting.append(chunk[start : start + PART])
            length += len(waiting[-1])
            if length >= PART:
                yield "".join(waiting)
                waiting, length = [], 0
    yield "".join(waiting)


def _first(chunks: Iterable[str], most: int) -> Iterator[str]:
    for chunk in chunks:
        yield chunk[:most]
        most -= len(chunk)
        if most <= 0:
            return


def _checked(size: int | None, default: int, least: int) -> int:
    size = default if size is None else size
    if not least <= size <= LARGEST:
        raise UsageError(f"tokens.size was {size}, wanted {least} to {LARGEST}")
    return size


def _frequent_characters(chunks: Iterable[str], most: int) -> str:
    """At most `most` characters of a text, by falling count, then code point."""
    counts = np.zeros(sys.maxunicode + 1, np.int64)
    for chunk in _even(chunks):
        points, times = np.unique(_code_points(chunk), return_counts=True)
        counts[points] += times
    counts[0xD800:0xE000] = 0  # half a surrogate pair is no character
    seen = np.flatnonzero(counts)
    return "".join(map(chr, seen[np.argsort(-counts[seen], kind="stable")][:most].tolist()))


def _counted(lists: Iterable[list[str]]) -> Counter[str]:
    """How often each piece occurs. When there are too many to keep, those seen only once so far are forgotten."""
    counts: Counter[str] = Counter()
    for pieces in lists:
        counts.update(pieces)
        if len(counts) > PIECES_COUNTED:
            counts = Counter({piece: count for piece, count in counts.items() if count > 1})
    return counts


def _spelling(characters: str) -> list[bytes]:
    """What the first ids of Characters and Words write: the end mark and the digits nothing by themselves."""
    return [b""] * DIGITS.stop + [character.encode() for character in characters]


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _digits(points: np.ndarray) -> np.ndarray:
    """The ids of the hexadecimal digits of the UTF-8 of code points."""
    text = points.tobytes().decode("utf-32-le", "surrogatepass")
    utf8 = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
    return DIGITS.start + np.stack([utf8 >> 4, utf8 & 15], axis=1).reshape(-1)


def _has_surrogates(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _without_surrogates(text: str) -> str:
    """The text with U+FFFD for lone surrogates, as the other kinds decode them; the tokenizers library refuses them."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace") if _has_surrogates(text) else text


def visible(text: str) -> str:
    """The text with control characters, marks of direction and halves of characters escaped."""
    return "".join(char if char.isprintable() or char in JOINS else repr(char)[1:-1] for char in text)
