"""Forecasts of the next value of each variable, from all that came before."""

from collections.abc import Iterator
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from recurra.data.panel import Panel
from recurra.data.read import shown
from recurra.data.windows import scale_of
from recurra.errors import DataError, RecurraError
from recurra.tasks.forecast_scores import Tally, table
from recurra.tasks.forecast_steps import OnSteps, stepwise
from recurra.tasks.forecast_ways import Data, Options, scales_by_name

HEADLINES = ("nmse", "mse")
READER = 256  # steps that each of the readers side by side has at least


@final
class OnNext(OnSteps):
    """The next value of each variable. A value is scaled by mean and deviation of its variable in the training part of its series;
    of a series that is not one of training, in those of all series. Loss of a step: the mean over the variables of the squared
    error. Values that were missing, and those before which their variable has none, are not forecast.

    Scores, in units: MSE, MAE, RMSE, and NMSE, the squared error divided by the variance of what came, variable by variable of
    each series. Floors: the value before, and the mean of training.

    `known["scales"]` has mean and deviation of each variable for each series of training by its name, `known["scale"]` those of all
    together.
    """

    @staticmethod
    def learn(panel: Panel, spans: dict[str, np.ndarray], options: Options) -> dict[str, Any]:
        until = spans["train"][:, 1]
        inside = np.concatenate([np.arange(at, at + n) for at, n in zip(panel.bounds[:-1], until, strict=True)])
        whole = [one.tolist() for one in scale_of(panel.values[inside], panel.seen[inside])]
        return {**stepwise(options), "scales": scales_by_name(panel, until, 1.0), "scale": whole}

    def regime(self, data: Data, passes: float | None) -> dict[str, dict[str, Any]]:
        steps = int(data.spans["train"][:, 1].sum())
        return {
            "model": {"hidden": 64, "dropout": 0.0, "input_dropout": 0.0, "recurrent_dropout": 0.0},
            "optimizer": {"rate": 4e-3},
            "train": {"rows": max(1, min(8, steps // READER))},
        }

    def scale(self, panel: Panel, series: int) -> np.ndarray:
        """What the values of a series are shifted and divided by, `[2, variables]`."""
        learnt = self.known["scales"].get(panel.names[series]) if panel.same[series] else None
        return np.array(self.known["scale"] if learnt is None else learnt)

    def steps(self, panel: Panel) -> tuple[np.ndarray, np.ndarray]:
        scales = np.array([self.scale(panel, k) for k in range(len(panel))])
        mean, deviation = np.repeat(scales, np.diff(panel.bounds), 0).swapaxes(0, 1)
        values = ((panel.values - mean) / deviation).astype(np.float32)
        return values, np.where(_to_forecast(panel), values, np.float32(np.nan))

    link = "identity"

    def losses(self, said: Tensor, truth: Tensor) -> Tensor:
        there = ~truth.isnan()
        return torch.where(there, said - truth.nan_to_num(), 0.0).square().mean(2)

    def report(self, model: nn.Module, panel: Panel, span: np.ndarray, data: Data | None) -> dict[str, Any]:
        tallies = {name: Tally() for name in ("this network", "last value", "mean")}
        series = 0
        for one in self.said(model, panel, span):
            mean, deviation = self.scale(panel, one.series)
            rows = panel.bounds[one.series] + one.first + np.arange(len(one.truth))
            truth, seen = panel.values[rows], (~one.truth.isnan()).numpy()
            said = one.values.double().numpy() * deviation + mean
            if not np.isfinite(said).all():
                raise RecurraError("a forecast is not a finite number; train anew with a lower --set optimizer.rate")
            spread, nothing = np.broadcast_to(scale_of(truth, seen, 0.0)[1], truth.shape), np.zeros_like(truth)
            guesses = (said, panel.values[rows - 1], np.broadcast_to(mean, truth.shape))
            for tally, guess in zip(tallies.values(), guesses, strict=True):
                tally.add(truth[:, None], guess[:, None], seen[:, None], spread, nothing)
            series += bool(seen.any())
        scores = {name: _scores(tally) for name, tally in tallies.items()}
        ours = scores.pop("this network")
        if not ours:
            raise DataError("no series has two steps with values to be scored; give longer series")
        headline = next(name for name in HEADLINES if name in ours)
        return {
            "headline": headline,
            "higher_is_better": False,
            "scores": ours,
            "floors": {name: one[headline] for name, one in scores.items()},
            "floor_scores": scores,
            "series": series,
            "warnings": [],
            "notes": panel.notes,
            "n": int(tallies["mean"].counts["mse"]),
        }

    def lines(self, report: dict[str, Any]) -> list[str]:
        head = (
            f"{report['data']}: {report['n']:,} values of {report['series']:,} series, each forecast from all before it"
        )
        return [head, *table(report), *(f"  note: {words}" for words in report["notes"])]

    def answer(self, panel: Panel, series: int, said: Tensor) -> Iterator[dict[str, Any]]:
        """In units; under `filled` how many missing values were filled before."""
        mean, deviation = self.scale(panel, series)
        begin, length = int(panel.bounds[series]), int(panel.lengths[series])
        missing = (~panel.seen[begin : begin + length]).sum(0)
        values = said.double().numpy() * deviation + mean
        for variable, value, gaps in zip(panel.variables, values.tolist(), missing.tolist(), strict=True):
            yield {"variable": variable, "mean": value} | ({"filled": gaps} if gaps else {})

    def shown(self, answer: dict[str, Any]) -> str:
        return f"{shown(answer['unique_id'])}\t{answer['ds']}\t{shown(answer['variable'])}\t{answer['mean']:.6g}"


def _to_forecast(panel: Panel) -> np.ndarray:
    """What was seen and has a value of its variable before it in its series, bool `[total, variables]`: the first one stands,
    where a series is filled at its head, in the steps before it too."""
    parts = np.split(panel.seen, panel.bounds[1:-1])
    before = [np.logical_or.accumulate(np.concatenate([part[:1] & False, part[:-1]])) for part in parts]
    return panel.seen & np.concatenate(before)


def _scores(tally: Tally) -> dict[str, float]:
    found = tally.scores()
    if "mse" not in found:
        return {}
    errors = {"mse": found["mse"], "rmse": found["mse"] ** 0.5, "mae": found["mae"]}
    return ({"nmse": found["mse_scaled"]} if "mse_scaled" in found else {}) | errors
