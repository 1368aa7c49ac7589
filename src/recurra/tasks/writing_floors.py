"""Floors of written texts: what a method without a network would write."""

import re
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from recurra.embed.bags import Bag
from recurra.tasks.writing_scores import plain_words, written_scores

# Up to a full stop or its like, and what it closes, before white space or the end; else the line.
_SENTENCE = re.compile(r".*?[.!?\u2026][\"'\u2019\u201d\u00bb)\]]*(?=\s|\Z)|.*")
MEBIBYTES = 64  # of similarities that are held at a time

Side = tuple[Sequence[Any], Sequence[Sequence[str]]]  # sources, and the texts that belong to each


def writing_floors(train: Side, test: Side) -> dict[str, dict[str, float]]:
    """Of each floor the scores of `written_scores`, against the texts of `test`.

    Sources are texts, or features float `[places, size]` or `[size]`. Raises UsageError as `written_scores` does.
    """
    sources, references = test
    return {name: written_scores(texts, references).scores for name, texts in floor_texts(train, sources).items()}


def floor_texts(train: Side, sources: Sequence[Any]) -> dict[str, list[str]]:
    """What each floor would write for each of the sources, learnt from `train`, which holds one example at least:

    most frequent        the text that occurs most often in training
    copy of the source   the source, where it is a text
    lead-1               its first sentence, where any source has more than one
    nearest neighbour    the (first) text of the training source that is most like it, of equals the first: by the cosine of
                         weighted bags of words (`Bag`), or of features, their mean over places less the mean of the training.
                         Left out where scikit-learn is not installed, and where no training source has a word
    """
    known, targets = train
    often = Counter(text for texts in targets for text in texts).most_common(1)[0][0]
    written = {"most frequent": [often] * len(sources)}
    if isinstance(known[0], str):
        written["copy of the source"] = list(sources)
        leads = [first_sentence(source) for source in sources]
        if any(lead != source.strip() for lead, source in zip(leads, sources, strict=True)):
            written["lead-1"] = leads
    if find_spec("sklearn") is not None and len(sources):
        rows = _bags(known, sources) if isinstance(known[0], str) else _features(known, sources)
        if rows is not None:
            written["nearest neighbour"] = [targets[at][0] for at in _nearest(*rows)]
    return written


def first_sentence(text: str) -> str:
    """Up to the first full stop, question mark, exclamation mark or ellipsis that white space or the end follows, with the quotes
    and brackets that close there; or to the end of the first line, if that is nearer. Abbreviations end sentences too."""
    found = _SENTENCE.match(text.strip())
    return "" if found is None else found[0].rstrip()


def _bags(known: Sequence[str], asked: Sequence[str]) -> tuple[Any, Any] | None:
    texts = [plain_words(text) for text in known]
    if not any(texts):
        return None
    bag = Bag(texts, weighted=True)
    return bag.matrix, bag.rows([plain_words(text) for text in asked])


def _features(known: Sequence[np.ndarray], asked: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    sides = [
        np.stack([one.astype(np.float32).reshape(-1, one.shape[-1]).mean(0) for one in some]) for some in (known, asked)
    ]
    middle = sides[0].mean(0)
    return sides[0] - middle, sides[1] - middle


def _nearest(known: Any, asked: Any) -> np.ndarray:
    """For each row of `asked` the place of the row of `known` with the greatest cosine; a block of rows at a time."""
    from sklearn import config_context
    from sklearn.metrics import pairwise_distances_argmin

    with config_context(working_memory=MEBIBYTES):
        return pairwise_distances_argmin(asked, known, metric="cosine")
