"""Forecasts of numbers: a window is read, and what comes after it is said."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple, cast, final

import numpy as np
import torch
from torch import Tensor, nn

from recurra.cells import Latent
from recurra.config import Config
from recurra.data import panel as panels
from recurra.data.batch import Batch
from recurra.data.panel import Panel
from recurra.data.read import shown
from recurra.data.windows import Inputs, Scales, Windows, scales_of
from recurra.distributions import Gaussian, Output, Point, Quantiles, StudentT
from recurra.errors import DataError, RecurraError, UsageError
from recurra.forecasting import Direct, FedBack, Forecaster, Segments, Sizes
from recurra.learn import Observed, Regression
from recurra.models import resting
from recurra.state import State
from recurra.tasks.base import Validation
from recurra.tasks.forecast_floors import naive, seasonal_error
from recurra.tasks.forecast_scores import Suspicions, Tally, table, unusual
from recurra.tasks.forecast_ways import Data, Options, Way, scales_by_name

AT_ONCE = 256  # windows of one variable that are scored together
MOST_VALIDATED = 2_000  # windows, evenly spread
HEADLINES = ("mase", "mae_scaled", "mae")
TOP = 5  # unusual steps that are named


class Guess(NamedTuple):
    """Forecasts in units: `[windows, horizon, variables]`, and quantiles with an axis of levels behind."""

    mean: np.ndarray
    quantiles: np.ndarray | None


@final
class OnWindows(Way):
    """Loss: that of the output, in deviations of the series (squared or absolute error, nats, pinball), a value. Scores: MAE, MSE
    (in units, and divided by deviation and variance of the series in training), sMAPE, MASE, pinball and coverage.

    `known["scales"]` has for each series of training by its name: under `work` and `units` mean and deviation of each variable
    in the training part, as it is forecast and as it is given (there 0 if it is constant), and under `usual` the mean error of
    seasonal naive up to the test part.
    """

    @staticmethod
    def learn(panel: Panel, spans: dict[str, np.ndarray], options: Options) -> dict[str, Any]:
        """What the training part says: sizes of the window, season, scales of each series and of the covariates. A horizon that is
        not given fits into the validation part."""
        train, checked = spans["train"], np.diff(spans["valid"], axis=1)
        season, how = (options.season, "") if options.season else panels.season(panel, train[:, 1])
        longest = int(np.median(train[train[:, 1] > 0, 1]))
        horizon = options.horizon or max(1, min(season if season > 1 else 10, longest // 4, int(checked.max())))
        context = options.context or max(1, min(max(3 * horizon, 7 * season if season > 1 else 30), longest // 2))
        known, names = _ahead(panel, options)
        inside = np.concatenate([np.arange(b, b + n) for b, n in zip(panel.bounds[:-1], train[:, 1], strict=True)])
        until = spans["test"][:, 0]
        usual = [seasonal_error(panel.values[b : b + n], season) for b, n in zip(panel.bounds[:-1], until, strict=True)]
        scales = {
            "units": scales_by_name(panel, train[:, 1], 0.0),
            "work": scales_by_name(_worked(panel, options), train[:, 1], 1.0),
            "usual": {name: usual[k].tolist() for k, name in enumerate(panel.names) if train[k, 1]},
        }
        return {
            "context": context, "horizon": horizon, "season": season, "ahead": names, "scales": scales,
            "segment": options.segment or max(1, min(24, context // 4)),
            "known_scale": _scale(known[inside]), "static_scale": _scale(panel.static),
            "notes": [how] if how else [],
        }  # fmt: skip

    def regime(self, data: Data, passes: float | None) -> dict[str, dict[str, Any]]:
        """The numbers come from the runs in benchmarks/forecast.md: about 1,000 rows a batch, fewer where windows are few."""
        copies = len(self.known["variables"]) if self.options.independent else 1
        windows = len(self._training(data))
        self._checking(data)
        rows = max(1, min(256, max(16, 1024 // copies), -(-windows // 8)))
        noise = {"dropout": 0.2, "input_dropout": 0.0, "recurrent_dropout": 0.0}
        return {"model": {"hidden": 128, **noise}, "optimizer": {"rate": 1e-3}, "train": {"rows": rows}}

    def network(self, config: Config) -> Forecaster:
        model, options, known = config.model, self.options, self.known
        if float(model.input_dropout) > 0:
            raise UsageError("model.input_dropout drops features of an embedding, and numbers have none; leave it out")
        variables = len(known["variables"])
        sizes = Sizes(
            known["context"], known["horizon"], 1 if options.independent else variables, len(known["ahead"]),
            len(known["static_names"]), variables if options.independent else 1,
        )  # fmt: skip
        output, linear, dropout = self._output(), options.linear is not False, float(model.dropout)
        if options.head == "direct":
            return Direct(sizes, output, self.core(config, Direct.inputs(sizes), dropout), linear)
        if options.head == "recurrent":
            return FedBack(sizes, output, self.core(config, FedBack.inputs(sizes), dropout))
        core = self.core(config, int(model.hidden), 0.0)
        return Segments(sizes, output, core, linear, known["segment"], dropout)

    def _output(self) -> Output:
        kind = self.options.output
        if kind == "quantiles":
            return Quantiles(self.options.levels)
        return (
            Point(self.options.loss == "mae") if kind == "point" else Gaussian() if kind == "gaussian" else StudentT()
        )

    def windows(self, panel: Panel, span: np.ndarray, taught: bool = False, until: np.ndarray | None = None) -> Windows:
        """The windows whose horizons lie in a span. A series that is not known to be one of training is scaled by its first `until`
        steps, or those of the first context."""
        context, horizon, options = self.known["context"], self.known["horizon"], self.options
        working = _worked(panel, options)
        scales = self._scales("work", working, until)
        if options.scale == "none":
            scales = Scales(np.zeros_like(scales.mean), np.ones_like(scales.deviation))
        mean, deviation = self.known["known_scale"]
        known = (_ahead(panel, options)[0] - np.array(mean)) / np.array(deviation)
        mean, deviation = self.known["static_scale"]
        static = (panel.static - np.array(mean)) / np.array(deviation)
        scored = context + horizon - 1 if taught and options.head == "recurrent" else horizon
        return Windows(
            working, span, context, horizon, options.stride, scored, scales, options.scale == "window",
            options.independent, known, static,
        )  # fmt: skip

    def _scales(self, kind: str, panel: Panel, until: np.ndarray | None = None) -> Scales:
        learnt = [self._learnt(kind, panel, k) for k in range(len(panel))]
        steps = np.minimum(panel.lengths, self.known["context"]) if until is None else until
        unknown = np.array([one is None for one in learnt])
        scales = scales_of(panel, np.where(unknown, steps, 0), 0.0 if kind == "units" else 1.0)
        for k, one in enumerate(learnt):
            if one is not None:
                scales.mean[k], scales.deviation[k] = one
        return scales

    def _learnt(self, kind: str, panel: Panel, k: int) -> Any:
        """What training learnt of series `k`, if it is one of training's; that a name is the same says nothing alone."""
        return self.known["scales"].get(kind, {}).get(panel.names[k]) if panel.same[k] else None

    @property
    def _at_once(self) -> int:
        return max(1, AT_ONCE // len(self.known["variables"]))

    def batches(self, data: Data, start: int) -> Iterator[Batch]:
        train = self.config.train
        return self._training(data).batches(_rows(self.config), train.seed, start)

    def epoch_steps(self, data: Data) -> int:
        return self._training(data).epoch_steps(_rows(self.config))

    def _training(self, data: Data) -> Windows:
        windows = self.windows(data.panel, data.spans["train"], taught=True)
        if not len(windows):
            raise DataError(
                f"no series has a horizon of {self.known['horizon']} steps after at least one in its training part; "
                "give longer series, or a shorter task.horizon"
            )
        return windows

    def _checking(self, data: Data) -> Windows:
        windows = self.windows(data.panel, data.spans["valid"], taught=True)
        if not len(windows):
            raise DataError(
                f"no series has a horizon of {self.known['horizon']} steps in its validation part; "
                "give more with task.valid_steps or data.valid_share, or a shorter task.horizon"
            )
        return windows

    def loss(self, model: nn.Module, batch: Batch, state: State) -> tuple[Tensor, State]:
        network, targets = cast(Forecaster, model), batch.targets
        losses = network.output.loss(network.taught(Inputs(*batch.inputs), targets.values), targets.values)
        return (losses * targets.seen).sum() / max(1.0, batch.weight), state

    def regression(self, model: nn.Module, batch: Batch, state: State) -> Regression:
        """Where a value of a window is missing, what hangs on it is left out."""
        network = cast(Forecaster, model)
        if self.options.output != "point":
            raise UsageError("least squares give one number; leave out task.output")
        one = network.regression(Inputs(*batch.inputs), batch.targets.values)
        seen = batch.targets.seen.reshape(one.targets.shape).bool().all(1)
        return one._replace(features=one.features[seen], targets=one.targets[seen])

    def observed(self, model: nn.Module, batch: Batch) -> Observed:
        """All of each window; what is missing in it is taken as it was filled."""
        if not isinstance(model, FedBack) or not isinstance(model.core, Latent):
            return super().observed(model, batch)
        inputs, values = Inputs(*batch.inputs), batch.targets.values
        return Observed(model.core, model.read(inputs, values), values)

    def validate(self, model: nn.Module, data: Data) -> Validation:
        """On at most 2,000 windows, evenly spread; models are compared by the loss of what they forecast, or where they are fed
        back draws, of what they say of each step after the truth."""
        windows = self._checking(data)
        network, sums = cast(Forecaster, model), torch.zeros(3)
        horizon, device = self.known["horizon"], next(model.parameters()).device
        with resting(model):
            for _, batch in windows.in_order(self._at_once, MOST_VALIDATED):
                here = batch.to(device)
                loss, _ = self.loss(model, here, ())
                error = loss * batch.weight
                if network.output.certain:
                    values, seen = here.targets.values[:, -horizon:], here.targets.seen[:, -horizon:]
                    mean = network.forecast(Inputs(*here.inputs)).mean
                    error = (network.output.loss(mean[..., None], values) * seen).sum() * (
                        batch.weight / max(1.0, float(seen.sum()))
                    )
                sums += torch.tensor([float(loss) * batch.weight, float(error), batch.weight])
        count = max(1.0, float(sums[2]))
        return Validation(float(sums[0]) / count, float(sums[1]) / count)

    def guesses(self, model: nn.Module, windows: Windows) -> Iterator[tuple[np.ndarray, Guess]]:
        """Windows by their numbers, and what is forecast of them."""
        network, device = cast(Forecaster, model), next(model.parameters()).device
        levels = () if network.output.certain else self.options.levels
        for numbers, batch in windows.in_order(self._at_once):
            with resting(model), torch.random.fork_rng(devices=[]):  # the same draws, whatever was drawn before
                torch.manual_seed(self.config.train.seed)
                said = network.forecast(Inputs(*batch.to(device).inputs), levels)
            scale, shift = batch.targets.scale, batch.targets.shift
            mean = windows.together(said.mean.cpu() * scale + shift).numpy()
            ranked = None
            if said.quantiles is not None:
                ranked = windows.together(said.quantiles.cpu() * scale[..., None] + shift[..., None]).numpy()
            if not np.isfinite(mean).all():
                raise RecurraError(
                    "a forecast is not a finite number: the training of this model has diverged; "
                    "train it anew with a lower --set optimizer.rate"
                )
            if self.options.log:
                mean, ranked = np.exp(mean), None if ranked is None else np.exp(ranked)
            yield numbers, Guess(mean, ranked)

    def report(self, model: nn.Module, panel: Panel, span: np.ndarray, data: Data | None) -> dict[str, Any]:
        windows = self.windows(panel, span)
        if not len(windows):
            raise DataError(
                f"no series has a horizon of {self.known['horizon']} steps to be scored; "
                "give longer series, or train with a shorter task.horizon"
            )
        spread, usual = self._scales("units", panel).deviation, self._usual(panel, windows)
        ours, suspicions = Tally(), Suspicions()
        floors: dict[str, Tally] = {}
        expected = np.full(panel.values.shape, np.nan)
        for series, origins, places, guess in self._placed(model, panel, windows, expected):
            begins = panel.bounds[series]
            truth, seen, against = panel.values[places], panel.seen[places], (spread[series], usual[series])
            ours.add(truth, guess.mean, seen, *against)
            if guess.quantiles is not None:
                ours.add_quantiles(truth, guess.quantiles, seen, self.options.levels)
            for name, values in naive(panel.values, begins, origins, windows.horizon, self.known["season"]).items():
                floors.setdefault(name, Tally()).add(truth, values, seen, *against)
            suspicions.add(panel.values[begins + origins - 1], truth, guess.mean, against[0])
        scores, floor_scores = ours.scores(), {name: tally.scores() for name, tally in floors.items()}
        headline = next((name for name in HEADLINES if name in scores), None)
        if headline is None:
            raise DataError("every value that is to be scored is missing; give files with values there")
        return {
            "headline": headline,
            "higher_is_better": False,
            "scores": scores,
            "floors": {name: one[headline] for name, one in floor_scores.items()},
            "floor_scores": floor_scores,
            "by_step": ours.by_step(),
            "season": self.known["season"],
            "window": {"context": windows.context, "horizon": windows.horizon, "stride": windows.stride},
            "unusual": self._unusual(panel, expected, spread),
            "warnings": [*suspicions.words(), *self._without_mase(windows, usual)],
            "notes": panel.notes,
            "series": int((np.diff([0, *windows._ends]) > 0).sum()),
            "n": len(windows),
        }

    def _placed(
        self, model: nn.Module, panel: Panel, windows: Windows, expected: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, Guess]]:
        """Series, origins, rows of the panel `[windows, horizon]` and forecasts of some windows; the means are put in `expected`
        `[total, variables]`, where the latest forecast of a step stays, as windows are in order of time."""
        for numbers, guess in self.guesses(model, windows):
            series, origins = windows.origins(numbers)
            places = (panel.bounds[series] + origins)[:, None] + np.arange(windows.horizon)
            expected[places] = guess.mean
            yield series, origins, places, guess

    def _usual(self, panel: Panel, windows: Windows) -> np.ndarray:
        """The denominator of MASE of each series, over its steps before the first that is scored, `[series, variables]`; of a
        series of training whose history is not at hand, what was kept of it; 0 where there is too little history."""
        found = np.empty((len(panel), panel.values.shape[1]))
        for k, (begin, first) in enumerate(zip(panel.bounds[:-1], windows.first, strict=True)):
            kept = self._learnt("usual", panel, k) if windows.spans[k, 0] == 0 else None
            history = panel.values[begin : begin + max(1, first)]
            found[k] = seasonal_error(history, self.known["season"]) if kept is None else kept
        return found

    def _without_mase(self, windows: Windows, usual: np.ndarray) -> list[str]:
        scored = np.diff([0, *windows._ends]) > 0
        if not (count := int((scored & (usual == 0).any(1)).sum())):
            return []
        return [
            f"{count:,} series have no MASE, or none of some variables: before what is scored they have no more than a season of "
            f"{self.known['season']} steps, or repeat it exactly"
        ]

    def _unusual(self, panel: Panel, expected: np.ndarray, spread: np.ndarray) -> list[dict[str, Any]]:
        """The steps that are furthest from what was expected of them, in usual errors."""
        scores = _unusual(panel, expected, spread)
        rows, columns = np.unravel_index(np.argsort(-scores, axis=None, kind="stable")[:TOP], scores.shape)
        return [
            _step(panel, int(r), int(c), expected, scores)
            for r, c in zip(rows, columns, strict=True)
            if scores[r, c] > 0
        ]

    def anomalies(self, model: nn.Module, panel: Panel, span: np.ndarray) -> Iterator[dict[str, Any]]:
        """For each step of a span that can be forecast what was expected of it (by the latest window) and how unusual it is."""
        expected = np.full(panel.values.shape, np.nan)
        for _ in self._placed(model, panel, self.windows(panel, span), expected):
            pass
        scores = _unusual(panel, expected, self._scales("units", panel).deviation)
        for row, column in zip(*np.nonzero(~np.isnan(expected) & panel.seen), strict=True):
            yield _step(panel, int(row), int(column), expected, scores)

    def lines(self, report: dict[str, Any]) -> list[str]:
        window = report["window"]
        head = f"{report['data']}: {report['n']:,} windows of {report['series']:,} series; context {window['context']}, horizon "
        odd = [
            f"  unusual: {shown(one['unique_id'])} at {one['ds']}, {shown(one['variable'])} = {one['value']:.6g}, expected "
            f"{one['expected']:.6g} ({one['score']:.1f} usual errors)"
            for one in report["unusual"]
        ]
        warnings = [f"  warning: {words}" for words in report["warnings"]]
        notes = [f"  note: {words}" for words in report["notes"]]
        return [
            f"{head}{window['horizon']}, stride {window['stride']}, season {report['season']}",
            *table(report),
            *odd,
            *warnings,
            *notes,
        ]

    def answers(self, model: nn.Module, panel: Panel) -> Iterator[dict[str, Any]]:
        """A row for each step ahead and variable of each series; under `filled` how many missing values were filled before."""
        lengths, horizon = panel.lengths, self.known["horizon"]
        longer = panel.extended(horizon)
        windows = self.windows(longer, np.stack([lengths, lengths + horizon], 1), until=lengths)
        levels = [f"{level:g}" for level in self.options.levels]
        missing = np.add.reduceat(~panel.seen, panel.bounds[:-1]) - (np.diff(panel.bounds) - lengths)[:, None]
        for numbers, guess in self.guesses(model, replace(windows, stride=horizon)):
            for at, k in enumerate(windows.origins(numbers)[0]):
                for step in range(horizon):
                    for place, variable in enumerate(panel.variables):
                        row: dict[str, Any] = {
                            "unique_id": panel.names[k],
                            "ds": longer.stamp(int(k), int(lengths[k]) + step),
                            "variable": variable,
                            "mean": float(guess.mean[at, step, place]),
                        }
                        if missing[k, place]:
                            row["filled"] = int(missing[k, place])
                        if guess.quantiles is not None:
                            ranked = map(float, guess.quantiles[at, step, place])
                            row["quantiles"] = dict(zip(levels, ranked, strict=True))
                        yield row

    def shown(self, answer: dict[str, Any]) -> str:
        ranked = "".join(f"\t{value:.6g}" for value in answer.get("quantiles", {}).values())
        return (
            f"{shown(answer['unique_id'])}\t{answer['ds']}\t{shown(answer['variable'])}\t{answer['mean']:.6g}{ranked}"
        )


def _step(panel: Panel, row: int, column: int, expected: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    k = int(np.searchsorted(panel.bounds, row, side="right")) - 1
    return {
        "unique_id": panel.names[k],
        "ds": panel.stamp(k, row - int(panel.bounds[k])),
        "variable": panel.variables[column],
        "value": float(panel.values[row, column]),
        "expected": float(expected[row, column]),
        "score": float(scores[row, column]),
    }


def _worked(panel: Panel, options: Options) -> Panel:
    """The panel with the values that are read and forecast. Raises DataError where a logarithm is asked of what has none."""
    if not options.log:
        return panel
    if not (panel.values > 0).all():
        row = int(np.argmin((panel.values > 0).all(1)))
        k = int(np.searchsorted(panel.bounds, row, side="right")) - 1
        raise DataError(
            f"task.log wants values above 0, and the series {shown(panel.names[k])!r} has {panel.values[row].min():g} at "
            f"{panel.stamp(k, row - int(panel.bounds[k]))}; leave it out"
        )
    return replace(panel, values=np.log(panel.values))


def _unusual(panel: Panel, expected: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """How unusual what was seen is, in usual errors of its variable, `[total, variables]`; `spread` `[series, variables]`."""
    scale = np.repeat(np.where(spread > 0, spread, 1), np.diff(panel.bounds), 0)
    return unusual(np.where(panel.seen, (panel.values - expected) / scale, np.nan))


def _ahead(panel: Panel, options: Options) -> tuple[np.ndarray, list[str]]:
    """What is known ahead of each step, `[total, covariates]`, and names."""
    if not options.calendar:
        return panel.known, list(panel.known_names)
    waves, names = panels.calendar(panel)
    return np.concatenate([panel.known, waves], 1), [*panel.known_names, *names]


def _scale(values: np.ndarray) -> list[list[float]]:
    """Mean and deviation of each column; 1 for one that is constant."""
    deviation = values.std(0)
    return [values.mean(0).tolist(), np.where(deviation > 1e-12, deviation, 1.0).tolist()]


def _rows(config: Config) -> int:
    return 32 if config.train.rows == "auto" else int(config.train.rows)
