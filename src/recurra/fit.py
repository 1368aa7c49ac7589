"""The training loop."""

import ctypes
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recurra import stability
from recurra.checkpoint import Job, Progress
from recurra.config import Config, OptimizerConfig, RegularizeConfig, TrainConfig
from recurra.data.batch import Batch
from recurra.errors import RecurraError
from recurra.learn import Carry
from recurra.regularize import add_penalty_gradient, limit_norms, plain_name
from recurra.stability import Watched, watched

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
NON_MONOTONE = 5  # validations over which the error has to have stopped falling before weights are averaged
LOOKED_EVERY = 10  # steps, from one look at how far an update moves the weights to the next: it costs a copy of them
PER_OCTAVE = 8  # classes of norms of the gradient to a factor of two
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
    ratios: dict[str, float] = {}
    for batch in job.task.batches(start=progress.step):
        if progress.step >= steps or progress.ended or asked():
            break
        rate = set_rate(job.optimizer, config, progress)
        before = (
            weights(job.task.model) if progress.step % LOOKED_EVERY == 0 else {}
        )  # some learners set them themselves
        new = gradients(job, config, batch.to(device))
        if math.isfinite(new.loss) and math.isfinite(new.norm):
            job.optimizer.step()
            ratios = update_ratios(job.task.model, before) if before else ratios
            if config.regularize.max_norm:
                limit_norms(job.task.model, config.regularize.max_norm)
            average(job)
            note_norm(progress, new)
            job.carry, progress.refused_in_a_row = new.carry, 0
            progress.recent.append(new.loss)
        else:
            job.carry = refuse(job, batch.to(device), new, tell)
        job.optimizer.zero_grad()
        progress.step += 1
        now = time.monotonic()
        progress.seconds, told = progress.seconds + now - told, now
        numbers = dict(loss=new.loss, grad_norm=new.norm, clipped=new.clipped, targets=batch.weight, **new.penalties)
        tell("step", step=progress.step, rate=rate, update_ratio=ratios, **numbers)
        if progress.step % every == 0 or progress.step == steps:
            validate(job, config, tell, improved)
        if now - saved >= config.train.checkpoint_seconds:
            keep()
            saved = time.monotonic()
    if progress.step >= steps and not progress.ended:
        progress.ended = "all steps done"
    if not progress.ended:
        with averaged(job):
            tell("stopped", step=progress.step, loss=job.task.validate().loss)
    keep()


class Gradients(NamedTuple):
    """What stands in `.grad` is the gradient of `loss` and of `penalties`, clipped; its norm was `norm` before, and `clipped` says
    whether it was."""

    loss: float
    carry: Carry
    norm: float
    clipped: bool
    penalties: dict[str, float]


def gradients(job: Job, config: Config, batch: Batch) -> Gradients:
    """Fill `.grad` for the update of this step: the learner's gradients and those of the penalties, clipped, with noise where it
    is asked for."""
    model, chosen, wanted = job.task.model, config.optimizer, config.regularize
    step, parameters = job.progress.step, list(model.parameters())
    by_step = chosen.clip_by == "step" and chosen.clip > 0
    most = chosen.clip / max(batch.weight, 1e-12) if by_step else None  # the loss is a sum divided by the weight
    looked = by_step or wanted.omega or step < wanted.flossing_steps * bool(wanted.flossing)
    with watched(model, most) if looked else nullcontext(Watched([], [], [])) as seen:
        loss, carry = job.learner(job.task, batch, job.carry)
    penalties = penalise(model, wanted, seen, step)
    for parameter in job.task.held(step / (config.train.steps or 1)):
        parameter.grad = None
    norm, clipped = clip(parameters, chosen)
    if wanted.gradient_noise:
        stability.add_noise(parameters, wanted.gradient_noise, step, config.train.seed)
    clipped = clipped or bool(seen.cuts and torch.stack(seen.cuts).any())
    return Gradients(float(loss), carry, norm, clipped, penalties)


@torch.no_grad()
def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the parameters."""
    return {plain_name(name): one.detach().clone() for name, one in model.named_parameters()}


@torch.no_grad()
def update_ratios(model: nn.Module, before: dict[str, Tensor]) -> dict[str, float]:
    """How far each parameter was moved, as a share of its norm: |w - w_before| / |w_before|, to three digits; of one that was all
    zeros nothing is said."""
    now = {plain_name(name): one for name, one in model.named_parameters()}
    norms = {name: float(one.norm()) for name, one in before.items()}
    return {name: float(f"{(now[name] - before[name]).norm() / norm:.3g}") for name, norm in norms.items() if norm > 0}


def clip(parameters: Sequence[nn.Parameter], config: OptimizerConfig) -> tuple[float, bool]:
    """Clip the gradients as the config says; the norm of all of them before, and whether any was clipped."""
    most, way = config.clip, config.clip_by
    if way == "norm" or not most:
        norm = float(nn.utils.clip_grad_norm_(parameters, most or math.inf))
        return norm, 0 < most < norm
    given = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm, cut = float(nn.utils.get_total_norm(given)), False
    if way == "value":
        cut = any(bool((gradient.abs() > most).any()) for gradient in given)
        nn.utils.clip_grad_value_(parameters, most)
    elif way == "adaptive":
        cut = stability.clip_units(parameters, most)
    return norm, cut


def penalise(model: nn.Module, config: RegularizeConfig, seen: Watched, step: int) -> dict[str, float]:
    """Add the gradients of the penalties on weights, the same for every learner, and of those on how gradients flow back through
    the steps that were seen; how large the latter are."""
    if config.l1 or config.l2:
        add_penalty_gradient(model, l1=config.l1, l2=config.l2)
    penalties = {}
    if config.omega:
        weight = config.omega / (1 + config.omega_decay * step)
        penalties["omega"] = stability.add_omega_gradient(seen.steps, weight)
    if config.flossing and step < config.flossing_steps:
        penalties["flossing"] = stability.add_flossing_gradient(seen.runs, config.flossing, config.flossing_weight)
    return penalties


def validate(job: Job, config: Config, tell: Tell, improved: Callable[[], None]) -> None:
    """Score the validation data; note progress or its absence, and stop early or lower the rate where that is due."""
    progress = job.progress
    train = sum(progress.recent) / len(progress.recent) if progress.recent else math.nan
    progress.recent = []
    with averaged(job):
        loss, error = job.task.validate()
        better = (error, loss) < (progress.best, progress.best_loss)
        tell("validation", step=progress.step, train=train, loss=loss, error=error, best=min(error, progress.best))
        if better:
            progress.best, progress.best_step, progress.stale = error, progress.step, 0
            progress.best_loss, progress.best_train = loss, train
            improved()
    begin_averaging(job, config, error, tell)
    if better:
        return
    progress.stale += 1
    if config.optimizer.schedule == "plateau" and progress.stale % config.optimizer.plateau_patience == 0:
        progress.rate_scale /= 2
    if progress.stale >= config.train.patience:
        progress.ended = f"no better validation in {progress.stale} tries"


def begin_averaging(job: Job, config: Config, error: float, tell: Tell) -> None:
    """Begin to average the weights where the error of this validation is above the best of those before the last 5 (NT-ASGD;
    Merity, Keskar & Socher 2018, arXiv:1708.02182)."""
    progress = job.progress
    stuck = any(old < error for old in progress.errors[:-NON_MONOTONE])
    if config.optimizer.average == "nt" and not job.average and stuck:
        job.average, progress.averaged = weights(job.task.model), 1
        tell("averaging", step=progress.step)
    if math.isfinite(error):
        progress.errors.append(error)


@torch.no_grad()
def average(job: Job) -> None:
    """Take the weights of this step into their mean, where one is kept."""
    if job.average:
        job.progress.averaged += 1
        for name, parameter in job.task.model.named_parameters():
            job.average[plain_name(name)].lerp_(parameter, 1 / job.progress.averaged)


@contextmanager
def averaged(job: Job) -> Iterator[None]:
    """Within this context the model has the mean weights, where they are kept; afterwards its own again, to the bit."""
    own = {name: one.detach().clone() for name, one in job.task.model.named_parameters()} if job.average else {}
    try:
        with torch.no_grad():
            for name, parameter in job.task.model.named_parameters() if own else ():
                parameter.copy_(job.average[plain_name(name)])
        yield
    finally:
        with torch.no_grad():
            for name, parameter in job.task.model.named_parameters() if own else ():
                parameter.copy_(own[name])


def note_norm(progress: Progress, new: Gradients) -> None:
    """Count the norm of a gradient among those of its size, and whether it was clipped."""
    progress.clipped += new.clipped
    if new.norm > 0:
        size = str(round(PER_OCTAVE * math.log2(new.norm)))
        progress.norms[size] = progress.norms.get(size, 0) + 1


def gradient_statistics(progress: Progress) -> dict[str, float]:
    """Of the gradients of a training: how many updates, quantiles of their norms before clipping (to 5 %), the share that was
    clipped, how many were not finite, and a threshold for clipping by norm that would act on outliers only: twice the median
    (Pascanu, Mikolov & Bengio 2013, section 3.2, saw half to ten times the average norm work)."""
    sizes = sorted((int(size), count) for size, count in progress.norms.items())
    steps = sum(count for _, count in sizes)
    if not steps:
        return {"steps": 0, "clipped": 0.0, "refused": progress.refused}

    def quantile(share: float) -> float:
        totals = accumulate(count for _, count in sizes)
        size = next(size for (size, _), below in zip(sizes, totals, strict=True) if below >= share * steps)
        return float(f"{2 ** (size / PER_OCTAVE):.3g}")

    quantiles = {"median": quantile(0.5), "q90": quantile(0.9), "q99": quantile(0.99), "largest": quantile(1.0)}
    told = {"steps": steps, "clipped": progress.clipped / steps, "refused": progress.refused}
    return {**told, **quantiles, "threshold": float(f"{2 * quantiles['median']:.2g}")}


def refuse(job: Job, batch: Any, new: Gradients, tell: Tell) -> Carry:
    """Leave out an update whose loss or gradient is not finite: halve the rate and start the carried states anew."""
    progress = job.progress
    progress.refused += 1
    progress.refused_in_a_row += 1
    progress.rate_scale /= 2
    tell("refused", step=progress.step + 1, loss=new.loss, rate_scale=progress.rate_scale, grad_norm=new.norm)
    if progress.refused_in_a_row >= MOST_REFUSED:
        raise RecurraError(
            f"the loss or its gradient was not finite {MOST_REFUSED} times in a row, at step {progress.step + 1}; these updates "
            "were left out, and the best model and the checkpoints are as before. "
            "Start a new run with a lower --set optimizer.rate or --set optimizer.clip, and look at the data"
        )
    return job.learner.start(job.task, batch)


def keep_freed_memory() -> bool:
    """Have glibc keep what is freed in this process, all of it, for what is asked for next; whether it does.

    The tensors of a step are as large as those of the step before. By default large ones go back to the system and come again page
    by page, each filled with zeros first, which took a third of the time of long sequences.
    """
    if sys.platform != "linux":
        return False
    change = getattr(ctypes.CDLL(None), "mallopt", None)
    trim_threshold, mmap_max = -1, -4  # their numbers in malloc.h
    return change is not None and bool(change(mmap_max, 0) and change(trim_threshold, 2**31 - 1))


def validation_interval(train: TrainConfig) -> int:
    """Steps from one validation to the next."""
    return max(1, (train.steps or 1) // train.validations)


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of the config; weight decay acts on matrices and not on biases."""
    kind, _ = OPTIMIZERS[config.name]
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
    return kind([g for g in groups if g["params"]], lr=peak_rate(config), **extra)


def peak_rate(config: OptimizerConfig) -> float:
    """The largest rate of the schedule: as given, or the optimizer's own."""
    return OPTIMIZERS[config.name][1] if config.rate == "auto" else config.rate


def set_rate(optimizer: torch.optim.Optimizer, config: Config, progress: Progress) -> float:
    """Set and return the learning rate of this step: a function of the step and of what the validations said."""
    chosen = config.optimizer
    rate = peak_rate(chosen) * progress.rate_scale * schedule(chosen, progress.step, config.train.steps or 1)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def schedule(config: OptimizerConfig, step: int, steps: int) -> float:
    """The share of the peak rate at a step: linear warm-up, then a half cosine or a straight line down to zero, or constant."""
    warmup = min(config.warmup, steps / 5)
    warm = min(1.0, (step + 1) / warmup) if warmup else 1.0
    falls = {"cosine": 0.5 * (1 + math.cos(math.pi * step / steps)), "linear": 1 - step / steps}
    return warm * falls.get(config.schedule, 1.0)


def advice(progress: Progress, report: dict[str, Any], optimizer: OptimizerConfig) -> list[str]:
    """What the numbers call for, in words; `report` is `Task.evaluate`'s."""
    words = advice_on_clipping(progress, optimizer)
    if progress.refused:
        words.append(
            f"{progress.refused} updates had a loss or gradient that was not finite: they were left out, the carried states "
            "started anew and the rate was halved each time; a lower optimizer.rate avoids it."
        )
    gap = progress.best_loss - progress.best_train
    if progress.best_step and gap > 0.15 * progress.best_loss:
        words.append(
            f"The training loss ({progress.best_train:.3f}) is far below the validation loss ({progress.best_loss:.3f}): "
            "overfitting. Try more data, more dropout (--set model.dropout=0.5 --set model.recurrent_dropout=0.2), "
            f"{more_decay(optimizer, progress.step)}or fewer units."
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


def more_decay(optimizer: OptimizerConfig, steps: int) -> str:
    """The weight decay of AdamW by which a weight that nothing holds falls to e^-2 over so many steps, the mean rate being half of
    the peak, in words; nothing where there is as much. What networks that overfitted wanted in benchmarks/cells.md."""
    wanted = float(f"{4 / (peak_rate(optimizer) * steps):.1g}")
    if optimizer.name != "adamw" or wanted <= optimizer.weight_decay:
        return ""
    return f"more weight decay (--set optimizer.weight_decay={wanted:g}), "


def advice_on_clipping(progress: Progress, optimizer: OptimizerConfig) -> list[str]:
    """Whether the threshold of clipping suits the norms of the gradients, in words."""
    seen = gradient_statistics(progress)
    if seen["steps"] < 20:
        return []
    if optimizer.clip_by == "norm" and seen["clipped"] > 0.5:
        return [
            f"{seen['clipped']:.0%} of the updates were clipped to optimizer.clip={optimizer.clip:g}, and the median norm of the "
            f"gradient was {seen['median']:g}: most steps had the same length. A threshold for outliers only would be "
            f"--set optimizer.clip={seen['threshold']:g}."
        ]
    if not optimizer.clip and seen["largest"] > 10 * seen["median"]:
        return [
            f"Some gradients were {seen['largest'] / seen['median']:.0f} times as long as the median ({seen['median']:g}), and "
            f"none was clipped; --set optimizer.clip={seen['threshold']:g} would hold such steps."
        ]
    return []
