"""How a training went, from the `log.jsonl` of its run folder."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recurra.errors import DataError

LEAST_MOVED, MOST_MOVED = 1e-5, 1e-1  # of its norm by an update, below and above which a parameter is told of


class Training(NamedTuple):
    """What the log holds: lines are written about once a second, so the steps are a sample of all.

    step, loss, norm, rate     [n]: of logged updates; the norm is that of the gradient before clipping
    clipped                    bool [n]
    ratios                     by parameter [n]: how far an update moves it as a share of its norm, at most ten updates before; NaN
                               where it is not known
    speed                      [n]: `counted` (tokens, examples) a second since the logged step before, NaN after a start
    valid_step, valid_train, valid    [m]: validations, the mean training loss since the one before, and the validation loss
    refused                    the number of updates that were left out because they were not finite
    share_clipped              of all updates where the run has ended, else of the logged ones; NaN where there are none
    unit, factor, counted      times `factor` a loss is so many `unit`
    """

    step: np.ndarray
    loss: np.ndarray
    norm: np.ndarray
    clipped: np.ndarray
    rate: np.ndarray
    ratios: dict[str, np.ndarray]
    speed: np.ndarray
    valid_step: np.ndarray
    valid_train: np.ndarray
    valid: np.ndarray
    refused: int
    share_clipped: float
    unit: str
    factor: float
    counted: str
    words: list[str]


def training(run: Path) -> Training:
    """Read the log of a run folder. A torn last line is passed over. Raises DataError where there is no log to read."""
    events = _events(run / "log.jsonl")
    steps, speeds = _steps(events)
    valid = [one for one in events if one["event"] == "validation"]
    name, factor, counted = next((one["unit"] for one in events if one.get("unit")), ("loss", 1.0, "targets"))
    ended = next((one for one in reversed(events) if one["event"] == "gradients" and one.get("steps")), None)
    clipped = _column(steps, "clipped").astype(bool)
    share = float(ended["clipped"]) if ended else float(clipped.mean()) if len(clipped) else math.nan
    refused = sum(one["event"] == "refused" for one in events)
    columns = {key: _column(steps, key) for key in ("step", "loss", "grad_norm", "rate")}
    told = {key: _column(valid, key) for key in ("step", "train", "loss")}
    ratios = _ratios(steps)
    words = [*_words(factor, name, counted, told, share, np.array(speeds), refused), *_words_on(ratios)]
    return Training(
        columns["step"], columns["loss"], columns["grad_norm"], clipped, columns["rate"], ratios, np.array(speeds), told["step"],
        told["train"], told["loss"], refused, share, name, float(factor), counted, words,
    )  # fmt: skip


def _events(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}; wanted the log of a run folder, which a bundle alone has not"
        ) from None
    events = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            events.append(event)
    return events


def _steps(events: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[float]]:
    """The logged updates, and the speed from each to the next, as far as no start came between."""
    steps: list[dict[str, Any]] = []
    speeds: list[float] = []
    before: dict[str, Any] | None = None
    for one in events:
        if one["event"] == "begin":
            before = None
        if one["event"] != "step":
            continue
        seconds = one["time"] - before["time"] if before else 0.0
        speeds.append((one["step"] - before["step"]) * one["targets"] / seconds if before and seconds > 0 else math.nan)
        steps.append(one)
        before = one
    return steps, speeds


def _column(events: list[dict[str, Any]], key: str) -> np.ndarray:
    return np.array([math.nan if one.get(key) is None else one[key] for one in events], dtype=np.float64)


def _ratios(steps: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    told = [one.get("update_ratio") or {} for one in steps]
    names = sorted({name for one in told for name in one})
    return {name: np.array([one.get(name, math.nan) for one in told], np.float64) for name in names}


def _words_on(ratios: dict[str, np.ndarray]) -> list[str]:
    """About 1e-3 is where most trainings that work have their updates (Karpathy 2015, CS231n, "Neural Networks Part 3")."""
    middles = {name: float(np.nanmedian(one)) for name, one in ratios.items() if np.isfinite(one).any()}
    if not middles:
        return []
    still = [name for name, one in ratios.items() if not np.nan_to_num(one).any()]
    slow = [name for name, one in middles.items() if one < LEAST_MOVED and name not in still]
    fast = [name for name, one in middles.items() if one > MOST_MOVED]
    moved = [one for name, one in middles.items() if name not in still]
    words = [f"An update moved the parameters by {np.median(moved):.1e} of their norm (the median)."] if moved else []
    if still:
        words.append(f"Never moved: {', '.join(still)}.")
    if slow:
        words.append(f"Hardly moved (below {LEAST_MOVED:g}): {', '.join(slow)}; a higher optimizer.rate would.")
    if fast:
        words.append(f"Thrown about (above {MOST_MOVED:g}): {', '.join(fast)}; a lower optimizer.rate would not.")
    return words


def _words(
    factor: float, name: str, counted: str, told: dict[str, np.ndarray], share: float, speeds: np.ndarray, refused: int
) -> list[str]:
    words = []
    losses = told["loss"] * factor
    if np.isfinite(losses).any():
        best = int(np.nanargmin(losses))
        words.append(
            f"The best validation was {losses[best]:.4g} {name} at step {int(told['step'][best]):,}, the last {losses[-1]:.4g}."
        )
    if not math.isnan(share):
        words.append(f"{share:.0%} of the updates were clipped; {refused} were not finite and left out.")
    if np.isfinite(speeds).any():
        words.append(f"The median speed was {np.nanmedian(speeds):,.0f} {counted} a second.")
    return words
