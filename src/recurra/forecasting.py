"""Forecasters: from a context of series to what is said of each step of a horizon."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra.cells import Cell, Latent
from recurra.data.windows import Inputs
from recurra.distributions import Output
from recurra.errors import UsageError
from recurra.learn import Regression
from recurra.state import State, masked, tmap

PATHS = 100  # futures drawn where a forecast is fed back
TOGETHER = 64  # rows whose futures are drawn at once


class Sizes(NamedTuple):
    """What a forecaster is built for: steps, and numbers a step."""

    context: int
    horizon: int
    features: int
    known: int
    static: int
    variables: int  # rows of different meaning; 1 where variables are together

    @property
    def told(self) -> int:
        """Numbers that `Told` makes."""
        return self.static + (min(8, self.variables) if self.variables > 1 else 0)


class Forecast(NamedTuple):
    """In the scale of the forecaster: mean `[rows, horizon, features]`, quantiles `[rows, horizon, features, levels]`."""

    mean: Tensor
    quantiles: Tensor | None


class Forecaster(nn.Module, ABC):
    """`Inputs` -> raw numbers `[rows, steps, features, parameters]` for `output`, of the last steps of a window."""

    sizes: Sizes
    output: Output

    def initial_state(self, batch: int) -> State:
        """Nothing is carried from window to window."""
        return ()

    @abstractmethod
    def taught(self, inputs: Inputs, values: Tensor) -> Tensor:
        """In training, where `values` `[rows, scored, features]` are the truth: raw numbers `[rows, scored, ...]`. Scored is the
        horizon, or what the head says of the window."""

    @abstractmethod
    def forecast(self, inputs: Inputs, levels: tuple[float, ...] = ()) -> Forecast:
        """Without the truth. `levels` of quantiles, where there are to be any."""

    def regression(self, inputs: Inputs, values: Tensor) -> Regression:
        """A window as the regression that its point forecasts are. Raises UsageError for a head that is none."""
        raise UsageError("what this head says is not linear in all that it learns; take task.head=direct or recurrent")

    def _shaped(self, raw: Tensor) -> Tensor:
        return raw.unflatten(-1, (self.sizes.features, self.output.parameters))

    def _said(self, raw: Tensor, levels: tuple[float, ...]) -> Forecast:
        return Forecast(self.output.mean(raw), self.output.quantiles(raw, levels) if levels else None)


@final
class Told(nn.Module):
    """What stays the same in a window: static covariates, and learnt numbers for the variable; `[rows, told]`."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.variable = nn.Embedding(sizes.variables, min(8, sizes.variables)) if sizes.variables > 1 else None

    def forward(self, inputs: Inputs) -> Tensor:
        if self.variable is None:
            return inputs.static
        return torch.cat([inputs.static, self.variable(inputs.variable)], 1)


@final
class Linear(nn.Module):
    """Each step of the horizon as a weighted sum of the context, the same for all variables, beside what a network says: what is
    linear in a series need not go through it (Lai et al. 2018, arXiv:1703.07015). It starts from nothing."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(sizes.horizon, sizes.context))

    def forward(self, past: Tensor, raw: Tensor, locations: int) -> Tensor:
        """`raw` `[rows, horizon, features, parameters]`, with the sums added to its first parameters."""
        sums = torch.einsum("hc,rcf->rhf", self.weight, past)[..., None]
        return torch.cat([raw[..., :locations] + sums, raw[..., locations:]], 3)


@final
class Direct(Forecaster):
    """A cell reads the context, and one matrix says all steps of the horizon at once from its last output; what is known of a
    step ahead is added by another, the same for all steps, which starts from nothing; and `Linear`, if it is to be."""

    def __init__(self, sizes: Sizes, output: Output, core: Cell, linear: bool) -> None:
        super().__init__()
        self.sizes, self.output, self.core, self.told = sizes, output, core, Told(sizes)
        self.linear = Linear(sizes) if linear else None
        numbers = sizes.features * output.parameters
        self.readout = nn.Linear(core.output_size, sizes.horizon * numbers)
        self.ahead = nn.Linear(sizes.known, numbers, bias=False) if sizes.known else None
        if self.ahead is not None:
            nn.init.zeros_(self.ahead.weight)

    @staticmethod
    def inputs(sizes: Sizes) -> int:
        return sizes.features + sizes.known + sizes.told

    def taught(self, inputs: Inputs, values: Tensor) -> Tensor:
        return self._raw(inputs)

    def forecast(self, inputs: Inputs, levels: tuple[float, ...] = ()) -> Forecast:
        return self._said(self._raw(inputs), levels)

    def regression(self, inputs: Inputs, values: Tensor) -> Regression:
        """The last output, and the context beside it where it is summed as well (a network with direct connections)."""
        if self.ahead is not None:
            raise UsageError("what is known ahead has weights of its own in task.head=direct; take task.head=recurrent")
        features, weights = self._read(inputs), [self.readout.weight]
        if self.linear is not None:
            if self.sizes.features > 1:
                raise UsageError(
                    "task.linear is one sum for all variables; give task.linear=false, or leave out task.independent"
                )
            features = torch.cat([features, inputs.past[..., 0]], 1)
            weights.append(self.linear.weight)
        return Regression(features, values.flatten(1), tuple(weights), self.readout.bias)

    def _read(self, inputs: Inputs) -> Tensor:
        """What the cell says last of the context, `[rows, units]`."""
        context = self.sizes.context
        told = self.told(inputs)[:, None].expand(-1, context, -1)
        xs = torch.cat([inputs.past, inputs.known[:, :context], told], 2)
        ys, _ = self.core.unroll(xs, self.core.initial_state(len(xs)))
        return ys[:, -1]

    def _raw(self, inputs: Inputs) -> Tensor:
        context = self.sizes.context
        raw = self.readout(self._read(inputs)).unflatten(1, (self.sizes.horizon, -1))
        raw = self._shaped(raw if self.ahead is None else raw + self.ahead(inputs.known[:, context:]))
        return raw if self.linear is None else self.linear(inputs.past, raw, self.output.locations)


@final
class FedBack(Forecaster):
    """A cell that says the next step, and is fed what it said: its value or, where it says how likely values are, draws from it.

    In training it is fed the truth (teacher forcing, Williams & Zipser 1989) and every step of the window but the first is a
    target. Forecasts by draws are those of DeepAR (Salinas et al. 2020, arXiv:1704.04110): means and quantiles of 100 paths,
    whose noise is the same for all rows, so that a forecast does not depend on what else is forecast.
    """

    def __init__(self, sizes: Sizes, output: Output, core: Cell) -> None:
        super().__init__()
        self.sizes, self.output, self.core, self.told = sizes, output, core, Told(sizes)
        self.readout: nn.Module = nn.Linear(core.output_size, sizes.features * output.parameters)
        if isinstance(core, Latent):
            if sizes.known or sizes.told or not output.certain:
                raise UsageError(
                    "a model with a hidden state reads values alone and forecasts their mean; leave out task.output, covariates "
                    "and calendar, and of several variables give task.independent=false"
                )
            self.readout = nn.Identity()

    @staticmethod
    def inputs(sizes: Sizes) -> int:
        return sizes.features + sizes.known + sizes.told

    def taught(self, inputs: Inputs, values: Tensor) -> Tensor:
        return self._shaped(self.readout(self._followed(inputs, values)))

    def regression(self, inputs: Inputs, values: Tensor) -> Regression:
        """Each step but the first, read after the truth."""
        if not isinstance(self.readout, nn.Linear):
            raise UsageError("a model with a hidden state has no readout to fit; take --learner em")
        ys = self._followed(inputs, values).flatten(0, 1)
        return Regression(ys, values.flatten(0, 1), (self.readout.weight,), self.readout.bias)

    def _followed(self, inputs: Inputs, values: Tensor) -> Tensor:
        """What the cell says of each step where it reads the truth, `[rows, scored, units]`."""
        read = self.read(inputs, values)
        ys, _ = self._read(inputs, read, self.core.initial_state(len(read)))
        return ys

    @staticmethod
    def read(inputs: Inputs, values: Tensor) -> Tensor:
        """The truth before each of `values`, `[rows, scored, features]`."""
        return torch.cat([inputs.past[:, :1], values[:, :-1]], 1)

    def forecast(self, inputs: Inputs, levels: tuple[float, ...] = ()) -> Forecast:
        ys, state = self._read(inputs, inputs.past, self.core.initial_state(len(inputs.past)))
        raw = self._shaped(self.readout(ys[:, -1]))
        if self.output.certain:
            return self._said(self._path(inputs, raw, state, None), levels)
        noise = 1 - torch.rand(self.sizes.horizon, 2, PATHS, self.sizes.features)
        noise = noise.to(raw)
        parts = [self._drawn(inputs, raw, state, noise, levels, at) for at in range(0, len(raw), TOGETHER)]
        ranked = torch.cat([part.quantiles for part in parts if part.quantiles is not None]) if levels else None
        return Forecast(torch.cat([part.mean for part in parts]), ranked)

    def _drawn(
        self, inputs: Inputs, raw: Tensor, state: State, noise: Tensor, levels: tuple[float, ...], at: int
    ) -> Forecast:
        """What the draws of `TOGETHER` rows from `at` on come to; noise `[horizon, 2, paths, features]`."""
        copied = lambda x: x[at : at + TOGETHER].repeat_interleave(PATHS, 0)  # noqa: E731
        first = copied(raw)
        repeated = noise.repeat(1, 1, len(first) // PATHS, 1)
        paths = self._path(Inputs(*map(copied, inputs)), first, tmap(copied, state), repeated)[..., 0]
        paths = paths.unflatten(0, (-1, PATHS))
        ranked = torch.quantile(paths, paths.new_tensor(levels), dim=1).movedim(0, -1) if levels else None
        return Forecast(paths.mean(1), ranked)

    def _read(self, inputs: Inputs, values: Tensor, state: State) -> tuple[Tensor, State]:
        """Each value beside what is known of the step after it."""
        steps = values.shape[1]
        told = self.told(inputs)[:, None].expand(-1, steps, -1)
        return self.core.unroll(torch.cat([values, inputs.known[:, 1 : steps + 1], told], 2), state)

    def _path(self, inputs: Inputs, raw: Tensor, state: State, noise: Tensor | None) -> Tensor:
        """Values `[rows, horizon, features, 1]`, each fed back to say the next; noise `[horizon, 2, rows, features]` where values
        are drawn."""
        noise = raw.new_empty(self.sizes.horizon, 0) if noise is None else noise
        value, told, context = self.output.sample(raw, noise[0]), self.told(inputs), self.sizes.context
        values = [value]
        for t in range(self.sizes.horizon - 1):
            y, state = self.core(torch.cat([value, inputs.known[:, context + t + 1], told], 1), state)
            value = self.output.sample(self._shaped(self.readout(y)), noise[t + 1])
            values.append(value)
        return torch.stack(values, 1)[..., None]


@final
class Segments(Forecaster):
    """SegRNN (Lin et al. 2023, arXiv:2308.11200): a cell reads the context in segments, and then says each segment of the horizon
    by one step from the same state, told which segment and which variable it is.

    The context is lengthened at its start by its first value, where it is no multiple of the segment. What is known ahead and
    what is static is added to what a step is told; and to what it says, `Linear`, if it is to be.
    """

    def __init__(self, sizes: Sizes, output: Output, core: Cell, linear: bool, segment: int, dropout: float) -> None:
        super().__init__()
        if not 1 <= segment <= sizes.context:
            raise UsageError(f"task.segment was {segment}, wanted 1 to task.context, which is {sizes.context}")
        units, self.linear = core.input_size, Linear(sizes) if linear else None
        self.sizes, self.output, self.core, self.segment, self.dropout = sizes, output, core, segment, dropout
        self.embed = nn.Linear(segment * (sizes.features + sizes.known), units)
        half = units // 2
        self.place = nn.Parameter(torch.randn(math.ceil(sizes.horizon / segment), half))
        self.variable = nn.Parameter(torch.randn(sizes.variables, units - half))
        self.ahead = nn.Linear(segment * sizes.known, units, bias=False) if sizes.known else None
        self.static = nn.Linear(sizes.static, units, bias=False) if sizes.static else None
        self.readout = nn.Linear(core.output_size, segment * sizes.features * output.parameters)

    def taught(self, inputs: Inputs, values: Tensor) -> Tensor:
        return self._raw(inputs)

    def forecast(self, inputs: Inputs, levels: tuple[float, ...] = ()) -> Forecast:
        return self._said(self._raw(inputs), levels)

    def _raw(self, inputs: Inputs) -> Tensor:
        rows, context, horizon = len(inputs.past), self.sizes.context, self.sizes.horizon
        read = torch.cat([inputs.past, inputs.known[:, :context]], 2)
        missing = -context % self.segment
        read = torch.cat([read[:, :1].expand(-1, missing, -1), read], 1)
        segments = self.embed(read.unflatten(1, (-1, self.segment)).flatten(2)).relu()
        _, state = self.core.unroll(segments, self.core.initial_state(rows))
        count = len(self.place)
        told = self._told(inputs, count).flatten(0, 1)[:, None]
        ys, _ = self.core.unroll(told, tmap(lambda x: x.repeat_interleave(count, 0), state))
        raw = self.readout(F.dropout(ys[:, 0], self.dropout, self.training))
        raw = self._shaped(raw.unflatten(0, (rows, count)).unflatten(2, (self.segment, -1)).flatten(1, 2)[:, :horizon])
        return raw if self.linear is None else self.linear(inputs.past, raw, self.output.locations)

    def _told(self, inputs: Inputs, count: int) -> Tensor:
        """What the step of each segment of the horizon is told, `[rows, segments, units]`."""
        rows, context = len(inputs.past), self.sizes.context
        who = self.variable[inputs.variable][:, None].expand(-1, count, -1)
        told = torch.cat([who, self.place.expand(rows, -1, -1)], 2)
        if self.ahead is not None:
            known = F.pad(inputs.known[:, context:], (0, 0, 0, count * self.segment - self.sizes.horizon))
            told = told + self.ahead(known.unflatten(1, (count, self.segment)).flatten(2))
        return told if self.static is None else told + self.static(inputs.static)[:, None]


@final
class Frames(Cell):
    """A cell from vectors to what is said of the next one, `[batch, time, features]` both: of numbers their values, of zeros and
    ones their logits."""

    def __init__(self, core: Cell, features: int) -> None:
        super().__init__()
        self.core, self.readout = core, nn.Linear(core.output_size, features)
        self.input_size = self.output_size = features

    def initial_state(self, batch: int) -> State:
        return self.core.initial_state(batch)

    def project(self, xs: Tensor) -> State:
        return self.core.project(xs)

    def step(self, u: State, state: State) -> tuple[Tensor, State]:
        y, state = self.core.step(u, state)
        return self.readout(y), state

    def scan(self, xs: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        ys, state = self.core.unroll(xs, state, lengths)
        return cast(Tensor, masked(self.readout(ys), lengths)), state
