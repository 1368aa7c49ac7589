"""The classification task: one label, or several, of a whole text or series."""

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra.config import Config
from recurra.data.batch import Batch
from recurra.data.examples import Examples
from recurra.data.labelled import labelled
from recurra.data.series import is_series, series
from recurra.data.survey import survey_examples
from recurra.data.vocabulary import Vocabulary
from recurra.errors import DataError, UsageError
from recurra.learn import Regression
from recurra.models import Encoder, ManyToOne
from recurra.state import State
from recurra.tasks import scores
from recurra.tasks.base import Sources, Unit, Validation
from recurra.tasks.examples import OnExamples, Part, in_one_line, lengths_of, options, text_or_series
from recurra.tasks.floors import label_floors
from recurra.tasks.inputs import Inputs

WORST = 10  # examples that are named


@dataclass(kw_only=True, frozen=True)
class Options:
    """`[task]` of the config."""

    bidirectional: bool = True
    pooling: Literal["auto", "last", "mean", "max", "attention"] = "auto"
    multilabel: bool = False
    balance: bool = False


@final
class Classify(OnExamples):
    """One label, or several, of a whole text or series (many to one).

    Loss: cross-entropy in nats an example; with several labels, the sum of the binary ones. Scores: accuracy, macro-F1, and the
    expected error of the probabilities.
    """

    name = "classify"
    unit = Unit("nats", 1.0, "examples")
    Options = Options
    model: ManyToOne

    @classmethod
    def read_files(cls, config: Config, paths: Sequence[Path], wanted: bool, tolerant: bool) -> Examples:
        data = config.data
        if is_series(paths, data.text):
            return series(paths, label=data.label, wanted=wanted, tolerant=tolerant, each_step=False)
        return labelled(
            paths, text=data.text, label=data.label, wanted=wanted, tolerant=tolerant, separator=data.separator
        )

    @classmethod
    def learn(cls, config: Config, parts: Mapping[str, Examples], inputs: Inputs) -> dict[str, Any]:
        train, chosen = parts["train"], options(cls, config)
        targets = [one for part in parts.values() for one in _labels_of(part)]
        names = sorted({name for one in targets for name in one}, key=_natural)
        several = chosen.multilabel or any(len(one) != 1 for one in targets)
        if not names:
            raise DataError("no example has a label; name their column with --label")
        if several and chosen.balance:
            raise UsageError("task.balance weighs examples by their one label, and these have several; leave it out")
        if len({name for one in _labels_of(train) for name in one}) < 2 and not several:
            raise DataError(f"every example has the label {names[0]!r}; wanted at least two labels to tell apart")
        if len(names) > len(train) / 2 and len(names) > 20:
            raise DataError(
                f"{len(train)} examples have {len(names)} different labels, such as {names[0]!r}: is this the column of the "
                "label? name another with --label, or take the regress task for numbers"
            )
        return {"labels": names, "multilabel": several}

    @classmethod
    def learn_inputs(cls, config: Config, train: Examples) -> Inputs:
        return Inputs.learn(config, train)

    @classmethod
    def strata(cls, examples: Examples) -> list[Hashable]:
        return list(_labels_of(examples))

    def encode_targets(self, examples: Examples) -> np.ndarray | None:
        """int64 `[examples]`, or float32 `[examples, labels]` where there may be several."""
        if examples.targets is None:
            return None
        place = {name: at for at, name in enumerate(self.known["labels"])}
        if self.known["multilabel"]:
            out = np.zeros((len(examples), len(place)), np.float32)
            for row, one in enumerate(_labels_of(examples)):
                out[row, [place[name] for name in one if name in place]] = 1.0
            return out
        for one, where in zip(_labels_of(examples), examples.places, strict=True):
            if len(one) != 1:
                raise DataError(f"{where} has {len(one)} labels, and the network was trained to give one")
        return np.array([place.get(one[0], -1) for one in examples.targets], np.int64)

    def targets(self, encoded: np.ndarray, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(encoded[rows])

    def network(self, config: Config, encoder: Encoder) -> nn.Module:
        pooling = self.options.pooling
        if pooling == "auto":
            signs = self.inputs.kind == "text" and not isinstance(self.inputs.tokens, Vocabulary)
            pooling = "last" if signs else "max"
        return ManyToOne(encoder, len(self.known["labels"]), pooling, float(config.model.dropout))

    def loss(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        losses = self.example_loss(self.model(batch.inputs, batch.lengths), batch.targets)
        if self.options.balance and not self.known["multilabel"]:
            losses = losses * self.balance.to(losses.device)[batch.targets]
        return losses.sum() / batch.weight, state

    def regression(self, batch: Batch, state: State) -> Regression:
        """What the readout sees of each example, and its labels as zeros and ones. Raises UsageError."""
        if self.options.balance or self.options.pooling == "attention":
            raise UsageError(
                "it neither weighs examples nor learns where to look; leave out task.balance and task.pooling"
            )
        xs, readout, ys = self.model.pooled(batch.inputs, batch.lengths), self.model.readout, batch.targets
        if self.known["multilabel"]:
            return Regression(xs, ys, (readout.weight,), readout.bias, "logistic")
        known = ys >= 0
        return Regression(
            xs[known], F.one_hot(ys[known], readout.out_features), (readout.weight,), readout.bias, "softmax"
        )

    def example_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The surprise of the labels of each example `[batch]` in nats, under scores `[batch, labels]`."""
        if self.known["multilabel"]:
            return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").sum(1)
        return F.cross_entropy(outputs, targets, reduction="none", ignore_index=-1)

    @cached_property
    def balance(self) -> Tensor:
        """A weight for each label, so that all count the same: examples / (labels * examples of the label)."""
        counts = np.bincount(self.parts["train"].targets, minlength=len(self.known["labels"]))
        return torch.from_numpy(counts.sum() / (len(counts) * np.maximum(counts, 1))).float()

    def judge(self, part: Part) -> Validation:
        outputs = self._scores(part)
        loss = float(self.example_loss(outputs, torch.from_numpy(part.targets)).mean())
        probabilities = self._probabilities(outputs)
        guesses, truth = self._guesses(probabilities), part.targets
        error = 1 - (scores.micro_f1(truth, guesses) if self.known["multilabel"] else float((guesses == truth).mean()))
        return Validation(loss, error)

    def _scores(self, part: Part) -> Tensor:
        out = torch.zeros(len(part.examples), len(self.known["labels"]))
        for rows, outputs, _ in self.outputs(part.inputs):
            out[torch.from_numpy(rows)] = outputs.float().cpu()
        return out

    def _probabilities(self, outputs: Tensor) -> np.ndarray:
        return (outputs.sigmoid() if self.known["multilabel"] else outputs.softmax(1)).numpy()

    def _guesses(self, probabilities: np.ndarray) -> np.ndarray:
        if self.known["multilabel"]:
            return (probabilities > 0.5).astype(np.float32)
        return probabilities.argmax(1)

    def report(self, part: Part, train: Part | None) -> dict[str, Any]:
        if part.targets is None:
            raise DataError("these examples have no labels to be compared with; name their column with --label")
        probabilities, names = self._probabilities(self._scores(part)), self.known["labels"]
        measure = scores.of_several_labels if self.known["multilabel"] else scores.of_labels
        made = measure(part.targets, probabilities)
        report: dict[str, Any] = {
            "headline": "micro_f1" if self.known["multilabel"] else "accuracy",
            "higher_is_better": True,
            "scores": made,
            "labels": names,
            "unknown_words": self.inputs.unknown(part.inputs),
            "worst": self._worst(part, probabilities),
        }
        names_here = {name for one in _labels_of(part.examples) for name in one}
        if strange := sorted(names_here - set(names)):
            report["unknown_labels"] = strange  # never guessed, and so counted as wrong
        if not self.known["multilabel"]:
            report["confusion"] = scores.confusion(part.targets, probabilities.argmax(1), len(names))
        report["floors"] = {}
        if train is not None:
            report["floors"] = label_floors(self._plain(train), self._plain(part), self._vectors())
        return report

    def _plain(self, part: Part) -> tuple[list[Any], np.ndarray]:
        """Inputs as a method without a network takes them (words, or numbers), and targets."""
        kind = self.inputs.kind
        inputs = part.examples.inputs if kind == "series" else [self.inputs.shown(one) for one in part.examples.inputs]
        return inputs, part.targets

    def _vectors(self) -> dict[str, np.ndarray] | None:
        """The pretrained vectors of the words, where the run has them at hand."""
        if "vectors" not in self.known or self._data is None:
            return None
        with np.load(self._data() / "vectors.npz", allow_pickle=False) as taken:
            words = self.inputs.vocabulary()
            return {words[int(id)]: value for id, value in zip(taken["ids"], taken["values"], strict=True)}

    def _worst(self, part: Part, probabilities: np.ndarray) -> list[dict[str, Any]]:
        """The examples whose labels the network holds for least likely."""
        if self.known["multilabel"]:
            likely = np.where(part.targets > 0, probabilities, 1 - probabilities).min(1)
        else:
            likely = np.where(part.targets < 0, 0.0, probabilities[np.arange(len(probabilities)), part.targets])
        rows = [int(row) for row in np.argsort(likely, kind="stable")[:WORST]]
        guesses = self._guesses(probabilities)
        named = lambda row, values: [self.known["labels"][at] for at in np.flatnonzero(values)]  # noqa: E731
        wrong = [row for row in rows if not np.array_equal(guesses[row], part.targets[row])]
        return [
            {
                "place": part.examples.places[row],
                "input": part.examples.inputs[row] if self.inputs.kind == "text" else None,
                "label": list((part.examples.targets or [])[row]),
                "guess": named(row, guesses[row]) if self.known["multilabel"] else [self.known["labels"][guesses[row]]],
                "probability": float(likely[row]),
            }
            for row in wrong
        ]

    def lines(self, report: dict[str, Any]) -> list[str]:
        lines = [f"{report['data']}: {report['n']:,} examples, {len(report['labels'])} labels"]
        lines += [f"  {name.replace('_', ' '):<32} {value:.4f}" for name, value in report["scores"].items()]
        lines += [f"  floor: {name:<25} {value:.4f} {report['headline']}" for name, value in report["floors"].items()]
        if "unknown_labels" in report:
            some = ", ".join(map(in_one_line, report["unknown_labels"][:10]))
            lines.append(f"  not known from training, and so counted as wrong: {some}")
        if "confusion" in report and len(report["labels"]) <= 12:
            lines += scores.table(report["confusion"], report["labels"])
        if report["worst"]:
            lines.append("  what it gets most wrong:")
        for one in report["worst"][:5]:
            text = "" if one["input"] is None else f": {in_one_line(one['input'][:90])}"
            lines.append(
                f"    {one['place']} is {', '.join(one['label'])}, guessed {', '.join(one['guess']) or 'nothing'} "
                f"(probability of the truth {one['probability']:.3f}){text}"
            )
        return lines

    def answer(self, examples: Examples, best: int, search: Any = None) -> Iterator[dict[str, Any]]:
        part = Part(examples, self.inputs.encode(examples, self.config.data.longest), None)
        names = self.known["labels"]
        for row, chances in enumerate(self._probabilities(self._scores(part))):
            order = np.argsort(-chances, kind="stable")
            several = [names[at] for at in order if chances[at] > 0.5]
            yield {
                **({"text": examples.inputs[row]} if examples.kind == "text" else {"example": examples.places[row]}),
                **({"labels": several} if self.known["multilabel"] else {"label": names[order[0]]}),
                "probabilities": {names[at]: float(chances[at]) for at in order[:best]},
            }

    def shown(self, answer: dict[str, Any]) -> str:
        label = answer["label"] if "label" in answer else " ".join(answer["labels"])
        chances = "  ".join(f"{name} {value:.3f}" for name, value in answer["probabilities"].items())
        return (
            in_one_line(label)
            + f"\t{chances}\t"
            + in_one_line(answer["text"] if "text" in answer else answer["example"])
        )

    def line(self, text: str, place: str) -> Examples:
        return text_or_series(self.inputs.kind, text, place, self.config.data.text)

    @classmethod
    def survey(cls, config: Config, sources: Sources) -> dict[str, Any]:
        parts = cls._parts(config, sources)
        report = survey_examples(parts, lengths_of(config, parts), config.data.longest)
        counts = Counter(name for one in _labels_of(parts["train"]) for name in one)
        report["labels"] = [f"{name}: {count:,}" for name, count in counts.most_common()]
        rarest, most = min(counts.values()), max(counts.values())
        if most > 10 * rarest:
            report["warnings"].append(
                f"the most frequent label has {most:,} examples and the rarest {rarest:,}: look at macro-F1 beside the "
                "accuracy, or try --set task.balance=true"
            )
        for part in ("valid", "test"):
            strange = (
                {name for one in _labels_of(parts[part]) for name in one} - set(counts) if part in parts else set()
            )
            if strange:
                report["warnings"].append(
                    f"labels of {part} that no training example has: {', '.join(sorted(strange))}"
                )
        return report


def _labels_of(examples: Examples) -> list[tuple[str, ...]]:
    """The labels of each example. Raises where the targets are numbers or stand at each step."""
    targets = examples.targets or []
    if targets and isinstance(targets[0], np.ndarray):
        raise UsageError("the targets of these examples are numbers, not labels; take the regress task")
    if targets and isinstance(targets[0], list):
        raise UsageError("these examples have a label for each step; take the tag task")
    return targets


def _natural(name: str) -> tuple[bool, float, str]:
    """Numbers by their value, before words."""
    try:
        value = float(name)
    except ValueError:
        return True, 0.0, name
    return (False, value, name) if math.isfinite(value) else (True, 0.0, name)
