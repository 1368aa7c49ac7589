"""Forecasts of the next vector of zeros and ones, as in polyphonic music."""

from collections.abc import Iterator
from typing import Any, final

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from recurra.data.panel import Panel
from recurra.data.read import shown
from recurra.errors import DataError, RecurraError
from recurra.tasks.forecast_floors import frame_floors
from recurra.tasks.forecast_steps import OnSteps, sequences, stepwise
from recurra.tasks.forecast_ways import Data, Options

OFTEN = 50  # passes over the training data
LIKELY = 0.5  # a variable that is said to come
HEADLINE = "nats_per_step"


@final
class OnFrames(OnSteps):
    """The next vector of zeros and ones. Loss: the sum over variables of the binary cross-entropy, in nats a step, and its mean
    over the steps that are forecast, as published since Bai et al. 2018 (arXiv:1803.01271)."""

    @staticmethod
    def learn(panel: Panel, spans: dict[str, np.ndarray], options: Options) -> dict[str, Any]:
        known = stepwise(options)
        check_binary(panel)
        return known

    def regime(self, data: Data, passes: float | None) -> dict[str, dict[str, Any]]:
        """Pieces that are read often are learnt by heart unless noise prevents it; the numbers come from the runs in
        benchmarks/forecast.md."""
        often = passes is not None and passes > OFTEN
        noise = {"dropout": 0.5, "input_dropout": 0.3 if often else 0.2, "recurrent_dropout": 0.3 if often else 0.0}
        rows = max(1, min(8, len(data.panel)))
        return {
            "model": {"hidden": 256, **noise},
            "optimizer": {"rate": 4e-3 if often else 6e-3},
            "train": {"rows": rows},
        }

    def steps(self, panel: Panel) -> tuple[np.ndarray, np.ndarray]:
        values = panel.values.astype(np.uint8)
        return values, values

    link = "logistic"

    def losses(self, said: Tensor, truth: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(said, truth, reduction="none").sum(2)

    def _surprise(self, model: nn.Module, panel: Panel, span: np.ndarray) -> tuple[float, int, float]:
        """Nats, steps, and how many of the variables that were said to come or came did both, over a span."""
        nats = both = either = 0.0
        steps = 0
        for one in self.said(model, panel, span):
            nats += float(self.losses(one.values[None], one.truth[None]).sum())
            came, coming = one.truth > 0, one.values.sigmoid() > LIKELY
            both += float((coming & came).sum())
            either += float((coming | came).sum())
            steps += len(came)
        return nats, steps, both / max(1.0, either)

    def report(self, model: nn.Module, panel: Panel, span: np.ndarray, data: Data | None) -> dict[str, Any]:
        check_binary(panel)
        nats, steps, accuracy = self._surprise(model, panel, span)
        if not steps:
            raise DataError("no series has two steps to be scored; give longer series")
        if not np.isfinite(nats):
            raise RecurraError("the score is not a finite number; train anew with a lower --set optimizer.rate")
        floors = {}
        if data is not None:
            ends = data.spans["train"][:, 1]
            train = sequences(data.panel.values, data.panel, np.zeros_like(ends), ends)
            floors = frame_floors(train, sequences(panel.values, panel, np.maximum(span[:, 0] - 1, 0), span[:, 1]))
        return {
            "headline": HEADLINE,
            "higher_is_better": False,
            "scores": {HEADLINE: nats / steps, "frame_accuracy": accuracy},
            "floors": floors,
            "series": int((span[:, 1] > span[:, 0]).sum()),
            "warnings": [],
            "notes": panel.notes,
            "n": steps,
        }

    def lines(self, report: dict[str, Any]) -> list[str]:
        scores = report["scores"]
        return [
            f"{report['data']}: {report['n']:,} steps of {report['series']:,} series; the first step of a series is not forecast",
            f"  nats per step        {scores[HEADLINE]:.3f}",
            f"  frame accuracy       {scores['frame_accuracy']:.3f}   (true positives over all that came or were said to)",
            *(f"  floor: {name:<22} {value:.3f} nats per step" for name, value in report["floors"].items()),
        ]

    def answers(self, model: nn.Module, panel: Panel) -> Iterator[dict[str, Any]]:
        """How likely each variable comes in the next step of each series."""
        check_binary(panel)
        return super().answers(model, panel)

    def answer(self, panel: Panel, series: int, said: Tensor) -> Iterator[dict[str, Any]]:
        for variable, chance in zip(panel.variables, said.sigmoid().tolist(), strict=True):
            yield {"variable": variable, "probability": chance}

    def shown(self, answer: dict[str, Any]) -> str:
        return f"{shown(answer['unique_id'])}\t{answer['ds']}\t{shown(answer['variable'])}\t{answer['probability']:.4f}"


def check_binary(panel: Panel) -> None:
    """Raise DataError for a value that is neither 0 nor 1, or missing."""
    wrong = ~panel.seen | ~np.isin(panel.values, (0, 1))
    lengths = panel.lengths
    inside = np.concatenate([np.arange(size) < n for size, n in zip(np.diff(panel.bounds), lengths, strict=True)])
    rows = np.flatnonzero(wrong.any(1) & inside)
    if rows.size:
        row = int(rows[0])
        k, column = int(np.searchsorted(panel.bounds, row, side="right")) - 1, int(np.argmax(wrong[row]))
        value = f"{panel.values[row, column]:g}" if panel.seen[row, column] else "missing"
        raise DataError(
            f"task.output=binary wants zeros and ones, and {shown(panel.variables[column])!r} of the series "
            f"{shown(panel.names[k])!r} is {value} at {panel.stamp(k, row - int(panel.bounds[k]))}"
        )
