"""Sentences with tags: every form of a file gives the same steps, and what is wrong is said with its line."""

import gzip
import json
import lzma
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recurra.data.columns import split_with_offsets, tagged
from recurra.data.examples import Examples
from recurra.errors import DataError
from recurra.spans import Span, spans

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
# The lecture's two sentences: the same city is a goal in one and an origin in the other.
TOKENS = ["arrive at Recife on 2 November".split(), "leave Recife on 2 November".split()]
TAGS = ["O O B-to O B-date I-date".split(), "O B-from O B-date I-date".split()]
SLOTS = [[["to", 10, 16], ["date", 20, 30]], [["from", 6, 12], ["date", 16, 26]]]
INTENTS = ["arrive", "leave"]
WORD = st.text(st.characters(codec="utf-8", exclude_categories=["Z", "Cc", "Cs"]), min_size=1, max_size=5).filter(
    str.strip
)
TAG = st.sampled_from(["O", "B-X", "I-X", "B-Y", "noun"])


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def conll(mark: str = " ", end: str = "\n") -> str:
    blocks = [end.join(map(mark.join, zip(*some, strict=True))) for some in zip(TOKENS, TAGS, strict=True)]
    return (end * 2).join(blocks) + end


def rows(*columns: list[str]) -> str:
    return "".join("\t".join(cells) + "\n" for cells in zip(*columns, strict=True))


def lines(*objects: object) -> str:
    return "".join(json.dumps(one) + "\n" for one in objects)


JOINED, JOINED_TAGS = [" ".join(some) for some in TOKENS], [" ".join(some) for some in TAGS]
FORMS: dict[str, str | bytes] = {
    "a.conll": conll(),
    "b.txt": conll(end="\r\n"),
    "c.bio": conll("\t"),
    "d.tsv": conll("\t"),
    "e.conll.gz": gzip.compress(conll(" NN ").encode(), mtime=0),
    "f.iob.xz": lzma.compress(
        ("-DOCSTART- -X- O\n\n# id = 1\n" + conll(" \t ").replace("\t", "NP")).encode("utf-8-sig")
    ),
    "g.tsv": rows(JOINED, JOINED_TAGS),
    "h.tsv": rows(INTENTS, JOINED, JOINED_TAGS),
    "i.tsv": rows(INTENTS, JOINED, JOINED_TAGS, JOINED),
    "j.tsv": rows(["tags", *JOINED_TAGS], ["tokens", *JOINED]),
    "k.jsonl": lines(*({"tokens": a, "tags": b} for a, b in zip(TOKENS, TAGS, strict=True))),
    "l.ndjson": lines(*({"words": a, "ner_tags": b, "id": 1} for a, b in zip(TOKENS, TAGS, strict=True))),
    "m.jsonl": lines(*({"text": a, "labels": b} for a, b in zip(JOINED, SLOTS, strict=True))),
    "n.jsonl": lines(*({"text": a, "labels": b, "intent": c} for a, b, c in zip(JOINED, SLOTS, INTENTS, strict=True))),
}


def read(path: Path, content: str | bytes, **options: bool) -> Examples:
    return tagged([write(path, content)], **options)


def refusal(path: Path, content: str | bytes, **options: bool) -> str:
    with pytest.raises(DataError) as caught:
        read(path, content, **options)
    return str(caught.value)


# The forms


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_sentences(tmp_path: Path, name: str) -> None:
    found = read(tmp_path / name, FORMS[name])
    assert (found.kind, found.inputs, found.targets) == ("words", TOKENS, TAGS)
    assert found.heads == (INTENTS if name[0] in "hin" else None)
    assert not found.problems and found.notes
    unlabelled = read(tmp_path / name, FORMS[name], wanted=False)
    assert (unlabelled.inputs, unlabelled.targets, unlabelled.heads) == (TOKENS, None, None)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sentences=st.lists(st.lists(st.tuples(WORD, TAG), min_size=1, max_size=5), min_size=2, max_size=4),
    mark=st.sampled_from([" ", "\t", " x "]),
)
def test_any_tokens_come_out_of_columns_as_they_are(
    tmp_path: Path, sentences: list[list[tuple[str, str]]], mark: str
) -> None:
    sentences = [
        [("w", "O"), ("w", "B-X"), ("w", "I-X"), ("w", "B-Y"), ("w", "noun")],
        *sentences,
    ]  # every tag is in use
    content = "\n\n".join("\n".join(map(mark.join, some)) for some in sentences)
    found = read(tmp_path / "a.conll", content)
    assert found.inputs == [[word for word, _ in some] for some in sentences]
    assert found.targets == [[tag for _, tag in some] for some in sentences]


def test_places_are_the_lines_where_sentences_begin(tmp_path: Path) -> None:
    found = read(tmp_path / "a.conll", "-DOCSTART- O\n\n# one\na O\nb O\n\n\nc O\n")
    assert [place.rsplit(":", 1)[1] for place in found.places] == ["4", "8"]
    assert "1 lines -DOCSTART- are left out" in found.notes and "1 comments (# ...) are left out" in found.notes
    found = read(tmp_path / "a.tsv", "a b\tO O\nc d\tO O\n")
    assert [place.rsplit(":", 1)[1] for place in found.places] == ["1", "2"]


def test_a_hash_is_a_token_where_it_has_a_tag(tmp_path: Path) -> None:
    content = "# newdoc\n# id = 7\n#begin document (a); part 000\n# O\n1 B-n\n\n#tag O\n# B-n\n"
    found = read(tmp_path / "a.conll", content)
    assert found.inputs == [["#", "1"], ["#tag", "#"]]
    assert found.targets == [["O", "B-n"], ["O", "B-n"]]
    assert "3 comments (# ...) are left out" in found.notes
    assert read(tmp_path / "a.conll", "# O\n# O\n").inputs == [["#", "#"]]
    assert read(tmp_path / "a.conll", "# tags are not O\na O\n# rare\n").targets == [["O", "rare"]]


def test_only_blank_and_tab_part_columns(tmp_path: Path) -> None:
    assert read(tmp_path / "a.conll", "\xa0 O\n\u2028 O\n").inputs == [["\xa0", "\u2028"]]
    assert read(tmp_path / "a.conll", "New York\tB-c\nis\tO\n").inputs == [["New York", "is"]]


def test_a_span_left_out_cuts_no_token(tmp_path: Path) -> None:
    found = read(tmp_path / "a.jsonl", lines({"text": "at 8:45", "labels": [["people", 3, 4], ["time", 3, 7]]}))
    assert (found.inputs, found.targets) == ([["at", "8:45"]], [["O", "B-time"]])


def test_one_column_is_enough_to_predict(tmp_path: Path) -> None:
    found = read(tmp_path / "a.txt", "arrive\nat\n\n#\nRecife\n", wanted=False)
    assert (found.inputs, found.targets) == ([["arrive", "at"], ["#", "Recife"]], None)
    assert read(tmp_path / "a.tsv", "arrive at\nleave\n", wanted=False).inputs == [["arrive", "at"], ["leave"]]
    assert read(tmp_path / "a.jsonl", '{"text": "at 7pm"}', wanted=False).inputs == [["at", "7", "pm"]]
    assert "one column" in refusal(tmp_path / "a.txt", "arrive\nat\n")
    assert "one column" in refusal(tmp_path / "a.tsv", "arrive at\nleave it\n")
    assert "one a line, are read from .tsv" in refusal(tmp_path / "a.txt", "arrive at\nleave it now\n", wanted=False)


def test_a_span_that_was_not_begun_is_said_with_its_place(tmp_path: Path) -> None:
    found = read(tmp_path / "a.conll", "a O\nb I-X\n\nc I-X\n")
    assert found.targets == [["O", "I-X"], ["I-X"]]
    assert found.notes[-1].startswith("2 tags I-") and "a.conll:1, token 2" in found.notes[-1]


# Texts with spans of characters


@given(text=st.text(), cuts=st.lists(st.integers(-3, 40)))
def test_tokens_hold_all_of_a_text_but_its_white_space(text: str, cuts: list[int]) -> None:
    found = split_with_offsets(text, cuts)
    at = 0
    for word, begin, end in found:
        assert word == text[begin:end] and begin < end
        assert not text[at:begin].strip() and not any(char.isspace() for char in word)
        assert not any(begin < cut < end for cut in cuts)
        at = end
    assert not text[at:].strip()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a table at 7:30pm", "a table at 7:30 pm"),
        ("on 2/11/2026, 8.15 or 1,000", "on 2/11/2026 , 8.15 or 1,000"),
        ("John's and o\u2019clock", "John 's and o \u2019clock"),
        ("'tis it's'", "' tis it 's '"),
        ("mañana cafe\u0301 23rd...", "mañana cafe\u0301 23 rd . . ."),
        ("a_b-c", "a _ b - c"),
        ("", ""),
    ],
)
def test_words_numbers_and_marks_are_told_apart(text: str, words: str) -> None:
    assert [token.word for token in split_with_offsets(text)] == words.split()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), text=st.text(st.sampled_from("ab7:. 'é"), min_size=1, max_size=20))
def test_spans_of_characters_come_back_from_the_tags(tmp_path: Path, data: st.DataObject, text: str) -> None:
    if not text.strip():
        return
    borders = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    slots = [[f"s{a % 3}", a, b] for a, b in zip(borders[::2], borders[1::2], strict=False)]
    found = read(tmp_path / "a.jsonl", lines({"text": text, "labels": slots}))
    tokens = split_with_offsets(text, [border for _, *ends in slots for border in ends])
    assert found.inputs == [[token.word for token in tokens]]
    want = [slot for slot in slots if text[slot[1] : slot[2]].strip()]
    got = [[span.kind, tokens[span.begin].begin, tokens[span.end - 1].end] for span in spans((found.targets or [])[0])]
    assert [[kind, text[a:b]] for kind, a, b in got] == [[kind, text[a:b].strip()] for kind, a, b in want]
    assert len(want) == len(slots) or f"{len(slots) - len(want)} spans are left out" in found.notes[-1]


def test_spans_that_overlap_or_are_blank_are_left_out_and_said(tmp_path: Path) -> None:
    slots = [["a", 0, 2], ["b", 0, 4], ["c", 3, 4], ["d", 5, 6], ["e", 6, 7], ["e", 6, 7]]
    found = read(tmp_path / "a.jsonl", lines({"text": "8: 45 x", "labels": slots, "requested": []}))
    assert found.inputs == [["8", ":", "4", "5", "x"]]
    assert spans((found.targets or [])[0]) == [Span("b", 0, 3), Span("e", 4, 5)]
    assert "4 spans are left out" in found.notes[-1] and "a.jsonl:1 a 0:2" in found.notes[-1]
    assert "not read: 'requested'" in found.notes


# What is wrong


@pytest.mark.parametrize(
    ("name", "content", "first", "kept"),
    [
        ("a.conll", "a O\n\nb\nc O\n\nd O\n", "3 has 1 column, and the first line 2", [["a"], ["d"]]),
        ("a.conll", "a O\n\nb O O\n", "3 has 3 columns", [["a"]]),
        ("a.conll", "a\tO\n\n\tO\n", "3 has an empty token", [["a"]]),
        ("a.conll", "a\tO\n\nb\t\n", "3 has an empty tag", [["a"]]),
        ("a.tsv", "a b\tO O\nc d\tO\n", "2 has 2 tokens and 1 tags", [["a", "b"]]),
        ("a.tsv", "a b\tO O\nc d\tO O\tx\n", "2 has 3 columns", [["a", "b"]]),
        ("a.tsv", "i\ta b\tO O\n \tc d\tO O\n", "2 has no intent", [["a", "b"]]),
        ("a.tsv", "a b\tO O\n \tO\n", "2 has no token", [["a", "b"]]),
        ("a.jsonl", FORMS["n.jsonl"] + lines({"text": "b", "labels": [], "intent": ""}), "3 has no intent", TOKENS),
        ("a.jsonl", '{"tokens":["a"],"tags":["O"]}\n{"tokens":["b"],"tags":[]}', "2 has 1 tokens and 0 tags", [["a"]]),
        ("a.jsonl", '{"tokens":["a"],"tags":["O"]}\n{"tokens":["b"]}', "2 has no tags", [["a"]]),
        (
            "a.jsonl",
            '{"tokens":["a"],"tags":["O"]}\n{"tokens":["b"],"ner_tags":[0]}',
            "2 has tags that are no texts: 0; write",
            [["a"]],
        ),
        (
            "a.jsonl",
            '{"tokens":["a"],"tags":["O"]}\n{"tokens":"b c","tags":["O"]}',
            "2 has tokens that are no list",
            [["a"]],
        ),
        (
            "a.jsonl",
            '{"tokens":["a"],"tags":["O"]}\n{"tokens":[null],"tags":["O"]}',
            "2 has tokens that are no texts: None",
            [["a"]],
        ),
        ("a.jsonl", '{"tokens":["a"],"tags":["O"]}\n{"tokens":[],"tags":[]}', "2 has no token", [["a"]]),
        ("a.jsonl", '{"tokens":["a"],"tags":["O"]}\n{"id":1}', "2 has neither tokens nor a text", [["a"]]),
        ("a.jsonl", '{"tokens":["a"],"tags":["O"]}\n{', "2 is no JSON", [["a"]]),
        (
            "a.jsonl",
            '{"text":"a","labels":[],"intent":"i"}\n{"text":"b","labels":[]}',
            "2 has no intent, and others have",
            [["a"]],
        ),
        (
            "a.jsonl",
            '{"text":"a","labels":[]}\n{"text":"b","labels":[],"intent":3}',
            "2 has an intent that is no text",
            [["a"]],
        ),
        ("a.jsonl", '{"text":"a","labels":[]}\n{"text":"b"}', "2 has no labels", [["a"]]),
        ("a.jsonl", '{"text":"a","labels":[]}\n{"text":"b","labels":"X"}', "2 has labels that are no list", [["a"]]),
        ("a.jsonl", '{"text":"a","labels":[]}\n{"text":"b","labels":[["x",0,2]]}', "2 has a label that is no", [["a"]]),
        ("a.jsonl", '{"text":"a","labels":[]}\n{"text":"b","labels":[["x",1,0]]}', "2 has a label that is no", [["a"]]),
        (
            "a.jsonl",
            '{"text":"a","labels":[]}\n{"text":"b","labels":[["x",-1,1]]}',
            "2 has a label that is no",
            [["a"]],
        ),
        ("a.jsonl", '{"text":"a","labels":[]}\n{"text":"b","labels":[[0,1,"x"]]}', "2 has a label that is no", [["a"]]),
        ("a.jsonl", '{"text":"a","labels":[]}\n{"text":"b","labels":["O"]}', "2 has a label that is no", [["a"]]),
        ("a.jsonl", '{"text":"a","labels":[]}\n{"text":" ","labels":[]}', "2 has no token", [["a"]]),
    ],
)
def test_a_sentence_that_cannot_be_read_is_said_with_its_line(
    tmp_path: Path, name: str, content: str, first: str, kept: list[list[str]]
) -> None:
    assert f"{name}:{first}" in refusal(tmp_path / name, content)
    found = read(tmp_path / name, content, tolerant=True)
    assert found.inputs == kept and len(found.targets or []) == len(kept) == len(found.places)
    assert len(found.problems) == 1 and f"{name}:{first}" in found.problems[0]


def test_the_first_problem_is_named_and_the_others_counted(tmp_path: Path) -> None:
    content = "a b\tO O\nc d\tO\ne\tO O\nf\tO\tO\n"
    message = refusal(tmp_path / "a.tsv", content)
    assert "a.tsv:2 has 2 tokens and 1 tags (and 2 more)" in message
    assert [
        problem.rsplit(":", 1)[1][0] for problem in read(tmp_path / "a.tsv", content, tolerant=True).problems
    ] == list("234")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.conll", "\n \n", "holds no sentence"),
        ("a.conll", "-DOCSTART- O\n\n", "holds no sentence"),
        ("a.tsv", "\n", "holds no sentence"),
        ("a.jsonl", "\n", "holds no sentence"),
        ("a.csv", "a,O\n", "not read for tags"),
        ("a.conllu", "1\ta\n", "not read for tags"),
        ("a.json", "[]", "one object a line"),
        ("a.conll", b"caf\xe9 O\n", "not UTF-8"),
        ("a.conll.gz", gzip.compress(b"a O\n" * 9, mtime=0)[:-9], "cut or damaged"),
        ("a.conll", b"\0\1", "binary"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_words(
    tmp_path: Path, name: str, content: str | bytes, said: str
) -> None:
    message = refusal(tmp_path / name, content)
    assert said in message and name.removesuffix(".gz") in message


def test_absurd_sizes_are_read(tmp_path: Path) -> None:
    assert len(read(tmp_path / "a.conll", "a O\n" * 100_000).inputs[0]) == 100_000
    text = "ab " * 20_000
    slots = [["x", at, at + 1] for at in range(0, len(text) - 3, 3)]
    assert len(read(tmp_path / "a.jsonl", lines({"text": text, "labels": slots})).inputs[0]) > 30_000


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "sentences", "steps", "kinds"),
    [
        ("lener-br/dev.conll.gz", 1_176, 41_166, 6),
        ("wikineural-es/val.conll.gz", 9_540, 222_988, 4),
        ("mtod-slots/es.train.tsv.gz", 3_617, 26_978, 11),
        ("restaurant8k/test.jsonl.gz", 3_731, None, 5),
    ],
)
def test_real_data_has_the_counts_of_its_source(name: str, sentences: int, steps: int | None, kinds: int) -> None:
    if not (SHARED / name).exists():
        pytest.skip("the shared data sets are absent")
    found = tagged([SHARED / name])
    assert len(found) == sentences
    assert steps in (None, sum(map(len, found.inputs)))
    assert len({span.kind for tags in found.targets or [] for span in spans(tags)}) == kinds
