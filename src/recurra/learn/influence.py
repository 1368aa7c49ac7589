"""How the state after a step hangs on the state before it and on the parameters, for any model: by function transforms."""

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp, vjp, vmap

from recurra import kernels
from recurra.data.batch import Batch
from recurra.learn.base import Learnable, learnt, restarted
from recurra.state import State, detach, flat, floating, tmap, unflat

ALL_FRESH = torch.ones(1, dtype=torch.bool)


class Pure(nn.Module):
    """A task's loss as a module over the model, so that `functional_call` can put other weights in."""

    def __init__(self, task: Learnable) -> None:
        super().__init__()
        self.model, self._task = task.model, task

    def forward(self, batch: Batch, state: State, anew: bool) -> tuple[Tensor, State]:
        return self._task.loss(batch, restarted(self._task, batch, state) if anew else state)

    def with_weights(
        self, weights: dict[str, Tensor], batch: Batch, state: State, anew: bool = False
    ) -> tuple[Tensor, State]:
        """The loss and the state after the batch, computed with these weights, by their names in the model; `anew`: fresh rows
        begin where these weights have them begin."""
        named = {f"model.{name}": one for name, one in weights.items()}
        return functional_call(self, named, (batch, state, anew))


class Rows:
    """One step of a batch, row by row: what `after` is given beside weights and state."""

    def __init__(self, task: Learnable, step: Batch, state: State) -> None:
        self.pure, self.state = Pure(task), detach(state)
        self.step = step
        self.data = (self.state, step.inputs, step.targets, () if step.lengths is None else step.lengths)

    def after(self, weights: dict[str, Tensor], values: Tensor, data: State) -> Tensor:
        """The floating fields of one row's state after the step, of those before it `values` `[size]`."""
        state, inputs, targets, lengths = tmap(lambda part: part[None], data)
        row = Batch(inputs, targets, None if isinstance(lengths, tuple) else lengths, 1.0, ALL_FRESH, self.step.step)
        _, after = self.pure.with_weights(weights, row, unflat(state, values[None]))
        return flat(after)[0]

    def jacobians(self, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Of the state after the step, for each row: by the weights `[batch, size, *shape]`, and by the state before it
        `[batch, size, size]` (rows after, columns before)."""
        with kernels.reference():
            each = vmap(jacrev(self.after, argnums=(0, 1)), in_dims=(None, 0, 0), randomness="different")
            return each(weights, flat(self.state), self.data)

    def products(self, weights: dict[str, Tensor], left: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """`left` `[batch, size]` times these Jacobians: by the weights `[batch, *shape]`, by the state `[batch, size]`."""

        def product(values: Tensor, data: State, left: Tensor) -> tuple[dict[str, Tensor], Tensor]:
            back = vjp(lambda weights, values: self.after(weights, values, data), weights, values)[1]
            return back(left)

        with kernels.reference():
            return vmap(product, randomness="different")(flat(self.state), self.data, left)

    def pushed(self, weights: dict[str, Tensor], right: Tensor) -> Tensor:
        """The Jacobian by the state before times `right` `[batch, size]`."""

        def product(values: Tensor, data: State, right: Tensor) -> Tensor:
            return jvp(lambda values: self.after(weights, values, data), (values,), (right,))[1]

        with kernels.reference():
            return vmap(product, randomness="different")(flat(self.state), self.data, right)


def gradients(
    task: Learnable, step: Batch, state: State, parameters: dict[str, Tensor]
) -> tuple[Tensor, State, Tensor, dict[str, Tensor]]:
    """One step of the network: its loss, the state after it, and the gradient of the loss by the state before it `[batch, size]`
    and by the parameters, the state before it held still."""
    values = flat(state).detach().requires_grad_()
    with torch.enable_grad():
        loss, after = task.loss(step, unflat(state, values))
        wanted = [values, *parameters.values()]
        if not loss.requires_grad:  # no row has this step
            found = [torch.zeros_like(one) for one in wanted]
        else:
            found = list(torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True))
    return loss.detach(), detach(after), found[0], dict(zip(parameters, found[1:], strict=True))


def begun(task: Learnable, weights: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """How the state that a row begins from hangs on these weights, `[size, weights]` each: zeros where it is not learnt."""
    with torch.enable_grad():
        start = flat(task.model.initial_state(1))[0]
    if not start.requires_grad:
        return tuple(one.new_zeros(len(start), one.numel()) for one in weights.values())
    each = [
        torch.autograd.grad(one, list(weights.values()), retain_graph=True, allow_unused=True, materialize_grads=True)
        for one in start
    ]
    return tuple(torch.stack([one.flatten() for one in column]) for column in zip(*each, strict=True))


def recurrent(task: Learnable, batch: Batch) -> dict[str, Tensor]:
    """The parameters on which the state after a step hangs, that it began from too: the readout is none of them."""
    parameters = learnt(task)
    with torch.enable_grad(), kernels.reference():
        _, after = task.loss(next(iter(batch.windows(1))), task.model.initial_state(batch.rows))
        reached = [leaf.sum() for leaf in floating(after) if leaf.requires_grad]
        if not reached:
            return {}
        found = torch.autograd.grad(torch.stack(reached).sum(), list(parameters.values()), allow_unused=True)
    return {name: one for (name, one), there in zip(parameters.items(), found, strict=True) if there is not None}
