"""Particle swarm: parameter vectors that fly, drawn to the best that they and all have seen."""

import math
from typing import NamedTuple, final

import torch
from torch import Tensor

from recurra.data.batch import Batch
from recurra.learn.base import Carry, Learnable, Learner
from recurra.learn.population import (
    Draws,
    above_zero,
    after,
    at_least,
    losses,
    put,
    side_by_side,
    vector,
    why_not_together,
)
from recurra.state import detach


class Swarm(NamedTuple):
    """Where the particles are, how they move, and where each was best: [particles, P] each."""

    draws: Draws
    positions: Tensor
    velocities: Tensor
    bests: Tensor


@final
class PSO(Learner):
    """Particle swarm optimisation (Kennedy & Eberhart 1995, doi:10.1109/ICNN.1995.488968), all drawn to one best.

        v' = inertia v + cognitive r1 (p - x) + social r2 (g - x),  r1, r2 ~ U(0, 1) for each coordinate
        x' = x + v'

    p is where a particle was best, g the best of all p: what is in the model, and what stays there. The numbers are those of
    Clerc & Kennedy 2002 (doi:10.1109/4235.985692), with which a swarm comes to rest without a limit on v. The optimizer and its
    options, penalties on weights among them, have no part in it.

    The first particle starts at the model's parameters, the others up to `spread` from them in each coordinate; all start at
    rest. Losses on different batches cannot be compared, so each p is judged anew by every batch, beside the positions:
    2 `particles` losses a step and one for g. Memory O(particles * P). `together` members are computed at once (none: 32 below
    30,000 parameters, else 1, through the kernels). Dropout is the same for all members of a step.
    """

    def __init__(
        self,
        *,
        particles: int = 32,
        spread: float = 1.0,
        inertia: float = 0.7298,
        cognitive: float = 1.4962,
        social: float = 1.4962,
        together: int | None = None,
    ) -> None:
        at_least(2, particles=particles)
        at_least(1, together=together)
        at_least(0, inertia=inertia, cognitive=cognitive, social=social)
        above_zero(spread=spread)
        self.particles, self.spread, self.together = particles, spread, together
        self.inertia, self.cognitive, self.social = inertia, cognitive, social

    def supports(self, task: Learnable, batch: Batch) -> str | None:
        return why_not_together(task, batch, self.together)

    def start(self, task: Learnable, batch: Batch) -> Carry:
        draws, here = Draws.begin(batch), vector(task)
        away = 2 * _uniform(draws, 1, here.expand(self.particles, -1)) - 1
        away[0] = 0
        positions = here + self.spread * away
        swarm = Swarm(draws, positions, torch.zeros_like(positions), positions.clone())
        return Carry(detach(task.model.initial_state(batch.rows)), shared=swarm)

    def __call__(self, task: Learnable, batch: Batch, carry: Carry) -> tuple[Tensor, Carry]:
        swarm, before = carry.shared, vector(task)
        both, width = torch.cat([swarm.positions, swarm.bests]), side_by_side(task, self.together)
        now, then = losses(task, batch, carry.state, both, swarm.draws, width).view(2, -1)
        bests = torch.where((now < then)[:, None], swarm.positions, swarm.bests)
        best = bests[torch.minimum(now, then).argmin()]
        put(task, best)
        loss, state = after(task, batch, carry.state, swarm.draws)
        if not math.isfinite(float(loss)):  # the loop leaves out this update, and the model has to be as it was
            put(task, before)
        return loss, Carry(state, shared=self._moved(swarm._replace(bests=bests), best))

    def _moved(self, swarm: Swarm, best: Tensor) -> Swarm:
        """The swarm one step on."""
        own, all_ = (_uniform(swarm.draws, place, swarm.positions) for place in (2, 3))
        velocities = self.inertia * swarm.velocities
        velocities = velocities + self.cognitive * own * (swarm.bests - swarm.positions)
        velocities = velocities + self.social * all_ * (best - swarm.positions)
        return Swarm(swarm.draws.next(), swarm.positions + velocities, velocities, swarm.bests)


def _uniform(draws: Draws, place: int, like: Tensor) -> Tensor:
    """Numbers of U(0, 1) in the shape of `like`."""
    return torch.rand(like.shape, generator=draws.generator(place), dtype=like.dtype).to(like.device)
