"""Scores of written texts, and what methods without a network reach, against the definitions spelled out and against NumPy."""

import sys
from collections import Counter
from functools import cache
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recurra.errors import UsageError
from recurra.tasks import writing_floors as floors
from recurra.tasks.writing_scores import bleu, chrf, exact, plain_words, rouge_l, written_scores

WORDS = st.lists(st.sampled_from("abcd"), max_size=9)
SOME = st.lists(WORDS.map(" ".join), min_size=1, max_size=5)
PAIRS = st.lists(
    st.tuples(WORDS.map(" ".join), st.lists(WORDS.map(" ".join), min_size=1, max_size=3)), min_size=1, max_size=6
)


# --- ROUGE-L --------------------------------------------------------------------------------------------------------------


def longest_common(one: list[str], other: list[str]) -> int:
    """By the definition: the last words are the same, or one of them is of no use."""

    @cache
    def of(i: int, j: int) -> int:
        if not (i and j):
            return 0
        return of(i - 1, j - 1) + 1 if one[i - 1] == other[j - 1] else max(of(i - 1, j), of(i, j - 1))

    return of(len(one), len(other))


@given(one=WORDS, other=WORDS)
def test_the_longest_common_subsequence_is_that_of_the_definition(one: list[str], other: list[str]) -> None:
    length = longest_common(one, other)
    precision, recall = (length / max(1, len(side)) for side in (one, other))
    expected = 2 * precision * recall / (precision + recall) if length else 0.0
    assert rouge_l([" ".join(one)], [[" ".join(other)]]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("guess", "reference", "expected"),
    [
        ("police kill the gunman", "police killed the gunman", 3 / 4),  # the example of Lin 2004, section 3.1
        ("the gunman kill police", "police killed the gunman", 2 / 4),  # and its counterpart
        ("The cat!", "the CAT", 1.0),
        ("a b c d e f g h", "a c", 2 * (2 / 8) * 1 / (2 / 8 + 1)),
        ("¡Él está aquí, señor!", "él está aquí señor", 1.0),
        ("don't", "don t", 1.0),
        ("a_b", "a b", 1.0),
        ("room 101", "room 102", 1 / 2),
        ("", "something", 0.0),
        ("?!", "...", 0.0),
    ],
)
def test_rouge_by_hand(guess: str, reference: str, expected: float) -> None:
    assert rouge_l([guess], [[reference]]) == pytest.approx(expected)


def test_rouge_is_the_mean_over_texts_with_the_best_reference_of_each() -> None:
    assert rouge_l(["a b", "c"], [["x y", "a x", "a"], ["d"]]) == pytest.approx((2 / 3 + 0) / 2)


def test_a_thousand_pairs_of_fifty_words_take_less_than_two_seconds() -> None:
    draw = np.random.default_rng(0)
    texts = [" ".join(map(str, draw.integers(0, 30, 50))) for _ in range(2000)]
    begin = perf_counter()
    rouge_l(texts[:1000], [[text] for text in texts[1000:]])
    assert perf_counter() - begin < 2


# --- BLEU and chrF --------------------------------------------------------------------------------------------------------


def bleu_of_the_paper(guesses: list[str], references: list[list[str]]) -> float:
    """Papineni et al. 2002, section 2.3, over words parted by blanks; where no 4-gram fits, 0."""
    fits, there = np.zeros(4), np.zeros(4)
    long = wanted_long = 0
    for guess, wanted in zip(guesses, references, strict=True):
        own, others = guess.split(), [one.split() for one in wanted]
        long += len(own)
        wanted_long += min((abs(len(one) - len(own)), len(one)) for one in others)[1]
        for n in range(4):
            grams = [Counter(tuple(one[at : at + n + 1]) for at in range(len(one) - n)) for one in (own, *others)]
            there[n] += grams[0].total()
            fits[n] += sum(min(count, max(some[gram] for some in grams[1:])) for gram, count in grams[0].items())
    if not fits.all():
        return 0.0
    return float(100 * np.exp(np.log(fits / there).mean() + min(0.0, 1 - wanted_long / long)))


@given(told=PAIRS)
def test_bleu_is_the_formula_of_the_paper(told: list[tuple[str, list[str]]]) -> None:
    guesses, references = [guess for guess, _ in told], [wanted for _, wanted in told]
    expected = bleu_of_the_paper(guesses, references)
    if expected:  # else sacrebleu smooths, and the paper does not
        assert bleu(guesses, references)[0] == pytest.approx(expected)


def test_bleu_by_hand_with_references_of_different_number() -> None:
    guesses = ["the cat sat on the mat today", "a dog"]
    references = [["the cat sat on the mat", "the mat today"], ["a dog", "the dog", "one dog barks"]]
    score, signature = bleu(guesses, references)
    # 1-, 2-, 3-, 4-grams in a reference: 7 + 2 of 9, 6 + 1 of 7, 5 of 5, 3 of 4; lengths 9 against 6 + 2
    assert score == pytest.approx(100 * (9 / 9 * 7 / 7 * 5 / 5 * 3 / 4) ** 0.25)
    assert signature.startswith("nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:2.")
    assert bleu(guesses, [one[:1] for one in references])[1].startswith("nrefs:1|")


def test_bleu_is_of_all_texts_together_and_knows_capitals_and_marks() -> None:
    guesses, references = ["a b c d e", "x"], [["a b c d e"], ["y"]]
    apart = np.mean([bleu(guesses[at : at + 1], references[at : at + 1])[0] for at in range(2)])
    assert bleu(guesses, references)[0] != pytest.approx(apart)
    assert bleu(["A b c d e"], [["a b c d e"]])[0] < 100
    assert bleu(["a b c, d e."], [["a b c , d e ."]])[0] == pytest.approx(100)


def chrf_of_one(guess: str, reference: str) -> float:
    """Popovic 2015: precision and recall as means over n = 1..6, recall twice as important."""
    own, other = guess.replace(" ", ""), reference.replace(" ", "")
    precisions, recalls = [], []
    for n in range(1, 7):
        one, two = (Counter(text[at : at + n] for at in range(len(text) - n + 1)) for text in (own, other))
        precisions.append((one & two).total() / one.total())
        recalls.append((one & two).total() / two.total())
    precision, recall = np.mean(precisions), np.mean(recalls)
    return float(100 * 5 * precision * recall / (4 * precision + recall)) if precision + recall else 0.0


@given(st.text("ab c", min_size=24, max_size=30), st.text("ab c", min_size=24, max_size=30))
def test_chrf_is_the_formula_of_the_paper(one: str, other: str) -> None:
    sides = [f"abcabc {one}", f"cbacba {other}"]
    score, signature = chrf(sides[:1], [sides[1:]])
    assert score == pytest.approx(chrf_of_one(*sides))
    assert signature.startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.")


def test_chrf_takes_the_best_reference() -> None:
    guesses, references = ["the cat sat"], [["a dog", "the cat sits", "x"]]
    assert chrf(guesses, references)[0] == pytest.approx(chrf(guesses, [references[0][1:2]])[0])


# --- all of them ----------------------------------------------------------------------------------------------------------


@given(told=PAIRS)
def test_more_references_never_lower_what_takes_the_best(told: list[tuple[str, list[str]]]) -> None:
    guesses, references = [guess for guess, _ in told], [wanted for _, wanted in told]
    few = [wanted[:1] for wanted in references]
    assert rouge_l(guesses, references) >= rouge_l(guesses, few) - 1e-12
    assert exact(guesses, references) >= exact(guesses, few)


def test_what_is_a_reference_has_all_the_points() -> None:
    texts = ["A man with a hat, outside.", "Two dogs run along a beach"]
    found = written_scores(texts, [[texts[0], "x"], ["y", "z", texts[1]]])
    assert found.scores == {
        name: pytest.approx(best) for name, best in dict(bleu=100, chrf=100, rouge_l=1, exact=1).items()
    }
    assert set(found.signatures) == {"bleu", "chrf"} and found.notes == []
    assert exact(texts, [[texts[0] + " "], [texts[1]]]) == 0.5


def test_scores_do_not_hang_on_the_order_of_the_texts() -> None:
    guesses, references = ["a b c d e", "b c", "d e f g"], [["a b c d"], ["c", "b c d"], ["e f g h", "d e f"]]
    turned = written_scores(guesses[::-1], references[::-1]).scores
    assert turned == {name: pytest.approx(score) for name, score in written_scores(guesses, references).scores.items()}


@pytest.mark.parametrize("score", [bleu, chrf, rouge_l, exact, written_scores])
@pytest.mark.parametrize(
    ("guesses", "references", "words"),
    [
        ([], [], "0 texts and 0 lists"),
        (["a", "b"], [["a"]], "2 texts and 1 lists of references were given"),
        (["a", "b"], [["a"], []], "text 2 has no reference"),
        (["a"], ["a"], "text 1 has a text for its list of references"),
    ],
)
def test_references_that_do_not_fit_are_refused(score: object, guesses: list, references: list, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        score(guesses, references)  # type: ignore[operator]


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for module in ("writing_scores", "writing_floors"):
        monkeypatch.setattr(f"recurra.tasks.{module}.find_spec", lambda name: None)


def test_without_sacrebleu_the_other_scores_remain_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "sacrebleu")
    found = written_scores(["a b"], [["a c"]])
    assert found.scores == {"rouge_l": 0.5, "exact": 0.0} and found.signatures == {}
    assert len(found.notes) == 1 and "pip install 'recurra[metrics]'" in found.notes[0]
    with pytest.raises(UsageError, match=r"pip install 'recurra\[metrics\]'"):
        bleu(["a"], [["a"]])


# --- floors ---------------------------------------------------------------------------------------------------------------

TRAIN = (
    ["the red dog sleeps", "a cat eats fish. It is happy", "the green bird sings", "the cat"],
    [("dog", "hound"), ("cat", "hound"), ("bird", "hound"), ("cat",)],
)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("One. Two.", "One."),
        ("  One two\nthree. Four", "One two"),
        ("Version 2.5 of it! It works", "Version 2.5 of it!"),
        ('He said "no." Then', 'He said "no."'),
        ("(All of it.) Then", "(All of it.)"),
        ("Wait... what? Yes", "Wait..."),
        ("¿Qué? Sí.", "¿Qué?"),
        ("no mark at all", "no mark at all"),
        ("one\r\ntwo", "one"),
        ("...", "..."),
        ("", ""),
    ],
)
def test_the_first_sentence(text: str, first: str) -> None:
    assert floors.first_sentence(text) == first


def test_what_floors_write() -> None:
    asked = ["My DOG is green-red!", "fish. Fish eat birds", "nothing like it"]
    assert floors.floor_texts(TRAIN, asked) == {
        "most frequent": ["hound", "hound", "hound"],
        "copy of the source": asked,
        "lead-1": ["My DOG is green-red!", "fish.", "nothing like it"],
        "nearest neighbour": ["dog", "cat", "cat"],
    }


def test_the_first_sentence_is_no_floor_of_its_own_where_all_are_one_sentence() -> None:
    assert "lead-1" not in floors.floor_texts(TRAIN, ["one sentence.", " and another "])


def test_floors_are_scored_as_networks_are() -> None:
    test = (["the dog barks", "a bird"], [("hound",), ("bird", "birdie")])
    found = floors.writing_floors(TRAIN, test)
    texts = floors.floor_texts(TRAIN, test[0])
    assert set(found) == set(texts) and found["nearest neighbour"]["exact"] == 0.5
    assert found == {name: written_scores(some, test[1]).scores for name, some in texts.items()}


@given(st.data())
def test_the_nearest_text_has_the_greatest_cosine_of_all(data: st.DataObject) -> None:
    known = data.draw(st.lists(WORDS.filter(len).map(" ".join), min_size=1, max_size=8))
    asked = data.draw(SOME)
    own, others = ([Counter(plain_words(text)) for text in some] for some in (known, asked))
    letters = "abcd"
    had = np.array([sum(letter in text for text in own) for letter in letters])
    weight = 1 + np.log((1 + len(known)) / (1 + had))

    def row(counts: Counter) -> np.ndarray:
        found = weight * [
            1 + np.log(counts[letter]) if counts[letter] and some else 0.0
            for letter, some in zip(letters, had, strict=True)
        ]
        return found / max(1e-9, np.linalg.norm(found))

    numbers = [(str(at),) for at in range(len(known))]
    written = floors.floor_texts((known, numbers), asked)["nearest neighbour"]
    for counts, text in zip(others, written, strict=True):
        likeness = np.array([row(one) @ row(counts) for one in own])
        assert likeness[int(text)] == pytest.approx(likeness.max(), abs=1e-9)


def test_blocks_do_not_change_the_nearest_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    known, asked = ([" ".join(map(str, draw.integers(0, 200, 12))) for _ in range(rows)] for rows in (4000, 300))
    train = (known, [(str(at),) for at in range(len(known))])
    whole = floors.floor_texts(train, asked)["nearest neighbour"]
    monkeypatch.setattr(floors, "MEBIBYTES", 1)  # 32 rows at a time
    assert floors.floor_texts(train, asked)["nearest neighbour"] == whole
    assert floors.floor_texts(train, known[:9])["nearest neighbour"] == [str(at) for at in range(9)]


def test_features_are_compared_by_their_centred_means() -> None:
    draw = np.random.default_rng(0)
    known = [(draw.normal(size=(draw.integers(1, 5), 6)) + 50).astype(np.float16) for _ in range(20)]
    asked = [draw.normal(size=6).astype(np.float32) + 50 for _ in range(7)]
    names = [(str(at),) for at in range(20)]
    found = floors.floor_texts((known, names), asked)
    assert set(found) == {"most frequent", "nearest neighbour"}
    means = np.stack([one.astype(np.float64).mean(0) for one in known])
    rows, others = means - means.mean(0), np.stack(asked) - means.mean(0)
    cosines = others @ rows.T / np.linalg.norm(rows, axis=1)
    assert found["nearest neighbour"] == [str(at) for at in cosines.argmax(1)]


def test_without_scikit_learn_there_is_no_nearest_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "sklearn")
    assert set(floors.floor_texts(TRAIN, ["one. two"])) == {"most frequent", "copy of the source", "lead-1"}


def test_sources_without_a_word_have_no_nearest_neighbour() -> None:
    assert set(floors.floor_texts((["?", "!"], [("a",), ("b",)]), ["??"])) == {"most frequent", "copy of the source"}
