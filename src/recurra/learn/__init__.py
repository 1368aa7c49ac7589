"""Learners: how credit for the loss flows back through time. `LEARNERS` is every name that `--learner` takes."""

from recurra.learn.base import Carry, Learner
from recurra.learn.bptt import BPTT
from recurra.learn.cmaes import CMA
from recurra.learn.es import ES
from recurra.learn.pso import PSO

LEARNERS: dict[str, type[Learner]] = {"bptt": BPTT, "es": ES, "cma": CMA, "pso": PSO}

__all__ = ["BPTT", "CMA", "ES", "LEARNERS", "PSO", "Carry", "Learner"]
