"""The regression task: a number, or several, from a sequence or at every step of it."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, final

import numpy as np
import torch
from torch import Tensor, nn

from recurra.config import Config
from recurra.data.batch import Batch
from recurra.data.examples import Examples
from recurra.data.feed import Ragged
from recurra.data.labelled import labelled
from recurra.data.series import is_series, series
from recurra.data.survey import survey_examples
from recurra.errors import DataError, UsageError
from recurra.learn import Regression
from recurra.models import Encoder, ManyToMany, ManyToOne
from recurra.state import State, within
from recurra.tasks.base import Sources, Unit, Validation
from recurra.tasks.examples import OnExamples, Part, lengths_of, text_or_series
from recurra.tasks.floors import number_floors
from recurra.tasks.inputs import Inputs, scale_of


@dataclass(kw_only=True, frozen=True)
class Options:
    """`[task]` of the config."""

    bidirectional: bool = False
    pooling: Literal["auto", "last", "mean", "max", "attention"] = "auto"
    loss: Literal["mse", "mae"] = "mse"


@final
class Regress(OnExamples):
    """A number, or several, from a sequence (many to one) or at every step (many to many, synchronous).

    Loss: the mean square (or absolute) error of the numbers, scaled by the deviation they have in training. Scores: mean square
    and mean absolute error in the numbers' own units, and the share of the variance that is explained.
    """

    name = "regress"
    unit = Unit("of the variance", 1.0, "examples")
    Options = Options
    model: ManyToOne | ManyToMany

    @classmethod
    def read_files(cls, config: Config, paths: Sequence[Path], wanted: bool, tolerant: bool) -> Examples:
        data = config.data
        if is_series(paths, data.text):
            return series(paths, label=data.label, wanted=wanted, tolerant=tolerant)
        return labelled(
            paths, text=data.text, label=data.label, wanted=wanted, tolerant=tolerant, separator=data.separator
        )

    @classmethod
    def learn(cls, config: Config, parts: Mapping[str, Examples], inputs: Inputs) -> dict[str, Any]:
        train = parts["train"]
        numbers = _numbers_of(train)
        for one, where in zip(numbers, train.places, strict=True):
            if one.shape[-1] != numbers[0].shape[-1] or one.ndim != numbers[0].ndim:
                raise DataError(
                    f"{where} has numbers of shape {one.shape}, and {train.places[0]} of {numbers[0].shape}; give as many each"
                )
        rows = np.concatenate([one.reshape(-1, one.shape[-1]) for one in numbers])
        if not (np.ptp(rows, axis=0) > 0).any():
            raise DataError(f"every target is {rows[0].tolist()}; wanted numbers that differ")
        mean, std = scale_of(rows)
        return {"each_step": numbers[0].ndim == 2, "mean": mean.tolist(), "std": std.tolist()}

    @classmethod
    def learn_inputs(cls, config: Config, train: Examples) -> Inputs:
        return Inputs.learn(config, train)

    @classmethod
    def strata(cls, examples: Examples) -> list[Hashable]:
        return [None] * len(examples)

    def encode_targets(self, examples: Examples) -> Ragged | None:
        """The numbers, scaled: of each step, or one row for each sequence."""
        if examples.targets is None:
            return None
        mean, std = np.array(self.known["mean"], np.float32), np.array(self.known["std"], np.float32)
        longest = self.config.data.longest if self.known["each_step"] else None
        parts = []
        for one, where, xs in zip(_numbers_of(examples), examples.places, examples.inputs, strict=True):
            if self.known["each_step"] and one.ndim == 1:  # the same at every step, and so taken for one of the whole
                one = np.repeat(one[None], len(xs), axis=0)  # noqa: PLW2901
            if one.shape[-1] != len(mean) or (one.ndim == 2) != self.known["each_step"]:
                raise DataError(f"{where} has numbers of shape {one.shape}, unlike those of the training ({len(mean)})")
            parts.append(((one - mean) / std).reshape(-1, len(mean))[:longest])
        return Ragged.of(parts, np.zeros((0, len(mean)), np.float32))

    def targets(self, encoded: Ragged, rows: np.ndarray) -> Tensor:
        numbers, _ = encoded.padded(rows)
        return numbers if self.known["each_step"] else numbers[:, 0]

    def network(self, config: Config, encoder: Encoder) -> nn.Module:
        outputs, dropout = len(self.known["mean"]), float(config.model.dropout)
        if self.known["each_step"]:
            return ManyToMany(encoder, outputs, dropout=dropout)
        return ManyToOne(encoder, outputs, "last" if self.options.pooling == "auto" else self.options.pooling, dropout)

    def regime(self) -> dict[str, dict[str, Any]]:
        chosen = super().regime()
        if self.inputs.kind == "series":
            chosen["model"] |= {"input_dropout": 0.0, "dropout": 0.0}
        return chosen

    def weight(self, targets: Any, lengths: Tensor) -> float:
        count = targets.shape[-1]
        return float(max(1, int(lengths.sum())) * count) if self.known["each_step"] else float(len(lengths) * count)

    def loss(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        guesses = self._guessed(self.model(batch.inputs, batch.lengths))
        return self._errors(guesses, batch.targets, cast(Tensor, batch.lengths)).sum() / batch.weight, state

    def regression(self, batch: Batch, state: State) -> Regression:
        """What the readout sees of each example, or of each step, and its numbers. Raises UsageError."""
        if self.options.pooling == "attention":
            raise UsageError("it does not learn where to look; leave out task.pooling=attention")
        lengths, ys, model = cast(Tensor, batch.lengths), batch.targets, self.model
        if isinstance(model, ManyToMany):
            xs, kept = model.encoder(batch.inputs, lengths)[0], within(lengths, batch.targets.shape[1])
            xs, ys = xs[kept], ys[kept]
        else:
            xs = model.pooled(batch.inputs, lengths)
        return Regression(xs, ys, (model.readout.weight,), model.readout.bias)

    def _guessed(self, outputs: Any) -> Tensor:
        return outputs[0] if self.known["each_step"] else outputs

    def _errors(self, guesses: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
        apart = guesses - targets
        errors = apart.abs() if self.options.loss == "mae" else apart.square()
        return (
            torch.where(within(lengths, targets.shape[1])[..., None], errors, 0.0)
            if self.known["each_step"]
            else errors
        )

    def _outputs(self, part: Part) -> list[np.ndarray]:
        """For each example what the network guesses, scaled, `[steps or 1, numbers]`."""
        out: list[Any] = [None] * len(part.examples)
        for rows, outputs, lengths in self.outputs(part.inputs):
            guesses = self._guessed(outputs).float().cpu().numpy()
            for at, row in enumerate(rows):
                out[row] = guesses[at, : int(lengths[at])] if self.known["each_step"] else guesses[at : at + 1]
        return out

    def judge(self, part: Part) -> Validation:
        apart = np.concatenate(self._outputs(part)) - part.targets.values
        loss = float(np.abs(apart).mean() if self.options.loss == "mae" else (apart**2).mean())
        return Validation(loss, loss)

    def report(self, part: Part, train: Part | None) -> dict[str, Any]:
        if part.targets is None:
            raise DataError("these examples have no numbers to be compared with; name their column with --label")
        std = np.array(self.known["std"])
        truth = part.targets.values * std
        apart = (np.concatenate(self._outputs(part)) - part.targets.values) * std
        spread = ((truth - truth.mean(0)) ** 2).mean(0)
        explained = [1 - part / whole for part, whole in zip((apart**2).mean(0), spread, strict=True) if whole > 0]
        report: dict[str, Any] = {
            "headline": "mse",
            "higher_is_better": False,
            "scores": {
                "mse": float((apart**2).mean()),
                "mae": float(np.abs(apart).mean()),
                "explained": float(np.mean(explained)) if explained else 0.0,
            },
            "each_step": self.known["each_step"],
            "floors": {},
        }
        if train is not None:
            ahead = self.options.bidirectional and self.known["each_step"]
            report["floors"] = number_floors(self._plain(train), self._plain(part), std, ahead=ahead)
        return report

    def _plain(self, part: Part) -> tuple[Ragged | None, Ragged]:
        return (part.inputs.steps if self.inputs.kind == "series" else None), part.targets

    def lines(self, report: dict[str, Any]) -> list[str]:
        what = "every step" if report["each_step"] else "the whole"
        lines = [f"{report['data']}: {report['n']:,} examples, numbers for {what}"]
        lines += [f"  {name:<32} {value:.5g}" for name, value in report["scores"].items()]
        return lines + [f"  floor: {name:<25} {value:.5g} mse" for name, value in report["floors"].items()]

    def answer(self, examples: Examples, best: int, search: Any = None) -> Iterator[dict[str, Any]]:
        part = Part(examples, self.inputs.encode(examples, self.config.data.longest), None)
        mean, std = np.array(self.known["mean"]), np.array(self.known["std"])
        for row, guess in enumerate(self._outputs(part)):
            numbers = (guess * std + mean).tolist()
            name = {"text": examples.inputs[row]} if examples.kind == "text" else {"example": examples.places[row]}
            yield {**name, "numbers": numbers if self.known["each_step"] else numbers[0]}

    def shown(self, answer: dict[str, Any]) -> str:
        rows = answer["numbers"] if self.known["each_step"] else [answer["numbers"]]
        return "; ".join(" ".join(f"{value:.6g}" for value in row) for row in rows)

    def line(self, text: str, place: str) -> Examples:
        return text_or_series(self.inputs.kind, text, place, self.config.data.text)

    @classmethod
    def survey(cls, config: Config, sources: Sources) -> dict[str, Any]:
        parts = cls._parts(config, sources)
        report = survey_examples(parts, lengths_of(config, parts), config.data.longest)
        numbers = _numbers_of(parts["train"])
        rows = np.concatenate([one.reshape(-1, one.shape[-1]) for one in numbers])
        for at in range(rows.shape[1]):
            low, mean, high = rows[:, at].min(), rows[:, at].mean(), rows[:, at].max()
            report[f"target_{at + 1}"] = f"{low:.4g} to {high:.4g}, mean {mean:.4g}, deviation {rows[:, at].std():.4g}"
            far = np.abs(rows[:, at] - mean) > 10 * rows[:, at].std()
            if far.any():
                report["warnings"].append(
                    f"{int(far.sum()):,} numbers of target {at + 1} lie more than 10 deviations off"
                )
        return report


def _numbers_of(examples: Examples) -> list[np.ndarray]:
    """The targets as numbers; labels that read as numbers are taken for such."""
    targets = examples.targets or []
    if targets and isinstance(targets[0], np.ndarray):
        return targets
    out = []
    for one, where in zip(targets, examples.places, strict=True):
        try:
            numbers = np.array([float(value) for value in one], np.float32)
        except ValueError:
            raise DataError(
                f"{where} has {', '.join(one)!r} where a number should be; take classify for labels"
            ) from None
        if not np.isfinite(numbers).all():
            raise DataError(f"{where} has a number that is not finite; correct it, or leave it out")
        out.append(numbers[:, None] if isinstance(one, list) else numbers)  # a list tells of each step
    return out
