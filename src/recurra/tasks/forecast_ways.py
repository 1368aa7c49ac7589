"""What the forecast task's ways have in common: how series become batches, and what is said of them, is each way's own."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator
from torch import Tensor, nn

from recurra import config as configuration
from recurra.cells import Cell, cell_called
from recurra.config import Config
from recurra.data.batch import Batch
from recurra.data.panel import Columns, Panel
from recurra.data.windows import scales_of
from recurra.distributions import LEVELS
from recurra.errors import UsageError
from recurra.init import PRESETS
from recurra.learn import Observed, Regression
from recurra.models import stack
from recurra.regularize import weight_drop
from recurra.state import State
from recurra.tasks.base import Validation

Names = str | tuple[str, ...]


def _levels(given: Any) -> Any:
    """One number, or several with commas between, as the command line gives them."""
    return given.split(",") if isinstance(given, str) else (given,) if isinstance(given, int | float) else given


@dataclass(kw_only=True, frozen=True)
class Options:
    """`[task]` of the config.

    context, horizon   steps that are read, and steps that are forecast; none: from the season
    stride             steps between the starts of two windows
    head               direct: all steps at once; recurrent: one step, fed back; segments: SegRNN
    output             a point, a distribution, quantiles; or no window: the next vector of zeros and ones from all before it
                       (binary, as in music), or of numbers (next)
    loss               of points
    levels             of quantiles, in scores and answers too; those of output=quantiles have 0.5 between them, as the median
                       stands for the mean
    scale              series: by mean and deviation of the series in training; window: and the last value of each context is
                       taken off; none
    log                the logarithm is read and forecast, for series that grow by factors; values must be above 0, and the
                       `mean` in answers is the exponential of that of logarithms: a median, below the mean of values
    independent        each variable is forecast from itself, by the same network
    linear             a weighted sum of the context beside the network; none: yes, unless the head is recurrent
    segment            steps of a segment; none: from the context
    calendar           hour, weekday and time of the year are known ahead, where times are dates
    season             steps after which series repeat, for floors and MASE; none: guessed, and said
    train_steps, valid_steps, test_steps
                       of each series; without train_steps counted from its end, with it from its start
    The rest as in `data.panel.Columns`.
    """

    context: int | None = None
    horizon: int | None = None
    stride: int = 1
    head: Literal["segments", "direct", "recurrent"] = "segments"
    output: Literal["point", "gaussian", "student-t", "quantiles", "binary", "next"] = "point"
    loss: Literal["mae", "mse"] = "mae"
    levels: Annotated[tuple[float, ...], BeforeValidator(_levels)] = LEVELS
    scale: Literal["window", "series", "none"] = "window"
    log: bool = False
    independent: bool = True
    linear: bool | None = None
    segment: int | None = None
    calendar: bool = False
    season: int | None = None
    train_steps: int | None = None
    valid_steps: int | None = None
    test_steps: int | None = None
    id: str | None = None
    time: str | None = None
    target: Names = ()
    known: Names = ()
    static: Names = ()
    univariate: bool = False
    dates: str | None = None
    frequency: str | None = None

    def columns(self) -> Columns:
        """Which columns are what. A name may stand alone, or several with commas between."""
        several = lambda names: tuple(names.split(",")) if isinstance(names, str) else names  # noqa: E731
        return Columns(
            self.id, self.time, several(self.target), several(self.known), several(self.static),
            self.univariate, self.dates, self.frequency,
        )  # fmt: skip


def options_of(config: Config) -> Options:
    """The options of the task. Raises UsageError for one that it does not have, or a number that cannot be."""
    options = Options(**configuration.options(Options, config.task.model_extra or {}, "task"))
    for name in ("context", "horizon", "stride", "segment", "season", "train_steps", "valid_steps", "test_steps"):
        value = getattr(options, name)
        if value is not None and not 1 <= value <= 1_000_000:
            raise UsageError(f"task.{name} was {value}, wanted 1 to 1,000,000 steps")
    levels = options.levels
    if not levels or not all(0 < level < 1 for level in levels) or list(levels) != sorted(set(levels)):
        raise UsageError(f"task.levels was {levels}, wanted numbers between 0 and 1, from low to high")
    if options.output == "quantiles" and not levels[0] <= 0.5 <= levels[-1]:
        raise UsageError(
            f"task.levels was {levels}, and task.output=quantiles wants 0.5 among or between them, for the median"
        )
    if options.head == "recurrent" and options.output == "quantiles":
        raise UsageError("quantiles cannot be fed back; take task.head=segments or direct, or task.output=gaussian")
    if options.head == "recurrent" and options.linear:
        raise UsageError(
            "task.linear stands beside heads that say all steps at once; leave it out with task.head=recurrent"
        )
    if options.train_steps is not None and options.valid_steps is None:
        raise UsageError(
            "task.train_steps was given without task.valid_steps; give both, and task.test_steps if there is a test"
        )
    return options


@dataclass(frozen=True)
class Data:
    """The series of a run, and the steps of each that belong to each part: int64 `[series, 2]`, from and to."""

    panel: Panel
    spans: dict[str, np.ndarray]


class Way(ABC):
    """How series become batches, losses, scores and answers; `known` is what was learnt of the training data, for JSON."""

    def __init__(self, config: Config, options: Options, known: dict[str, Any]) -> None:
        self.config, self.options, self.known = config, options, known

    @abstractmethod
    def regime(self, data: Data, passes: float | None) -> dict[str, dict[str, Any]]:
        """What `auto` stands for, by section, for a budget that reads the data `passes` times (None: not known yet)."""

    @abstractmethod
    def network(self, config: Config) -> nn.Module: ...

    @abstractmethod
    def batches(self, data: Data, start: int) -> Iterator[Batch]: ...

    @abstractmethod
    def epoch_steps(self, data: Data) -> int: ...

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, state: State) -> tuple[Tensor, State]: ...

    @abstractmethod
    def regression(self, model: nn.Module, batch: Batch, state: State) -> Regression: ...

    def observed(self, model: nn.Module, batch: Batch) -> Observed:
        """What a model with a hidden state reads. Raises UsageError where there is none."""
        raise UsageError("it trains models with a hidden state; take --cell kalman with task.head=recurrent")

    @abstractmethod
    def validate(self, model: nn.Module, data: Data) -> Validation: ...

    @abstractmethod
    def report(self, model: nn.Module, panel: Panel, span: np.ndarray, data: Data | None) -> dict[str, Any]:
        """Scores and floors over the steps of a span; `data` of the run, where it is at hand."""

    @abstractmethod
    def lines(self, report: dict[str, Any]) -> list[str]: ...

    @abstractmethod
    def answers(self, model: nn.Module, panel: Panel) -> Iterator[dict[str, Any]]:
        """What comes after each series."""

    @abstractmethod
    def shown(self, answer: dict[str, Any]) -> str: ...

    def core(self, config: Config, inputs: int, dropout: float) -> Cell:
        """The recurrent part: cells on top of each other, started and regularised as the config says."""
        name, model = config.cell.name, config.model
        kind = cell_called(name)
        if model.init not in PRESETS:
            raise UsageError(f"there is no start called {model.init!r}; they are {', '.join(PRESETS)}")
        given = configuration.options(kind, config.cell.model_extra or {}, "cell")
        core = stack(
            name,
            inputs,
            int(model.hidden),
            model.layers,
            dropout,
            block=model.block,
            convolved=model.convolved,
            **given,
        )
        PRESETS[model.init](core)
        if float(model.recurrent_dropout) > 0:
            weight_drop(core, float(model.recurrent_dropout))
        return core


def scales_by_name(panel: Panel, until: np.ndarray, still: float) -> dict[str, tuple[list[float], list[float]]]:
    """Mean and deviation of each variable of each series that has steps to learn them from; `still` if it is constant."""
    scales = scales_of(panel, until, still)
    triples = zip(panel.names, scales.mean.tolist(), scales.deviation.tolist(), strict=True)
    return {name: (mean, deviation) for (name, mean, deviation), steps in zip(triples, until, strict=True) if steps}
