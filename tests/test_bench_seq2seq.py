"""The bench of the encoder-decoder times two sides that compute the same."""

import pytest
import torch

from recurra.bench import seq2seq
from recurra.errors import RecurraError


@pytest.fixture
def plain() -> seq2seq.Plain:
    torch.manual_seed(0)
    return seq2seq.Plain(60, 12)


@pytest.fixture
def writer(plain: seq2seq.Plain) -> seq2seq.Plain:
    seq2seq.lifelike(plain)
    return plain


def test_made_up_pairs_have_their_marks_and_lengths_where_the_batch_says() -> None:
    batches = seq2seq.made_up(60, 8, seed=1)
    assert [len(texts.places) for texts in batches] == [8] * seq2seq.BATCHES
    for texts in batches:
        for source, places, read, wanted, steps in zip(*texts, strict=True):
            assert seq2seq.SHORTEST <= places <= seq2seq.LONGEST
            assert (source[:places] >= seq2seq.WORDS).all()
            assert not source[places:].any()
            assert seq2seq.SHORTEST <= steps - 1 <= seq2seq.LONGEST
            words = wanted[: steps - 1]
            assert (words >= seq2seq.WORDS).all()
            assert read.tolist() == [seq2seq.BEGIN, *words.tolist()] + [0] * (len(read) - steps)
            assert wanted.tolist() == [*words.tolist(), seq2seq.END] + [0] * (len(wanted) - steps)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_both_sides_have_the_same_loss_before_and_after_updates(plain: seq2seq.Plain, smoothing: float) -> None:
    ours, batches = seq2seq.like(plain), seq2seq.made_up(60, 8)
    sides = [
        (ours, lambda texts: seq2seq.our_loss(ours, texts, smoothing)),
        (plain, lambda texts: seq2seq.plain_loss(plain, texts, smoothing)),
    ]
    before, after = [], []
    for model, loss in sides:
        before.append(loss(batches[0]).item())
        work = seq2seq.updates(model, loss, batches)
        assert [work() for _ in range(6)] == [sum(texts.tokens for texts in batches)] * 6
        after.append(loss(batches[0]).item())
    assert before[0] == pytest.approx(before[1], abs=1e-4)
    assert after[0] == pytest.approx(after[1], abs=1e-4)
    assert after[0] < before[0] - 0.01


def test_both_searches_find_the_same_texts_about_as_long_as_the_sources(writer: seq2seq.Plain) -> None:
    ours = seq2seq.like(writer)
    for texts in seq2seq.made_up(60, 8):
        own, other = seq2seq.our_search(ours, texts), seq2seq.plain_search(writer, texts)
        assert [one.tokens for one in own] == [one.tokens for one in other]
        assert [one.score for one in own] == pytest.approx([one.score for one in other], abs=1e-4)
        longer = [len(found.tokens) - places for found, places in zip(own, texts.places.tolist(), strict=True)]
        assert abs(sum(longer)) <= 4 * len(longer)


def test_both_searches_count_what_has_not_ended_at_the_last_step(
    writer: seq2seq.Plain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seq2seq, "LIMIT", 4)
    texts = seq2seq.made_up(60, 8)[0]
    own, other = seq2seq.our_search(seq2seq.like(writer), texts), seq2seq.plain_search(writer, texts)
    assert [one.tokens for one in own] == [one.tokens for one in other]
    assert {len(one.tokens) for one in own} == {4}


def test_sides_that_do_not_compute_the_same_are_not_timed(writer: seq2seq.Plain) -> None:
    ours, batches = seq2seq.like(writer), seq2seq.made_up(60, 8)
    seq2seq.check_losses(ours, writer, batches)
    seq2seq.check_searches(ours, writer, batches)
    with torch.no_grad():
        writer.readout.bias[seq2seq.END] += 0.5
    with pytest.raises(RecurraError, match="losses"):
        seq2seq.check_losses(ours, writer, batches)
    with pytest.raises(RecurraError, match="best texts"):
        seq2seq.check_searches(ours, writer, batches)


def test_the_comparison_says_how_many_tokens_a_second_each_side_has() -> None:
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    try:
        report = seq2seq.compare(8, 0.0, threads=1, seed=2, vocabulary=40, rows=4, rounds=1)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(before, torch.random.get_rng_state())
    assert {name: report[name] for name in ("hidden", "vocabulary", "rows", "width", "threads")} == {
        "hidden": 8,
        "vocabulary": 40,
        "rows": 4,
        "width": 5,
        "threads": 1,
    }
    for what in ("training", "beam search"):
        assert report[what].keys() == {"recurra", "torch.nn", "ratio"}
        assert all(value > 0 for value in report[what].values())
        assert report[what]["ratio"] == pytest.approx(report[what]["recurra"] / report[what]["torch.nn"])
