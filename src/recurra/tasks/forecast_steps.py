"""Forecasts of the next step from all before it: what those of numbers and those of zeros and ones have in common."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from recurra.config import Config
from recurra.data.batch import Batch
from recurra.data.feed import Corpus, Stream
from recurra.data.panel import Panel
from recurra.errors import DataError, UsageError
from recurra.forecasting import Frames
from recurra.learn import Regression
from recurra.learn.ridge import Link
from recurra.models import resting
from recurra.regularize import locked_mask
from recurra.state import State, within
from recurra.tasks.base import Validation
from recurra.tasks.forecast_ways import Data, Options, Way

USED = frozenset(
    {"output", "id", "time", "target", "univariate", "dates", "frequency", "train_steps", "valid_steps", "test_steps"}
)


class Said(NamedTuple):
    """What was said of the steps of a series from step `first` on, each from all before it, and what came, float32 `[steps,
    variables]` both."""

    series: int
    first: int
    values: Tensor
    truth: Tensor


class OnSteps(Way):
    """Each step but the first is forecast from all before it: the state is carried along each series. The loss is the sum of what
    `losses` says of each step, divided by the number of steps of which it says something."""

    link: Link  # what makes numbers of scores

    @abstractmethod
    def steps(self, panel: Panel) -> tuple[np.ndarray, np.ndarray]:
        """What is read of each step, and what it is compared with, `[total, variables]` both; NaN is compared with nothing."""

    @abstractmethod
    def losses(self, said: Tensor, truth: Tensor) -> Tensor:
        """The loss of each step `[batch, time]`, of scores and targets `[batch, time, variables]`."""

    @abstractmethod
    def answer(self, panel: Panel, series: int, said: Tensor) -> Iterator[dict[str, Any]]:
        """What is answered of each variable, for what was said `[variables]` of the step after a series."""

    def network(self, config: Config) -> Frames:
        features = len(self.known["variables"])
        return Frames(self.core(config, features, float(config.model.dropout)), features)

    def batches(self, data: Data, start: int) -> Iterator[Batch]:
        width = len(self.known["variables"])
        for batch in self._stream(data).batches(start):
            targets = batch.targets[..., width:].float()
            there = ~targets.isnan()
            if batch.lengths is not None:
                there &= within(batch.lengths, batch.time)[..., None]
            weight = float(there.sum()) / width
            yield replace(batch, inputs=batch.inputs[..., :width].float(), targets=targets, weight=weight)

    def epoch_steps(self, data: Data) -> int:
        return self._stream(data).epoch_steps()

    def _stream(self, data: Data) -> Stream:
        train, ends = self.config.train, data.spans["train"][:, 1]
        parts = sequences(np.concatenate(self.steps(data.panel), 1), data.panel, np.zeros_like(ends), ends)
        corpus = Corpus(np.concatenate(parts), np.cumsum([0, *map(len, parts)]))
        if not corpus.transitions:
            raise DataError("no series has two steps for training; give longer series")
        rows = 16 if train.rows == "auto" else int(train.rows)
        return Stream(corpus, max(1, min(rows, corpus.transitions)), train.chunk, train.seed)

    def loss(self, model: nn.Module, batch: Batch, state: State) -> tuple[Tensor, State]:
        network, xs = cast(Frames, model), batch.inputs
        share = float(self.config.model.input_dropout) if model.training else 0.0
        said, state = network.unroll(xs * locked_mask(xs, share) if share else xs, state, batch.lengths)
        losses = self.losses(said, batch.targets)
        if batch.lengths is not None:
            losses = losses * within(batch.lengths, losses.shape[1])
        return losses.sum() / (batch.weight or 1.0), state

    def regression(self, model: nn.Module, batch: Batch, state: State) -> Regression:
        network, kept = cast(Frames, model), ~batch.targets.isnan().any(2)
        if batch.lengths is not None:
            kept &= within(batch.lengths, batch.time)
        features, after = network.core.unroll(batch.inputs, state, batch.lengths)
        readout = network.readout
        return Regression(features[kept], batch.targets[kept], (readout.weight,), readout.bias, self.link, after)

    def validate(self, model: nn.Module, data: Data) -> Validation:
        total = steps = 0.0
        for one in self.said(model, data.panel, data.spans["valid"]):
            total += float(self.losses(one.values[None], one.truth[None]).sum())
            steps += float((~one.truth.isnan()).sum()) / one.truth.shape[1]
        return Validation(total / (steps or 1.0), total / (steps or 1.0))

    def said(self, model: nn.Module, panel: Panel, span: np.ndarray) -> Iterator[Said]:
        """Of each series that has a step to be forecast in its span. It is read from its start."""
        network, device = cast(Frames, model), next(model.parameters()).device
        read, truth = self.steps(panel)
        for k, (begin, end) in enumerate(span):
            first, at = max(int(begin), 1), int(panel.bounds[k])
            if end <= first:
                continue
            xs = torch.from_numpy(read[at : at + end - 1])[None].float().to(device)
            with resting(model):
                values, _ = network.unroll(xs, network.initial_state(1))
            yield Said(k, first, values[0, first - 1 :].cpu(), torch.from_numpy(truth[at + first : at + end]).float())

    def answers(self, model: nn.Module, panel: Panel) -> Iterator[dict[str, Any]]:
        network, device = cast(Frames, model), next(model.parameters()).device
        read = sequences(self.steps(panel)[0], panel, np.zeros_like(panel.lengths), panel.lengths)
        for k, sequence in enumerate(read):
            with resting(model):
                said, _ = network.unroll(torch.from_numpy(sequence)[None].float().to(device), network.initial_state(1))
            where = {"unique_id": panel.names[k], "ds": panel.stamp(k, len(sequence))}
            for row in self.answer(panel, k, said[0, -1].cpu()):
                yield {**where, **row}


def stepwise(options: Options) -> dict[str, Any]:
    """What every way of this kind knows. Raises UsageError for options of windows."""
    for option in fields(options):
        if option.name not in USED and getattr(options, option.name) != option.default:
            raise UsageError(
                f"task.output={options.output} reads whole series and forecasts the next step; leave out task.{option.name}"
            )
    return {"context": 1, "horizon": 1, "notes": ["the context is all of a series so far, the horizon its next step"]}


def sequences(values: np.ndarray, panel: Panel, begins: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
    """Steps `begins` to `ends` of each series, where there are any, of `values` `[total, ...]`: `[steps, ...]` each."""
    spans = zip(panel.bounds[:-1], begins, ends, strict=True)
    return [values[at + begin : at + end] for at, begin, end in spans if end > begin]
