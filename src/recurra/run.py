"""A run: the folder in which training, resuming and using meet.

RUN/config.toml     the settled config             RUN/log.jsonl    one JSON object a line, as things happen
RUN/data/           the data, tokenised            RUN/checkpoints/ what training resumes from
RUN/best/           the bundle of the best model   RUN/.lock        held while a training writes here
RUN/given.json      the options as they were given, so that the same command resumes
"""

import json
import math
import os
import random
import re
import shutil
import signal
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recurra import bundle, checkpoint, config, fit, storage
from recurra.checkpoint import Job, Progress
from recurra.config import Config
from recurra.data import read
from recurra.errors import DamagedError, DataError, Interrupted, RecurraError, UsageError
from recurra.kernels import native
from recurra.learn import LEARNERS
from recurra.rates import Ranged, range_test
from recurra.tasks import TASKS, Sources, Task, task_called

Tell = Callable[..., None]
TIMING_SECONDS = 4.0, 30.0  # at least and at most
DEFAULT_MINUTES = 5.0
_NOTHING = object()
_OUT_OF_MEMORY = re.compile("out of memory|allocate memory|Storage size calculation overflowed")


@dataclass(frozen=True)
class Finished:
    """What a training came to."""

    task: Task
    folder: Path
    report: dict[str, Any]
    advice: list[str]


def train(
    name: str, sources: Sources, out: Path, values: Mapping[str, Any], tell: Tell = lambda kind, **fields: None
) -> Finished:
    """Train a task on files in the run folder `out`, or resume the run that is there, exactly.

    `values` are the nested config values of a new run; for a run that exists, none or the same again. Events go to `tell`.
    Raises Interrupted after SIGINT or SIGTERM, when everything is saved.
    """
    task_called(name)
    with held(out), random_numbers_of_our_own():
        if not has_begun(out, values):
            _begin(name, sources, out, values, tell)
        settled, task = reopen(name, read.fingerprint(sources.paths), out)
        return _go_on(settled, task, out, tell)


def default_folder(sources: Sources, values: Mapping[str, Any]) -> Path:
    """`runs/NAME` after the first source, with a number where that is taken."""
    stem = sources.train[0].name.split(".")[0] or "run"
    names = [stem] + [f"{stem}-{number}" for number in range(2, 10_000)]
    return next(Path("runs") / name for name in names if not (Path("runs") / name).exists())


def _begin(name: str, sources: Sources, out: Path, values: Mapping[str, Any], tell: Tell) -> None:
    """Prepare the data, settle the config and write it: from here on the run can be resumed."""
    given = config.build({**values, "task": {**values.get("task", {}), "name": name}})
    if sum(value is not None for value in (given.train.minutes, given.train.epochs, given.train.steps)) > 1:
        raise UsageError("--minutes, --epochs and --steps are three ways to say one thing; give one of them")
    set_threads(given)

    def prepare(folder: Path) -> None:
        TASKS[name].prepare(given, sources, folder)
        storage.write_json(folder / "sources.json", read.fingerprint(sources.paths))

    tell("preparing", files=[str(path) for path in sources.paths])
    storage.seal(out / "data", prepare, "data")
    task = TASKS[name].reopen(given, out / "data")
    for text in task.notes():
        tell("note", text=text)
    settled = _settled(given, task, tell)
    job = new_job(settled, task)  # what cannot be begun is refused before there is a run to resume
    if settled.regularize.omega or settled.regularize.flossing:
        fit.gradients(job, settled, next(task.batches()).to(_device(settled)))
    storage.replace_file(out / "given.json", json.dumps(values).encode())
    storage.replace_file(out / "config.toml", config.dumps(settled).encode())


def reopen(name: str, now: list[dict[str, Any]], out: Path) -> tuple[Config, Task]:
    """The config and data of a run that has begun; `now` are the prints of the files that are given. Raises UsageError where this
    call means another run."""
    settled = read_config(out)
    if settled.task.name != name:
        raise UsageError(
            f"{out}: this run was made by the task {settled.task.name!r}, not {name!r}; choose another --out"
        )
    set_threads(settled)
    files = storage.verify(out / "data", "data", data_files_of(TASKS[name]))
    then = storage.read_json(files["sources.json"])
    if then != now:
        raise UsageError(
            f"{out}: this run was begun on {_listed(then)}; given now: {_listed(now)}. "
            "Resume with the same files, unchanged, or choose another --out"
        )
    return settled, TASKS[name].reopen(settled, out / "data")


def read_config(out: Path) -> Config:
    """The settled config of a run folder."""
    path = out / "config.toml"
    try:
        return config.build(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UsageError(f"{out}: no config.toml in it, so it is no run folder") from None
    except (UsageError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        if not (out / "given.json").exists():
            raise UsageError(f"{out} has a config.toml that is not of recurra; choose another --out") from None
        raise DamagedError(f"{path}: {error}; it was altered since the run began") from error


def _settled(given: Config, task: Task, tell: Tell) -> Config:
    """The config with every `auto` and the number of steps decided, by a short timing where minutes were asked for."""
    asked, validations = given.train, given.train.validations
    reference = task.settle(given)
    _build(task, reference)
    epoch = task.steps_per_epoch()
    if asked.steps is not None:
        settled, steps = task.settle(given, asked.steps / epoch), asked.steps
    elif asked.epochs is not None:
        settled = task.settle(given, asked.epochs)
        _build(task, settled)
        steps = max(1, round(asked.epochs * task.steps_per_epoch()))
    else:
        minutes = asked.minutes or DEFAULT_MINUTES
        steps, validations = _steps_in(minutes, reference, task, tell)
        settled = task.settle(given, steps / epoch)
        if settled != reference:  # another model, another speed
            steps, validations = _steps_in(minutes, settled, task, tell)
    decided = {"steps": steps, "validations": validations, "minutes": None, "epochs": None}
    return config.changed(settled, train=decided, optimizer={"rate": fit.peak_rate(settled.optimizer)})


def _steps_in(minutes: float, given: Config, task: Task, tell: Tell) -> tuple[int, int]:
    """How many steps fit into so many minutes, and how many validations into a twentieth of them (two at least, at most as
    many as the config says), by a timing whose result is thrown away: of a hundredth of the minutes, or a few seconds."""
    least, most = TIMING_SECONDS
    seconds = min(most, max(least, 60 * minutes / 100))
    tell("timing", seconds=seconds)
    with _within_memory(given, "take fewer: --hidden, --set train.rows=16, --set train.chunk=32"):
        return _timed(minutes, given, task, seconds)


def _timed(minutes: float, given: Config, task: Task, seconds: float) -> tuple[int, int]:
    step = _seconds_of_a_step(given, task, seconds)
    start = time.monotonic()
    task.validate()
    one = time.monotonic() - start
    validations = min(given.train.validations, max(2, int(60 * minutes / 20 / one)))
    usable = max(60 * minutes - validations * one, 30 * minutes)
    return max(1, int(usable / step)), validations


def _seconds_of_a_step(given: Config, task: Task, seconds: float) -> float:
    """The median of the later half of so many seconds of training, whose result is thrown away. The first steps take memory that is
    fresh, and of a large network several times as long as those after them."""
    job = new_job(given, task)
    task.model.train()
    times: list[float] = []
    batches = task.batches()
    began = time.monotonic()
    while time.monotonic() - began < seconds or len(times) < 3:
        start = time.monotonic()
        job.carry = fit.gradients(job, given, next(batches).to(_device(given))).carry
        job.optimizer.step()
        job.optimizer.zero_grad()
        times.append(time.monotonic() - start)
    return float(np.median(times[len(times) // 2 :]))


def estimate(name: str, sources: Sources, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a training with these values would take, by a second of it: parameters, steps and seconds of one pass through the data,
    and the megabytes that this process has needed at most."""
    given = config.build({**values, "task": {**values.get("task", {}), "name": name}})
    set_threads(given)
    with random_numbers_of_our_own(), tempfile.TemporaryDirectory() as folder:
        task = TASKS[name].prepare(given, sources, Path(folder))
        settled = task.settle(given)
        _build(task, settled)
        steps = task.steps_per_epoch()
        with _within_memory(settled, "take fewer: --hidden, --set train.rows=16, --set train.chunk=32"):
            seconds = _seconds_of_a_step(settled, task, 1.0)
    return {
        "parameters": sum(parameter.numel() for parameter in task.model.parameters()),
        "steps_of_a_pass": steps,
        "seconds_of_a_pass": round(steps * seconds, 2),
        **_memory(),
    }


def find_rate(name: str, sources: Sources, values: Mapping[str, Any], tell: Tell) -> Ranged:
    """The learning rate range test of what a run with these values would train (`rates.range_test`); nothing is kept."""
    data = values.get("data", {})
    part = {"fold": 1} if data.get("folds") is not None and data.get("fold") is None else {}
    given = config.build({**values, "task": {**values.get("task", {}), "name": name}, "data": {**data, **part}})
    set_threads(given)
    tell("preparing", files=[str(path) for path in sources.paths])
    with random_numbers_of_our_own(), tempfile.TemporaryDirectory() as folder:
        task = TASKS[name].prepare(given, sources, Path(folder))
        settled = _settled(given, task, tell)
        with _within_memory(settled, "take fewer: --hidden, --set train.rows=16, --set train.chunk=32"):
            return range_test(new_job(settled, task), settled, _device(settled))


def _memory() -> dict[str, int]:
    """The megabytes that this process has needed at most, where the system says it."""
    try:
        import resource
    except ImportError:  # Windows
        return {}
    return {"megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def new_job(settled: Config, task: Task) -> Job:
    """The job at its very start, its model made anew; all that is random in it follows from the seed."""
    random.seed(settled.train.seed)
    np.random.seed(settled.train.seed % 2**32)
    torch.manual_seed(settled.train.seed)
    _build(task, settled)
    name, given = settled.learner.name, settled.learner.model_extra or {}
    if name not in LEARNERS:
        raise UsageError(f"there is no learner called {name!r}; learners are {', '.join(LEARNERS)}")
    learner = LEARNERS[name](**config.options(LEARNERS[name], given, "learner"))
    batch = next(task.batches())
    why_not = learner.supports(task, batch)
    if why_not:
        raise UsageError(f"the learner {name} cannot train this: {why_not}")
    carry = learner.start(task, batch.to(_device(settled)))
    return Job(task, learner, fit.make_optimizer(task.model, settled.optimizer), carry, Progress())


def _build(task: Task, settled: Config) -> None:
    """Make the model on its device. Raises RecurraError where it does not fit there."""
    device = _device(settled)
    with _within_memory(settled, "take fewer with --hidden or --layers"):
        task.build(settled)
        task.model.to(device)


@contextmanager
def _within_memory(settled: Config, remedy: str) -> Iterator[None]:
    """Say in words that the memory was not enough. Raises RecurraError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        raise RecurraError(
            f"{settled.model.layers} layers of {settled.model.hidden} units, {settled.train.rows} rows of "
            f"{settled.train.chunk} steps, do not fit into the memory of {_device(settled)}; {remedy}"
        ) from error


def _go_on(settled: Config, task: Task, out: Path, tell: Tell) -> Finished:
    job = new_job(settled, task)
    for complaint in checkpoint.restore(out / "checkpoints", job):
        tell("complaint", text=complaint)
    log = Log(out / "log.jsonl", job.progress.step)
    resumed = job.progress.step

    def told(kind: str, **fields: Any) -> None:
        log(kind, **fields)
        tell(kind, **fields)

    def keep() -> None:
        log.flush()
        checkpoint.save(out / "checkpoints", job)

    def improved() -> None:
        bundle.save(out / "best", task, _brief(job))

    cost = job.learner.cost(task, next(task.batches()))
    if cost is not None:
        tell("note", text=f"{settled.learner.name} takes {cost} beside the network")
    told(
        "begin",
        out=str(out),
        step=resumed,
        steps=settled.train.steps,
        parameters=sum(parameter.numel() for parameter in task.model.parameters()),
        epoch=task.steps_per_epoch(),
        kernels=native.described(),
        config=settled.model_dump(mode="json"),
        unit=task.unit,
    )
    with asked_to_stop() as asked, log:
        with _within_memory(settled, "take fewer in a new run: --hidden, --set train.rows=16, --set train.chunk=32"):
            fit.fit(job, settled, told, keep, improved, lambda: bool(asked))
        if not job.progress.ended:
            if not (out / "best").exists():
                improved()
            raise Interrupted(
                f"stopped after step {job.progress.step} of {settled.train.steps}, and saved; "
                f"the same command with --out {out} goes on from there",
                exit_code=128 + asked[0],
            )
        return _finish(job, settled, out, told)


def _finish(job: Job, settled: Config, out: Path, tell: Tell) -> Finished:
    """Score the best model, write the scores into its bundle, and say what the numbers call for."""
    if not (out / "best").exists():
        raise RecurraError(
            f"no validation of this run had a finite loss, so there is no best model ({job.progress.refused} updates were "
            "left out as well); start a new run with a lower --set optimizer.rate, and look at the data"
        )
    tell("scoring")
    best = bundle.load(out / "best")
    job.task.model = best.model.to(_device(settled))
    scores = job.task.evaluate()
    job.task.model.cpu()
    bundle.save(out / "best", job.task, {**_brief(job), **scores})
    job.task.model.eval()
    words = fit.advice(job.progress, scores, settled.optimizer)
    tell("gradients", **fit.gradient_statistics(job.progress))
    tell("end", ended=job.progress.ended, best_step=job.progress.best_step, report=scores, advice=words)
    return Finished(job.task, out, scores, words)


class Log:
    """`log.jsonl`: what happened, one JSON object a line. A run that resumes drops what came after its checkpoint."""

    def __init__(self, path: Path, step: int, every_seconds: float = 1.0) -> None:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        storage.replace_file(path, "".join(line + "\n" for line in kept).encode())
        self._file = path.open("a", encoding="utf-8")
        self._every, self._last = every_seconds, -math.inf

    def __call__(self, kind: str, **fields: Any) -> None:
        now = time.monotonic()
        if kind == "step":
            if now - self._last < self._every:
                return
            self._last = now
        finite = {
            key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in fields.items()
        }
        try:
            self._file.write(json.dumps({"event": kind, "time": round(time.time(), 3), **finite}) + "\n")
        except OSError as error:
            raise RecurraError(f"{self._file.name}: {error.strerror}; free some space and resume the run") from error

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            raise RecurraError(f"{self._file.name}: {error.strerror}; free some space and resume the run") from error

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._file.close()
        except OSError as error:
            if kind is None:  # otherwise the disk is full, or worse, and that is being said already
                raise RecurraError(
                    f"{self._file.name}: {error.strerror}; free some space and resume the run"
                ) from error


def _step_of(line: str) -> float:
    """The step a log line belongs to; a torn last line belongs to none."""
    try:
        return float(json.loads(line).get("step", -1))
    except (ValueError, AttributeError, TypeError):
        return float("inf")


@contextmanager
def held(out: Path) -> Iterator[None]:
    """The run folder, made if need be, locked against other trainings and rid of what a kill left half done. What was made for a
    run that then was refused does not stay."""
    made = [place for place in (out, *out.parents) if not _there(place)]
    try:
        with storage.hold(out):
            storage.sweep(out)
            for name in ("data", "best"):
                storage.settle(out / name)
            yield
    except (UsageError, DataError):
        if made and not _there(out / "config.toml"):
            shutil.rmtree(out, ignore_errors=True)
            for place in made[1:]:
                with suppress(OSError):  # where something else lies in it by now
                    place.rmdir()
        raise


def _there(place: Path) -> bool:
    return os.path.exists(place)  # noqa: PTH110 - Path raises where a name is too long


@contextmanager
def random_numbers_of_our_own() -> Iterator[None]:
    """Training seeds the global generators; the caller's are as they were afterwards, and so is the number of threads."""
    python, numpy, threads = random.getstate(), np.random.get_state(), torch.get_num_threads()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_num_threads(threads)


class Asked(list[int]):
    """Holds the signal once SIGINT or SIGTERM has come; while `waiting` it is raised as KeyboardInterrupt too."""

    waiting = False


@contextmanager
def asked_to_stop() -> Iterator[Asked]:
    """Whether a stop was asked for. A second signal stops at once."""
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: object) -> None:
        asked.append(number)
        for one in before:
            signal.signal(one, signal.SIG_DFL if one == signal.SIGTERM else signal.default_int_handler)
        if asked.waiting:
            raise KeyboardInterrupt

    for number in before:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def has_begun(out: Path, values: Mapping[str, Any]) -> bool:
    """Whether there is a run to go on with. Raises UsageError where these are not the options that it was begun with."""
    if not (out / "config.toml").exists():
        return False
    if others := _others(out, values):
        raise UsageError(
            f"{out}: this run exists and would be resumed exactly as it was begun, so other options cannot be given: "
            f"{', '.join(others)}. Leave them out to resume, or choose another --out"
        )
    return True


def _others(out: Path, values: Mapping[str, Any]) -> list[str]:
    """The keys among `values` that are neither as they were given when the run began nor as they were settled then."""
    settled = read_config(out).model_dump(mode="json")
    given = storage.read_json(out / "given.json") if (out / "given.json").exists() else {}
    sections = {section: fields for section, fields in values.items() if isinstance(fields, Mapping)}
    plain = [key for key, value in values.items() if key not in sections and value != settled.get(key)]
    return plain + [
        f"{section}.{key}"
        for section, fields in sections.items()
        for key, value in fields.items()
        if value not in (given.get(section, {}).get(key, _NOTHING), settled[section].get(key, _NOTHING))
    ]


def _listed(prints: Any) -> str:
    told = lambda one: f" ({one['bytes']:,} bytes, sha256 {one['sha256'][:8]})" if "sha256" in one else ""  # noqa: E731
    return ", ".join(one["name"] + told(one) for one in prints[:3])


def _brief(job: Job) -> dict[str, Any]:
    best = job.progress.best_loss
    return {"step": job.progress.step, "validation_loss": best if best < float("inf") else None}


def _device(settled: Config) -> torch.device:
    return device_called(settled.train.device)


def device_called(name: str) -> torch.device:
    """The device of this name; `auto` is the first GPU, else the processor. Raises UsageError for one that is not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"--device was {name!r}, which this machine does not have ({str(error).splitlines()[0]}); try cpu"
        ) from None


def set_threads(settled: Config) -> None:
    if settled.train.threads:
        torch.set_num_threads(settled.train.threads)


def data_files_of(task: type[Task]) -> frozenset[str]:
    return task.data_files | {"sources.json"}


def attach_data(task: Task, folder: Path) -> None:
    """Give a task that was loaded from a run folder the data of its run, for floors. It is verified when it is first needed:
    a large one takes seconds, and writing a text needs none of it."""
    data = folder / "data"

    def verified() -> Path:
        storage.verify(data, "data", data_files_of(type(task)))
        return data

    if (data / storage.MANIFEST).exists():
        task.attach(verified)
