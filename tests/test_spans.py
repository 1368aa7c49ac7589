"""Spans: every sequence of tags is read as conlleval reads it, and scored alike."""

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

import recurra
from recurra.spans import Span, bio_problems, span_scores, spans

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from seqeval.metrics.sequence_labeling import get_entities, precision_recall_fscore_support

BIO = ["O", "B-X", "I-X", "B-Y", "I-Y", "I-X-Y", "B", "I"]
LONGER = [*BIO, "E-X", "S-X", "E-Y", "S-Y", "E", "S"]


def pairs(tags: list[str]) -> st.SearchStrategy[list[list[tuple[str, str]]]]:
    """Sequences of a true and a guessed tag for each step."""
    return st.lists(st.lists(st.tuples(st.sampled_from(tags), st.sampled_from(tags)), max_size=8), max_size=5)


@given(st.lists(st.sampled_from(LONGER), max_size=12))
def test_spans_are_those_of_conlleval(tags: list[str]) -> None:
    assert spans(tags) == [Span(kind, first, last + 1) for kind, first, last in get_entities(tags)]


@given(pairs(BIO) | pairs(LONGER))
def test_scores_are_those_of_conlleval(tags: list[list[tuple[str, str]]]) -> None:
    gold, guess = [[a for a, _ in some] for some in tags], [[b for _, b in some] for some in tags]
    found = span_scores(gold, guess)
    kinds = sorted({span.kind for some in [*gold, *guess] for span in spans(some)})
    assert list(found["kinds"]) == kinds
    if not kinds:
        assert (found["precision"], found["recall"], found["f1"]) == (0, 0, 0)
        return
    micro = precision_recall_fscore_support(gold, guess, average="micro", zero_division=0)
    assert (found["precision"], found["recall"], found["f1"]) == pytest.approx(micro[:3])
    each = zip(*precision_recall_fscore_support(gold, guess, average=None, zero_division=0), strict=True)
    for kind, (precision, recall, f1, support) in zip(kinds, each, strict=True):
        about = found["kinds"][kind]
        assert (about["precision"], about["recall"], about["f1"]) == pytest.approx((precision, recall, f1))
        assert about["gold"] == support
    for count in ("right", "gold", "guess"):
        assert found[count] == sum(about[count] for about in found["kinds"].values())


@given(st.lists(st.sampled_from(["O", "city", "date", "to-city"]), max_size=12))
def test_a_run_of_a_tag_without_prefix_is_a_span(tags: list[str]) -> None:
    found = spans(tags)
    for span in found:
        assert set(tags[span.begin : span.end]) == {span.kind}
        assert tags[span.begin - 1 : span.begin] != [span.kind] and tags[span.end : span.end + 1] != [span.kind]
    inside = [step for span in found for step in range(span.begin, span.end)]
    assert inside == [step for step, tag in enumerate(tags) if tag != "O"]


@given(st.lists(st.tuples(st.sampled_from("XY"), st.integers(1, 3), st.integers(0, 2)), max_size=5))
def test_spans_written_as_tags_come_back_and_have_no_problem(drawn: list[tuple[str, int, int]]) -> None:
    tags: list[str] = []
    want = []
    for kind, length, gap in drawn:
        want.append(Span(kind, len(tags), len(tags) + length))
        tags += [f"B-{kind}", *[f"I-{kind}"] * (length - 1), *["O"] * gap]
    assert spans(tags) == want
    assert bio_problems(tags) == []


@pytest.mark.parametrize(
    ("tags", "wrong"),
    [
        ("I-X I-X O", [0]),
        ("B-X I-X O I-X", [3]),
        ("B-X I-Y I-Y", [1]),
        ("B-X E-X I-X", [2]),
        ("S-X I-X", [1]),
        ("X I-X", [1]),
        ("city city O", []),
        ("", []),
    ],
)
def test_a_span_that_goes_on_unbegun_is_found(tags: str, wrong: list[int]) -> None:
    assert bio_problems(tags.split()) == wrong


def test_the_scores_of_a_worked_example() -> None:
    gold = ["O O B-TO O B-DATE I-DATE".split(), "O B-FROM O B-DATE I-DATE".split()]
    guess = ["O O B-TO O B-DATE O".split(), "O B-TO O B-DATE I-DATE".split()]
    found = span_scores(gold, guess)
    assert (found["right"], found["gold"], found["guess"], found["f1"]) == (2, 4, 4, 0.5)
    assert found["kinds"]["DATE"]["precision"] == 0.5
    assert found["kinds"]["TO"] == {"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "right": 1, "gold": 1, "guess": 2}
    assert found["kinds"]["FROM"]["recall"] == 0


@pytest.mark.parametrize("guess", [[["O"]], [["O"], ["O", "O"]], [["O", "O", "O"], []]])
def test_tags_of_other_lengths_are_not_compared(guess: list[list[str]]) -> None:
    with pytest.raises(recurra.UsageError, match="one guessed tag for each true one"):
        span_scores([["O", "O"], ["O"]], guess)
