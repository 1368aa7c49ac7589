"""Kronecker-factored real-time recurrent learning."""

from typing import final

import torch
from torch import Tensor

from recurra.data.batch import Batch
from recurra.errors import UsageError
from recurra.learn import local
from recurra.learn.base import (
    Carry,
    Cost,
    Learnable,
    Learner,
    add_gradients,
    forgotten,
    restarted,
    steps,
    why_not_stepwise,
)
from recurra.learn.local import Eye, Look, Seen
from recurra.regularize import seeded
from recurra.state import detach, leaves

TINY = 1e-30  # keeps the scales finite where a factor is zero


@final
class KFRTRL(Learner):
    """Kronecker-factored rtrl (Mujika, Meier & Steger 2018, arXiv:1805.10842) of one layer of elman units, h_t = f(W z_t) with
    z_t = (x_t, 1, h_{t-1}). In place of the influence M_t of rtrl each row keeps a vector and a matrix whose Kronecker product
    is M_t in the mean over random signs c_1, c_2:

        u_t = c_1 p_1 u_{t-1} + c_2 p_2 z_t,     B_t = c_1 A_t B_{t-1} / p_1 + c_2 diag(f') / p_2,     E[u_t (x) B_t] = M_t
        p_1 = sqrt(|A_t B_{t-1}| / |u_{t-1}|),     p_2 = sqrt(|f'| / |z_t|)

    The scales p keep the variance least. Memory O(batch (S^2 + inputs)), time O(batch S^3) a step, without regard to the length.
    No bias, and less variance than uoro. What lies below the layer, such as an embedding, learns from the step at hand.

    seed    of the signs; the same seed and step draw the same
    """

    def __init__(self, *, seed: int = 0) -> None:
        if not 0 <= seed < 2**63:
            raise UsageError(f"learner.seed was {seed}, wanted a number from 0 to 2**63 - 1")
        self.seed = seed

    def supports(self, task: Learnable, batch: Batch) -> str | None:
        return why_not_stepwise(task, batch) or local.why_not(task, batch) or _why_not_plain(task)

    def cost(self, task: Learnable, batch: Batch) -> Cost:
        kept = sum(part.numel() for part in leaves(self.start(task, batch).traces))
        units = next(iter(local.cores(task.model).values())).output_size
        return Cost(2 * 4 * kept, batch.rows * units**3)

    def start(self, task: Learnable, batch: Batch) -> Carry:
        state = restarted(task, batch, task.model.initial_state(batch.rows))
        (seen,) = Eye(task, {})(next(iter(steps(batch))), state).cells
        inputs = torch.cat([one.x for one in seen.products], 1)
        units = seen.before[0].shape[1]
        return Carry(state, (torch.zeros_like(inputs), inputs.new_zeros(batch.rows, units, units)))

    def __call__(self, task: Learnable, batch: Batch, carry: Carry) -> tuple[Tensor, Carry]:
        state = restarted(task, batch, carry.state)
        u, b = forgotten(batch, carry.traces)
        eye, total = Eye(task, {}), torch.zeros(())
        draw = seeded(self.seed, batch.step)
        for step in steps(batch):
            seen = eye(step, state)
            if seen.loss.requires_grad:
                add_gradients(eye.parameters, _gradients(eye, seen, u, b))
            signs = (torch.randint(0, 2, (2, step.rows), generator=draw) * 2 - 1).to(u)
            u, b = _rolled(seen.cells[0], u, b, signs)
            state, total = detach(seen.after), total + seen.loss.detach()
        return total, Carry(state, (u, b))


def _why_not_plain(task: Learnable) -> str | None:
    found = local.cores(task.model)
    cell = next(iter(found.values()))
    if len(found) != 1 or cell.blocks != ("hidden",) or any(one.dim() == 1 for one in _vectors(cell)):
        return "it is for one layer of elman units; take --cell elman --layers 1, or uoro, which takes any cell"
    return None


def _vectors(cell: torch.nn.Module) -> list[Tensor]:
    return [one for name, one in cell.named_parameters() if not name.startswith(("bias", "weight"))]


def _gradients(eye: Eye, seen: Look, u: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Of the step's loss: in this step, and by the factors of those before it."""
    (cell,), parameters = seen.cells, eye.parameters
    taps = [one.tap for one in cell.products]
    found = torch.autograd.grad(
        seen.loss,
        [*parameters.values(), *cell.before, *taps],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    direct = dict(zip(parameters, found, strict=False))
    back = found[len(parameters)]
    for product, tap in zip(cell.products, found[len(parameters) + 1 :], strict=True):
        if product.source is not None:
            back = back + tap.flatten(1) @ product.weight.detach()
    rows, at = torch.einsum("bs,bsr->br", back, b), 0
    for product in cell.products:
        width = product.x.shape[1]
        sums, at = rows.T @ u[:, at : at + width], at + width
        for name, gradient in eye.shared_out(product, sums):
            direct[name] = direct[name] + gradient
    return direct


def _rolled(seen: Seen, u: Tensor, b: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    """The factors after a step."""
    by = local.slopes(seen, through_itself=False)
    slope, inputs = by.products[0][:, 0], torch.cat([one.x for one in seen.products], 1)
    pushed = by.fields[:, 0, 0, :, None] * b
    for product in seen.products:
        if product.source is not None:
            pushed = pushed + slope[:, :, None] * (product.weight.detach() @ b)
    p_1, p_2 = _scale(pushed, u), _scale(slope, inputs)
    one, other = signs[0], signs[1]
    after = (one / p_1)[:, None, None] * pushed + torch.diag_embed((other / p_2)[:, None] * slope)
    return (one * p_1)[:, None] * u + (other * p_2)[:, None] * inputs, after


def _scale(above: Tensor, below: Tensor) -> Tensor:
    """sqrt(|above| / |below|) of each row; 1 where one of them is nothing."""
    found = (above.flatten(1).norm(dim=1) / below.flatten(1).norm(dim=1).clamp(min=TINY)).sqrt()
    return torch.where((found > 0) & (below.flatten(1).norm(dim=1) > 0), found, 1.0)
