"""The learning rate range test: which rate to begin with, by a few hundred updates whose result is thrown away."""

import math
from typing import NamedTuple

import torch

from recurra import fit
from recurra.checkpoint import Job
from recurra.config import Config
from recurra.errors import RecurraError

SMOOTHING = 0.95  # of the running mean of the losses


class Ranged(NamedTuple):
    """Rates, the loss at each and its running mean, up to the last rate or where training broke down; and the rate that
    they suggest."""

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggested: float


def range_test(
    job: Job, config: Config, device: torch.device, *, steps: int = 300, lowest: float = 1e-6, highest: float = 10.0
) -> Ranged:
    """Train a job at rates that rise exponentially from `lowest` to `highest`, one batch at each, and watch the loss (Smith 2017,
    arXiv:1506.01186, with his linear rise made exponential).

    The running mean is corrected for its start at zero. The test ends early where a loss or gradient is not finite, or where the
    mean is three times its lowest and has risen twice as far as it had fallen. Suggested is a tenth of the rate at which the
    mean is lowest: the mean lags, and rates only a little below those that break training are too high for all but its
    beginning. The job is used up. Raises RecurraError where the very first loss is not finite.
    """
    job.task.model.train()
    rates: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    mean, batches = 0.0, job.task.batches()
    for step in range(steps):
        rate = lowest * (highest / lowest) ** (step / (steps - 1))
        for group in job.optimizer.param_groups:
            group["lr"] = rate
        new = fit.gradients(job, config, next(batches).to(device))
        if not (math.isfinite(new.loss) and math.isfinite(new.norm)):
            break
        mean = SMOOTHING * mean + (1 - SMOOTHING) * new.loss
        rates.append(rate)
        losses.append(new.loss)
        smoothed.append(mean / (1 - SMOOTHING ** (step + 1)))
        lowest_yet = min(smoothed)
        if smoothed[-1] - lowest_yet > 2 * max(smoothed[0] - lowest_yet, abs(lowest_yet)):
            break
        job.optimizer.step()
        job.optimizer.zero_grad()
        job.carry, job.progress.step = new.carry, step + 1
    if not rates:
        raise RecurraError(
            "the first loss of the range test was not finite, at a rate of almost nothing; look at the data"
        )
    return Ranged(rates, losses, smoothed, float(f"{rates[smoothed.index(min(smoothed))] / 10:.2g}"))


def page(found: Ranged, title: str) -> str:
    """One self-contained page of HTML: loss against rate, and the suggestion."""
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.add_scatter(
        x=found.rates, y=found.losses, mode="markers", marker={"size": 4, "color": "#bbb"}, name="loss of a batch"
    )
    figure.add_scatter(x=found.rates, y=found.smoothed, mode="lines", line_color="#333", name="running mean")
    figure.add_vline(x=found.suggested, line_dash="dot", annotation_text=f"suggested: {found.suggested:g}")
    figure.update_xaxes(type="log", title="learning rate", exponentformat="power")
    figure.update_yaxes(title="loss")
    figure.update_layout(title=title, template="plotly_white")
    return figure.to_html(include_plotlyjs=True, full_html=True)
