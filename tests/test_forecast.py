"""The forecast task: it learns what can be learnt, beats its floors there, and says so where it does not."""

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

import recurra
from recurra import storage, testing
from recurra.config import build
from recurra.data.panel import panel
from recurra.errors import DataError, UsageError
from recurra.tasks.base import Sources
from recurra.tasks.forecast import Forecast
from recurra.tasks.forecast_ways import options_of

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
SMALL = {"model": {"hidden": 8, "dropout": 0.0}, "train": {"steps": 4, "rows": 8}}


def table(path: Path, names: list[str], rows: Any) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([names, *rows])
    return path


def waves(path: Path, series: int = 3, steps: int = 120, begin: int = 0) -> Path:
    """Seasons of 12 steps, each series on its own level."""
    rng = np.random.default_rng(0)
    rows = [
        (f"s{k}", t, 100 * k + (k + 1) * (np.sin(2 * np.pi * t / 12) + 0.05 * rng.normal()))
        for k in range(series)
        for t in range(begin, begin + steps)
    ]
    return table(path, ["unique_id", "ds", "y"], rows)


def music(path: Path, series: int = 4, steps: int = 30) -> Path:
    """Three keys, each after the other."""
    rows = [(f"m{k}", t, *((t + k) % 3 == key for key in range(3))) for k in range(series) for t in range(steps)]
    return table(path, ["unique_id", "ds", "a", "b", "c"], [[*row[:2], *map(int, row[2:])] for row in rows])


def prepared(folder: Path, data: Path, task: Mapping[str, Any], **sections: Any) -> Forecast:
    values = {**SMALL, **sections, "task": {"name": "forecast", **task}}
    config = build(values)
    (folder / "data").mkdir()
    made = Forecast.prepare(config, Sources([data]), folder / "data")
    torch.manual_seed(0)
    made.build(made.settle(config, 1.0))
    made.model.eval()
    return made


KINDS: dict[str, dict[str, Any]] = {
    "segments": {"context": 24, "horizon": 12},
    "direct quantiles": {"context": 24, "horizon": 6, "head": "direct", "output": "quantiles"},
    "recurrent gaussian": {"context": 24, "horizon": 3, "head": "recurrent", "output": "gaussian", "scale": "series"},
    "student's t of logarithms": {"context": 24, "horizon": 6, "output": "student-t", "log": True},
    "binary": {"output": "binary"},
    "next": {"output": "next"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("law", testing.TASK_LAWS, ids=lambda law: law.__name__)
def test_the_forecast_task_keeps_the_task_laws(kind: str, law: Callable, tmp_path: Path) -> None:
    data = music(tmp_path / "m.csv") if kind == "binary" else waves(tmp_path / "w.csv")
    if "log" in KINDS[kind]:
        data.write_text(data.read_text().replace(",-", ",").replace("-", ""))
    law(prepared(tmp_path, data, KINDS[kind]), str(data), tmp_path)


@pytest.mark.parametrize("kind", ["segments", "direct quantiles", "recurrent gaussian"])
def test_seasons_are_learnt_better_than_by_the_floors(tmp_path: Path, kind: str) -> None:
    train, test = waves(tmp_path / "train.csv", steps=180), waves(tmp_path / "test.csv", steps=36, begin=180)
    settings = {"task": KINDS[kind], "model": {"hidden": 24, "dropout": 0.0}, "optimizer": {"rate": 5e-3}}
    task = recurra.train("forecast", train, test=test, out=tmp_path / "run", settings=settings, cell="gru", steps=250)
    report = task.evaluate()
    assert report["scores"]["mase"] < 0.95 * min(report["floors"].values()), report["scores"]
    assert report["season"] == 12 and not report["warnings"]
    assert "coverage_80" not in report["scores"] or 0.5 < report["scores"]["coverage_80"] <= 1
    again = recurra.load(tmp_path / "run").evaluate([test])
    assert again["scores"]["mse"] == pytest.approx(report["scores"]["mse"], rel=1e-4), (
        "a test file goes on from training"
    )
    rows = task.predict(str(test))
    horizon = KINDS[kind]["horizon"]
    assert len(rows) == 3 * horizon and [row["ds"] for row in rows[:2]] == ["216", "217"]
    for row in rows:
        k, t = int(row["unique_id"][1]), int(row["ds"])
        assert abs(row["mean"] - 100 * k - (k + 1) * np.sin(2 * np.pi * t / 12)) < 0.6 * (k + 1), (
            "in the units of its series"
        )
    assert all(text for text in (task.shown(rows[0]), *task.lines(report)))


def test_every_window_of_the_test_part_is_scored_and_none_reads_ahead(tmp_path: Path) -> None:
    data = waves(tmp_path / "w.csv", series=2, steps=100)
    task = prepared(
        tmp_path, data, {"context": 10, "horizon": 5, "train_steps": 50, "valid_steps": 20, "test_steps": 20}
    )
    report = task.evaluate()
    assert report["data"] == "test" and report["n"] == 2 * (20 - 5 + 1)
    assert any("last 20 steps lie after" in note for note in task.notes())
    found = panel([data])
    changed = found.values.copy()
    changed[90:100] += 50
    changed[190:] += 50
    rows = [(name, t, changed[100 * k + t, 0]) for k, name in enumerate(found.names) for t in range(100)]
    other = table(tmp_path / "other.csv", ["unique_id", "ds", "y"], rows)
    (tmp_path / "b").mkdir()
    again = prepared(
        tmp_path / "b", other, {"context": 10, "horizon": 5, "train_steps": 50, "valid_steps": 20, "test_steps": 20}
    )
    assert again.evaluate()["scores"] == report["scores"], "what lies after the test part changes nothing"


def test_scales_come_from_training_alone(tmp_path: Path) -> None:
    data = table(tmp_path / "t.csv", ["ds", "y"], [(t, t % 5 if t < 80 else 1000 * t) for t in range(100)])
    task = prepared(tmp_path, data, {"context": 10, "horizon": 5, "valid_steps": 20})
    mean, deviation = task.known["scales"]["units"]["series"]
    np.testing.assert_allclose([mean[0], deviation[0]], [2, np.std(range(5))], rtol=1e-6)


def test_the_loss_counts_nothing_that_was_filled(tmp_path: Path) -> None:
    rows = [("a", t, t % 7 if t % 5 else "") for t in range(1, 80)]
    data = table(tmp_path / "t.csv", ["unique_id", "ds", "y"], rows)
    task = prepared(tmp_path, data, {"context": 8, "horizon": 4})
    batch = next(task.batches())
    values, seen = batch.targets.values, batch.targets.seen
    assert 0 < float((1 - seen).sum()) and batch.weight == float(seen.sum())
    with torch.no_grad():
        before = task.loss(batch, ())[0]
        values += (1 - seen) * 100
        torch.testing.assert_close(task.loss(batch, ())[0], before)
        values += seen * 100
        assert task.loss(batch, ())[0] > before + 50


def test_a_short_series_has_a_validation_part_as_long_as_its_horizon(tmp_path: Path) -> None:
    data = table(tmp_path / "t.csv", ["ds", "y"], [(t, t % 4) for t in range(36)])
    for number, horizon in enumerate([None, 8]):
        (tmp_path / str(number)).mkdir()
        task = prepared(tmp_path / str(number), data, {} if horizon is None else {"horizon": horizon})
        assert task.known["horizon"] == (horizon or 4) and task.validate().loss > 0


@pytest.mark.parametrize("what", ["known", "static", "calendar"])
def test_covariates_are_used(tmp_path: Path, what: str) -> None:
    """y is what the covariate says and nothing else, so that no floor can reach it."""
    rng = np.random.default_rng(1)
    if what == "known":
        promo = rng.integers(0, 2, 300)
        rows = [("a", t, 10 * promo[t] if t < 290 else "", promo[t]) for t in range(300)]
    elif what == "static":
        rows = [(f"s{k}", t, 10 * (k % 2) * (t % 2), k % 2) for k in range(6) for t in range(60)]
    else:
        days = np.arange("2024-01-01", "2024-12-01", dtype="datetime64[D]")
        rows = [("a", str(day), 10 * (day.astype(int) % 7 == 2), 0) for day in days]
    data = table(tmp_path / "t.csv", ["unique_id", "ds", "y", "x"], rows)
    task = {"context": 2, "horizon": 4, "head": "direct", "scale": "series", "linear": False, "season": 3}
    task |= {"calendar": True} if what == "calendar" else {what: "x"}
    settings = {"task": task, "model": {"hidden": 24, "dropout": 0.0}, "optimizer": {"rate": 2e-2, "warmup": 5}}
    found = recurra.train("forecast", data, out=tmp_path / "run", settings=settings, cell="gru", steps=200)
    assert found.evaluate()["scores"]["mae"] < (1.0 if what == "calendar" else 0.4)
    if what == "known":
        told = [row["mean"] for row in found.predict(str(data))]
        np.testing.assert_allclose(told, 10 * promo[290:294], atol=1.5)


def test_a_planted_anomaly_is_the_first_that_is_named(tmp_path: Path) -> None:
    train = waves(tmp_path / "train.csv", steps=180)
    rows = [line.split(",") for line in waves(tmp_path / "t.csv", steps=60, begin=180).read_text().splitlines()[1:]]
    rows[70][2] = str(float(rows[70][2]) + 6)
    test = table(tmp_path / "test.csv", ["unique_id", "ds", "y"], rows)
    settings = {"task": KINDS["segments"], "model": {"hidden": 16, "dropout": 0.0}, "optimizer": {"rate": 5e-3}}
    task = recurra.train("forecast", train, test=test, out=tmp_path / "run", settings=settings, steps=150)
    first = task.evaluate()["unusual"][0]
    assert (first["unique_id"], first["ds"]) == (rows[70][0], rows[70][1])
    step = task.anomalies(test)[0]
    assert (step["unique_id"], step["ds"]) == (rows[70][0], rows[70][1]) and step["score"] > 3


def test_music_is_learnt_and_the_first_frame_is_not_counted(tmp_path: Path) -> None:
    data, test = music(tmp_path / "m.csv"), music(tmp_path / "t.csv", series=2, steps=20)
    settings = {"task": {"output": "binary"}, "model": {"hidden": 24, "dropout": 0.0, "input_dropout": 0.0}}
    settings["optimizer"] = {"rate": 2e-2, "warmup": 5}
    task = recurra.train("forecast", data, test=test, out=tmp_path / "run", settings=settings, steps=150)
    report = task.evaluate()
    assert report["n"] == 2 * 19 and report["scores"]["nats_per_step"] < 0.3 < min(report["floors"].values())
    rows = task.predict(str(test))
    assert len(rows) == 6 and [row["probability"] > 0.5 for row in rows[:3]] == [False, False, True]
    values = panel([test]).values[:20].astype(np.float32)
    model: Any = task.model
    scores, state, nats = None, model.initial_state(1), 0.0
    with torch.no_grad():
        for t in range(19):
            scores, state = model(torch.from_numpy(values[t : t + 1]), state)
            p = scores[0].sigmoid().numpy()
            nats -= np.log(np.where(values[t + 1] > 0, p, 1 - p)).sum()
    assert report["scores"]["nats_per_step"] * 19 == pytest.approx(nats, rel=0.3)


def gappy(path: Path) -> Path:
    """Two series of two variables, on levels and scales far apart, with gaps: one at the head, one before the test part."""
    rng = np.random.default_rng(1)
    rows: list[Any] = []
    for k in range(2):
        values = (1000.0 * k + rng.normal(0, 10.0**k, (40, 2)).cumsum(0)).astype(object)
        for at, column in ((0, 1), (1, 1), (17, 0), (33, 0), (34, 1)):
            values[at, column] = ""
        rows += [(f"s{k}", t, *values[t]) for t in range(40)]
    return table(path, ["unique_id", "ds", "a", "b"], rows)


def test_the_next_value_is_scored_as_by_hand_and_gaps_count_nothing(tmp_path: Path) -> None:
    data = gappy(tmp_path / "g.csv")
    task = prepared(tmp_path, data, {"output": "next", "target": "a,b", "test_steps": 10, "valid_steps": 5})
    report = task.evaluate()
    model, found = cast(Any, task.model), panel([data], task.way.options.columns())
    ours, last, mean, scaled = ([] for _ in range(4))
    for k in range(2):
        values, seen = (one[40 * k : 40 * k + 40] for one in (found.values, found.seen))
        train = [values[:25, v][seen[:25, v]] for v in range(2)]
        level, spread = (np.array([fn(one) for one in train]) for fn in (np.mean, np.std))
        varied = np.array([values[30:, v][seen[30:, v]].std() for v in range(2)])
        state = model.initial_state(1)
        for t in range(39):
            with torch.no_grad():
                said, state = model(torch.tensor((values[t] - level) / spread)[None].float(), state)
            there = seen[t + 1] & (t + 1 >= 30)
            truth = values[t + 1]
            ours += (said[0].numpy() * spread + level - truth)[there].tolist()
            scaled += ((said[0].numpy() * spread + level - truth) / varied)[there].tolist()
            last += (values[t] - truth)[there].tolist()
            mean += (level - truth)[there].tolist()
    assert report["n"] == len(ours) == 2 * 18
    scores, floors = report["scores"], report["floor_scores"]
    assert scores["mse"] == pytest.approx(np.square(ours).mean(), rel=1e-4)
    assert scores["rmse"] == pytest.approx(np.sqrt(np.square(ours).mean()), rel=1e-4)
    assert scores["mae"] == pytest.approx(np.abs(ours).mean(), rel=1e-4)
    assert scores["nmse"] == pytest.approx(np.square(scaled).mean(), rel=1e-4)
    assert floors["last value"]["mse"] == pytest.approx(np.square(last).mean())
    assert floors["mean"]["mae"] == pytest.approx(np.abs(mean).mean())
    answers = task.predict(str(data))
    assert [(one["unique_id"], one["variable"], one["filled"]) for one in answers] == [
        (f"s{k}", name, count) for k in range(2) for name, count in (("a", 2), ("b", 3))
    ]


def test_no_gradient_comes_from_what_was_filled_and_the_first_value_is_not_told_beforehand(tmp_path: Path) -> None:
    task = prepared(tmp_path, gappy(tmp_path / "g.csv"), {"output": "next", "target": "a,b", "valid_steps": 5})
    counted, batches = 0, task.batches()
    for _ in range(task.steps_per_epoch()):
        batch = next(batches)
        there = ~batch.targets.isnan()
        if batch.lengths is not None:
            there &= (torch.arange(batch.time) < batch.lengths[:, None])[..., None]
        counted += int(there.sum())
        state = cast(Any, task.model).initial_state(batch.rows)
        said, _ = cast(Any, task.model).unroll(batch.inputs, state, batch.lengths)
        wanted = ((said - batch.targets)[there] ** 2).sum() / there.sum()
        torch.testing.assert_close(task.loss(batch, state)[0], wanted)
    # 34 steps each, a gap in the middle, and of the second variable two at the head and the first value that it has
    assert counted == 2 * (33 + 34 - 1 - 1 - 2 + 1 - 1)


LEARN = [
    *(
        ("rtrl", "elman"),
        ("snap1", "gru"),
        ("uoro", "elman"),
        ("kf-rtrl", "elman"),
        ("rflo", "leaky"),
        ("eprop", "lstm"),
    ),
    *(("dni", "gru"), ("forward-gradient", "elman"), ("bptt", "lstm"), ("snapn", "elman")),
]


@pytest.mark.parametrize(("learner", "cell"), LEARN)
def test_every_learner_learns_the_next_value(tmp_path: Path, learner: str, cell: str) -> None:
    data = table(tmp_path / "t.csv", ["y"], [(10 + (5, -4)[t % 2],) for t in range(120)])
    settings = {
        "task": {"output": "next"},
        "train": {"chunk": 6, "rows": 2, "validations": 1},
        "optimizer": {"rate": 6e-2},
        "learner": {"directions": 20} if learner == "forward-gradient" else {},
    }
    task = recurra.train(
        "forecast",
        data,
        out=tmp_path / "run",
        settings=settings,
        learner=learner,
        cell=cell,
        hidden=5,
        steps=60,
        seed=1,
    )
    report = task.evaluate()
    assert report["scores"]["nmse"] < 0.5, report["scores"]
    assert 0.98 < report["floors"]["mean"] < 1.1 and report["floors"]["last value"] == pytest.approx(4)


def test_answers_to_lines_are_forecasts_and_bad_lines_are_passed_over(tmp_path: Path) -> None:
    task = prepared(tmp_path, waves(tmp_path / "w.csv"), {"context": 6, "horizon": 2})
    answers = list(task.answers(["[1, 2, 3]", "none", "[[1], [2]]", "[[1, 2], [3, 4]]", "[]", '["a"]']))
    good = [one for one in answers if isinstance(one, dict)]
    assert [one["unique_id"] for one in good] == ["line 1"] * 2 + ["line 3"] * 2 and good[0]["ds"] == "3"
    assert [str(one)[:6] for one in answers if isinstance(one, DataError)] == ["line 2", "line 4", "line 5", "line 6"]
    assert json.dumps(good)


def test_the_survey_draws_the_window_and_warns(tmp_path: Path) -> None:
    data = table(
        tmp_path / "t.csv",
        ["unique_id", "ds", "y"],
        [("flat", t, 1) for t in range(30)] + [("b", t, t) for t in range(60)],
    )
    config = build({"task": {"name": "forecast", "context": 40, "horizon": 5}})
    report = Forecast.survey(config, Sources([data]))
    assert report["series"] == 2 and report["steps"] == 90 and "#" in report["first window"]
    assert any("never changes" in words for words in report["warnings"])
    assert any("fewer than 45 steps" in words for words in report["warnings"])


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"horizn": 3}, "task.horizn is not an option"),
        ({"horizon": 0}, "task.horizon was 0"),
        ({"head": "recurrent", "output": "quantiles"}, "cannot be fed back"),
        ({"head": "recurrent", "linear": True}, "leave it out with task.head=recurrent"),
        ({"levels": (0.9, 0.1)}, "from low to high"),
        ({"train_steps": 20}, "without task.valid_steps"),
        ({"valid_steps": 120}, "the last 120 are cut off for validation and test"),
        ({"log": True}, "wants values above 0"),
        ({"output": "binary"}, "wants zeros and ones"),
        ({"output": "binary", "horizon": 3}, "leave out task.horizon"),
        ({"output": "next", "loss": "mse"}, "leave out task.loss"),
        ({"output": "next", "calendar": True}, "leave out task.calendar"),
        ({"horizon": 100}, "no series has a horizon of 100 steps"),
        ({"calendar": True}, "wants dates"),
        ({"segment": 30, "context": 20}, "task.segment was 30"),
        ({"frequency": "1h"}, "plain numbers"),
    ],
)
def test_what_cannot_be_is_refused_in_words(tmp_path: Path, task: dict[str, Any], words: str) -> None:
    with pytest.raises((DataError, UsageError)) as caught:
        made = prepared(tmp_path, waves(tmp_path / "w.csv"), task)
        next(made.batches())
        made.validate()
    assert words in str(caught.value)


def test_other_files_are_refused_in_words(tmp_path: Path) -> None:
    task = prepared(tmp_path, waves(tmp_path / "w.csv"), {"context": 6, "horizon": 2})
    wide = table(tmp_path / "wide.csv", ["unique_id", "ds", "a"], [("z", 1, 2), ("z", 2, 3)])
    with pytest.raises(UsageError, match="no column 'y'"):
        task.predict(str(wide))
    dated = table(tmp_path / "dated.csv", ["unique_id", "ds", "y"], [("a", "2024-01-01", 1), ("a", "2024-01-02", 2)])
    with pytest.raises(DataError, match="such as '2024-01-01', written as 'steps'"):
        task.predict(str(dated))
    with pytest.raises(DataError, match="no series has a horizon"):
        task.evaluate([table(tmp_path / "short.csv", ["unique_id", "ds", "y"], [("z", 1, 1), ("z", 2, 2)])])
    with pytest.raises(UsageError, match="two ways to say one thing"):
        config = build({"task": {"name": "forecast", "valid_steps": 3}})
        Forecast.prepare(config, Sources([tmp_path / "w.csv"], [tmp_path / "w.csv"]), tmp_path)


def test_no_context_no_floor_and_no_scale_reads_ahead_of_a_gap(tmp_path: Path) -> None:
    """What comes after the missing steps 58, 59 and 78, 79 is moved far up: what was known before stays as it was."""
    found = []
    for number, up in enumerate((0, 1000)):
        (tmp_path / str(number)).mkdir()
        rows = [("a", t, "" if t in (58, 59, 78, 79) else t % 7 + up * (t >= 80)) for t in range(100)]
        data = table(tmp_path / str(number) / "t.csv", ["unique_id", "ds", "y"], rows)
        parts = {"train_steps": 60, "valid_steps": 20, "test_steps": 20}
        task = prepared(tmp_path / str(number), data, {"context": 10, "horizon": 5, **parts})
        windows: Any = task.way.windows(task.data.panel, task.data.spans["test"])
        batch = windows.take(np.array([0]))
        usual = task.way._usual(task.data.panel, windows)
        found.append((batch.inputs.past, task.known["scales"], usual.tolist()))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1:] == found[1][1:]


def test_a_series_is_not_taken_for_one_of_training_because_it_has_no_name(tmp_path: Path) -> None:
    rows = [(t, np.sin(t)) for t in range(100)]
    task = prepared(
        tmp_path, table(tmp_path / "t.csv", ["ds", "y"], rows), {"context": 10, "horizon": 2, "scale": "series"}
    )
    far = [1e5 + 1000 * float(np.sin(t)) for t in range(500, 560)]
    file = table(tmp_path / "far.csv", ["ds", "y"], zip(range(500, 560), far, strict=True))
    said = [[row["mean"] for row in task.predict(given)] for given in (str(file), np.array(far))]
    said.append([row["mean"] for row in task.answers([json.dumps(far)])])
    assert said[0] == said[1] == said[2] and min(said[0]) > 9e4
    np.savez(tmp_path / "a.npz", values=np.random.default_rng(0).normal(size=(200, 1)), bounds=np.array([0, 100, 200]))
    np.savez(
        tmp_path / "b.npz",
        values=1e4 + 1000 * np.random.default_rng(1).normal(size=(200, 1)),
        bounds=np.array([0, 100, 200]),
    )
    (tmp_path / "arrays").mkdir()
    config = build({**SMALL, "task": {"name": "forecast", "context": 10, "horizon": 2}})
    arrays = Forecast.prepare(config, Sources([tmp_path / "a.npz"], (), [tmp_path / "b.npz"]), tmp_path / "arrays")
    arrays.build(arrays.settle(config, 1.0))
    scales = arrays.way._scales("units", arrays.data.panel)
    assert (scales.deviation[:2] < 2).all() and (scales.deviation[2:] > 200).all()
    assert any("do not go on" in note for note in arrays.notes())


def test_a_series_of_training_keeps_its_scale_where_it_goes_on_or_is_named(tmp_path: Path) -> None:
    train, more = waves(tmp_path / "w.csv"), waves(tmp_path / "more.csv", steps=40, begin=120)
    task = prepared(tmp_path, train, {"context": 6, "horizon": 2})
    learnt = [task.known["scales"]["units"][f"s{k}"][1] for k in range(3)]
    panels = [task._panel([more]), task._after_ours(task._panel([more]))[0]]
    for found in panels:
        np.testing.assert_array_equal(task.way._scales("units", found).deviation, learnt)


def test_files_are_read_as_those_of_training_were(tmp_path: Path) -> None:
    dates = [f"{day:02d}/{month:02d}/2023" for month in (1, 2, 3) for day in range(1, 29)]
    rows = [(date, n % 7) for n, date in enumerate(dates)]
    data = table(tmp_path / "t.csv", ["date", "y"], rows)
    task = prepared(tmp_path, data, {"context": 6, "horizon": 2, "frequency": "1d"})
    short = table(tmp_path / "s.csv", ["date", "y", "id"], [(f"0{day}/08/2023", day, "x") for day in range(1, 9)])
    assert [row["ds"] for row in task.predict(str(short))] == ["2023-08-09", "2023-08-10"]
    other = Forecast.restore(task.config, task_folder(task, tmp_path / "kept"))
    assert other._panel([short]).stamp(0, 0) == "2023-08-01"


def task_folder(task: Forecast, folder: Path) -> Path:
    folder.mkdir()
    task.write_assets(folder)
    return folder


def test_what_was_filled_is_said_in_reports_and_answers(tmp_path: Path) -> None:
    task = prepared(tmp_path, waves(tmp_path / "w.csv"), {"context": 6, "horizon": 2})
    rows = [("s0", t, "" if t in (5, 9) else t) for t in range(40) if t != 7]
    gaps = table(tmp_path / "g.csv", ["unique_id", "ds", "y"], rows)
    report = task.evaluate([gaps])
    assert any("1 steps were not there" in note for note in report["notes"])
    assert any("do not go on from it" in note for note in report["notes"]) and "3 of 40 values" in str(
        task.lines(report)
    )
    assert [row["filled"] for row in task.predict(str(gaps))] == [3, 3]
    assert "filled" not in task.predict(str(tmp_path / "w.csv"))[0]


def test_levels_come_from_the_command_line_and_have_the_median_between(tmp_path: Path) -> None:
    for given, levels in [("0.1,0.5,0.9", (0.1, 0.5, 0.9)), (0.5, (0.5,)), ([0.2, 0.8], (0.2, 0.8))]:
        config = build({"task": {"name": "forecast", "output": "quantiles", "levels": given}})
        assert options_of(config).levels == levels
    for wrong in ((0.8, 0.9), (0.9,), (0.1, 0.2), (), "0.1,x"):
        with pytest.raises(UsageError, match="levels"):
            options_of(build({"task": {"name": "forecast", "output": "quantiles", "levels": wrong}}))


def test_mase_is_the_same_with_the_run_and_with_a_bundle_alone(tmp_path: Path) -> None:
    task = prepared(tmp_path, waves(tmp_path / "w.csv"), {"context": 8, "horizon": 4, "season": 12})
    test = waves(tmp_path / "t.csv", steps=30, begin=120)
    bundle = Forecast.restore(task.config, task_folder(task, tmp_path / "kept"))
    bundle.build(task.config)
    bundle.model = task.model
    windows: Any = bundle.way.windows(*bundle._after_ours(bundle._panel([test])))
    whole, span = task._after_ours(task._panel([test]))
    usual = bundle.way._usual(windows.panel, windows)
    np.testing.assert_allclose(usual, task.way._usual(whole, task.way.windows(whole, span)), rtol=1e-12)
    rows = [("new", t, t % 5) for t in range(30)]
    report = bundle.evaluate([table(tmp_path / "n.csv", ["unique_id", "ds", "y"], rows)])
    assert "mase" not in report["scores"] and report["headline"] == "mae_scaled"
    assert any("1 series have no MASE" in words for words in report["warnings"])
    assert "mase" in bundle.evaluate([test])["scores"]


def test_a_series_that_was_constant_is_left_out_of_scaled_errors(tmp_path: Path) -> None:
    rows = [
        (name, t, 7 + (name == "b") * (t % 5) + (t > 65) * 1000 * (name == "a")) for name in "ab" for t in range(80)
    ]
    data = table(tmp_path / "t.csv", ["unique_id", "ds", "y"], rows)
    task = prepared(tmp_path, data, {"context": 8, "horizon": 4, "valid_steps": 16})
    report = task.evaluate()
    assert report["scores"]["mse_scaled"] < 20 < report["scores"]["mse"]
    assert report["unusual"][0]["unique_id"] == "a", "what was constant and moves is unusual"


def test_lines_after_one_that_cannot_be_forecast_are_answered(tmp_path: Path) -> None:
    data = table(tmp_path / "t.csv", ["ds", "y"], [(t, 2 + t % 3) for t in range(60)])
    task = prepared(tmp_path, data, {"context": 6, "horizon": 2, "log": True})
    wrong = [
        "[0, 1]",
        "[1e300, 1]",
        "[1" + "0" * 400 + "]",
        "[" * 100_000,
        "[1" + "0" * 5000 + "]",
        '{"a": 1}',
        "[[1], [2, 3]]",
    ]
    answers = list(task.answers([*wrong, "[3e38, 1]", "[1, 2, 3]"]))
    assert [isinstance(one, DataError) for one in answers] == [True] * len(wrong) + [False] * 4
    for value in ({"a": 1}, [[1, 2], [3]], ["a"]):
        with pytest.raises(DataError, match="no array of numbers"):
            task.predict(value)


@pytest.mark.parametrize("output", ["gaussian", "student-t"])
def test_a_forecast_does_not_depend_on_what_else_is_in_the_file(tmp_path: Path, output: str) -> None:
    data = waves(tmp_path / "w.csv")
    task = prepared(tmp_path, data, {"context": 6, "horizon": 3, "head": "recurrent", "output": output})
    alone = [line.split(",") for line in data.read_text().splitlines() if line.startswith("s1,")]
    one = task.predict(str(table(tmp_path / "one.csv", ["unique_id", "ds", "y"], alone)))
    among = [row for row in task.predict(str(data)) if row["unique_id"] == "s1"]
    for left, right in zip(one, among, strict=True):
        np.testing.assert_allclose(
            [left["mean"], *left["quantiles"].values()], [right["mean"], *right["quantiles"].values()], rtol=1e-6
        )
    assert len({round(row["mean"], 6) for row in one}) == 3, "each step has noise of its own"


def test_digits_of_large_values_are_kept(tmp_path: Path) -> None:
    data = table(tmp_path / "t.csv", ["ds", "y"], [(t, 1_700_000_000 + t) for t in range(200)])
    task = prepared(tmp_path, data, {"context": 10, "horizon": 5})
    assert task.evaluate()["floors"] == {"last value": 3, "drift": 0, "seasonal naive": 3}
    windows: Any = task.way.windows(task.data.panel, task.data.spans["train"])
    batch = windows.take(np.array([3]))
    past = np.diff(batch.inputs.past[0, :, 0].numpy())
    np.testing.assert_allclose(past, past[0], rtol=1e-3)
    back = batch.targets.values * batch.targets.scale + batch.targets.shift
    np.testing.assert_allclose(back[0, :, 0].numpy() - 1_700_000_000, range(13, 18), atol=1e-3)


def test_no_more_rows_are_forecast_at_once_than_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(120, 40))
    np.save(tmp_path / "a.npy", values)
    task = prepared(
        tmp_path, tmp_path / "a.npy", {"context": 6, "horizon": 2, "head": "recurrent", "output": "gaussian"}
    )
    model: Any = task.model
    rows: list[int] = []
    path, monkey = model._path, monkeypatch.setattr
    monkey(model, "_path", lambda inputs, *rest: (rows.append(len(inputs.past)), path(inputs, *rest))[1])
    windows: list[int] = []
    forecast = model.forecast
    monkey(model, "forecast", lambda inputs, *rest: (windows.append(len(inputs.past)), forecast(inputs, *rest))[1])
    task.predict(str(tmp_path / "a.npy"))
    task.evaluate()
    assert max(windows) <= 256
    assert max(rows) <= 64 * 100 and sum(rows) > 40 * 100


class Stop(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("kind", ["segments", "recurrent gaussian", "binary", "next"])
def test_an_interrupted_training_ends_with_the_same_bits(tmp_path: Path, kind: str) -> None:
    data = music(tmp_path / "m.csv") if kind == "binary" else waves(tmp_path / "w.csv")
    train = {"rows": 8, "checkpoint_seconds": 1e-4, "validations": 4, "patience": 1000}
    noise = {"hidden": 8, "dropout": 0.2, "recurrent_dropout": 0.2}
    settings = {
        "task": KINDS[kind],
        "model": noise,
        "train": train | ({"chunk": 8} if kind in ("binary", "next") else {}),
    }

    def run(out: Path, stop: int | None) -> None:
        def tell(event: str, **said: Any) -> None:
            if event == "step" and said["step"] == stop:
                raise Stop

        recurra.train("forecast", data, out=out, settings=settings, steps=24, threads=1, seed=3, tell=tell)

    run(tmp_path / "a", None)
    for stop in (5, 17):
        with pytest.raises(Stop):
            run(tmp_path / "b", stop)
    run(tmp_path / "b", None)
    names = {"model.safetensors", "optimizer.safetensors", "carry.safetensors", "rng.safetensors"}
    last = [storage.newest(tmp_path / one / "checkpoints", {*names, "state.json"})[0] for one in "ab"]
    for name in names:
        assert (last[0] / name).read_bytes() == (last[1] / name).read_bytes(), name
    best = [(tmp_path / one / "best" / "model.safetensors").read_bytes() for one in "ab"]
    assert best[0] == best[1]


@pytest.mark.shared
def test_seasonal_naive_on_m4_hourly_is_as_published(tmp_path: Path) -> None:
    if not (SHARED / "m4-hourly").exists():
        pytest.skip("the shared data sets are absent")
    begins: dict[str, int] = {}
    for part in ("train", "test"):
        lines = panel_rows(SHARED / "m4-hourly" / f"Hourly-{part}.csv.gz", begins)
        table(tmp_path / f"{part}.csv", ["unique_id", "ds", "y"], lines)
    config = build({**SMALL, "task": {"name": "forecast", "context": 24, "horizon": 48, "valid_steps": 48}})
    (tmp_path / "data").mkdir()
    sources = Sources([tmp_path / "train.csv"], (), [tmp_path / "test.csv"])
    task = Forecast.prepare(config, sources, tmp_path / "data")
    task.build(task.settle(config, 1.0))
    report = task.evaluate()
    floor = report["floor_scores"]["seasonal naive"]
    assert report["n"] == 414 and report["season"] == 24
    assert round(floor["smape"], 3) == 13.912 and round(floor["mase"], 3) == 1.193


@pytest.mark.shared
def test_floors_on_ett_are_as_measured_elsewhere(tmp_path: Path) -> None:
    file = SHARED / "ett-h1" / "ETTh1.csv.gz"
    if not file.exists():
        pytest.skip("the shared data sets are absent")
    task = prepared(
        tmp_path, file, {"context": 96, "horizon": 96, "train_steps": 8640, "valid_steps": 2880, "test_steps": 2880}
    )
    report = task.evaluate()
    assert report["n"] == 2785
    assert round(report["floor_scores"]["seasonal naive"]["mse_scaled"], 3) == 0.512
    assert round(report["floor_scores"]["last value"]["mse_scaled"], 3) == 1.294


def panel_rows(path: Path, begins: dict[str, int]) -> list[tuple[str, int, str]]:
    """The rows of a file with a series a line, in long form; `begins` goes on from file to file."""
    import gzip

    rows = []
    with gzip.open(path, "rt") as file:
        for name, *cells in list(csv.reader(file))[1:]:
            values = [cell for cell in cells if cell]
            rows += [(name, begins.get(name, 0) + t, value) for t, value in enumerate(values)]
            begins[name] = begins.get(name, 0) + len(values)
    return rows


@pytest.mark.parametrize("output", ["point", "binary", "next"])
def test_who_reads_forecasts_keeps_gradients_and_the_model_its_mode(tmp_path: Path, output: str) -> None:
    data = music(tmp_path / "m.csv") if output == "binary" else waves(tmp_path / "w.csv")
    task = prepared(tmp_path, data, {"output": output})
    task.model.train()
    assert task.data is not None
    next(iter(task.way.answers(task.model, task.data.panel)))
    assert torch.is_grad_enabled() and task.model.training
