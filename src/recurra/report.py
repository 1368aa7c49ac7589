"""What `recurra probe` says of a run: a sequence that its task reads, and the probes of it, as numbers, lines and a page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recurra import probe
from recurra.cells import Cell
from recurra.data import read
from recurra.data.batch import Batch
from recurra.data.examples import Examples
from recurra.errors import DataError, UsageError
from recurra.models import ManyToMany
from recurra.probe import page as pages
from recurra.state import State, tmap
from recurra.tasks import Task
from recurra.tasks.examples import OnExamples, Part, aligned
from recurra.tasks.language import Language
from recurra.tasks.writing import Writes

MOST_STEPS = 1000  # of a text that are looked at
STRIP_STEPS = 400  # tokens of the page's strip
LINKED_STEPS = 200  # inputs whose part in an output is shown
LABELLED = 32  # examples whose labels units may follow


class Reading(NamedTuple):
    """What is asked of the network: its losses; a cell from tokens to scores, what it reads, what came and where it starts; and
    the inputs and outputs as people read them."""

    about: str
    losses: probe.Losses
    written: tuple[Cell, Tensor, Tensor, State] | None
    inputs: list[str]
    outputs: list[str]


class Report(NamedTuple):
    """All that was found; None where a probe does not fit the task, or the run has no log."""

    about: str
    flow: probe.Flow
    gates: list[probe.Gates]
    followed: list[probe.Followed]
    jacobians: list[probe.Jacobians]
    strip: probe.Strip | None
    connectivity: probe.Connectivity | None
    training: probe.Training | None
    shapes: probe.Shapes
    inputs: list[str]
    outputs: list[str]
    guesses: list[list[str]]


def examine(task: Task, folder: Path, given: str | None = None) -> Report:
    """Probe the network of a task on a text, the first one of a file, or the first of the validation data of its run.

    Where what is right is not known, the network's own answer is taken for it. Raises UsageError where there is neither, and
    DataError where it cannot be read.
    """
    reading = read_by(task, given)
    seen = probe.record(task.model, reading.losses)
    flow = probe.flow(seen, elsewhere=["encoder"] if isinstance(task, Writes) else [])
    by_cell = {one.name: one for one in flow.layers}
    strip, guesses = None, []
    if reading.written is not None:
        cell, tokens, targets, state = reading.written
        strip = probe.strip(cell, tokens, targets, state=state)
        guesses = [[_token(task, int(k)) for k in row] for row in strip.guesses]
    return Report(
        reading.about,
        flow,
        probe.gates(seen),
        _followed(task, seen, reading),
        [probe.jacobians(track, flow=by_cell[track.name]) for track in _distinct(seen)],
        strip,
        _linked(task, given),
        probe.training(folder) if (folder / "log.jsonl").exists() else None,
        probe.unrolled(task.model, seen),
        reading.inputs,
        reading.outputs,
        guesses,
    )


def shapes(task: Task, given: str | None = None) -> probe.Shapes:
    """The shapes alone."""
    return probe.unrolled(task.model, probe.record(task.model, read_by(task, given).losses))


def read_by(task: Task, given: str | None, most: int = MOST_STEPS) -> Reading:
    """A sequence of at most so many steps, as the task reads it."""
    if isinstance(task, Language):
        return _text(task, given, most)
    if isinstance(task, OnExamples):
        part = _part(task, given)
        return _written(task, part) if isinstance(task, Writes) else _example(task, part)
    if given is not None:
        raise UsageError(f"the {task.name} task is probed on the data of its run; leave {given!r} out")
    batch = _first_row(next(task.batches()))
    return Reading("the first window of the training", _whole(task, batch), None, [], [])


# --- what is read -------------------------------------------------------------------------------------------------------


def _text(task: Language, given: str | None, most: int) -> Reading:
    """From the end mark before a text on: its first token is predicted too."""
    if given is None and "valid" not in task.corpora:
        raise UsageError(
            "this model was loaded without the data of its run; give a text or a file, or load the run folder"
        )
    if given is None:
        ids = np.asarray(task.corpora["valid"].ids[: most + 1], np.int64)
    else:
        ids = np.concatenate([[task.tokens.end], task.tokens.encode(_content(given))])[: most + 1].astype(np.int64)
    if len(ids) < 2:
        raise DataError("there is no token in the text to be probed; give at least one character")
    tokens = torch.from_numpy(ids)
    model, shown = task.model, [task.tokens.text(int(one)) for one in ids]

    def losses() -> Tensor:
        scores, _ = model.unroll(tokens[None, :-1], model.initial_state(1))
        return task.step_loss(scores, tokens[None, 1:])

    about = "the validation text" if given is None else "the text"
    strip = (model, tokens[:-1], tokens[1:], model.initial_state(1))
    return Reading(f"{about}, {len(ids) - 1} tokens", losses, strip, shown[:-1], shown[1:])


def _content(given: str) -> str:
    return "".join(read.characters(Path(given))) if _is_file(given) else given


def _is_file(given: str) -> bool:
    try:
        return Path(given).is_file()
    except (OSError, ValueError):
        return False


def _part(task: OnExamples, given: str | None) -> Part:
    """One example, with its target where it is known."""
    if given is None:
        if not task.parts:
            raise UsageError(
                "this model was loaded without the data of its run; give an example, or load the run folder"
            )
        part = task.part(task.parts["valid"].examples.take([0]))
        return part
    if _is_file(given):
        found = task.read_files(task.config, read.sources([Path(given)]), False, True)
        examples = aligned(found, task.known["channels"]).take([0])
    else:
        examples = task.line(given, "the text")
    return Part(examples, task.inputs.encode(examples, task.config.data.longest), None)


def _example(task: OnExamples, part: Part) -> Reading:
    """The loss of the whole, or of each step of one that is tagged."""
    model, (xs, lengths) = task.model, part.inputs.padded(np.array([0]))
    names = _names(task, part.examples)
    if not int(lengths[0]):
        raise DataError(f"{part.examples.places[0]} has no steps to be probed; give another example")
    known = part.targets is not None

    def losses() -> Tensor:
        if known and not isinstance(model, ManyToMany):
            return _whole(task, task.batch(part, np.array([0])))()
        out = model(xs, lengths)
        scores = out[0] if isinstance(out, tuple) else out
        if task.name == "regress":
            return -scores.flatten(2).sum(2) if scores.dim() > 2 else -scores.sum(1, keepdim=True)
        if known:
            tags = task.targets(part.targets, np.array([0]))[0].clamp(min=0)
            return F.cross_entropy(scores.transpose(1, 2), tags, reduction="none")
        surprise = -scores.log_softmax(-1).amax(-1)
        return surprise if surprise.dim() == 2 else surprise[:, None]

    outputs = names if isinstance(model, ManyToMany) else ["the whole"]
    place = part.examples.places[0]
    return Reading(f"{place}, {int(lengths[0])} steps", losses, None, names, outputs)


def _written(task: Writes, part: Part) -> Reading:
    """What the network wrote about it, or what was to be written, token by token."""
    rows, model = np.array([0]), task.model
    xs, lengths = task.read(part, rows)
    if part.targets is not None:
        ids = task.targets(part.targets, rows)[1][0]
    else:
        best = task.written(part)[0][0]
        ids = torch.tensor([*best.tokens, task.tokens.end])
    given = torch.cat([torch.tensor([task.tokens.end]), ids[:-1]])

    def losses() -> Tensor:
        cell = model.decoder.attend(model.remember(xs, lengths))
        scores = cell.unroll(given[None], cell.initial_state(1))[0]
        return F.cross_entropy(scores.transpose(1, 2), ids[None], reduction="none")

    with torch.no_grad():
        cell = model.decoder.attend(model.remember(xs, lengths))
        strip = (cell, given, ids, cell.initial_state(1))
    shown = task.places(part, 0)
    inputs = shown if isinstance(shown, list) else []
    outputs = [task.tokens.text(int(one)) for one in ids]
    return Reading(f"{part.examples.places[0]}, {len(ids)} tokens written", losses, strip, inputs, outputs)


def _names(task: OnExamples, examples: Examples) -> list[str]:
    if task.inputs.kind not in ("text", "words"):
        return []
    return task.inputs.shown(examples.inputs[0])[: task.config.data.longest]


def _whole(task: Task, batch: Batch) -> probe.Losses:
    return lambda: task.loss(batch, task.model.initial_state(batch.rows))[0].view(1, 1)  # type: ignore[operator]


def _first_row(batch: Batch) -> Batch:
    first = lambda tree: tmap(lambda leaf: leaf[:1], tree)  # noqa: E731
    lengths = None if batch.lengths is None else batch.lengths[:1]
    return Batch(first(batch.inputs), first(batch.targets), lengths, batch.weight, batch.fresh[:1], batch.step)


# --- what is found ------------------------------------------------------------------------------------------------------


def _distinct(seen: probe.Record) -> list[probe.Track]:
    """The first track of each cell."""
    return list({track.name: track for track in reversed(seen.tracks)}.values())[::-1]


def _linked(task: Task, given: str | None) -> probe.Connectivity | None:
    reading = read_by(task, given, LINKED_STEPS)
    try:
        return probe.connectivity(task.model, reading.losses)
    except UsageError:  # no embedding, or one that is asked step by step: there is no row of inputs to be linked with
        return None


def _followed(task: Task, seen: probe.Record, reading: Reading) -> list[probe.Followed]:
    """What units follow in the text, and of labelled examples which of them follow a label."""
    found = probe.followers(probe.gates(seen), probe.features([reading.inputs])) if reading.inputs else []
    if isinstance(task, OnExamples) and not isinstance(task, Writes) and "valid" in task.parts:
        part = task.parts["valid"]
        batch = task.batch(part, np.arange(min(LABELLED, len(part.examples))))
        labels = _labels(part.examples, batch.time, batch.rows)
        found += probe.followers(probe.gates(probe.record(task.model, _whole(task, batch))), labels, best=1)
    return found


def _labels(examples: Examples, time: int, rows: int) -> dict[str, np.ndarray]:
    """Each label as a feature [rows, time]: of a whole example at all its steps, of a step at this one."""
    targets = (examples.targets or [])[:rows]
    if not targets or isinstance(targets[0], np.ndarray):
        return {}
    names = sorted({name for one in targets for name in one})[:10]
    spread = [one if isinstance(one, list) else None for one in targets]
    found = {}
    for name in names:
        values = np.full((rows, time), np.nan)
        for row, (whole, steps) in enumerate(zip(targets, spread, strict=True)):
            told = [name in whole] * time if steps is None else [step == name for step in steps[:time]]
            values[row, : len(told)] = told
        found[f"label {name}"] = values
    return found


def _token(task: Any, token: int) -> str:
    return task.tokens.text(token)


# --- for people ---------------------------------------------------------------------------------------------------------


def lines(found: Report) -> list[str]:
    """What was found, in words."""
    words = [f"Looked at: {found.about}", *found.flow.words]
    words += [word for cell in found.gates for word in cell.words]
    words += [word for one in found.jacobians for word in one.words]
    rest: list[Any] = [found.strip, found.connectivity, found.training]
    words += [word for one in rest if one is not None for word in one.words]
    for claim in found.followed[:12]:
        words.append(
            f"{claim.layer}: unit {claim.unit} of {claim.part} is {'lower' if claim.sign < 0 else 'higher'} with {claim.feature} "
            f"({claim.measure} {claim.score:.2f} on the half that it was not chosen by)."
        )
    return words


def as_json(found: NamedTuple) -> dict[str, Any]:
    """The numbers, ready for JSON; values of gates and whole Jacobians are left out."""
    told: dict[str, Any] = pages.plain(found)
    return told


def page(found: Report, title: str) -> str:
    """One self-contained page of HTML."""
    sections: list[pages.Section] = []
    if found.strip is not None:
        some: Sequence[str] = found.outputs[:STRIP_STEPS]
        sections.append(pages.strip_section(found.strip, some, found.guesses))
    sections.append(pages.flow_section(found.flow))
    sections.append(pages.gates_section(found.gates, found.followed))
    sections.append(pages.jacobians_section(found.jacobians))
    if found.connectivity is not None:
        sections.append(pages.connectivity_section(found.connectivity, found.inputs[:LINKED_STEPS], found.outputs))
    if found.training is not None:
        sections.append(pages.training_section(found.training))
    sections.append(pages.text_section("Shapes", found.shapes.lines()))
    return pages.page(f"{title}: {found.about}", sections)
