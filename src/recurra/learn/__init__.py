"""Learners: how credit for the loss flows back through time. `LEARNERS` is every name that `--learner` takes."""

from recurra.learn.base import Carry, Learner
from recurra.learn.bptt import BPTT

LEARNERS: dict[str, type[Learner]] = {"bptt": BPTT}

__all__ = ["BPTT", "LEARNERS", "Carry", "Learner"]
