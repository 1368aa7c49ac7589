"""Tokens: every text goes in and comes out, however it is cut, stored or harmed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recurra.data import tokens as module
from recurra.data.tokens import BPE, TOKENS, Bytes, Characters, Tokens, Words, load
from recurra.errors import DamagedError, UsageError

FAMILY = "\U0001f469\U0001f3fd\u200d\U0001f469\u200d\U0001f467"  # two women, one of them darker, and a girl
FLAG, KEYCAP, HEART = "\U0001f1e7\U0001f1f7", "1\ufe0f\u20e3", "\u2764\ufe0f"
LEARNT = (
    "It's the first day of the first year; the dogs don't bark.\r\n\tThe end, the end!!\n\n"
    f"Déjà vu, e\u0301, 漢字 漢字, \U0001d518 {FAMILY} {FAMILY} @ana @ana #now #now <end> <end>\n"
)
FRAGMENTS = [
    *" \n\r\t\0aeTé漢\u0301\u200d\ufe0f\u2028\x1c\U0001d518@#'\u2019-.1_",
    "<end>",
    "the",
    "  ",
    " the end",
    "नमस्ते",
]
FRAGMENTS += [FAMILY, FLAG, KEYCAP, HEART, "don't", " @ana", "日本語", "\r\n"]

texts = st.text(st.characters(exclude_categories=["Cs"])) | st.lists(st.sampled_from(FRAGMENTS)).map("".join)
kinds = pytest.mark.parametrize("kind", TOKENS)
quick = settings(max_examples=40, deadline=None)


def streamed(*parts: str) -> Any:
    return lambda: iter(parts)


@pytest.fixture(scope="module")
def learnt() -> dict[str, Tokens]:
    return {kind: tokens.learn(streamed(LEARNT), 300 if kind == "bpe" else None) for kind, tokens in TOKENS.items()}


def pieces(text: str, cuts: list[int]) -> Iterator[str]:
    ends = sorted(cut % (len(text) + 1) for cut in cuts)
    return (text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True))


def joined(tokens: Tokens, parts: Iterator[str]) -> list[int]:
    return [id for ids in tokens.encode_stream(parts) for id in ids.tolist()]


@kinds
@quick
@given(text=texts)
def test_every_text_comes_back(learnt: dict[str, Tokens], kind: str, text: str) -> None:
    tokens = learnt[kind]
    ids = tokens.encode(text)
    assert tokens.decode(ids) == text
    assert ids.dtype == tokens.dtype == np.uint16
    assert not np.isin(tokens.end, ids)
    assert ids.size == 0 or ids.max() < tokens.size


@kinds
@quick
@given(text=st.text(st.sampled_from("a \ud83d\ude00\udfff漢")))
def test_lone_surrogates_do_no_harm(learnt: dict[str, Tokens], kind: str, text: str) -> None:
    tokens = TOKENS[kind].learn(streamed(text * 3))
    seen = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    assert learnt[kind].decode(learnt[kind].encode(text)) == tokens.decode(tokens.encode(text)) == seen


@kinds
@quick
@given(text=texts, cuts=st.lists(st.integers(0, 10_000)), part=st.integers(1, 9))
def test_a_text_may_be_cut_anywhere(
    learnt: dict[str, Tokens], kind: str, text: str, cuts: list[int], part: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PART", part)
        assert joined(learnt[kind], pieces(text, cuts)) == learnt[kind].encode(text).tolist()


def test_bpe_is_not_cut_where_only_python_sees_white_space(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = BPE.learn(streamed(" !\x1c!" * 50), 300)
    monkeypatch.setattr(module, "PART", 1)
    assert joined(tokens, iter(" !\x1c! !\x1c!")) == tokens.encode(" !\x1c! !\x1c!").tolist()


@kinds
@pytest.mark.parametrize(("repeated", "unbroken"), [("漢字", 100), ("漢字 ", 100_000)])
def test_a_text_is_not_held_back(
    learnt: dict[str, Tokens], kind: str, repeated: str, unbroken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART", 10)
    monkeypatch.setattr(module, "UNBROKEN", unbroken)
    parts = [learnt[kind].decode(ids) for ids in learnt[kind].encode_stream(repeated for _ in range(500))]
    assert max(map(len, parts)) <= 120
    assert "".join(parts) == repeated * 500


@kinds
@quick
@given(data=st.data())
def test_the_decoder_writes_what_decode_does(learnt: dict[str, Tokens], kind: str, data: st.DataObject) -> None:
    tokens = learnt[kind]
    rare = st.sampled_from([tokens.end, *tokens.digits, *tokens.encode("é漢\U0001d518").tolist()])
    ids = data.draw(st.lists(rare | st.integers(0, tokens.size - 1)))
    decoder = tokens.decoder()
    assert "".join([*map(decoder.feed, ids), decoder.flush()]) == tokens.decode(ids)
    assert decoder.flush() == ""


@kinds
def test_the_decoder_never_shows_half_a_character(learnt: dict[str, Tokens], kind: str) -> None:
    text = "né 漢\U0001f469 日"
    shown = ""
    decoder = learnt[kind].decoder()
    for id in learnt[kind].encode(text):
        shown += decoder.feed(id)
        assert text.startswith(shown)
    assert shown == text


@kinds
def test_an_end_mark_writes_nothing_and_ends_a_character(learnt: dict[str, Tokens], kind: str) -> None:
    tokens = learnt[kind]
    whole = tokens.encode("the \u0e01").tolist()
    assert tokens.decode([tokens.end, *whole, tokens.end, tokens.end]) == "the \u0e01"
    assert tokens.decode([]) == ""
    half = tokens.decode([*whole[:-1], tokens.end, whole[-1]])
    assert half.startswith("the \ufffd")


@kinds
@pytest.mark.parametrize("id", [-1, 1_000_000])
def test_an_id_that_does_not_exist_is_refused(learnt: dict[str, Tokens], kind: str, id: int) -> None:
    for use in (learnt[kind].decoder().feed, learnt[kind].text, lambda id: learnt[kind].decode([5, id])):
        with pytest.raises(UsageError, match=f"there is no token {id}: .* from 0 to {learnt[kind].size - 1}"):
            use(id)


@kinds
def test_saved_and_loaded_tokens_are_the_same(learnt: dict[str, Tokens], kind: str, tmp_path: Path) -> None:
    tokens, path = learnt[kind], tmp_path / "tokenizer.json"
    tokens.save(path)
    again = load(path)
    assert type(again) is type(tokens)
    text = LEARNT + "\0 more: 日本 <end> \U0001d519"
    assert again.encode(text).tolist() == tokens.encode(text).tolist()
    assert again.decode(tokens.encode(text)) == text
    assert (again.size, again.end, again.written) == (tokens.size, tokens.end, tokens.written)
    first = path.read_bytes()
    again.save(path)
    assert path.read_bytes() == first


@kinds
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 10_000)))
def test_the_vocabulary_does_not_depend_on_the_chunks(learnt: dict[str, Tokens], kind: str, cuts: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PART", 7)
        again = TOKENS[kind].learn(lambda: pieces(LEARNT, cuts), 300 if kind == "bpe" else None)
    assert again.content() == learnt[kind].content()


@kinds
def test_an_empty_text_can_be_learnt_from(kind: str) -> None:
    tokens = TOKENS[kind].learn(streamed())
    assert tokens.encode("").tolist() == []
    assert tokens.decode(tokens.encode("né 漢")) == "né 漢"


def test_characters_are_ranked_by_count_then_code_point() -> None:
    tokens = Characters.learn(streamed("ba", "cabx", "yé"))
    assert tokens.characters == "abcxyé"
    assert Characters.learn(streamed("bacabxyé"), 3).characters == "abc"
    assert tokens.encode("abé").tolist() == [17, 18, 22]
    assert tokens.encode("a漢").tolist() == [17, *(1 + digit for digit in (0xE, 6, 0xB, 0xC, 0xA, 2))]


def test_more_than_65536_ids_take_four_bytes() -> None:
    plane = "".join(map(chr, range(0x20000, 0x30000)))
    tokens = Characters(plane)
    assert tokens.encode(plane).dtype == np.uint32
    assert tokens.decode(tokens.encode(plane)) == plane


@settings(max_examples=100, deadline=None)
@given(text=texts)
def test_pieces_join_to_the_text(text: str) -> None:
    assert "".join(Words.split(text)) == text
    assert all(Words.split(text))


@pytest.mark.parametrize(
    "wanted",
    [
        ["It's", "  \n", " don't", " stop", "!!", "\r\n", "tis", "...", " ", "'", "quoted", "'"],
        ["@ana_1", ":", " #now", " see", " ", ".", "@you", " a", "@", " ", "#", " b"],
        [FAMILY, FAMILY, HEART, FLAG, FLAG, KEYCAP, "!", FAMILY],
        ["नमस्ते", " e\u0301tude", "\uff0c", "don\u2019t"],
    ],
)
def test_pieces_are_what_people_call_words(wanted: list[str]) -> None:
    assert Words.split("".join(wanted)) == wanted


def test_words_take_what_occurs_twice_and_spell_the_rest() -> None:
    tokens = Words.learn(streamed("the cat and the dog and the c"))
    assert tokens.pieces == [" and", " the"]
    spelled = [token for character in " dog" for token in tokens.encode(character)]
    assert tokens.encode(" the dog").tolist() == [*tokens.encode(" the"), *spelled]
    assert len(spelled) == 4
    assert Words.learn(streamed(LEARNT), 2).pieces == [" the", " #now"]


def test_words_learn_no_endless_pieces() -> None:
    assert Words.learn(streamed(f"{'a' * 65}\n{'b' * 64}\n" * 2)).pieces == ["b" * 64]


def test_only_pieces_seen_once_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECES_COUNTED", 50)
    monkeypatch.setattr(module, "PART", 20)
    many = [f"once{n:03d} " for n in range(500)]
    tokens = Words.learn(streamed("so early so early so lone ", *many, "and lone late so late"))
    assert tokens.pieces == [" so", " early", " late"]


def test_bytes_take_any_file() -> None:
    tokens, block = Bytes(), bytes(range(256))
    assert tokens.encode_bytes(block).tolist() == list(range(256))
    assert tokens.size == 257
    assert tokens.decode(tokens.encode_bytes(b"\xffa\xc3")) == "\ufffda\ufffd"


def test_bpe_learns_the_words_that_occur_often() -> None:
    tokens = BPE.learn(streamed(*["the end of the end "] * 50), 300)
    assert len(tokens.encode(" the end")) == 2
    assert tokens.size <= 300
    assert joined(tokens, iter(["<end>"])) == tokens.encode("<end>").tolist() != [tokens.end]


def test_bpe_learns_from_the_beginning_of_a_long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BPE_TEXT", 1000)
    chunks = iter(["the end "] * 5000)
    assert BPE.learn(lambda: chunks, 300).size < 300
    assert len(list(chunks)) == 5000 - 125


def test_bpe_passes_on_the_error_of_its_text() -> None:
    def broken() -> Iterator[str]:
        yield "the end"
        raise UsageError("this one")

    with pytest.raises(UsageError, match="this one"):
        BPE.learn(broken)


@pytest.mark.parametrize(
    ("kind", "size"), [("bytes", 300), ("characters", 0), ("words", -1), ("bpe", 256), ("bpe", 2_000_001)]
)
def test_a_size_that_does_not_fit_is_refused(kind: str, size: int) -> None:
    with pytest.raises(UsageError, match=rf"tokens.size was {size}"):
        TOKENS[kind].learn(streamed("abc"), size)


def test_one_token_is_readable() -> None:
    assert [Bytes().text(id) for id in (65, 10, 32, 0xC3, 256)] == ["A", "\\n", "\u2423", "<0xC3>", "<end>"]
    tokens = Words(" é", [" the", FAMILY])
    assert [tokens.text(id) for id in (0, 1, 16)] == ["<end>", "<0x0_>", "<0xF_>"]
    assert [tokens.text(id) for id in range(17, 21)] == ["\u2423", "é", "\u2423the", FAMILY]


def refused(path: Path, content: object) -> str:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(DamagedError, match=r"tokenizer\.json is not a sound tokenizer file") as caught:
        load(path)
    return str(caught.value)


CHARACTERS = {"format": 1, "kind": "characters", "characters": "abc"}
WORDS = {**CHARACTERS, "kind": "words", "pieces": [" the", "ab"]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Expecting value"),
        (b'{"format": 1, "kind": "bytes"', "Expecting"),
        (b"\xff\xfe\xfa", "decode"),
        (b"[" * 100_000, "recursion"),
        (b'{"a":' * 100_000, "recursion"),
        (b'{"format": 1, "kind": "bytes", "kind": "bytes"}', "twice"),
        (b'{"format": ' + b"9" * 5000 + b"}", "digits"),
        ([], "no JSON object"),
        ({}, "format"),
        ({"format": 2, "kind": "bytes"}, "its format is 2"),
        ({"format": 1, "kind": "pickle"}, "no tokens of kind 'pickle'"),
        ({"format": 1, "kind": ["bytes"]}, "no tokens of kind"),
        ({"format": 1, "kind": "bytes", "regex": "("}, "its keys are"),
        ({"format": 1, "kind": "characters"}, "its keys are"),
        ({**CHARACTERS, "characters": ["a"]}, "valid Unicode"),
        ({**CHARACTERS, "characters": "\ud800"}, "valid Unicode"),
        ({**CHARACTERS, "characters": "aba"}, "twice"),
        ({**WORDS, "pieces": "ab"}, "list of texts"),
        ({**WORDS, "pieces": ["ab", 3]}, "list of texts"),
        ({**WORDS, "pieces": [""]}, "list of texts"),
        ({**WORDS, "pieces": ["ab", "ab"]}, "twice"),
        ({**WORDS, "pieces": ["a"]}, "twice"),
        ({**WORDS, "pieces": ["a\udfff"]}, "valid Unicode"),
    ],
)
def test_a_harmed_file_is_reported(tmp_path: Path, content: object, said: str) -> None:
    assert said in refused(tmp_path / "tokenizer.json", content)


def test_a_missing_or_huge_file_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DamagedError, match="No such file"):
        load(tmp_path / "tokenizer.json")
    monkeypatch.setattr(module, "LARGEST", 1)
    assert "more than 1 entries" in refused(tmp_path / "tokenizer.json", WORDS)
    monkeypatch.setattr(module, "FILE_BYTES", 10)
    assert "more than 10 bytes" in refused(tmp_path / "tokenizer.json", CHARACTERS)


BACKTRACKING = {"type": "Split", "pattern": {"Regex": "(a+)+$|\\q("}, "behavior": "Isolated", "invert": False}
TEMPLATE = {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("normalizer", {"type": "Replace", "pattern": {"Regex": "(" * 1000}, "content": ""}),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        ("pre_tokenizer", BACKTRACKING),
        ("pre_tokenizer", None),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [BACKTRACKING]}),
        ("post_processor", TEMPLATE),
        ("decoder", {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}),
        ("truncation", {"max_length": 3, "stride": 5, "strategy": "LongestFirst", "direction": "Right"}),
        ("added_tokens", []),
        ("surplus", 1),
        ("model.type", "WordPiece"),
        ("model.dropout", 0.5),
        ("model.ignore_merges", True),
        ("model.fuse_unk", 0),
        ("model.unk_token", "a"),
        ("model.vocab", {"<end>": 0}),
        ("model.vocab", []),
        ("model.vocab.Ġthe", 5),
        ("model.vocab.Ġthe", -1),
        ("model.vocab.Ġthe", 1e300),
        ("model.vocab.!", True),
        ("model.vocab.!", 1.0),
        ("model.vocab.漢", 300),
        ("model.merges", [["Ġ"]]),
        ("model.merges", [["Ġ", "nothing"]]),
        ("model.merges", [["t", "h"], ["t", "h"]]),
        ("model.merges", "t h"),
        ("model.merges", [[["t"], "h"]]),
        ("model", None),
    ],
)
def test_a_hostile_bpe_file_is_refused_before_the_library_sees_it(
    learnt: dict[str, Tokens], tmp_path: Path, where: str, value: object
) -> None:
    content = json.loads(json.dumps(learnt["bpe"].content()))
    *path, last = where.split(".")
    inner = content
    for key in path:
        inner = inner[key]
    inner[last] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokenizers.Tokenizer.from_str", lambda text: pytest.fail("the library saw it"), raising=False)
        refused(tmp_path / "tokenizer.json", content)


def test_no_merge_makes_the_end_mark(learnt: dict[str, Tokens], tmp_path: Path) -> None:
    content = json.loads(json.dumps(learnt["bpe"].content()))
    model, size = content["model"], len(content["model"]["vocab"])
    model["vocab"] |= {token: size + n for n, token in enumerate(["<e", "nd>"])}
    model["merges"] = [["<", "e"], ["<e", "nd>"]]
    assert "the merge of '<e' and 'nd>'" in refused(tmp_path / "tokenizer.json", content)
