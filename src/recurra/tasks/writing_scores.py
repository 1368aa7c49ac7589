"""How well texts were written: scores against references, one or several for each text."""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import zip_longest
from typing import Any, NamedTuple

from recurra.errors import UsageError

WITHOUT = "sacrebleu is not installed; pip install 'recurra[metrics]'"
_RUN = re.compile(r"[^\W_]+")


class WritingScores(NamedTuple):
    """Higher is better in all `scores`. `signatures` say under the same names how sacrebleu was set, for papers; `notes` what was
    left out, and why."""

    scores: dict[str, float]
    signatures: dict[str, str]
    notes: list[str]


def written_scores(guesses: Sequence[str], references: Sequence[Sequence[str]]) -> WritingScores:
    """`bleu` and `chrf` (0 to 100), `rouge_l` and `exact` (0 to 1); without sacrebleu the first two are left out.

    `references[i]` are the texts, one at least, that text i is compared with. Raises UsageError where there are no texts, where
    there are not as many lists of references as texts, and where a list is empty or is itself a text.
    """
    own = {"rouge_l": rouge_l(guesses, references), "exact": exact(guesses, references)}
    if find_spec("sacrebleu") is None:
        return WritingScores(own, {}, [f"BLEU and chrF are left out: {WITHOUT}"])
    theirs = {"bleu": bleu(guesses, references), "chrf": chrf(guesses, references)}
    scores = {name: score for name, (score, _) in theirs.items()}
    return WritingScores(scores | own, {name: signature for name, (_, signature) in theirs.items()}, [])


def bleu(guesses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, str]:
    """BLEU of all texts together, 0 to 100, and the signature of sacrebleu: up to four words in a row, with capitals, cut by `13a`
    (Papineni et al. 2002, "BLEU: a method for automatic evaluation of machine translation"; Post 2018, arXiv:1804.08771).

    It is 0 where no text has four words and marks. `13a` does not cut scripts without blanks. Raises UsageError as
    `written_scores` does, and without sacrebleu.
    """
    return _by_sacrebleu(_sacrebleu().BLEU(force=True), guesses, references)  # force: no words on standard error


def chrf(guesses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, str]:
    """chrF2 of all texts together, 0 to 100, and the signature of sacrebleu: F of up to six characters in a row, blanks left out,
    recall counting twice as much as precision (Popovic 2015, "chrF: character n-gram F-score for automatic MT evaluation").

    Raises UsageError as `bleu` does.
    """
    return _by_sacrebleu(_sacrebleu().CHRF(), guesses, references)


def rouge_l(guesses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The mean over texts of ROUGE-L, 0 to 1, with the reference that is most like each (Lin 2004, "ROUGE: A package for automatic
    evaluation of summaries"): F of the longest common subsequence of words, precision and recall counting alike (beta = 1).

    Words are those of `plain_words`; F is 0 where neither text has one. Raises UsageError as `written_scores` does.
    """
    _check(guesses, references)
    found = 0.0
    for guess, wanted in zip(guesses, references, strict=True):
        own = plain_words(guess)
        found += max(_f_of_subsequence(own, plain_words(one)) for one in wanted)
    return found / len(guesses)


def exact(guesses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The share of texts, 0 to 1, that are one of their references, character by character. Raises UsageError as `written_scores`
    does."""
    _check(guesses, references)
    return sum(guess in wanted for guess, wanted in zip(guesses, references, strict=True)) / len(guesses)


def plain_words(text: str) -> list[str]:
    """The runs of letters and digits of a text, in small letters. Letters and digits are those of Unicode; all else parts words,
    accents that are characters of their own too. A run in a script without blanks is one word."""
    return _RUN.findall(text.lower())


def _f_of_subsequence(one: list[str], other: list[str]) -> float:
    return 2 * _common(one, other) / (len(one) + len(other)) if one or other else 0.0


def _common(one: list[str], other: list[str]) -> int:
    """The length of the longest common subsequence, a row of its table at a time, as the bits of a number (Crochemore, Iliopoulos,
    Pinzon & Reid 2001, "A fast and practical bit-vector algorithm for the longest common subsequence problem"): bit k is 0 where
    the first k + 1 words of `one` have more in common with what was read of `other` than the first k."""
    places: dict[str, int] = {}
    for at, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << at
    row = all_bits = (1 << len(one)) - 1
    for word in other:
        met = row & places.get(word, 0)
        row = ((row + met) | (row - met)) & all_bits
    return len(one) - row.bit_count()


def _by_sacrebleu(metric: Any, guesses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, str]:
    _check(guesses, references)
    streams = list(
        zip_longest(*references)
    )  # the first reference of all texts, the second ...; None where there is none
    score = metric.corpus_score(guesses, streams).score
    return float(score), str(metric.get_signature())


def _check(guesses: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if not guesses or len(guesses) != len(references):
        raise UsageError(
            f"{len(guesses)} texts and {len(references)} lists of references were given: wanted one text at least, and a list "
            "of references for each"
        )
    for number, wanted in enumerate(references, 1):
        if isinstance(wanted, str) or not wanted:
            given = "no reference" if not wanted else "a text for its list of references"
            raise UsageError(f"text {number} has {given}: wanted a list of one text or several")


def _sacrebleu() -> Any:
    try:
        from sacrebleu import metrics
    except ImportError:
        raise UsageError(WITHOUT) from None
    return metrics
