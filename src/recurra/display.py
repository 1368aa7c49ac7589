"""What a training looks like while it runs: a live line on a terminal, plain lines elsewhere. All of it on stderr."""

import math
import sys
import time
from collections.abc import Sequence
from typing import Any

from recurra.tasks import Unit

REDRAWS_PER_SECOND = 8


class Display:
    """Events in, lines out. Called as `display(kind, **fields)`; costs nothing between two redraws."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet, self._last = quiet, 0.0
        self._terminal = sys.stderr.isatty()
        self._steps, self._targets = 0, 0.0
        self._loss, self._began, self._valid = math.nan, time.monotonic(), math.nan
        self._unit = Unit("", 1.0, "")
        self._bar: Any = None

    def __call__(self, kind: str, **fields: Any) -> None:
        if not self._quiet:
            getattr(self, f"_{kind}", lambda **_: None)(**fields)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _preparing(self, files: list[str]) -> None:
        self._say(f"reading {', '.join(files[:3])}{' ...' if len(files) > 3 else ''}")

    def _timing(self, seconds: float) -> None:
        self._say(f"timing a few steps ({seconds:.0f} s), to turn minutes into steps")

    def _note(self, text: str) -> None:
        self._say(text)

    def _complaint(self, text: str) -> None:
        self._say(f"warning: {text}")

    def _begin(
        self,
        out: str,
        step: int,
        steps: int,
        parameters: int,
        epoch: int,
        kernels: str,
        config: dict[str, Any],
        unit: Sequence[Any],
    ) -> None:
        model, self._unit = config["model"], Unit(*unit)
        self._say(
            f"{config['cell']['name']}, {model['layers']} x {model['hidden']} units, {parameters:,} parameters, dropout "
            f"{model['dropout']}; {steps:,} steps = {steps / epoch:.1f} passes; kernels: {kernels}; run folder {out}"
        )
        if step:
            self._say(f"going on from step {step:,}")
        self._steps, self._began, self._targets = steps, time.monotonic(), 0
        if self._terminal:
            self._start_bar(step)

    def _start_bar(self, step: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.completed:,}/{task.total:,}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            refresh_per_second=REDRAWS_PER_SECOND,
        )
        self._bar.start()
        self._task = self._bar.add_task("", total=self._steps, completed=step, note="")

    def _listening(self, out: str, step: int, parameters: int, config: dict[str, Any]) -> None:
        model = config["model"]
        self._say(
            f"{config['cell']['name']}, {model['layers']} x {model['hidden']} units, {parameters:,} parameters, learner "
            f"{config['learner']['name']}; run folder {out}"
        )
        if step:
            self._say(f"going on after {step:,} rows")
        if self._terminal:
            from rich.console import Console

            self._bar = Console(stderr=True).status("", refresh_per_second=REDRAWS_PER_SECOND)
            self._bar.start()

    def _heard(self, words: str) -> None:
        now = time.monotonic()
        if now - self._last < (1 if self._bar is None else 1 / REDRAWS_PER_SECOND):
            return
        self._last = now
        if self._bar is None:
            self._say(words)
        else:
            self._bar.update(words)

    def _step(self, step: int, loss: float, targets: float, **_: Any) -> None:
        self._targets += targets
        if math.isfinite(loss):
            self._loss = loss if math.isnan(self._loss) else 0.98 * self._loss + 0.02 * loss
        now = time.monotonic()
        if self._bar is None or now - self._last < 1 / REDRAWS_PER_SECOND:
            return
        self._last = now
        speed = self._targets / (now - self._began)
        training, valid = self._loss * self._unit.factor, self._valid * self._unit.factor
        note = f"training {training:.3f} validation {valid:.3f} {self._unit.name}  {speed:,.0f} {self._unit.counted}/s"
        self._bar.update(self._task, completed=step, note=note)

    def _validation(self, step: int, train: float, loss: float, error: float, best: float) -> None:
        self._valid = loss
        if self._bar is None:
            speed = self._targets / max(time.monotonic() - self._began, 1e-9)
            factor, compared = self._unit.factor, "" if error == loss else f", error {error:.3f}"
            self._say(
                f"step {step:>7,}/{self._steps:,}  training {train * factor:.3f}  validation {loss * factor:.3f} "
                f"{self._unit.name}{compared}{'  best' if error <= best else ''}  {speed:,.0f} {self._unit.counted}/s"
            )

    def _stopped(self, step: int, loss: float) -> None:
        self._say(f"stopped after step {step:,}: validation {loss * self._unit.factor:.3f} {self._unit.name}")

    def _refused(self, step: int, loss: float, rate_scale: float, **_: Any) -> None:
        self._say(
            f"step {step:,}: the loss or its gradient is not finite ({loss}); update left out, rate x {rate_scale:g}"
        )

    def _averaging(self, step: int) -> None:
        self._say(f"step {step:,}: validation has stopped getting better; from here on the mean of the weights counts")

    def _gradients(self, steps: int, clipped: float, refused: int, **norms: float) -> None:
        if steps:
            self._say(
                f"gradients of {steps:,} updates: median norm {norms['median']:.2g}, 90 % below {norms['q90']:.2g}, 99 % below "
                f"{norms['q99']:.2g}, largest {norms['largest']:.2g}; {clipped:.0%} clipped, {refused} not finite and left out"
            )

    def _scoring(self) -> None:
        self.close()
        self._say("scoring the best model, and the floors")

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)
