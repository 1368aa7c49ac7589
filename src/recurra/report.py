"""What `recurra probe` says of a run: a sequence that its task reads, and the probes of it, as numbers, lines and a page."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recurra import api, probe, run
from recurra.cells import Cell
from recurra.data import read
from recurra.data.batch import Batch
from recurra.data.examples import Examples
from recurra.decoder import Attending
from recurra.errors import DataError, UsageError
from recurra.memory import Pooling
from recurra.models import ManyToMany, SequenceModel
from recurra.probe import figures
from recurra.probe import page as pages
from recurra.probe.jacobians import MOST_SIZE
from recurra.state import State, flat, tmap
from recurra.tasks import Task
from recurra.tasks.examples import OnExamples, Part, aligned
from recurra.tasks.language import Language
from recurra.tasks.looks import Look, Pixels, by_words, over_the_picture
from recurra.tasks.writing import Writes

MOST_STEPS = 1000  # of a text that are looked at
STRIP_STEPS = 400  # tokens of the page's strip
LINKED_STEPS = 200  # inputs whose part in an output is shown
LABELLED = 32  # examples whose labels units may follow
TERMS, TERMS_BYTES = (
    25,
    2**28,
)  # steps of the sum that is taken apart, and the bytes that copies of the weights may take
CORPUS, QUERIES, NEAREST, CONTEXT = 20_000, 8, 3, 30  # tokens of the training text, places, and what is shown of them
AROUND, POINTS, RATE = (
    100,
    17,
    1.0,
)  # steps of the text and points of the plane of the loss; the rate of a plain step in it
TOLD = {"auc": 0.65, "r": 0.3}  # scores of a unit that follows something, below which nothing is said of it
STARTS, MOST_FIXED = (
    32,
    256,
)  # states to look for fixed points from; numbers of a state beyond which that takes too long


class Reading(NamedTuple):
    """What is asked of the network: its losses; a cell from tokens to scores, what it reads, what came and where it starts; and
    the inputs and outputs as people read them."""

    about: str
    losses: probe.Losses
    written: tuple[Cell, Tensor, Tensor, State] | None
    inputs: list[str]
    outputs: list[str]
    picture: Pixels | None = None


class Report(NamedTuple):
    """All that was found; None where a probe does not fit the task, or the run has no log."""

    about: str
    flow: probe.Flow
    gates: list[probe.Gates]
    followed: list[probe.Followed]
    jacobians: list[probe.Jacobians]
    large: list[str]
    strip: probe.Strip | None
    connectivity: probe.Connectivity | None
    attention: probe.Attention | None
    terms: probe.Terms | None
    trajectory: probe.Trajectory
    fixed_points: probe.FixedPoints | None
    neighbours: probe.Neighbours | None
    cliff: probe.Cliff
    training: probe.Training | None
    shapes: probe.Shapes
    beside: dict[str, probe.Flow]
    inputs: list[str]
    outputs: list[str]
    guesses: list[list[str]]
    looked_at: tuple[list[str], list[str]]
    picture: str | None
    contexts: tuple[list[str], list[list[str]]]


def examine(
    task: Task,
    folder: Path,
    given: str | None = None,
    beside: Mapping[str, Task] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Report:
    """Probe the network of a task on a text, the first one of a file, or the first of the validation data of its run. Gradients of
    the networks `beside` it, by name, are followed on the same. What is being done is told to `tell`.

    Where what is right is not known, the network's own answer is taken for it. Raises UsageError where there is neither, and
    DataError where it cannot be read.
    """
    tell("gradients through time")
    reading = read_by(task, given)
    seen = probe.record(task.model, reading.losses)
    flow, cells = _flow(task, seen), _distinct(seen)
    by_cell = {one.name: one for one in flow.layers}
    others = {
        name: _flow(one, probe.record(one.model, read_by(one, given).losses)) for name, one in (beside or {}).items()
    }
    tell("what it expected, looked at and looked back at")
    strip, guesses = _strip(task, reading)
    attention, looked_at = _attention(task, reading)
    neighbours, contexts = _neighbours(task, reading)
    connectivity, terms = _linked(task, given), _terms(task, reading)
    tell("gates")
    gates, followed = probe.gates(seen), _followed(task, seen, reading)
    tell("Jacobians")
    jacobians = [probe.jacobians(track, flow=by_cell[track.name]) for track in cells if not _is_large(track)]
    large = [
        f"{track.name}: its state has {flat(track.start).shape[1]:,} numbers; Jacobians are made of {MOST_SIZE:,} at most."
        for track in cells
        if _is_large(track)
    ]
    tell("where the state stays, and the loss around the network")
    last, around = seen.tracks[-1], read_by(task, given, AROUND)
    clip = task.config.optimizer.clip or 1.0
    return Report(
        about=reading.about,
        flow=flow,
        gates=gates,
        followed=followed,
        jacobians=jacobians,
        large=large,
        strip=strip,
        connectivity=connectivity,
        attention=attention,
        terms=terms,
        trajectory=probe.trajectory(last),
        fixed_points=_fixed_points(last),
        neighbours=neighbours,
        cliff=probe.cliff(task.model, lambda: around.losses().mean(), points=POINTS, rate=RATE, most=clip),
        training=probe.training(folder) if (folder / "log.jsonl").exists() else None,
        shapes=probe.unrolled(task.model, seen),
        beside={"this": flow, **others} if others else {},
        inputs=reading.inputs,
        outputs=reading.outputs,
        guesses=guesses,
        looked_at=looked_at,
        picture=_over_the_picture(reading, attention),
        contexts=contexts,
    )


def _strip(task: Task, reading: Reading) -> tuple[probe.Strip | None, list[list[str]]]:
    """Of a network that writes, with its guesses as people read them."""
    if reading.written is None:
        return None, []
    cell, tokens, targets, state = reading.written
    strip = probe.strip(cell, tokens, targets, state=state)
    return strip, [[_token(task, int(k)) for k in row] for row in strip.guesses]


def untrained(folder: Path) -> Task:
    """The task of a run with its network as it was before its training. Raises DataError where the run's data is gone."""
    task = api.load(folder)
    with run.random_numbers_of_our_own():
        run.new_job(run.read_config(folder), task)
    task.model.cpu()  # a run may have trained elsewhere
    return task


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
    picture = shown if isinstance(shown, Pixels) else None
    return Reading(f"{part.examples.places[0]}, {len(ids)} tokens written", losses, strip, inputs, outputs, picture)


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


def _flow(task: Task, seen: probe.Record) -> probe.Flow:
    return probe.flow(seen, elsewhere=["encoder"] if isinstance(task, Writes) else [])


def _terms(task: Task, reading: Reading) -> probe.Terms | None:
    """Of the loss some steps into a text, for as many as there is room for."""
    if not isinstance(task, Language) or reading.written is None:
        return None
    cell, tokens, targets, _ = reading.written
    size = sum(one.nbytes for one in cell.parameters())
    t = min(TERMS, len(tokens), TERMS_BYTES // size) - 1
    if t < 1:
        return None
    return probe.terms(cell, tokens[None], lambda y: task.step_loss(y[:, None], targets[None, t : t + 1]).sum(), t)


def _attention(task: Task, reading: Reading) -> tuple[probe.Attention | None, tuple[list[str], list[str]]]:
    """The weights of what a decoder, or a layer that pools, looked at, and its places and looks as people read them."""
    weights, places, said = None, reading.inputs, reading.outputs
    if isinstance(task, Writes) and task.model.decoder.attention is not None and reading.written is not None:
        cell, tokens, _, state = reading.written
        with probe.at_rest(task.model), torch.no_grad():
            weights = cast(Attending, cell).looks(tokens[None], state).weights[0].numpy()
        if len(places) == weights.shape[1]:
            look = by_words(Look(reading.about, places, said, weights))
            weights, places, said = look.weights, cast(list[str], look.source), look.written
    pooling = getattr(task.model, "attention", None)
    if isinstance(pooling, Pooling):
        given: list[Any] = []
        handle = pooling.register_forward_pre_hook(lambda _, arguments: given.extend(arguments))
        try:
            with probe.at_rest(task.model), torch.no_grad():
                reading.losses()
                weights = pooling.look(*given)[1][:1].numpy()
        finally:
            handle.remove()
    return (None, ([], [])) if weights is None else (probe.attention(weights), (places, said))


def _over_the_picture(reading: Reading, found: probe.Attention | None) -> str | None:
    """What was looked at laid over the picture, where it was one and was looked at place by place."""
    if reading.picture is None or found is None:
        return None
    return over_the_picture(Look(reading.about, reading.picture, reading.outputs, found.weights))


def _fixed_points(track: probe.Track) -> probe.FixedPoints | None:
    """Those of a cell at the mean of its inputs, from states along its way."""
    at = torch.linspace(0, track.steps - 1, min(STARTS, track.steps)).long()
    states = tmap(lambda leaf: leaf[0, at], track.before)
    if flat(states).shape[1] > MOST_FIXED:
        return None
    x = track.xs[0].mean(0) if track.xs.is_floating_point() else track.xs[0, -1]
    return probe.fixed_points(track.cell, x, states)


def _neighbours(task: Task, reading: Reading) -> tuple[probe.Neighbours | None, tuple[list[str], list[list[str]]]]:
    """Places of the text, and those of the training text where what the readout saw was nearest to what it saw there."""
    nothing: tuple[None, tuple[list[str], list[list[str]]]] = None, ([], [])
    if not isinstance(task, Language) or not isinstance(task.model, SequenceModel) or "train" not in task.corpora:
        return nothing
    ids = np.asarray(task.corpora["train"].ids[:CORPUS], np.int64)
    if reading.written is None or len(ids) < NEAREST:
        return nothing
    tokens = reading.written[1]
    with probe.at_rest(task.model), torch.no_grad():
        corpus, own = (
            task.model.features(some[None], task.model.initial_state(1))[0][0]
            for some in (torch.from_numpy(ids), tokens)
        )
    at = np.unique(np.linspace(len(tokens) - 1, min(CONTEXT, len(tokens) - 1), QUERIES).astype(int))
    found = probe.neighbours(own[torch.from_numpy(at)], corpus, NEAREST)
    before = lambda some, k: "".join(_token(task, int(one)) for one in some[max(0, k + 1 - CONTEXT) : k + 1])  # noqa: E731
    asked = [before(tokens, k) for k in at.tolist()]
    return found, (asked, [[before(ids, k) for k in row] for row in found.steps.tolist()])


def _is_large(track: probe.Track) -> bool:
    return flat(track.start).shape[1] > MOST_SIZE


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
    if found.beside:
        words += figures.beside_section(found.beside).words
    words += [word for cell in found.gates for word in cell.words]
    words += [word for one in found.jacobians for word in one.words] + found.large
    rest: list[Any] = [
        found.strip,
        found.connectivity,
        found.attention,
        found.terms,
        found.trajectory,
        found.fixed_points,
    ]
    rest += [found.cliff, found.training]
    words += [word for one in rest if one is not None for word in one.words]
    told = [claim for claim in found.followed if claim.score >= TOLD[claim.measure]]
    for claim in told[:12]:
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
    sections: list[figures.Section] = []
    if found.strip is not None:
        some: Sequence[str] = found.outputs[:STRIP_STEPS]
        sections.append(figures.strip_section(found.strip, some, found.guesses))
    if found.attention is not None:
        sections.append(figures.attention_section(found.attention, *found.looked_at))
    if found.picture is not None:
        sections.append(figures.Section("Where it looked in the picture", [], [found.picture]))
    sections.append(figures.flow_section(found.flow))
    if found.beside:
        sections.append(figures.beside_section(found.beside))
    if found.terms is not None:
        sections.append(figures.terms_section(found.terms))
    sections.append(figures.gates_section(found.gates, found.followed))
    if found.jacobians:
        sections.append(figures.jacobians_section(found.jacobians))
    sections.append(figures.trajectory_section(found.trajectory, found.fixed_points, found.inputs))
    if found.connectivity is not None:
        sections.append(figures.connectivity_section(found.connectivity, found.inputs[:LINKED_STEPS], found.outputs))
    if found.neighbours is not None:
        sections.append(figures.neighbours_section(found.neighbours, *found.contexts))
    sections.append(figures.cliff_section(found.cliff))
    if found.training is not None:
        sections.append(figures.training_section(found.training))
    sections.append(figures.shapes_section(found.shapes))
    return pages.page(f"{title}: {found.about}", sections)
