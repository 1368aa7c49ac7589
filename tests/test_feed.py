"""The stream of text: every transition once an epoch, states that go on, texts that begin afresh."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.cells import LSTM
from recurra.data.feed import Corpus, Stream
from recurra.models import SequenceModel
from recurra.tasks.surprise import surprise

texts = st.lists(st.integers(1, 30), min_size=1, max_size=6).filter(lambda sizes: sum(max(s - 1, 0) for s in sizes) > 0)


def corpus_of(sizes: list[int]) -> Corpus:
    """Every token is its own place, so that what was read can be told from the batches."""
    return Corpus(np.arange(sum(sizes), dtype=np.uint16), np.cumsum([0, *sizes]))


@settings(max_examples=60, deadline=None)
@given(texts, st.integers(1, 5), st.integers(1, 9), st.integers(0, 3))
def test_an_epoch_reads_every_transition_once_and_rows_go_on(
    sizes: list[int], rows: int, chunk: int, seed: int
) -> None:
    corpus = corpus_of(sizes)
    stream = Stream(corpus, min(rows, corpus.transitions), chunk, seed)
    seen: list[int] = []
    last = [None] * stream.rows
    begins = set(corpus.bounds[:-1].tolist())
    for _, batch in zip(range(stream.epoch_steps()), stream.batches(), strict=False):
        lengths = batch.lengths if batch.lengths is not None else torch.full((stream.rows,), batch.time)
        assert batch.weight == float(lengths.sum()) and batch.time <= chunk
        for row, length in enumerate(lengths.tolist()):
            inputs, targets = batch.inputs[row, :length].tolist(), batch.targets[row, :length].tolist()
            assert targets == [token + 1 for token in inputs], "a window crosses from one text into another"
            if length:
                assert bool(batch.fresh[row]) == (last[row] is None or inputs[0] != last[row] + 1), (
                    "fresh where it goes on, or not where it begins"
                )
                if last[row] is not None and inputs[0] in begins:
                    assert batch.fresh[row]
                last[row] = inputs[-1]
            seen += inputs
    expected = [p for begin, end in corpus.segments() for p in range(begin, end)]
    assert sorted(seen) == expected


@settings(max_examples=30, deadline=None)
@given(texts, st.integers(1, 4), st.integers(1, 6), st.integers(0, 40))
def test_what_comes_at_a_step_depends_on_the_step_alone(sizes: list[int], rows: int, chunk: int, start: int) -> None:
    corpus = corpus_of(sizes)
    stream = Stream(corpus, min(rows, corpus.transitions), chunk)
    whole = [batch for _, batch in zip(range(start + 1), stream.batches(), strict=False)]
    again = next(stream.batches(start=start))
    assert again.step == whole[start].step == start
    assert torch.equal(again.inputs, whole[start].inputs) and torch.equal(again.fresh, whole[start].fresh)


def test_the_cuts_move_from_epoch_to_epoch() -> None:
    stream = Stream(corpus_of([400]), 2, 16)
    assert len({tuple(stream.windows(epoch)[0][:, 0]) for epoch in range(6)}) > 1


def test_surprise_is_the_sum_over_the_whole_text_in_one_go() -> None:
    torch.manual_seed(0)
    model = SequenceModel(torch.nn.Embedding(50, 4), LSTM(4, 6), torch.nn.Linear(6, 50))
    ids = np.random.default_rng(0).integers(0, 50, 90).astype(np.uint16)
    corpus = Corpus(ids, np.array([0, 40, 41, 90]))
    nats, count = surprise(model, corpus, readers=1, warmup=0)
    expected = 0.0
    for begin, end in ((0, 40), (41, 90)):
        tokens = torch.from_numpy(ids[begin:end].astype(np.int64))[None]
        scores, _ = model.unroll(tokens[:, :-1], model.initial_state(1))
        expected += torch.nn.functional.cross_entropy(scores[0], tokens[0, 1:], reduction="sum").item()
    assert count == 39 + 48
    assert abs(nats - expected) < 1e-3
    many, same_count = surprise(model, corpus, readers=7, warmup=90)  # warmed up on all that is before: the same sum
    assert same_count == count and abs(many - expected) < 1e-3
