"""Learners: how credit for the loss flows back through time. `LEARNERS` is every name that `--learner` takes."""

from recurra.learn.base import Carry, Learner
from recurra.learn.bptt import BPTT
from recurra.learn.em import EM, Observed
from recurra.learn.ridge import Regression, Ridge

LEARNERS: dict[str, type[Learner]] = {"bptt": BPTT, "ridge": Ridge, "em": EM}

__all__ = ["BPTT", "EM", "LEARNERS", "Carry", "Learner", "Observed", "Regression", "Ridge"]
