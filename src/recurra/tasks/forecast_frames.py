"""Forecasts of the next vector of zeros and ones, as in polyphonic music."""

from collections.abc import Iterator
from typing import Any, cast, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra.config import Config
from recurra.data.batch import Batch
from recurra.data.feed import Corpus, Stream
from recurra.data.panel import Panel
from recurra.data.read import shown
from recurra.errors import DataError, RecurraError, UsageError
from recurra.forecasting import Frames
from recurra.learn import Regression
from recurra.models import resting
from recurra.regularize import locked_mask
from recurra.state import State, within
from recurra.tasks.base import Validation
from recurra.tasks.forecast_floors import frame_floors
from recurra.tasks.forecast_ways import Data, Options, Way

OFTEN = 50  # passes over the training data
LIKELY = 0.5  # a variable that is said to come
UNUSED = ("context", "horizon", "segment", "season", "linear")
HEADLINE = "nats_per_step"


@final
class OnFrames(Way):
    """Each step but the first is forecast from all before it: the state is carried along each series. Loss: the sum over variables
    of the binary cross-entropy, in nats a step, and its mean over the steps that are forecast, as published since Bai et al. 2018
    (arXiv:1803.01271)."""

    @staticmethod
    def learn(panel: Panel, spans: dict[str, np.ndarray], options: Options) -> dict[str, Any]:
        given = [name for name in UNUSED if getattr(options, name) is not None]
        given += [name for name in ("known", "static", "calendar", "log") if getattr(options, name)]
        if given:
            raise UsageError(
                f"task.output=binary reads whole series and forecasts the next step; leave out task.{given[0]}"
            )
        check_binary(panel)
        return {
            "context": 1,
            "horizon": 1,
            "notes": ["the context is all of a series so far, the horizon its next step"],
        }

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

    def network(self, config: Config) -> Frames:
        features = len(self.known["variables"])
        return Frames(self.core(config, features, float(config.model.dropout)), features)

    def batches(self, data: Data, start: int) -> Iterator[Batch]:
        return self._stream(data).batches(start)

    def epoch_steps(self, data: Data) -> int:
        return self._stream(data).epoch_steps()

    def _stream(self, data: Data) -> Stream:
        train = self.config.train
        sequences = _sequences(data.panel, np.zeros(len(data.panel), np.int64), data.spans["train"][:, 1])
        bounds = np.cumsum([0, *map(len, sequences)])
        corpus = Corpus(np.concatenate(sequences).astype(np.uint8), bounds)
        if not corpus.transitions:
            raise DataError("no series has two steps for training; give longer series")
        rows = 16 if train.rows == "auto" else int(train.rows)
        return Stream(corpus, max(1, min(rows, corpus.transitions)), train.chunk, train.seed)

    def loss(self, model: nn.Module, batch: Batch, state: State) -> tuple[Tensor, State]:
        network, xs = cast(Frames, model), batch.inputs.float()
        share = float(self.config.model.input_dropout) if model.training else 0.0
        scores, state = network.unroll(xs * locked_mask(xs, share) if share else xs, state, batch.lengths)
        losses = F.binary_cross_entropy_with_logits(scores, batch.targets.float(), reduction="none").sum(2)
        if batch.lengths is not None:
            losses = losses * within(batch.lengths, losses.shape[1])
        return losses.sum() / batch.weight, state

    def regression(self, model: nn.Module, batch: Batch, state: State) -> Regression:
        network = cast(Frames, model)
        xs, after = network.core.unroll(batch.inputs.float(), state, batch.lengths)
        lengths = torch.full((batch.rows,), batch.time) if batch.lengths is None else batch.lengths
        kept, readout = within(lengths.to(xs.device), batch.time), network.readout
        return Regression(xs[kept], batch.targets[kept], (readout.weight,), readout.bias, "logistic", after)

    def validate(self, model: nn.Module, data: Data) -> Validation:
        nats, steps, _ = self._surprise(model, data.panel, data.spans["valid"])
        return Validation(nats / max(1, steps), nats / max(1, steps))

    def _surprise(self, model: nn.Module, panel: Panel, span: np.ndarray) -> tuple[float, int, float]:
        """Nats, steps, and how many of the variables that were said to come or came did both, over a span. Each series is read
        from its start."""
        network, device = cast(Frames, model), next(model.parameters()).device
        nats = both = either = 0.0
        steps = 0
        with resting(model):
            for k, (begin, end) in enumerate(span):
                if end - max(begin, 1) < 1:
                    continue
                values = (
                    torch.from_numpy(panel.values[panel.bounds[k] : panel.bounds[k] + end])[None].float().to(device)
                )
                scores, _ = network.unroll(values[:, :-1], network.initial_state(1))
                scores, truth = scores[:, max(begin, 1) - 1 :], values[:, max(begin, 1) :]
                nats += float(F.binary_cross_entropy_with_logits(scores, truth, reduction="sum"))
                said = scores.sigmoid() > LIKELY
                both += float((said & (truth > 0)).sum())
                either += float((said | (truth > 0)).sum())
                steps += truth.shape[1]
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
            train = _sequences(data.panel, np.zeros(len(data.panel), np.int64), data.spans["train"][:, 1])
            floors = frame_floors(train, _sequences(panel, np.maximum(span[:, 0] - 1, 0), span[:, 1]))
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
        network, device = cast(Frames, model), next(model.parameters()).device
        for k, sequence in enumerate(_sequences(panel, np.zeros(len(panel), np.int64), panel.lengths)):
            xs = torch.from_numpy(sequence)[None].float().to(device)
            with resting(model):
                scores, _ = network.unroll(xs, network.initial_state(1))
            for variable, chance in zip(panel.variables, scores[0, -1].sigmoid().tolist(), strict=True):
                ds = panel.stamp(k, len(sequence))
                yield {"unique_id": panel.names[k], "ds": ds, "variable": variable, "probability": chance}

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


def _sequences(panel: Panel, begins: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
    """Steps `begins` to `ends` of each series, where there are any: `[steps, variables]`."""
    spans = zip(panel.bounds[:-1], begins, ends, strict=True)
    return [panel.values[at + begin : at + end] for at, begin, end in spans if end > begin]
