"""Which networks solve the classic problems of memory: task x length x (cell, learner, init, clip, omega), each over several seeds.

A run trains on a set of `data.synthetic` until the criterion of `data.problems` holds on 1,000 test examples, or until its steps
or minutes are up. Sequences are read in one direction, symbols as unit vectors, and a whole sequence is answered from its last
state, so that nothing but the recurrent state remembers.
"""

import inspect
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import torch

from recurra import config as configuration
from recurra import fit
from recurra.checkpoint import Job, Progress
from recurra.config import Config
from recurra.data.problems import PROBLEMS, Problem
from recurra.data.synthetic import SYNTHETIC
from recurra.errors import RecurraError, UsageError
from recurra.learn import LEARNERS
from recurra.tasks import TASKS, Sources
from recurra.tasks.examples import OnExamples, Part

TASKS_OF_THE_GRID = ("xor", "reber", "flip-flop", "anbn", "temporal-order", "adding", "copy")
CELLS_OF_THE_GRID = ("elman", "gru", "lstm")
CHECKED = 200  # validation examples that are looked at on the way; the test examples have the last word
CHECKS_EVERY = 100  # steps
OPTIONS: dict[str, dict[str, Any]] = {  # of each task: one direction, no letters, the last state
    "classify": {"bidirectional": False, "pooling": "last"},
    "tag": {"bidirectional": False, "letters": False},
    "regress": {"bidirectional": False, "pooling": "last"},
}


class Setting(NamedTuple):
    """A row of the table, but for its figures. A length of None is that of the set; omega is 0 where it is not asked for."""

    task: str
    length: int | None
    cell: str
    learner: str
    init: str
    clip: float
    omega: float


class Outcome(NamedTuple):
    """What became of one run: whether it solved the problem, the share of right answers on the test examples, and what it took."""

    solved: bool
    right: float
    steps: int
    seconds: float


def grid(
    tasks: Sequence[str],
    lengths: Sequence[int | None],
    cells: Sequence[str],
    learners: Sequence[str],
    inits: Sequence[str],
    clips: Sequence[float],
    omegas: Sequence[float],
) -> list[Setting]:
    """All settings that these make together. Raises UsageError for a task that has no criterion."""
    for task in tasks:
        if task not in PROBLEMS:
            raise UsageError(f"there is no problem of memory called {task!r}; there are {', '.join(PROBLEMS)}")
    return [Setting(*one) for one in product(tasks, lengths, cells, learners, inits, clips, omegas)]


def compare(
    settings: Sequence[Setting],
    seeds: int = 3,
    steps: int = 2000,
    minutes: float = 1.0,
    given: Mapping[str, Mapping[str, Any]] | None = None,
    first: int = 0,
    tell: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """A record for each setting: how many of `seeds` runs (from seed `first` on) solved it, in at most so many steps and minutes
    each; the median of the steps and the mean of the seconds of those that did (of all, where none did); the share of right
    answers on the test data, and what the best guess without memory reaches. Config values `given` stand above those of the
    bench. What the installed code cannot do is skipped, and `skipped` says why."""
    records = []
    for setting in settings:
        problem, length = PROBLEMS[setting.task], setting.length or own_length(setting.task)
        record: dict[str, Any] = {
            **setting._asdict(),
            "length": length or None,
            "criterion": problem.criterion,
            "baseline": problem.baseline(length),
            "unit": problem.unit,
            "skipped": None,
        }
        outcomes: list[Outcome] = []
        try:
            for seed in range(first, first + seeds):
                outcomes.append(trial(setting, seed, steps, minutes, given or {}))
                tell(f"{described(setting)}, seed {seed}: {_in_words(outcomes[-1])}")
        except UsageError as error:
            record["skipped"] = str(error)
            tell(f"{described(setting)}: skipped, {error}")
        records.append({**record, **_summary(outcomes)})
    return records


def own_length(task: str) -> int:
    """The length that a set has where none is asked for; 0 where it has none."""
    length = inspect.signature(SYNTHETIC[task]).parameters.get("length")
    return 0 if length is None else int(length.default)


def described(setting: Setting) -> str:
    """The setting on one line."""
    name = setting.task if setting.length is None else f"{setting.task}:{setting.length}"
    omega = f", omega {setting.omega:g}" if setting.omega else ""
    return f"{name}, {setting.cell}, {setting.learner}, init {setting.init}, clip {setting.clip:g}{omega}"


def values(setting: Setting, seed: int, steps: int) -> dict[str, dict[str, Any]]:
    """The config values of a run."""
    task = PROBLEMS[setting.task].task
    nothing = {"input_dropout": 0.0, "dropout": 0.0, "recurrent_dropout": 0.0}
    optimizer = {"name": "adam", "rate": 2e-3, "weight_decay": 0.0, "schedule": "constant", "clip": setting.clip}
    return {
        "task": {"name": task, **OPTIONS[task]},
        "embed": {"kind": "onehot"},
        "model": {"hidden": 64, "init": setting.init, **nothing},
        "cell": {"name": setting.cell},
        "learner": {"name": setting.learner},
        "optimizer": optimizer,
        "regularize": {"omega": setting.omega} if setting.omega else {},
        "train": {
            "seed": seed,
            "rows": 32,
            "steps": steps,
            "validations": max(1, steps // CHECKS_EVERY),
            "patience": steps,
        },
    }


def trial(setting: Setting, seed: int, steps: int, minutes: float, given: Mapping[str, Mapping[str, Any]]) -> Outcome:
    """One run. Raises UsageError where the installed code does not know the setting."""
    sections = values(setting, seed, steps)
    config = configuration.build(sections | {key: {**sections.get(key, {}), **one} for key, one in given.items()})
    problem = PROBLEMS[setting.task]
    name = setting.task if setting.length is None else f"{setting.task}:{setting.length}"
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        torch.manual_seed(seed)
        task: Any = TASKS[problem.task].prepare(config, Sources([Path(f"synthetic:{name}")]), Path(folder))
        task.parts["valid"] = task.part(task.parts["valid"].examples.take(range(CHECKED)))
        return _trained(task, task.settle(config), problem, minutes)


def _trained(task: OnExamples, config: Config, problem: Problem, minutes: float) -> Outcome:
    job, began, solved = _job(task, config), time.monotonic(), False

    def told(kind: str, **fields: Any) -> None:
        nonlocal solved
        if kind == "validation" and right(task, problem, task.parts["valid"]) >= problem.share:
            solved = right(task, problem, task.parts["test"]) >= problem.share

    nothing = lambda: None  # noqa: E731
    try:
        fit.fit(job, config, told, nothing, nothing, lambda: solved or time.monotonic() - began > 60 * minutes)
    except RecurraError:  # ten updates in a row that were not finite: it has not learnt it
        return Outcome(False, 0.0, job.progress.step, time.monotonic() - began)
    seconds = time.monotonic() - began
    return Outcome(solved, right(task, problem, task.parts["test"]), job.progress.step, seconds)


def _job(task: OnExamples, config: Config) -> Job:
    """The training at its start. Raises UsageError where there is no such learner, or it cannot train this."""
    name, options = config.learner.name, config.learner.model_extra or {}
    if name not in LEARNERS:
        raise UsageError(f"there is no learner called {name!r}; learners are {', '.join(LEARNERS)}")
    task.build(config)
    learner, batch = LEARNERS[name](**configuration.options(LEARNERS[name], options, "learner")), next(task.batches())
    why_not = learner.supports(task, batch)
    if why_not:
        raise UsageError(f"the learner {name} cannot train this: {why_not}")
    return Job(task, learner, fit.make_optimizer(task.model, config.optimizer), learner.start(task, batch), Progress())


def right(task: OnExamples, problem: Problem, part: Part) -> float:
    """The share of the examples of a part that the network answers rightly."""
    answers = task.answer(part.examples, best=1)
    targets = part.examples.targets or []
    return mean(problem.right(target, said(answer)) for target, answer in zip(targets, answers, strict=True))


def said(answer: Mapping[str, Any]) -> Any:
    """The label, the labels of the steps, or the numbers of an answer."""
    return next(answer[key] for key in ("label", "tags", "numbers") if key in answer)


def table(records: list[dict[str, Any]]) -> str:
    """The records as lines of a terminal."""
    head = (
        f"{'task':<18}{'length':>7}  {'cell':<14}{'learner':<10}{'init':<12}{'clip':>5}{'omega':>7}{'solved':>9}"
        f"{'right':>8}{'steps':>8}{'seconds':>9}  baseline"
    )
    return "\n".join([head, *map(_line, records)])


def _line(record: Mapping[str, Any]) -> str:
    length = "" if record["length"] is None else record["length"]
    line = (
        f"{record['task']:<18}{length:>7}  {record['cell']:<14}{record['learner']:<10}{record['init']:<12}"
        f"{record['clip']:>5g}{record['omega']:>7g}"
    )
    if record["skipped"]:
        return f"{line}  skipped: {record['skipped']}"
    solved = f"{record['solved']} of {record['seeds']}"
    return (
        f"{line}{solved:>9}{record['right']:>8.1%}{record['steps']:>8,.0f}{record['seconds']:>9.1f}"
        f"  {record['baseline']:.4g} {record['unit']}"
    )


def _summary(outcomes: list[Outcome]) -> dict[str, Any]:
    told = [one for one in outcomes if one.solved] or outcomes
    return {
        "solved": sum(one.solved for one in outcomes),
        "seeds": len(outcomes),
        "right": mean(one.right for one in outcomes) if outcomes else 0.0,
        "steps": median(one.steps for one in told) if told else 0,
        "seconds": round(mean(one.seconds for one in told), 2) if told else 0.0,
    }


def _in_words(outcome: Outcome) -> str:
    result = "solved" if outcome.solved else f"not solved ({outcome.right:.1%} right)"
    return f"{result} after {outcome.steps:,} steps, {outcome.seconds:.1f} s"
