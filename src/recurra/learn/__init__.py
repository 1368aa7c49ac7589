"""Learners: how credit for the loss flows back through time. `LEARNERS` is every name that `--learner` takes."""

from recurra.learn.base import Carry, Cost, Learner
from recurra.learn.bptt import BPTT
from recurra.learn.cmaes import CMA
from recurra.learn.dni import DNI
from recurra.learn.em import EM, Observed
from recurra.learn.eprop import EProp
from recurra.learn.es import ES
from recurra.learn.forward_gradient import ForwardGradient
from recurra.learn.kf_rtrl import KFRTRL
from recurra.learn.pso import PSO
from recurra.learn.rflo import RFLO
from recurra.learn.ridge import Regression, Ridge
from recurra.learn.rtrl import RTRL, RTRLDiagonal
from recurra.learn.snap1 import SnAp1
from recurra.learn.snapn import SnApN
from recurra.learn.uoro import UORO

LEARNERS: dict[str, type[Learner]] = {
    "bptt": BPTT,
    "rtrl": RTRL,
    "rtrl-diagonal": RTRLDiagonal,
    "snap1": SnAp1,
    "snapn": SnApN,
    "uoro": UORO,
    "kf-rtrl": KFRTRL,
    "rflo": RFLO,
    "eprop": EProp,
    "forward-gradient": ForwardGradient,
    "dni": DNI,
    "es": ES,
    "cma": CMA,
    "pso": PSO,
    "ridge": Ridge,
    "em": EM,
}

__all__ = [
    "BPTT",
    "CMA",
    "DNI",
    "EM",
    "ES",
    "KFRTRL",
    "LEARNERS",
    "PSO",
    "RFLO",
    "RTRL",
    "UORO",
    "Carry",
    "Cost",
    "EProp",
    "ForwardGradient",
    "Learner",
    "Observed",
    "RTRLDiagonal",
    "Regression",
    "Ridge",
    "SnAp1",
    "SnApN",
]
