"""The tasks on examples: laws of tasks, scores against oracles, floors, and what the lectures show of them."""

import itertools
import json
import random
import signal
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Shell
from hypothesis import given, settings
from hypothesis import strategies as st

import recurra
import recurra.errors
from recurra import folds, testing
from recurra.cells import CELLS, Latent
from recurra.config import build
from recurra.data import split
from recurra.data.feed import Buckets, Ragged
from recurra.data.vocabulary import Vocabulary, words
from recurra.embed.bags import Bag, one_hot
from recurra.errors import DataError, UsageError
from recurra.models import POOLINGS, Spelled, Table
from recurra.recurrent import largest_over, mean_over
from recurra.tasks import TASKS, Classify, Regress, Seq2Seq, Sources, Tag, floors, scores
from recurra.tasks.examples import OnExamples
from recurra.tasks.inputs import scale_of
from recurra.tasks.writing import Search, own_share

FILMS = [
    ("a fine warm film", "good"),
    ("dull and cold", "bad"),
    ("warm , fine and funny", "good"),
    ("a cold dull mess", "bad"),
]


def films(folder: Path, count: int = 24, *, separator: str = "") -> Path:
    path, more = folder / "films.csv", f"{separator}long"
    some = list(itertools.islice(itertools.cycle(FILMS), count))
    rows = [f'"{text}","{label}{more if separator and at % 3 else ""}"' for at, (text, label) in enumerate(some)]
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    return path


def trips(folder: Path, count: int = 24) -> Path:
    """The lecture's sentences: what stands before the place says whether it is where one goes or whence one leaves."""
    path, some = folder / "trips.tsv", random.Random(0)
    lines = []
    for at in range(count):
        place, day = some.choice(["Recife", "Natal", "Olinda"]), some.choice(["2", "3", "14"])
        verb, kind = [("arrive at", "destination"), ("leave", "origin")][at % 2]
        tags = ["O"] * len(verb.split()) + [f"B-{kind}", "O", "B-date", "I-date"]
        lines.append(f"{verb.split()[0]}\t{verb} {place} on {day} November\t{' '.join(tags)}")
    path.write_text("\n".join(lines) + "\n")
    return path


def waves(folder: Path, kind: str) -> Path:
    path, rng = folder / "waves.npz", np.random.default_rng(0)
    x, lengths = rng.normal(size=(20, 9, 2)).astype(np.float32), rng.integers(3, 10, 20)
    y = {
        "label": np.array(["up", "down"])[(x[:, 0, 0] > 0).astype(int)],
        "labels": np.array(["up", "down"])[(x[:, :, 0] > 0).astype(int)],
        "number": x[:, 0, :1].astype(np.float32),
        "numbers": x.cumsum(1)[:, :, :1].astype(np.float32),
    }[kind]
    np.savez(path, x=x, y=y, lengths=lengths)
    return path


def pairs(folder: Path) -> Path:
    path, some = folder / "pairs.tsv", random.Random(0)
    words = ["one", "two", "three", "four"]
    lines = [" ".join(some.choices(words, k=some.randint(1, 3))) for _ in range(24)]
    path.write_text("said\tround\n" + "".join(f"{line}\t{' '.join(line.split()[::-1])}\n" for line in lines))
    return path


COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (30, 60, 220)}


def painted(folder: Path, count: int = 12) -> Path:
    """Pictures of one colour, and beside them the same as features: how much red, green and blue there is."""
    from PIL import Image

    rows, features = ["image,caption"], []
    for at, name in zip(range(count), itertools.cycle(COLOURS), strict=False):
        Image.new("RGB", (16, 8 + at % 2), COLOURS[name]).save(folder / f"{at}.png")
        rows.append(f"{at}.png,a {name} sheet")
        features.append([COLOURS[name]] * 2)
    (folder / "sheets.csv").write_text("\n".join(rows) + "\n")
    np.save(folder / "sheets.npy", np.array(features, np.float32))
    return folder / "sheets.csv"


SIDES = {"text": "said", "label": "round"}
RED = np.full((8, 16, 3), COLOURS["red"], np.uint8)
MEMBERS: dict[str, tuple[str, Callable[[Path], Path], dict[str, Any], Any]] = {
    "classify words": ("classify", films, {}, "a warm film"),
    "classify attention": ("classify", films, {"task": {"pooling": "attention"}}, "a warm film"),
    "classify one direction": ("classify", films, {"task": {"bidirectional": False, "pooling": "last"}}, "a warm film"),
    "classify balanced": ("classify", films, {"task": {"balance": True, "pooling": "mean"}}, "a warm film"),
    "classify characters": ("classify", films, {"tokens": {"kind": "characters"}}, "a warm film"),
    "classify one-hot": ("classify", films, {"embed": {"kind": "onehot"}}, "a warm film"),
    "classify several": (
        "classify",
        lambda folder: films(folder, separator="|"),
        {"data": {"separator": "|"}},
        "a warm film",
    ),
    "classify series": ("classify", lambda folder: waves(folder, "label"), {}, [[1.0, 2.0], [0.5, -1.0]]),
    "tag and intent": ("tag", trips, {}, "leave Recife on 2 November"),
    "tag without crf": ("tag", trips, {"task": {"crf": False, "letters": False}}, ["leave", "Recife"]),
    "tag frames": ("tag", lambda folder: waves(folder, "labels"), {}, [[1.0, 2.0], [0.5, -1.0]]),
    "seq2seq": ("seq2seq", pairs, {"data": SIDES}, "two one"),
    "seq2seq without attention": ("seq2seq", pairs, {"data": SIDES, "task": {"attention": "none"}}, "two one"),
    "seq2seq fed": (
        "seq2seq",
        pairs,
        {"data": SIDES, "task": {"attention": "additive", "feed": True, "beam": 2}},
        "two one",
    ),
    "seq2seq in byte pairs": ("seq2seq", pairs, {"data": SIDES, "tokens": {"kind": "bpe", "size": 270}}, "two one"),
    "caption": ("caption", painted, {}, RED),
    "caption from the start": ("caption", painted, {"task": {"image": "start"}, "tokens": {"kind": "bpe"}}, RED),
    "caption of the whole": ("caption", painted, {"task": {"image": "every-step", "size": "12x24"}}, RED),
    "seq2seq that copies": (
        "seq2seq",
        pairs,
        {"data": SIDES, "task": {"pointer": True, "attention": "coverage", "coverage": 1.0}},
        "two one",
    ),
    "seq2seq in words, apart": (
        "seq2seq",
        pairs,
        {"data": SIDES, "tokens": {"kind": "words"}, "task": {"vocabulary": "separate", "sampling": "linear"}},
        "two one",
    ),
    "seq2seq of two cells": (
        "seq2seq",
        pairs,
        {"data": SIDES, "task": {"decoder": "gru", "decoder_hidden": 7, "batch_tokens": 60}},
        "two one",
    ),
    "regress": ("regress", lambda folder: waves(folder, "number"), {}, [[1.0, 2.0], [0.5, -1.0]]),
    "regress absolute": ("regress", lambda folder: waves(folder, "number"), {"task": {"loss": "mae"}}, [[1.0, 2.0]]),
    "regress every step": ("regress", lambda folder: waves(folder, "numbers"), {}, [[1.0, 2.0], [0.5, -1.0]]),
}


def made(name: str, folder: Path) -> tuple[OnExamples, Any]:
    """A task of the table with a model that has not learnt, in `eval()`, and a question for it."""
    task, data, values, question = MEMBERS[name]
    values = {**values, "task": {"name": task, **values.get("task", {})}, "model": {"hidden": 5}, "train": {"rows": 4}}
    config = build(values)
    (folder / "data").mkdir()
    one = TASKS[task].prepare(config, Sources([data(folder)]), folder / "data")
    assert isinstance(one, OnExamples)
    torch.manual_seed(0)
    one.build(one.settle(config, 1.0))
    one.model.eval()
    return one, question


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("law", testing.TASK_LAWS, ids=lambda law: law.__name__)
def test_a_task_keeps_the_task_laws(name: str, law: Callable[..., None], tmp_path: Path) -> None:
    law(*made(name, tmp_path), tmp_path)


@pytest.mark.parametrize("name", MEMBERS)
def test_an_answer_does_not_hang_on_its_company(name: str, tmp_path: Path) -> None:
    task, _ = made(name, tmp_path)
    examples = task.parts["train"].examples
    together = list(task.answer(examples, 2))
    for row in range(len(examples)):
        alone = next(task.answer(examples.take([row]), 2))
        assert near(alone, together[row]), f"example {row}: {alone} alone, {together[row]} in company"


@pytest.mark.parametrize("name", ["classify words", "tag and intent", "seq2seq"])
def test_who_reads_answers_keeps_gradients_and_the_model_its_mode(name: str, tmp_path: Path) -> None:
    task, _ = made(name, tmp_path)
    task.model.train()
    part = task.parts["train"]
    readers = (
        [task.answer(part.examples, 2)]
        if name == "seq2seq"
        else [task.answer(part.examples, 2), task.outputs(part.inputs)]
    )
    for reader in readers:
        next(reader)
        assert torch.is_grad_enabled() and task.model.training


def test_a_file_of_which_nothing_can_be_read_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "asked.csv").write_text("said\n\n \n")
    for name in ("seq2seq", "classify words"):
        (tmp_path / name).mkdir()
        task, _ = made(name, tmp_path / name)
        assert list(task.answer(task.parts["train"].examples.take([]), 2)) == []


def near(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return set(one) == set(other) and all(near(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(near(a, b) for a, b in zip(one, other, strict=True))
    return one == pytest.approx(other, rel=1e-5, abs=1e-5) if isinstance(one, float) else one == other


@pytest.mark.parametrize("name", MEMBERS)
def test_the_loss_of_the_batches_is_that_of_the_judge(name: str, tmp_path: Path) -> None:
    """Of a whole epoch without noise, weighted, beside what `judge` says of the same part row by row."""
    task, _ = made(name, tmp_path)
    if name == "classify balanced":
        return  # it weighs the labels in training only
    total = weight = 0.0
    for batch in itertools.islice(task.batches(), task.steps_per_epoch()):
        with torch.no_grad():
            loss, _ = task.loss(batch, ())
        total, weight = total + float(loss) * batch.weight, weight + batch.weight
    assert total / weight == pytest.approx(task.judge(task.parts["train"]).loss, rel=1e-4)


QUICK = {
    "model": {"dropout": 0.0, "input_dropout": 0.0},
    "optimizer": {"rate": 1e-2, "warmup": 5},
    "train": {"rows": 4, "validations": 2},
}


@pytest.mark.parametrize("name", MEMBERS)
def test_a_network_learns_what_there_is_to_learn(name: str, tmp_path: Path) -> None:
    task, data, values, _ = MEMBERS[name]
    path, values = data(tmp_path), {**{section: dict(fields) for section, fields in values.items()}, **QUICK}
    done = recurra.train(task, path, valid=path, out=tmp_path / "run", settings=values, steps=300, hidden=12, threads=1)
    assert isinstance(done, OnExamples)
    start, _ = made(name, tmp_path)
    assert done.judge(done.parts["train"]).loss < 0.5 * start.judge(start.parts["train"]).loss


# --- the lectures -----------------------------------------------------------------------------------------------------


def test_the_same_place_is_origin_or_destination_by_what_came_before(tmp_path: Path) -> None:
    data = trips(tmp_path, 60)
    task = recurra.train("tag", data, valid=data, out=tmp_path / "run", settings=QUICK, steps=150, hidden=16, threads=1)
    to, fro = task.predict("arrive at Recife on 2 November"), task.predict("leave Recife on 2 November")
    assert [(span["kind"], span["text"]) for span in to["spans"]] == [("destination", "Recife"), ("date", "2 November")]
    assert [(span["kind"], span["text"]) for span in fro["spans"]] == [("origin", "Recife"), ("date", "2 November")]
    assert (to["intent"], fro["intent"]) == ("arrive", "leave")


def test_a_tweet_with_handle_and_emoji_survives_the_words(tmp_path: Path) -> None:
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
    tweet = f"@ana_42 que filme!!! \U0001f44d\U0001f3fd{family} #cinema n\u00e3o perca :-) \U0001f1e7\U0001f1f7 don't"
    assert words(tweet) == [
        "@ana_42", "que", "filme", "!!!", "\U0001f44d\U0001f3fd", family, "#cinema",
        "n\u00e3o", "perca", ":", "-", ")", "\U0001f1e7\U0001f1f7", "do", "n't",
    ]  # fmt: skip


CHICKEN = "the chicken crossed the road because it was not cooked"
SHUFFLED = "the chicken was cooked because it crossed not the road"


def test_a_bag_of_words_loses_what_a_network_keeps_the_order(tmp_path: Path) -> None:
    bag = Bag([CHICKEN.split(), SHUFFLED.split()]).matrix.toarray()
    assert (bag[0] == bag[1]).all(), "the same words as often"
    birds, both = ["chicken", "duck", "goose", "hen", "turkey", "quail"], ((CHICKEN, "alive"), (SHUFFLED, "dinner"))
    rows = [f"{text.replace('chicken', bird)},{label}" for bird in birds for text, label in both]
    data = tmp_path / "birds.csv"
    data.write_text("text,label\n" + "\n".join(rows * 2) + "\n")
    task = recurra.train(
        "classify", data, valid=data, out=tmp_path / "run", settings=QUICK, steps=100, hidden=8, threads=1
    )
    assert task.predict(CHICKEN)["label"] == "alive" and task.predict(SHUFFLED)["label"] == "dinner"


def test_one_hot_words_have_no_neighbourhood() -> None:
    known = ["king", "queen", "chicken"]
    rows = one_hot([*known, "road"], known).toarray()
    assert (rows[:3] == np.eye(3)).all() and not rows[3].any()


def test_bags_count_and_weigh_as_written() -> None:
    texts = [["the", "cat", "the", "dog"], ["the", "bird"]]
    counted = Bag(texts, order=2)
    grams = lambda text: text + [" ".join(pair) for pair in itertools.pairwise(text)]  # noqa: E731
    for row, text in zip(counted.matrix.toarray(), texts, strict=True):
        assert dict(zip(counted.names, row, strict=True)) == {name: grams(text).count(name) for name in counted.names}
    weighed = Bag(texts, weighted=True)
    have = {name: sum(name in text for text in texts) for name in weighed.names}
    for row, text in zip(weighed.matrix.toarray(), texts, strict=True):
        want = np.array(
            [(1 + np.log(text.count(n))) * (1 + np.log(3 / (1 + have[n]))) if n in text else 0.0 for n in weighed.names]
        )
        assert np.allclose(row, want / np.linalg.norm(want))
    assert not weighed.rows([["fish"]]).toarray().any()


# --- words, buckets, parts ----------------------------------------------------------------------------------------------


@given(st.text(max_size=60))
def test_words_leave_out_nothing_but_white_space(text: str) -> None:
    assert "".join(words(text)) == "".join(text.split()) or any(not char.isprintable() for char in text)


def test_a_vocabulary_knows_what_occurs_twice_and_what_has_a_vector() -> None:
    known = Vocabulary.learn([["The", "cat"], ["the", "dog"]], 10, lower=True, also=["dog", "bird"])
    assert known.words == ["the", "dog", "bird"] and known.seen == 3
    assert known.encode(["THE", "cat", "dog", "bird"]).tolist() == [1, 0, 2, 3]
    assert Vocabulary.restored(json.loads(json.dumps(known.content()))).content() == known.content()
    for wrong in (None, {}, known.content() | {"words": ["a", "a"]}, known.content() | {"seen": 9}):
        with pytest.raises(ValueError, match=r"vocabulary|different|seen"):
            Vocabulary.restored(wrong)


def test_words_that_do_not_occur_in_training_keep_their_vectors() -> None:
    table = Table(3, 2, 4)
    table.fixed.copy_(torch.arange(8.0).view(2, 4))
    out = table(torch.tensor([[0, 2, 3, 4]]))
    assert torch.equal(out[0, :2], table.learnt.weight[[0, 2]]) and torch.equal(out[0, 2:], table.fixed)
    out.sum().backward()
    assert table.learnt.weight.grad is not None and table.learnt.weight.grad.sum() == 8
    assert [name for name, _ in table.named_parameters()] == ["learnt.weight"]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 3))
@settings(max_examples=60)
def test_buckets_read_each_row_once_an_epoch_and_follow_from_the_step(lengths: list[int], rows: int, seed: int) -> None:
    buckets = Buckets(np.array(lengths), rows, seed)
    size = buckets.epoch_steps()
    taken = list(itertools.islice(buckets.batches(), 3 * size))
    for epoch in range(3):
        together = np.concatenate([batch for _, batch in taken[epoch * size : (epoch + 1) * size]])
        assert sorted(together.tolist()) == list(range(len(lengths)))
    for start in (0, size - 1, size, 2 * size):
        step, batch = next(buckets.batches(start))
        assert step == start and np.array_equal(batch, taken[start][1])


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.integers(1, 70), st.integers(0, 3))
@settings(max_examples=60)
def test_buckets_by_steps_hold_no_more_than_that(lengths: list[int], steps: int, seed: int) -> None:
    buckets = Buckets(np.array(lengths), 1, seed, steps)
    for number in range(3):
        batches = buckets.epoch(number)
        assert len(batches) == buckets.epoch_steps()
        assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
        for rows in batches:
            some = np.array(lengths)[rows]
            assert len(rows) == 1 or len(rows) * some.max() <= steps
    whole = sorted(
        (sorted(np.array(lengths)[rows].tolist()) for rows in buckets.epoch(0)),
        key=lambda one: (one[0], one[-1], -len(one)),  # of several batches of one length the short one is the last
    )
    for one, after in itertools.pairwise(whole):
        assert (len(one) + 1) * after[0] > steps, "one more row would have fitted"


def test_buckets_save_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 2000)
    random_order = np.random.default_rng(1).permutation(lengths).reshape(-1, 20)
    padding = 1 - lengths.sum() / (20 * random_order.max(1).sum())
    assert Buckets(lengths, 20).padding() < 0.1 * padding


@given(st.lists(st.sampled_from("abc"), min_size=6, max_size=50), st.integers(2, 6), st.integers(0, 3))
def test_folds_part_the_rows_and_spread_the_labels(labels: list[str], count: int, seed: int) -> None:
    parts = split.folds(labels, count, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    for label in "abc":
        shares = [sum(labels[row] == label for row in part) for part in parts]
        assert max(shares) - min(shares) <= 1
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=80), st.floats(0.05, 0.9), st.integers(0, 3))
def test_what_is_held_back_has_its_share_of_each_label(labels: list[str], share: float, seed: int) -> None:
    try:
        kept, held = split.held_back(labels, share, seed)
    except DataError:
        assert len(labels) < 2 / share
        return
    assert sorted([*kept, *held]) == list(range(len(labels))) and len(kept) and len(held)
    for label in "abc":
        rows, own = labels.count(label), sum(labels[row] == label for row in held)
        assert abs(own - share * rows) <= 2 or own == rows - 1


@given(st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=8))
def test_ragged_rows_are_padded_with_zeros(rows: list[list[int]]) -> None:
    ragged = Ragged.of([np.array(row, np.int64) for row in rows], np.zeros(0, np.int64))
    padded, lengths = ragged.padded(np.arange(len(rows))[::-1])
    assert lengths.tolist() == [len(row) for row in rows[::-1]]
    assert [row[:size] for row, size in zip(padded.tolist(), lengths.tolist(), strict=True)] == rows[::-1]
    assert not any(any(row[size:]) for row, size in zip(padded.tolist(), lengths.tolist(), strict=True))


def test_poolings_over_time_do_not_see_the_padding() -> None:
    ys, lengths = torch.randn(3, 5, 4), torch.tensor([5, 2, 0])
    ys = ys * (torch.arange(5) < lengths[:, None])[..., None]
    for fn, want in ((mean_over, lambda x: x.mean(0)), (largest_over, lambda x: x.amax(0))):
        for row, size in enumerate(lengths.tolist()):
            assert torch.allclose(fn(ys, lengths)[row], want(ys[row, :size]) if size else torch.zeros(4))
        assert torch.allclose(fn(ys, None)[0], want(ys[0]))


# --- scores and floors --------------------------------------------------------------------------------------------------


@given(st.data())
@settings(deadline=None)
def test_scores_are_those_of_scikit_learn(data: st.DataObject) -> None:
    from sklearn import metrics

    count, labels = data.draw(st.integers(1, 30)), data.draw(st.integers(2, 4))
    truth = np.array(data.draw(st.lists(st.integers(0, labels - 1), min_size=count, max_size=count)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    probabilities = rng.dirichlet(np.ones(labels), count)
    guesses = probabilities.argmax(1)
    found = scores.of_labels(truth, probabilities)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, guesses))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(truth, guesses, average="macro", zero_division=0))
    assert found["nats"] == pytest.approx(metrics.log_loss(truth, probabilities, labels=range(labels)))
    assert (
        scores.confusion(truth, guesses, labels)
        == metrics.confusion_matrix(truth, guesses, labels=range(labels)).tolist()
    )
    several = (rng.random((count, labels)) > 0.5).astype(np.float32)
    guessed = (probabilities > 0.5).astype(np.float32)
    assert scores.micro_f1(several, guessed) == pytest.approx(
        metrics.f1_score(several, guessed, average="micro", zero_division=0)
    )


def test_the_calibration_error_of_known_bins() -> None:
    confidence, right = np.array([0.95, 0.95, 0.65, 1.0]), np.array([True, False, True, True])
    high = abs((0.95 + 0.95 + 1.0) / 3 - 2 / 3)
    assert scores.calibration_error(confidence, right) == pytest.approx(0.75 * high + 0.25 * 0.35)


def test_floors_of_labels_reach_what_they_can() -> None:
    texts = [text.split() for text, _ in FILMS] * 5
    targets = np.array([label == "good" for _, label in FILMS] * 5).astype(np.int64)
    vectors = {"fine": np.array([1.0, 0.0]), "dull": np.array([-1.0, 0.0]), "warm": np.array([1.0, 1.0])}
    found = floors.label_floors((texts, targets), (texts, targets), vectors)
    assert found["most frequent label"] == 0.5 and found["words and pairs, logistic"] == 1.0
    assert found["mean of vectors, logistic"] == 1.0
    several = np.stack([targets, 1 - targets, np.ones_like(targets)], axis=1).astype(np.float32)
    assert floors.label_floors((texts, several), (texts, several), None)["words and pairs, logistic"] == 1.0


def test_floors_do_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "find_spec", lambda name: None)
    some = ([["a"], ["b"]], np.array([0, 1]))
    assert list(floors.label_floors(some, some, None)) == ["most frequent label"]


def test_the_nearest_series_is_found_whatever_its_length() -> None:
    rise, fall = np.linspace(0, 1, 7)[:, None], np.linspace(1, 0, 12)[:, None]
    found = floors.label_floors(
        ([rise, fall], np.array([0, 1])), ([fall[::2], rise[::3], rise], np.array([1, 0, 0])), None
    )
    assert found["nearest series"] == 1.0


def test_ridge_finds_a_sum_over_the_last_steps(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    xs = Ragged.of(
        [rng.normal(size=(n, 1)).astype(np.float32) for n in rng.integers(5, 30, 200)], np.zeros((0, 1), np.float32)
    )
    sums = [xs.values[a:b][-3:].sum(0, keepdims=True) for a, b in itertools.pairwise(xs.bounds)]
    targets = Ragged.of(sums, np.zeros((0, 1), np.float32))
    found = floors.number_floors((xs, targets), (xs, targets), np.ones(1), ahead=False)
    assert found["mean"] > 1 and found["ridge on 29 steps"] < 1e-3


def test_the_tag_of_the_word_is_its_most_frequent() -> None:
    train, tags = [["a", "b", "b"], ["b", "c"]], [["X", "Y", "X"], ["Y", "X"]]
    found = floors.tag_floors(train, tags, [["b", "a", "new"]], [["Y", "X", "X"]])
    assert found == {"most frequent tag": pytest.approx(2 / 3), "tag of the word": 1.0}


# --- what users do wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "content", "wanted"),
    [
        ("classify", "text,label\na b,x\nc d,x\ne f,x\n", "every example has the label 'x'"),
        ("classify", "text,label\na b,x\n", "too few"),
        ("classify", "text,label\na b,x\n,y\nc,z\n", "films.csv:3"),
        ("classify", "text,label\na b,x\nc,y,z\n", "films.csv:3"),
        ("classify", "", "empty"),
        (
            "classify",
            "text,label\n" + "\n".join(f"words {at},{at}.5" for at in range(60)),
            "is this the column of the label",
        ),
        ("regress", "text,label\na b,1\nc d,many\n", "films.csv:3"),
        ("regress", "text,label\na b,1\nc d,nan\ne,2\n", "not finite"),
        ("regress", "text,label\na b,1\nc d,1\nd,1\ne,1\n", "numbers that differ"),
    ],
)
def test_bad_data_is_refused_in_words(task: str, content: str, wanted: str, tmp_path: Path) -> None:
    (tmp_path / "films.csv").write_text(content)
    with pytest.raises((DataError, UsageError), match=wanted):
        recurra.train(task, tmp_path / "films.csv", out=tmp_path / "run", steps=1, hidden=4, threads=1)
    assert not (tmp_path / "run" / "config.toml").exists()


@pytest.mark.parametrize(
    ("task", "values", "wanted"),
    [
        ("classify", {"task": {"poling": "max"}}, r"task.poling is not an option; did you mean 'pooling'"),
        ("classify", {"task": {"pooling": "sum"}}, "task.pooling was 'sum'"),
        ("classify", {"embed": {"tied": True}}, "embed.tied is for networks that write"),
        ("classify", {"learner": {"window": 3}}, "it reads whole sequences"),
        ("classify", {"cell": {"name": "nosuch"}}, "there is no cell called 'nosuch'"),
        ("classify", {"data": {"fold": 3, "folds": 2}}, "data.fold counts from 1"),
        ("regress", {"data": {"text": "nosuch"}}, "nosuch"),
        ("language", {"data": {"label": "stars"}}, "the language task reads texts as they are"),
        ("language", {"tokens": {"lower": True}}, "tokens.lower would lose"),
    ],
)
def test_a_wrong_call_is_refused_in_words(task: str, values: dict[str, Any], wanted: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=wanted):
        recurra.train(task, films(tmp_path), out=tmp_path / "run", settings=values, steps=1, hidden=4, threads=1)


def test_a_label_that_is_not_known_counts_as_wrong_and_is_named(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text("text,label\na fine warm film,good\ndull and cold,odd\n")
    task = recurra.load(runs["classify"])
    report = task.evaluate([tmp_path / "more.csv"])
    assert report["scores"]["accuracy"] == 0.5 and report["unknown_labels"] == ["odd"]
    assert sum(map(sum, report["confusion"])) == 1 and any("odd" in line for line in task.lines(report))
    (tmp_path / "more.tsv").write_text("arrive\tarrive at Natal\tO O B-town\nstay\tleave Natal\tO B-origin\n")
    report = recurra.load(runs["tag"]).evaluate([tmp_path / "more.tsv"])
    assert report["kinds"]["town"]["gold"] == 1 and report["kinds"]["town"]["right"] == 0
    assert report["scores"]["intent_accuracy"] <= 0.5


def test_names_of_labels_come_from_all_parts(tmp_path: Path) -> None:
    path = films(tmp_path)
    (tmp_path / "valid.csv").write_text("text,label\nsome film,rare\n")
    config = build({"task": {"name": "classify"}, "model": {"hidden": 4}})
    (tmp_path / "data").mkdir()
    task = Classify.prepare(config, Sources([path], valid=[tmp_path / "valid.csv"]), tmp_path / "data")
    assert task.known["labels"] == ["bad", "good", "rare"] and task.parts["valid"].targets.tolist() == [2]


def test_channels_are_known_by_their_names(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def written(name: str, order: str) -> Path:
        rows = [f"id,t,{','.join(order)},label"]
        for one in range(30):
            up = one % 2
            for t in range(4):
                values = {"a": rng.normal() + 4 * up, "b": rng.normal() * 9}
                rows.append(f"s{one},{t},{','.join(f'{values[c]:.3f}' for c in order)},{'ud'[up]}")
        (tmp_path / name).write_text("\n".join(rows) + "\n")
        return tmp_path / name

    one, other, wrong = (
        written("one.csv", "ab"),
        written("other.csv", "ba"),
        written("wrong.csv", "ac".replace("c", "b")),
    )
    task = recurra.train(
        "classify", one, valid=other, out=tmp_path / "run", settings=QUICK, steps=60, hidden=8, threads=1
    )
    assert task.evaluate([other])["scores"]["accuracy"] > 0.9
    wrong.write_text(wrong.read_text().replace("id,t,a,b", "id,t,a,z"))
    with pytest.raises(DataError, match="the channels a, z, and the training a, b"):
        task.evaluate([wrong])


def test_scales_are_right_for_many_steps_and_far_from_zero() -> None:
    rows = (1e4 + np.random.default_rng(0).normal(size=(400_000, 2))).astype(np.float32)
    mean, std = scale_of(rows)
    assert np.allclose(mean, rows.astype(np.float64).mean(0), rtol=1e-9) and np.allclose(std, 1.0, atol=0.01)
    assert scale_of(np.full((1000, 1), 0.1, np.float32))[1] == 1.0, "always the same"


def test_several_labels_where_one_was_learnt_are_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text('{"text": "a film", "label": ["good", "bad"]}\n')
    with pytest.raises(DataError, match=r"more.jsonl:1 has 2 labels"):
        recurra.load(runs["classify"]).evaluate([tmp_path / "more.jsonl"])


def test_a_model_without_its_data_says_what_it_wants(runs: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="load the run folder, or give files"):
        recurra.load(runs["classify"] / "best").evaluate()


@pytest.mark.parametrize(
    ("task", "asked"),
    [
        ("classify", ["a"]), ("classify", None), ("classify", ""), ("classify", "{" * 3), ("tag", []), ("tag", ""), ("tag", [1]),
        ("tag", '{"tokens": 5}'), ("tag", '{"tokens": {"a": 1}}'), ("regress", "abc"), ("regress", []), ("regress", [[1, 2, 3]]),
        ("regress", "[" * 100_000), ("regress", [[float("nan"), 1]]), ("regress", [[1, 2], [3]]),
    ],
)  # fmt: skip
def test_what_is_no_input_is_refused_in_words(task: str, asked: Any, runs: dict[str, Path]) -> None:
    with pytest.raises(DataError, match=r"wanted|holds|channels|none"):
        recurra.load(runs[task]).predict(asked)


def test_python_and_the_command_line_cut_words_alike(runs: dict[str, Path]) -> None:
    task = recurra.load(runs["tag"])
    assert task.predict("leave Natal, on 2 November")["tokens"] == ["leave", "Natal", ",", "on", "2", "November"]


def test_lines_end_where_lines_end(runs: dict[str, Path], shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "asked.txt").write_text("a fine\u2028warm film\r\ndull\x0cand cold\n", encoding="utf-8")
    lines = shell("predict", runs["classify"], "asked.txt", "--json").out.removesuffix("\n").split("\n")
    assert [json.loads(line)["text"] for line in lines] == ["a fine\u2028warm film", "dull\x0cand cold"]
    plain = shell("predict", runs["classify"], "asked.txt").out
    assert plain.count("\n") == 2 and "\\x0c" in plain, "control characters are escaped"


def test_what_is_cut_of_an_answer_is_said(tmp_path: Path) -> None:
    settings = {**QUICK, "data": {"longest": 3}}
    data = trips(tmp_path)
    task = recurra.train("tag", data, valid=data, out=tmp_path / "run", settings=settings, steps=4, hidden=4, threads=1)
    answer = task.predict("leave Natal on 2 November")
    assert len(answer["tags"]) == 3 and answer["cut"] == 2 and "cut" not in task.predict("leave Natal")


def test_scores_of_numbers_are_of_what_is_predicted_in_their_own_units(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 6, 2)).astype(np.float32)
    y = np.stack([50 + 3 * x[:, 0, 0], -700 + 90 * x[:, 1, 1]], axis=1).astype(np.float32)
    np.savez(tmp_path / "some.npz", x=x, y=y)
    path = tmp_path / "some.npz"
    task = recurra.train(
        "regress", path, valid=path, out=tmp_path / "run", settings=QUICK, steps=30, hidden=6, threads=1
    )
    made = task.evaluate([path])["scores"]
    said = np.array([task.predict(one)["numbers"] for one in x])
    assert abs(said.mean(0) - [50, -700]).max() < 100, "about where the targets lie"
    each = ((said - y) ** 2).mean(0)
    assert made["mse"] == pytest.approx(each.mean(), rel=1e-3) and made["mae"] == pytest.approx(
        abs(said - y).mean(), rel=1e-3
    )
    assert made["explained"] == pytest.approx((1 - each / y.var(0)).mean(), abs=1e-3)


def test_whole_numbers_at_every_step_are_numbers(tmp_path: Path) -> None:
    rows = ["id,t,a,target"] + [f"{k},{t},{(k * 7 + t) % 5}.5,{(k + t) % 4}" for k in range(20) for t in range(5)]
    (tmp_path / "some.csv").write_text("\n".join(rows) + "\n")
    task = recurra.train(
        "regress", tmp_path / "some.csv", out=tmp_path / "run", settings=QUICK, steps=4, hidden=4, threads=1
    )
    assert task.known["each_step"] and len(task.predict([[1.0], [2.0]])["numbers"]) == 2
    flat = ["id,t,a,target", *(f"9,{t},1.5,2" for t in range(5))]
    (tmp_path / "flat.csv").write_text("\n".join(flat) + "\n")
    assert task.evaluate([tmp_path / "flat.csv"])["n"] == 1


def test_check_reports_even_where_a_training_could_not_begin(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "some.csv").write_text("text,label\n" + "a b,x\nc d,y\n" * 8)
    answer = shell("check", "classify", "some.csv", "--set", "cell.name=nosuch", "--json")
    report = json.loads(answer.out)
    assert answer.code == 0 and any("there is no cell called 'nosuch'" in words for words in report["warnings"])
    signs = json.loads(shell("check", "classify", "synthetic:parity", "--json", "--no-timing").out)
    assert signs["steps_longest"] == 20, "characters are counted where characters are read"


def test_a_cross_validation_that_is_stopped_says_how_it_goes_on(tmp_path: Path) -> None:
    def tell(kind: str, **fields: Any) -> None:
        if kind == "step" and fields["step"] == 3 and "fold-2" in str(seen):
            signal.raise_signal(signal.SIGINT)
        seen.append(fields.get("out", ""))

    seen: list[Any] = []
    settings = {"train": {"rows": 4}}
    with pytest.raises(recurra.errors.Interrupted, match=f"stopped in fold 2 of 3.*--out {tmp_path / 'cv'} goes on"):
        recurra.train(
            "classify",
            films(tmp_path),
            out=tmp_path / "cv",
            folds=3,
            steps=6,
            hidden=4,
            threads=1,
            settings=settings,
            tell=tell,
        )


def test_epochs_have_their_own_order() -> None:
    buckets = Buckets(np.arange(1, 40), 4)
    assert [one.tolist() for one in buckets.epoch(0)] != [one.tolist() for one in buckets.epoch(1)]


def test_words_are_taken_for_unknown_in_training_only() -> None:
    table, ids = Table(50, 0, 3, dropout=0.5), torch.arange(1, 50)[None]
    unknown = (table(ids) == table.learnt.weight[0]).all(2).float().mean()
    assert 0.2 < float(unknown) < 0.8
    assert torch.equal(table.eval()(ids), table.learnt.weight[1:][None])


def test_a_word_is_spelled_the_same_beside_longer_ones() -> None:
    torch.manual_seed(0)
    spelled = Spelled(Table(5, 0, 3), letters=9).eval()
    short, long = [3, 4, 0, 0, 0, 0], [3, 4, 5, 6, 7, 8]
    beside = spelled((torch.tensor([[1, 2]]), torch.tensor([[short, long]])))
    alone = spelled((torch.tensor([[1]]), torch.tensor([[short]])))
    torch.testing.assert_close(beside[:, :1], alone)


def test_word_vectors_start_the_table_and_their_coverage_is_said(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("film 1 2\nwarm 3 4\nunseen 5 6\n")
    config = build(
        {
            "task": {"name": "classify"},
            "embed": {"vectors": str(tmp_path / "v.txt"), "frozen": 1.0},
            "model": {"hidden": 4},
        }
    )
    (tmp_path / "data").mkdir()
    task = Classify.prepare(config, Sources([films(tmp_path)]), tmp_path / "data")
    task.build(task.settle(config, 1.0))
    known, table = task.inputs.tokens, task.model.encoder.embedding
    for word, vector in (("film", [1.0, 2.0]), ("warm", [3.0, 4.0]), ("unseen", [5.0, 6.0])):
        assert table(torch.tensor([known.id(word)]))[0].tolist() == vector
    assert known.id("unseen") >= known.seen, "a word without an example does not learn"
    assert [held is table.learnt.weight for held in task.held(0.5)] == [True] and task.held(1.0) == []
    assert any("have a vector in" in note for note in task.notes())


def test_balanced_labels_count_the_same_and_one_on_average(tmp_path: Path) -> None:
    rows = ["rare words,a"] * 3 + ["common words,b"] * 17
    (tmp_path / "some.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    config = build({"task": {"name": "classify", "balance": True}, "model": {"hidden": 4}})
    (tmp_path / "data").mkdir()
    path = tmp_path / "some.csv"
    task = Classify.prepare(config, Sources([path], valid=[path]), tmp_path / "data")
    weights = task.balance[torch.from_numpy(task.parts["train"].targets)]
    assert weights.mean() == pytest.approx(1.0) and weights[:3].sum() == pytest.approx(float(weights[3:].sum()))


def test_sequences_are_cut_only_where_it_is_asked_for_and_said(tmp_path: Path) -> None:
    config = build({"task": {"name": "classify"}, "data": {"longest": 3}, "model": {"hidden": 4}})
    (tmp_path / "data").mkdir()
    task = Classify.prepare(config, Sources([films(tmp_path)]), tmp_path / "data")
    assert task.parts["train"].inputs.steps.lengths.max() == 3
    assert any("sequences are cut after 3 steps" in note for note in task.notes())


def test_every_pooling_has_a_name() -> None:
    assert set(POOLINGS) == {"last", "mean", "max", "attention"}
    assert {task.name for task in (Classify, Tag, Regress)} <= set(TASKS)


# --- the command line -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run folder of each task."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    for task, data in (("classify", films), ("tag", trips), ("regress", lambda where: waves(where, "number"))):
        path = data(folder)
        found[task] = folder / task
        recurra.train(task, path, valid=path, out=found[task], settings=QUICK, steps=100, hidden=8, threads=1)
    return found


def test_predict_keeps_the_order_and_goes_on_past_a_bad_line(
    runs: dict[str, Path], shell: Shell, tmp_path: Path
) -> None:
    lines = ["a fine warm film", "", '{"text": "dull and cold"}', '{"words": 3}', "{bad", "funny and warm"]
    (tmp_path / "asked.txt").write_text("\n".join(lines) + "\n")
    answer = shell("predict", runs["classify"], "asked.txt", "--json")
    assert answer.code == 3 and "3 inputs were passed over: line 2" in answer.said and "line 4" in answer.said
    found = [json.loads(line) for line in answer.out.splitlines()]
    assert [one["text"] for one in found] == ["a fine warm film", "dull and cold", "funny and warm"]
    assert [one["label"] for one in found] == ["good", "bad", "good"]
    plain = shell("predict", runs["classify"], "asked.txt", "--best", 1)
    assert [line.split("\t")[0] for line in plain.out.splitlines()] == ["good", "bad", "good"]


def test_predict_reads_tables_without_labels(runs: dict[str, Path], shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "asked.csv").write_text('text\n"dull, cold"\n"warm, fine"\n')
    answer = shell("predict", runs["classify"], "asked.csv", "--json")
    assert [json.loads(line)["label"] for line in answer.out.splitlines()] == ["bad", "good"] and answer.code == 0


def test_predict_tags_and_numbers(runs: dict[str, Path], shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "asked.txt").write_text("leave Natal on 3 November\n")
    found = json.loads(shell("predict", runs["tag"], "asked.txt", "--json").out)
    assert found["tags"] == ["O", "B-origin", "O", "B-date", "I-date"] and found["intent"] == "leave"
    (tmp_path / "asked.txt").write_text("[[1.0, 2.0], [0.5, 0.5]]\n[1, 2]\n[[1, NaN]]\n")
    answer = shell("predict", runs["regress"], "asked.txt", "--json")
    assert answer.code == 3 and "line 2 has 1 channels" in answer.said and "line 3" in answer.said
    assert len(json.loads(answer.out)["numbers"]) == 1


@pytest.mark.parametrize("task", ["classify", "tag", "regress"])
def test_a_run_is_evaluated_and_its_report_is_json(task: str, runs: dict[str, Path], shell: Shell) -> None:
    data = {"classify": "films.csv", "tag": "trips.tsv", "regress": "waves.npz"}[task]
    answer = shell("evaluate", runs[task], runs[task].parent / data, "--json")
    report = json.loads(answer.out)
    assert answer.code == 0 and {"task", "scores", "floors", "headline", "n", "seconds"} <= set(report)
    assert report["headline"] in report["scores"] and report["task"] == task
    assert len(shell("evaluate", runs[task], runs[task].parent / data).out.splitlines()) > 3


def test_check_says_what_is_wrong_with_labelled_data(shell: Shell, tmp_path: Path) -> None:
    rows = ["same words,x"] * 30 + ["other words,y", "more words,y"]
    (tmp_path / "some.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    (tmp_path / "valid.csv").write_text("text,label\nsame words,x\nnever seen,z\n")
    answer = shell("check", "classify", "some.csv", "--valid", "valid.csv", "--json", "--no-timing")
    report = json.loads(answer.out)
    said = " ".join(report["warnings"])
    assert "29 training examples occur twice" in said and "1 of 2 examples of valid are in the training" in said
    assert "the most frequent label has 30" in said and "labels of valid that no training example has: z" in said
    assert report["unknown_words_valid"] == 0.5 and report["labels"] == ["x: 30", "y: 2"]
    timed = json.loads(shell("check", "classify", "some.csv", "--json", "--threads", 1).out)
    assert timed["steps_of_a_pass"] == 1 and timed["seconds_of_a_pass"] > 0 and timed["parameters"] > 1000


def test_check_names_tags_that_go_on_from_nothing(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "some.conll").write_text("a O\nb I-X\n\nc B-X\nd I-X\n\n" * 10)
    report = json.loads(shell("check", "tag", "some.conll", "--json", "--no-timing").out)
    assert any("go on from nothing" in words and "I-X" in words for words in report["warnings"])


def test_check_names_a_constant_and_a_leaking_channel(shell: Shell, tmp_path: Path) -> None:
    y = np.arange(20) % 2
    x = np.random.default_rng(0).normal(size=(20, 6, 3)).astype(np.float32)
    x[:, :, 1], x[:, :, 2] = 5.0, y[:, None]
    np.savez(tmp_path / "some.npz", x=x, y=y)
    said = " ".join(json.loads(shell("check", "classify", "some.npz", "--json", "--no-timing").out)["warnings"])
    assert "channel 2: always the same number" in said and "channel 3 has one mean for each label" in said


def test_folds_are_runs_that_are_put_together(shell: Shell, tmp_path: Path) -> None:
    films(tmp_path)
    command = [
        "train",
        "classify",
        "films.csv",
        "--folds",
        3,
        "--steps",
        6,
        "--hidden",
        4,
        "--out",
        "cv",
        "--threads",
        1,
    ]
    answer = shell(*command, "--json")
    report = json.loads(answer.out)
    each = [
        json.loads((tmp_path / "cv" / f"fold-{k}" / "best" / "assets.json").read_text())["scores"] for k in (1, 2, 3)
    ]
    assert report["folds"]["accuracy"] == [one["accuracy"] for one in each] and report["n"] == 24
    assert report["scores"]["accuracy"] == pytest.approx(np.mean(report["folds"]["accuracy"]))
    tested = [
        json.loads((tmp_path / "cv" / f"fold-{k}" / "data" / "test.json").read_text())["places"] for k in (1, 2, 3)
    ]
    assert sorted(place for part in tested for place in part) == sorted(f"films.csv:{line}" for line in range(2, 26))
    for k, part in zip((1, 2, 3), tested, strict=True):
        for other in ("train", "valid"):
            rest = json.loads((tmp_path / "cv" / f"fold-{k}" / "data" / f"{other}.json").read_text())["places"]
            assert rest and not set(rest) & set(part), "what is tested does not train"
    again = shell(*command, "--json")
    assert json.loads(again.out)["folds"] == report["folds"], "the same command goes on from there"
    assert shell(*command, "--test", "films.csv").code == 2


def test_scores_of_folds_are_means_with_their_deviations() -> None:
    one = {"task": "classify", "headline": "accuracy", "higher_is_better": True, "n": 3, "seconds": 1.0}
    scores_of = lambda accuracy, floor: {**one, "scores": {"accuracy": accuracy}, "floors": {"majority": floor}}  # noqa: E731
    found = folds.together([scores_of(0.2, 0.5), scores_of(0.4, 0.7), scores_of(0.9, 0.6)])
    assert found["scores"]["accuracy"] == pytest.approx(0.5) and found["floors"]["majority"] == pytest.approx(0.6)
    assert found["spread"]["accuracy"] == pytest.approx((0.26 / 3) ** 0.5) and found["n"] == 9
    assert found["folds"]["accuracy"] == [0.2, 0.4, 0.9]


def test_a_synthetic_set_trains_by_its_name(shell: Shell, tmp_path: Path) -> None:
    answer = shell(
        "train", "classify", "synthetic:parity", "--steps", 2, "--hidden", 4, "--out", "run", "--json", "--threads", 1
    )
    assert answer.code == 0 and json.loads(answer.out)["n"] == 1000
    assert shell("train", "classify", "synthetic:nosuch", "--steps", 2, "--out", "other").code == 2


@pytest.mark.parametrize("name", ["classify words", "tag and intent", "regress every step"])
def test_a_stopped_training_goes_on_to_the_same_bits(name: str, tmp_path: Path) -> None:
    class Stop(Exception):  # noqa: N818 - nothing is wrong
        pass

    def until(step: int) -> Callable[..., None]:
        def tell(kind: str, **fields: Any) -> None:
            if kind == "step" and fields["step"] == step:
                raise Stop

        return tell

    task, data, values, _ = MEMBERS[name]
    noisy = {
        "model": {"dropout": 0.3, "input_dropout": 0.2},
        "train": {"rows": 4, "checkpoint_seconds": 1e-6, "patience": 99},
    }
    path, values = data(tmp_path), {**{section: dict(fields) for section, fields in values.items()}, **noisy}

    def train(out: Path, **more: Any) -> None:
        recurra.train(task, path, out=out, settings=values, steps=20, hidden=5, threads=1, **more)

    train(tmp_path / "whole")
    with pytest.raises(Stop):
        train(tmp_path / "parts", tell=until(9))
    train(tmp_path / "parts")
    for file in (
        "best/model.safetensors",
        "checkpoints/step-20/optimizer.safetensors",
        "checkpoints/step-20/model.safetensors",
    ):
        found = [next((tmp_path / run).glob(file.replace("step-20", "step-*20"))) for run in ("whole", "parts")]
        assert found[0].read_bytes() == found[1].read_bytes(), file


# --- sequence to sequence -------------------------------------------------------------------------------------------------


def test_what_is_written_has_the_probability_that_the_model_gives_it(tmp_path: Path) -> None:
    task, _ = made("seq2seq", tmp_path)
    part = task.parts["valid"]
    for row, found in enumerate(task.written(part, Search(width=3))):  # type: ignore[attr-defined]
        for one in found:
            ids = [task.tokens.end, *one.tokens]  # type: ignore[attr-defined]
            xs, lengths = part.inputs.padded(np.array([row]))
            with torch.no_grad():
                logs = task.model(xs, lengths, torch.tensor([ids])).log_softmax(2)[0]
            said = [*one.tokens, *[task.tokens.end] * one.ended]  # type: ignore[attr-defined]
            whole = float(sum(logs[t, token] for t, token in enumerate(said)))
            assert one.log_probability == pytest.approx(whole, abs=1e-3)
            assert one.score == pytest.approx(whole / ((5 + len(said)) / 6) ** task.options.length_penalty, abs=1e-3)


def test_scores_of_pairs_are_of_what_the_network_writes_alone(tmp_path: Path) -> None:
    path, settings = pairs(tmp_path), {**QUICK, "data": SIDES}
    task = recurra.train(
        "seq2seq", path, valid=path, out=tmp_path / "run", settings=settings, steps=500, hidden=32, threads=1
    )
    report = task.evaluate([path])
    lines = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    right = [task.predict(said)["written"] == turned for said, turned in lines]
    assert report["scores"]["exact"] == pytest.approx(sum(right) / len(right)) and sum(right) > 10
    assert report["floors"]["copy of the source"] == sum(a == b for a, b in lines) / len(lines)
    assert report["headline"] == "exact" and set(report["scores"]) >= {"bleu", "chrf", "rouge_l", "nats_per_token"}


@pytest.mark.parametrize("schedule", ["linear", "exponential", "inverse-sigmoid"])
def test_a_decoder_reads_more_and_more_of_its_own(schedule: str) -> None:
    shares = [own_share(schedule, step, 1000, 0.3) for step in range(0, 1001, 10)]
    assert shares == sorted(shares) and shares[0] < 0.01 and shares[-1] == pytest.approx(0.3)
    assert own_share("none", 1000, 1000, 0.3) == own_share(schedule, 1000, 1000, 0.0) == 0.0
    halves = {"linear": 0.15, "exponential": 1 - 0.7**0.5}
    if schedule in halves:
        assert shares[50] == pytest.approx(halves[schedule])
    else:  # k / (k + exp(step / k)) of one k
        k = next(k for k in np.arange(100, 300, 0.001) if k / (k + np.exp(1000 / k)) >= 0.7)
        assert shares[50] == pytest.approx(1 - k / (k + np.exp(500 / k)), abs=1e-4)


def test_texts_that_are_too_long_are_left_out_of_training_and_said(tmp_path: Path) -> None:
    task, _ = made("seq2seq", tmp_path)
    part = task.parts["train"]
    task.options = replace(task.options, longest=8)
    fits = sum(len(task.tokens.encode(text)) <= 8 for (text,) in part.examples.targets or ())  # type: ignore[attr-defined]
    rows = sum(batch.rows for batch in itertools.islice(task.batches(), task.steps_per_epoch()))
    assert rows == fits < len(part.examples)
    assert f"{len(part.examples) - fits} texts of more than 8 tokens are left out" in " ".join(task.notes())


@pytest.mark.parametrize("image", ["start", "every-step", "attend"])
@pytest.mark.parametrize("given", ["pictures", "features"])
def test_a_network_says_what_it_sees(given: str, image: str, tmp_path: Path) -> None:
    paths = [painted(tmp_path)] + [tmp_path / "sheets.npy"] * (given == "features")
    task = recurra.train(
        "caption", paths, valid=paths, out=tmp_path / "run", steps=150, hidden=32, threads=1,
        settings={**QUICK, "task": {"image": image}, "train": {"rows": 4}},
    )  # fmt: skip
    report = task.evaluate(paths)
    assert report["scores"]["exact"] == 1.0 and report["floors"]["most frequent"] < 0.5
    asked = RED if given == "pictures" else [COLOURS["red"]] * 2
    assert task.predict(asked)["written"] == "a red sheet"
    if given == "pictures":
        assert task.predict(str(tmp_path / "1.png"))["written"] == "a green sheet"
        told = list(task.answers([f"{tmp_path / '2.png'}", f"{tmp_path / 'none.png'}"], 1))
        assert told[0]["written"] == "a blue sheet" and isinstance(told[1], DataError)  # type: ignore[index]


def test_pictures_are_surveyed(shell: Shell, tmp_path: Path) -> None:
    told = shell("check", "caption", painted(tmp_path), "--threads", "1", "--json")
    report = json.loads(told.out)
    assert report["pixels"] == "8 x 16" and report["longest_target_tokens"] == 3 and report["seconds_of_a_pass"] > 0
    assert any("occur twice or more" in one for one in report["warnings"])


def test_where_a_network_looked_is_part_of_its_answer(tmp_path: Path) -> None:
    task, _ = made("caption", tmp_path)
    examples = task.parts["valid"].examples
    answer = next(task.answer(examples, 1, task.search(look=True)))
    look = answer["look"]
    assert look.weights.shape == (len(look.written), 2) and look.weights.sum(1) == pytest.approx(1.0)
    assert np.array_equal(look.source.values, examples.inputs[0]) and look.source.grid == (1, 2)
    blind, _ = made("caption from the start", Path(tempfile.mkdtemp(dir=tmp_path)))
    with pytest.raises(UsageError, match="without attention"):
        next(blind.answer(blind.parts["valid"].examples, 1, blind.search(look=True)))
    with pytest.raises(UsageError, match=r"by beam.* was trained to regress"):
        made("regress", Path(tempfile.mkdtemp(dir=tmp_path)))[0].search(width=3)


LAYERS = [name for name, kind in CELLS.items() if not issubclass(kind, Latent)]  # the others are whole models


@pytest.mark.parametrize("feed", [False, True])
@pytest.mark.parametrize("cell", LAYERS)
def test_every_cell_reads_and_writes(cell: str, feed: bool, tmp_path: Path) -> None:
    """Two layers of it on each side, whatever its outputs and its state are like."""
    task = recurra.train(
        "seq2seq", pairs(tmp_path), out=tmp_path / "run", cell=cell, hidden=6, layers=2, steps=2, threads=1,
        settings={"data": SIDES, "task": {"feed": feed}, "train": {"rows": 4}},
    )  # fmt: skip
    answer = next(task.answers(["two one"], 1, task.search(look=True)))
    assert not isinstance(answer, DataError) and answer["look"].weights.sum(1) == pytest.approx(1.0)


@pytest.mark.parametrize("side", ["cell", "decoder"])
@pytest.mark.parametrize("cell", sorted(set(CELLS) - set(LAYERS)))
def test_a_whole_model_is_no_part_of_one_that_writes(cell: str, side: str, tmp_path: Path) -> None:
    given = {"cell": cell} if side == "cell" else {"settings": {"data": SIDES, "task": {"decoder": cell}}}
    with pytest.raises(UsageError, match="whole model"):
        recurra.train(
            "seq2seq", pairs(tmp_path), out=tmp_path / "run", steps=1, **{"settings": {"data": SIDES}, **given}
        )


@pytest.mark.parametrize("kind", ["seq2seq", "seq2seq in byte pairs", "seq2seq in words, apart"])
def test_texts_begin_and_hold_what_was_asked_for(kind: str, tmp_path: Path) -> None:
    task, question = made(kind, tmp_path)
    wanted = {"prefix": "two", "phrases": ("one",), "width": 12}
    answer = next(task.answers([question], 12, task.search(**wanted)))
    assert not isinstance(answer, DataError)
    for one in answer["best"]:
        assert one["written"].startswith("two")
        assert "one" in one["written"][2:] or one["unmet"] == 1
    drawn = [next(task.answers([question], 1, task.search(temperature=1.0, seed=seed))) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(UsageError, match="leave out the temperature"):
        task.search(temperature=1.0, prefix="two")
    with pytest.raises(UsageError, match="give a temperature too"):
        task.search(top_k=3)
    with torch.no_grad():
        task.model.decoder.readout.bias[task.tokens.encode("two")[0]] = -torch.inf  # type: ignore[attr-defined]
    for look in (False, True):
        with pytest.raises(UsageError, match="nothing can be written with this prefix"):
            list(task.answers([question], 1, task.search(prefix="two", look=look)))


def test_a_text_that_does_not_end_is_cut_and_says_so(tmp_path: Path) -> None:
    task, question = made("seq2seq", tmp_path)
    with torch.no_grad():
        task.model.decoder.readout.bias[task.tokens.end] = -100.0  # type: ignore[attr-defined]
    answer = next(task.answers([question]))
    assert not isinstance(answer, DataError) and answer["unfinished"] == task.limit  # type: ignore[attr-defined]
    assert task.shown(answer).endswith(f"[cut after {task.limit} tokens: it did not end]")  # type: ignore[attr-defined]


def test_each_of_several_captions_is_learnt_and_any_of_them_is_right(tmp_path: Path) -> None:
    path = tmp_path / "several.jsonl"
    rows = [{"said": f"number {at}", "round": [f"{at}", f"no. {at}"]} for at in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"task": {"name": "seq2seq"}, "data": SIDES, "model": {"hidden": 5}, "train": {"rows": 8}}
    (tmp_path / "data").mkdir()
    task = TASKS["seq2seq"].prepare(build(values), Sources([path]), tmp_path / "data")
    assert isinstance(task, Seq2Seq)
    task.build(task.settle(build(values), 1.0))
    train, seen = task.parts["train"], Counter()  # type: ignore[var-annotated]
    for batch in itertools.islice(task.batches(), task.steps_per_epoch()):
        for source, length, row, size in zip(
            batch.inputs, batch.lengths, batch.targets[1], batch.targets[2], strict=True
        ):
            text = task.inputs.tokens.decode(source[:length].numpy())  # type: ignore[union-attr]
            seen[text, task.tokens.decode(row[:size].numpy())] += 1
    both = zip(train.examples.inputs, train.examples.targets or (), strict=True)
    assert set(seen) == {(one, text) for one, texts in both for text in texts}
    assert set(seen.values()) == {1}


@pytest.mark.parametrize("kind", ["seq2seq", "seq2seq in byte pairs", "caption"])
def test_what_writes_starts_from_the_frequencies_of_its_tokens(kind: str, tmp_path: Path) -> None:
    task, _ = made(kind, tmp_path)
    counts = Counter[int]()
    for texts in task.parts["train"].examples.targets:  # type: ignore[attr-defined]
        for text in texts:
            counts.update([*task.tokens.encode(text).tolist(), task.tokens.end])  # type: ignore[attr-defined]
    wanted = torch.tensor([counts[token] + 1.0 for token in range(task.tokens.size)])  # type: ignore[attr-defined]
    found = task.model.decoder.readout.bias.exp()  # type: ignore[attr-defined]
    torch.testing.assert_close(found, wanted / wanted.sum())


def test_a_pass_shows_each_picture_once_with_one_of_its_captions(tmp_path: Path) -> None:
    rows = [{"place": at, "caption": [f"number {at}", f"no {at}", f"{at}"][: 1 + at % 3]} for at in range(20)]
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    np.save(tmp_path / "seen.npy", np.arange(20, dtype=np.float32)[:, None, None].repeat(3, 2))
    (tmp_path / "data").mkdir()
    config = build({"task": {"name": "caption"}, "train": {"rows": 8}, "model": {"hidden": 5}})
    task = TASKS["caption"].prepare(
        config, Sources([tmp_path / "said.jsonl", tmp_path / "seen.npy"]), tmp_path / "data"
    )
    task.build(task.settle(config, 1.0))
    train, met = task.parts["train"], Counter[str]()  # type: ignore[attr-defined]
    told = {said for texts in train.examples.targets for said in texts}
    for begin in range(0, 20 * task.steps_per_epoch(), task.steps_per_epoch()):
        numbers = []
        for batch in itertools.islice(task.batches(begin), task.steps_per_epoch()):
            for seen, row, size in zip(batch.inputs, batch.targets[1], batch.targets[2], strict=True):
                said = task.tokens.decode(row[:size].numpy())  # type: ignore[attr-defined]
                numbers.append(int(said.split()[-1]))
                met[said] += 1
                assert any(torch.allclose(seen, one) for one in task.read(train, np.array([0]))[0]) == (  # type: ignore[attr-defined]
                    said in train.examples.targets[0]
                )
        assert sorted(numbers) == sorted(int(texts[0].split()[-1]) for texts in train.examples.targets)
    assert set(met) == told
    first, again = (next(iter(task.batches(3))) for _ in range(2))
    assert torch.equal(first.targets[0], again.targets[0])


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"task": {"attention": "dot"}}, "dot attention compares"),
        ({"task": {"attention": "looking"}}, "task.attention was 'looking'"),
        ({"task": {"pointer": True, "vocabulary": "separate"}}, "both sides need the same ones"),
        ({"task": {"pointer": True, "attention": "none"}}, "take an attention"),
        ({"task": {"attention": "none", "coverage": 1.0}}, "are of attention"),
        ({"task": {"smoothing": 2.0}}, "wanted a number from 0 to 0.99"),
        ({"task": {"decoder": "lost"}}, "no cell called 'lost'"),
        ({"task": {"beam": 0}}, "a beam of width 0"),
        ({"task": {"coverage_penalty": -1.0}}, "coverage_penalty was -1"),
        ({"task": {"context": 2}}, "holds no dialogues"),
        ({"data": {**SIDES, "separator": "|"}}, "each text has one other text"),
    ],
)
def test_a_wrong_call_of_pairs_is_refused(values: dict[str, Any], wanted: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=wanted):
        settings = {"data": SIDES, **values}
        recurra.train("seq2seq", pairs(tmp_path), out=tmp_path / "run", settings=settings, steps=1, hidden=4, threads=1)
