"""Learning from a stream: each step is forecast, then learnt from, then forgotten."""

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast, final

import numpy as np
import torch
from torch import Tensor, nn

from recurra import bundle, checkpoint, fit, run, storage
from recurra import config as configuration
from recurra.config import Config
from recurra.data.batch import Batch
from recurra.data.batch import first as first_of
from recurra.data.panel import LARGEST
from recurra.data.read import shown
from recurra.errors import DataError, Interrupted, RecurraError, UsageError
from recurra.learn import Carry, Learner
from recurra.learn.base import Learnable
from recurra.models import resting
from recurra.run import Asked, Finished, Tell
from recurra.state import State, leaves, tmap
from recurra.tasks import Forecast
from recurra.tasks.forecast_next import OnNext
from recurra.tasks.forecast_ways import Data, options_of

FIRST = 100  # rows that teach names and scales
LATEST = 1_000  # rows that the running error is of
TOLD_EVERY = 0.1  # seconds
LEARNERS = ("snap1", "rtrl", "uoro")  # the first that takes the cell is taken, where none was asked for
STREAM = [{"name": "standard input"}]
UNUSED = {
    "task": {"id", "time", "univariate", "dates", "frequency", "train_steps", "valid_steps", "test_steps"},
    "train": {"rows", "chunk", "minutes", "epochs", "steps", "validations", "patience"},
    "optimizer": {"schedule", "warmup", "plateau_patience"},
    "data": {"valid_share", "text", "label", "separator", "longest", "folds", "fold"},
    "embed": {"kind", "size", "tied", "vectors", "word_dropout", "frozen"},
    "tokens": {"kind", "lower", "size"},
    "regularize": {"l1", "l2", "ar", "tar", "max_norm"},
}


@final
class Online:
    """Online learning: each call forecasts a step, then learns from the truth and changes the weights,

        o_t, h_t = g(x_t, h_{t-1}; theta_{t-1}),   L_t = loss(o_t, y_t),   theta_t = theta_{t-1} + optimizer(dL_t/dtheta)

    with the learner's dL_t/dtheta. The losses are prequential: each was made before anything was learnt from its step (Dawid 1984,
    doi:10.2307/2981683; Gama, Sebastiao & Rodrigues 2013, doi:10.1007/s10994-012-5320-9). No step is kept: memory does not grow
    with their number. The influences that a learner carries were made with the weights of their time, which is as good as exact
    where the rate is small.

    task       what has `model`, a cell, and `loss(batch, state)`
    learner    one that carries credit on from step to step: rtrl, snap1, uoro and their kin
    optimizer  of the model's parameters
    clip       largest norm of the gradient; 0: no clipping

    A step whose loss or gradient is not finite is not learnt from, and the state starts anew. Raises UsageError for a learner that
    cannot do this, RecurraError after ten such steps in a row.

    >>> online = Online(task, SnAp1(), torch.optim.Adam(task.model.parameters()))  # doctest: +SKIP
    >>> for x, y in source:  # doctest: +SKIP
    ...     loss, output = online(x, y)
    """

    def __init__(
        self, task: Learnable, learner: Learner, optimizer: torch.optim.Optimizer, *, clip: float = 1.0
    ) -> None:
        self.task, self.learner, self.optimizer, self.clip = task, learner, optimizer, clip
        self.carry: Carry | None = None
        self.steps = self.refused_in_a_row = 0

    def __call__(self, x: State, y: State) -> tuple[float, Tensor]:
        """One step of inputs and targets `[rows, ...]`, as the task has them: the loss and the output `[rows, ...]` before it was
        learnt from."""
        rows = len(first_of(x))
        one = lambda part: part[:, None]  # noqa: E731
        fresh = torch.full((rows,), self.carry is None, device=first_of(x).device)
        batch = Batch(tmap(one, x), tmap(one, y), None, float(rows), fresh, self.steps)
        if self.carry is None:
            self.carry = self._started(batch)
        output = self.forecast(x)
        loss = self._learn(batch, self.carry)
        self.steps += 1
        return loss, output

    def forecast(self, x: State) -> Tensor:
        """The output for one step of inputs `[rows, ...]`. Nothing is learnt from it, and the state stays as it is."""
        model = self.task.model
        state = model.initial_state(len(first_of(x))) if self.carry is None else self.carry.state
        with resting(model):
            return cast(Tensor, model(x, state)[0])

    def _started(self, batch: Batch) -> Carry:
        if words := why_not_online(self.task, self.learner, batch):
            raise UsageError(f"{type(self.learner).__name__} cannot learn from a stream: {words}")
        return self.learner.start(self.task, batch)

    def _learn(self, batch: Batch, carry: Carry) -> float:
        parameters = list(self.task.model.parameters())
        found, after = self.learner(self.task, batch, carry)
        loss, norm = float(found), float(nn.utils.clip_grad_norm_(parameters, self.clip or math.inf))
        if math.isfinite(loss) and math.isfinite(norm):
            self.optimizer.step()
            self.carry, self.refused_in_a_row = after, 0
        else:
            self.carry = self.learner.start(self.task, batch)
            self.refused_in_a_row += 1
        self.optimizer.zero_grad()
        if self.refused_in_a_row >= fit.MOST_REFUSED:
            raise RecurraError(
                f"the loss or its gradient was not finite {fit.MOST_REFUSED} times in a row, at step {self.steps + 1}; nothing was "
                "learnt from these; begin anew with a lower rate of the optimizer or a smaller clip, and look at the data"
            )
        return loss


def why_not_online(task: Learnable, learner: Learner, batch: Batch) -> str | None:
    """Why a learner cannot learn from a stream one step after the other, in words; None where it can."""
    if words := learner.supports(task, batch):
        return words
    carry = learner.start(task, batch)
    if not any(True for _ in leaves((carry.traces, carry.shared))):
        return (
            "it carries nothing but the network's state from batch to batch, so that no error of a step would reach the steps "
            f"before it; take --learner {', '.join(LEARNERS[:-1])} or {LEARNERS[-1]}, or give it whole sequences, in files"
        )
    return None


class Row(NamedTuple):
    """A line of numbers: its number, the values `[variables]`, and whether it was a list."""

    line: int
    values: np.ndarray
    listed: bool

    def named(self, names: Sequence[str], values: np.ndarray) -> Any:
        """Values as the row has its own, for JSON."""
        found = [one if math.isfinite(one) else None for one in values.tolist()]
        return found if self.listed else dict(zip(names, found, strict=True))


@final
class Rows:
    """The rows of numbers among lines of JSON: objects of numbers by their names, or lists of numbers, whose names are 1, 2 and so
    on. All have the names of the first of them, unless `names` are given; with `some`, there may be others beside these. What is
    no such row is told, counted and passed over. Ends where a stop was asked for. Raises DataError where none of the first 100 is
    a row."""

    def __init__(
        self, lines: Iterable[str], asked: Asked, tell: Tell, names: Sequence[str] = (), some: bool = False
    ) -> None:
        self.names, self.good, self.bad = list(names), 0, 0
        self._lines, self._asked, self._tell, self._some = enumerate(lines, 1), asked, tell, some

    def __iter__(self) -> Iterator[Row]:
        while (found := self._next()) is not None:
            number, line = found
            if not line.strip():
                continue
            try:
                row = self._row(number, line)
            except DataError as error:
                self._pass_over(number, str(error))
                continue
            self.good += 1
            yield row
        if self.bad and not self.good:
            self._refuse("all of them are bad")

    def _next(self) -> tuple[int, str] | None:
        """The next line. Python goes on waiting for one after a signal, unless that raises something."""
        try:
            self._asked.waiting = True
            return None if self._asked else next(self._lines, None)
        except KeyboardInterrupt:
            return None
        finally:
            self._asked.waiting = False

    def _pass_over(self, number: int, words: str) -> None:
        self.bad += 1
        self._problem = f"line {number} {words}"
        self._tell("complaint", text=f"{self._problem}; passed over")
        if self.bad >= FIRST and not self.good:
            self._refuse(f"the first {FIRST} are bad")

    def _refuse(self, what: str) -> None:
        raise DataError(
            f'standard input has no row of numbers, {what}: {self._problem}; give one a line, such as {{"y": 1.2}} or [1.2, 3.4], '
            "all with the same names; task.target names those to be read where there is more in a row"
        )

    def _row(self, number: int, line: str) -> Row:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError("is no JSON") from None
        listed = isinstance(found, list)
        if listed:
            found = {str(place): value for place, value in enumerate(found, 1)}
        if not isinstance(found, dict) or not found:
            raise DataError("is no object and no list of numbers")
        names = self.names or list(found)
        if set(names) - set(found) or not (self._some or len(found) == len(names)):
            raise DataError(f"has {_some(found)}, wanted {_some(names)}")
        values = np.array([_number(name, found[name]) for name in names])
        self.names = names
        return Row(number, values, listed)


def _number(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= LARGEST:
        raise DataError(f"has {shown(json.dumps(value))[:40]} as {shown(name)!r}, wanted a number")
    return float(value)


def _some(names: Iterable[str]) -> str:
    return ", ".join(shown(name) for name in islice(names, 8))


def listen(lines: Iterable[str], out: Path, values: Mapping[str, Any], tell: Tell) -> Finished:
    """Learn to forecast the next row of a stream of rows of numbers, each a line of JSON, until it ends; or go on with the run that
    is in `out`, whatever came in between.

    The first 100 rows (or all there are) teach names and scales, and are learnt from when these are known; each row after them is
    forecast, told (`tell("row", line, forecast, truth, error)`), and then learnt from. Saved are a checkpoint and a bundle every
    train.checkpoint_seconds and at the end. Raises DataError for a stream that has no rows, UsageError for what streams do not
    have, Interrupted after SIGINT or SIGTERM, when everything is saved.
    """
    with run.held(out), run.random_numbers_of_our_own(), run.asked_to_stop() as asked:
        some = options_of(_for_streams(values)).columns().target
        rows: Rows | None = None
        if not run.has_begun(out, values):
            rows = Rows(lines, asked, tell, some, some=bool(some))
            _begin(rows, asked, out, values, tell)
        settled, task = run.reopen("forecast", STREAM, out)
        target = options_of(settled).columns().target
        rows = rows or Rows(lines, asked, tell, cast(Forecast, task).known["variables"], some=bool(target))
        live = _Live(settled, cast(Forecast, task), out, tell)
        with live.log:
            try:
                live.go_through(rows, asked)
            except BrokenPipeError:  # nobody reads what is told any more
                live.keep()
                raise
            live.keep()
        if asked:
            raise Interrupted(
                f"stopped after {live.online.steps + 1:,} rows, and saved; the same command with --out {out} goes on from there",
                exit_code=128 + asked[0],
            )
        task.model.eval()
        return Finished(task, out, live.report(), [])


def _for_streams(values: Mapping[str, Any]) -> Config:
    """The config of a stream, as far as it is known before the first rows. Raises UsageError for what streams do not have."""
    for section, names in UNUSED.items():
        given = values.get(section, {})
        if odd := sorted(names & set(given)) if isinstance(given, Mapping) else []:
            raise UsageError(
                f"a stream is one row of steps that goes on, and {section}.{odd[0]} was given; leave it out"
            )
    task = {"output": "next", **values.get("task", {}), "name": "forecast"}
    if task["output"] != "next":
        raise UsageError(f"of a stream the next row is forecast, and task.output was {task['output']}; leave it out")
    given = configuration.build({**values, "task": task})
    return configuration.changed(given, train={"rows": 1, "chunk": 1}, optimizer={"schedule": "constant"})


def _begin(rows: Rows, asked: Asked, out: Path, values: Mapping[str, Any], tell: Tell) -> None:
    """Learn names and scales from the first rows, and settle the config: from here on the run can be gone on with."""
    given = _for_streams(values)
    run.set_threads(given)
    tell("preparing", files=[f"the first {FIRST} rows of standard input"])
    some = list(islice(rows, FIRST))
    if asked:
        raise Interrupted("stopped among the first rows; nothing was begun", exit_code=128 + asked[0])
    if not some:
        raise DataError('standard input has no row; give numbers, one row a line, such as {"y": 1.2} or [1.2, 3.4]')

    def prepare(folder: Path) -> None:
        Forecast.of_rows(given, rows.names, np.stack([row.values for row in some]), folder)
        storage.write_json(folder / "sources.json", STREAM)

    storage.seal(out / "data", prepare, "data")
    settled = _with_a_learner(values, Forecast.reopen(given, out / "data"))
    storage.replace_file(out / "given.json", json.dumps(values).encode())
    storage.replace_file(out / "config.toml", configuration.dumps(settled).encode())


def _with_a_learner(values: Mapping[str, Any], task: Forecast) -> Config:
    """The settled config, with the learner that was asked for or the first that takes the cell. Raises UsageError for one that
    cannot learn from a stream."""
    settled = task.settle(task.config)
    asked = values.get("learner", {}).get("name")
    for name in LEARNERS if asked is None else [asked]:
        chosen = configuration.changed(settled, learner={"name": name})
        try:
            job = run.new_job(chosen, task)
            if words := why_not_online(task, job.learner, next(task.batches())):
                raise UsageError(f"the learner {name} cannot learn from a stream: {words}")
            return chosen
        except UsageError:
            if asked is not None or name == LEARNERS[-1]:
                raise
    raise AssertionError


@final
class _Live:
    """A run that learns from a stream, between its rows."""

    def __init__(self, settled: Config, task: Forecast, out: Path, tell: Tell) -> None:
        self.task, self.out, self.tell = task, out, tell
        way, panel = cast(OnNext, task.way), cast(Data, task.data).panel
        self.scale, self.head = way.scale(panel, 0), panel.values
        self.every, self.saved = settled.train.checkpoint_seconds, time.monotonic()
        self.job = run.new_job(settled, task)
        self.last = torch.from_numpy(self.head[:1])
        self.errors = torch.full(
            (LATEST, 2), math.nan, dtype=torch.float64
        )  # of the latest rows: ours, the last value's
        self.job.carry = self._carry(self.job.carry)
        for complaint in checkpoint.restore(out / "checkpoints", self.job):
            tell("complaint", text=complaint)
        task.model.train()
        self.online = Online(task, self.job.learner, self.job.optimizer, clip=settled.optimizer.clip)
        self.online.steps = self.job.progress.step
        state, traces, (shared, self.last, self.errors) = self.job.carry
        self.online.carry = Carry(state, traces, shared)
        parameters = sum(one.numel() for one in task.model.parameters())
        self.log, self.told, self.passed_over = run.Log(out / "log.jsonl", self.online.steps), 0.0, 0
        tell(
            "listening",
            out=str(out),
            step=self.online.steps,
            parameters=parameters,
            config=settled.model_dump(mode="json"),
        )

    def _carry(self, own: Carry) -> Carry:
        """The learner's with what goes with it into a checkpoint."""
        return Carry(own.state, own.traces, (own.shared, self.last, self.errors))

    def go_through(self, rows: Rows, asked: Asked) -> None:
        """The rest of the first rows, which are kept, and then those that come."""
        for values in self.head[self.online.steps + 1 :]:
            if asked:
                return
            self._hear(values)
        for row in rows:
            before, said = self.last.numpy()[0], self._hear(row.values)
            pairs = np.stack([said - row.values, before - row.values]) / self.scale[1]
            errors = np.square(pairs).mean(1)
            self.errors[self.online.steps % LATEST] = torch.from_numpy(np.where(np.isfinite(errors), errors, math.nan))
            self.passed_over = rows.bad
            parts = {"forecast": said, "truth": row.values, "error": row.values - said}
            self.tell("row", line=row.line, **{name: row.named(rows.names, part) for name, part in parts.items()})
        self.passed_over = rows.bad

    def _hear(self, values: np.ndarray) -> np.ndarray:
        """Learn from a row `[variables]`; what was forecast of it."""
        mean, deviation = self.scale
        device, truth = next(self.task.model.parameters()).device, torch.from_numpy(values)[None]
        scaled = ((one.numpy() - mean) / deviation for one in (self.last, truth))
        x, y = (torch.from_numpy(one).float().to(device) for one in scaled)
        _, output = self.online(x, y)
        self.last = truth
        now = time.monotonic()
        if now - self.told >= TOLD_EVERY:
            self.told = now
            self.tell("heard", words=", ".join(lines(self.report())))
        if now - self.saved >= self.every:
            self.keep()
        return output[0].double().cpu().numpy() * deviation + mean

    def keep(self) -> None:
        """Save a checkpoint, and the bundle."""
        self.job.progress.step, self.job.carry = self.online.steps, self._carry(cast(Carry, self.online.carry))
        report = self.report()
        self.log("rows", step=self.online.steps, **report["scores"], floors=report["floors"])
        self.log.flush()
        checkpoint.save(self.out / "checkpoints", self.job)
        bundle.save(self.out / "best", self.task, report)
        self.saved = time.monotonic()

    def report(self) -> dict[str, Any]:
        """How the latest rows were forecast, in variances of the first rows, and how their last value would have done."""
        scored = self.errors[~self.errors.isnan().any(1)]
        ours, naive = scored.mean(0).tolist()
        return {
            "task": "forecast",
            "data": "standard input",
            "headline": "mse_scaled",
            "higher_is_better": False,
            "scores": {"mse_scaled": ours} if len(scored) else {},
            "floors": {"last value": naive} if len(scored) else {},
            "n": len(scored),
            "rows": self.online.steps + 1,
            "passed_over": self.passed_over,
        }


def lines(report: Mapping[str, Any]) -> list[str]:
    """The report of a stream as lines for people."""
    found = [f"{report['rows']:,} rows"] + [f"{count:,} passed over" for count in [report["passed_over"]] if count]
    if not report["n"]:
        return [*found, f"none is scored: the first {FIRST} teach names and scales"]
    return [
        *found,
        f"mean squared error of the latest {report['n']:,} {report['scores']['mse_scaled']:.4g} of the variance of the first rows",
        f"floor: last value {report['floors']['last value']:.4g}",
    ]
