"""The training loop."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from recurra.checkpoint import Job, Progress
from recurra.config import Config, OptimizerConfig, RegularizeConfig, TrainConfig
from recurra.errors import RecurraError
from recurra.learn import Carry
from recurra.regularize import add_penalty_gradient, limit_norms

OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], float]] = {  # the class, and its rate by default
    "adamw": (torch.optim.AdamW, 4e-3),
    "adam": (torch.optim.Adam, 4e-3),
    "sgd": (torch.optim.SGD, 1.0),
    "rmsprop": (torch.optim.RMSprop, 1e-3),
    "adadelta": (torch.optim.Adadelta, 1.0),
    "adagrad": (torch.optim.Adagrad, 1e-2),
}
FUSED = ("adamw", "adam", "sgd", "adagrad")
MOST_REFUSED = 10
Tell = Callable[..., None]


def fit(
    job: Job,
    config: Config,
    tell: Tell,
    keep: Callable[[], None],
    improved: Callable[[], None],
    asked: Callable[[], bool],
) -> None:
    """Train until the steps of the config are done, validation stops getting better, or `asked()` turns true.

    Each event goes to `tell(kind, **numbers)`; `keep()` saves a checkpoint and `improved()` the best model. When it
    returns, `job.progress.ended` says why it ended ("" where it was asked to stop). A stop is validated for the eye only: a
    validation that is remembered would make the run end otherwise than one that was never stopped.
    """
    progress, parameters = job.progress, list(job.task.model.parameters())
    steps, every = config.train.steps or 0, validation_interval(config.train)
    device = parameters[0].device
    job.task.model.train()
    saved = told = time.monotonic()
    for batch in job.task.batches(start=progress.step):
        if progress.step >= steps or progress.ended or asked():
            break
        rate = set_rate(job.optimizer, config, progress)
        loss, carry = job.learner(job.task, batch.to(device), job.carry)
        penalise(job.task.model, config.regularize)
        for parameter in job.task.held(progress.step / steps):
            parameter.grad = None
        norm = nn.utils.clip_grad_norm_(parameters, config.optimizer.clip or math.inf)
        if math.isfinite(float(loss)) and math.isfinite(float(norm)):
            job.optimizer.step()
            if config.regularize.max_norm:
                limit_norms(job.task.model, config.regularize.max_norm)
            job.carry, progress.refused_in_a_row = carry, 0
            progress.recent.append(float(loss))
        else:
            job.carry = refuse(job, batch.to(device), float(loss), tell)
        job.optimizer.zero_grad()
        progress.step += 1
        now = time.monotonic()
        progress.seconds, told = progress.seconds + now - told, now
        tell("step", step=progress.step, loss=float(loss), grad_norm=float(norm), rate=rate, targets=batch.weight)
        if progress.step % every == 0 or progress.step == steps:
            validate(job, config, tell, improved)
        if now - saved >= config.train.checkpoint_seconds:
            keep()
            saved = time.monotonic()
    if progress.step >= steps and not progress.ended:
        progress.ended = "all steps done"
    if not progress.ended:
        tell("stopped", step=progress.step, loss=job.task.validate().loss)
    keep()


def penalise(model: nn.Module, config: RegularizeConfig) -> None:
    """Add the gradient of the penalties on weights, the same for every learner."""
    if config.l1 or config.l2:
        add_penalty_gradient(model, l1=config.l1, l2=config.l2)


def validate(job: Job, config: Config, tell: Tell, improved: Callable[[], None]) -> None:
    """Score the validation data; note progress or its absence, and stop early or lower the rate where that is due."""
    progress = job.progress
    train = sum(progress.recent) / len(progress.recent) if progress.recent else math.nan
    progress.recent = []
    loss, error = job.task.validate()
    better = (error, loss) < (progress.best, progress.best_loss)
    tell("validation", step=progress.step, train=train, loss=loss, error=error, best=min(error, progress.best))
    if better:
        progress.best, progress.best_step, progress.stale = error, progress.step, 0
        progress.best_loss, progress.best_train = loss, train
        improved()
        return
    progress.stale += 1
    if config.optimizer.schedule == "plateau" and progress.stale % config.optimizer.plateau_patience == 0:
        progress.rate_scale /= 2
    if progress.stale >= config.train.patience:
        progress.ended = f"no better validation in {progress.stale} tries"


def refuse(job: Job, batch: Any, loss: float, tell: Tell) -> Carry:
    """Leave out an update whose loss or gradient is not finite: halve the rate and start the carried states anew."""
    progress = job.progress
    progress.refused += 1
    progress.refused_in_a_row += 1
    progress.rate_scale /= 2
    tell("refused", step=progress.step + 1, loss=loss, rate_scale=progress.rate_scale)
    if progress.refused_in_a_row >= MOST_REFUSED:
        raise RecurraError(
            f"the loss or its gradient was not finite {MOST_REFUSED} times in a row, at step {progress.step + 1}; these updates "
            "were left out, and the best model and the checkpoints are as before. "
            "Start a new run with a lower --set optimizer.rate or --set optimizer.clip, and look at the data"
        )
    return job.learner.start(job.task, batch)


def validation_interval(train: TrainConfig) -> int:
    """Steps from one validation to the next."""
    return max(1, (train.steps or 1) // train.validations)


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of the config; weight decay acts on matrices and not on biases."""
    kind, default = OPTIMIZERS[config.name]
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    extra: dict[str, Any] = {"betas": (0.9, 0.99)} if config.name in ("adam", "adamw") else {}
    if config.name in ("sgd", "rmsprop"):
        extra["momentum"] = config.momentum
    if config.name in FUSED:  # one pass over each tensor: for a table of words many times as fast
        extra["fused"] = True
    return kind([g for g in groups if g["params"]], lr=default if config.rate == "auto" else config.rate, **extra)


def set_rate(optimizer: torch.optim.Optimizer, config: Config, progress: Progress) -> float:
    """Set and return the learning rate of this step: a function of the step and of what the validations said."""
    chosen = config.optimizer
    peak = OPTIMIZERS[chosen.name][1] if chosen.rate == "auto" else chosen.rate
    rate = peak * progress.rate_scale * schedule(chosen, progress.step, config.train.steps or 1)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def schedule(config: OptimizerConfig, step: int, steps: int) -> float:
    """The share of the peak rate at a step: linear warm-up, then a half cosine down to zero, or constant."""
    warmup = min(config.warmup, steps / 5)
    warm = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return warm * (0.5 * (1 + math.cos(math.pi * step / steps)) if config.schedule == "cosine" else 1.0)


def advice(progress: Progress, report: dict[str, Any]) -> list[str]:
    """What the numbers call for, in words; `report` is `Task.evaluate`'s."""
    words = []
    if progress.refused:
        words.append(
            f"{progress.refused} updates had a loss or gradient that was not finite: they were left out, the carried states "
            "started anew and the rate was halved each time; a lower optimizer.rate avoids it."
        )
    gap = progress.best_loss - progress.best_train
    if progress.best_step and gap > 0.15 * progress.best_loss:
        words.append(
            f"The training loss ({progress.best_train:.3f}) is far below the validation loss ({progress.best_loss:.3f}): "
            "overfitting. Try more data, more dropout (--set model.dropout=0.5 model.recurrent_dropout=0.2), or fewer units."
        )
    elif progress.best_step and progress.best_step == progress.step and gap < 0.02 * progress.best_loss:
        words.append(
            "The training loss is no lower than the validation loss, and both were still falling: underfitting. "
            "Try more minutes, more units (--hidden), or less dropout."
        )
    score, sign = report["scores"][report["headline"]], 1 if report["higher_is_better"] else -1
    below = [name for name, floor in report["floors"].items() if sign * score < sign * floor]
    if below:
        words.append(
            f"The network is below the floor of {' and '.join(below)}: a method without a network does better here."
        )
    return words
