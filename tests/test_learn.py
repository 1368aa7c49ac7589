"""BPTT: the gradient of the whole, truncated where it says so, with the state carried on."""

import copy

import torch

from recurra.data.batch import Batch
from recurra.learn import BPTT
from recurra.models import language_model
from recurra.state import named


class Toy:
    def __init__(self, **options) -> None:
        torch.manual_seed(0)
        self.model = language_model(9, hidden=5, embedding=3, **options).double()

    def loss(self, batch, state):
        scores, state = self.model.unroll(batch.inputs, state, batch.lengths)
        losses = torch.nn.functional.cross_entropy(scores.flatten(0, 1), batch.targets.flatten(), reduction="none")
        losses = losses.view(batch.targets.shape)
        if batch.lengths is not None:
            losses = losses * (torch.arange(batch.time) < batch.lengths[:, None])
        return losses.sum() / batch.weight, state


def tokens(rows: int = 3, time: int = 12, lengths=None, fresh=True) -> Batch:
    ids = torch.randint(9, (rows, time + 1), generator=torch.Generator().manual_seed(1))
    weight = float(rows * time if lengths is None else sum(lengths))
    given = None if lengths is None else torch.tensor(lengths)
    return Batch(ids[:, :-1], ids[:, 1:], given, weight, torch.full((rows,), fresh))


def gradients(task: Toy, batch: Batch, learner: BPTT, carry=None):
    task.model.zero_grad()
    loss, carry = learner(task, batch, carry or learner.start(task, batch))
    return loss, {name: p.grad.clone() for name, p in task.model.named_parameters()}, carry


def test_a_window_as_long_as_the_batch_is_the_whole_gradient() -> None:
    task = Toy()
    loss, whole, _ = gradients(task, tokens(), BPTT())
    same_loss, same, _ = gradients(task, tokens(), BPTT(window=12))
    direct, _ = task.loss(tokens(), task.model.initial_state(3))
    torch.testing.assert_close(same_loss, loss)
    torch.testing.assert_close(loss, direct.detach())
    torch.testing.assert_close(same, whole)
    task.model.zero_grad()
    direct.backward()
    torch.testing.assert_close({name: p.grad for name, p in task.model.named_parameters()}, whole)


def test_a_shorter_window_keeps_the_loss_and_state_and_cuts_the_gradient() -> None:
    task = Toy()
    loss, whole, carry = gradients(task, tokens(), BPTT())
    same_loss, cut, same_carry = gradients(task, tokens(), BPTT(window=3))
    torch.testing.assert_close(same_loss, loss)
    torch.testing.assert_close(named(same_carry), named(carry))
    assert not torch.allclose(cut["core.weight_hh"], whole["core.weight_hh"], rtol=1e-3)
    torch.testing.assert_close(cut["readout.weight"], whole["readout.weight"])


def test_ragged_windows_join_to_the_ragged_whole() -> None:
    task = Toy()
    batch = tokens(lengths=[12, 0, 5])
    loss, _, carry = gradients(task, batch, BPTT())
    same_loss, _, same_carry = gradients(task, batch, BPTT(window=4))
    torch.testing.assert_close(same_loss, loss)
    torch.testing.assert_close(named(same_carry), named(carry))


def test_rows_go_on_unless_they_are_fresh() -> None:
    task, learner = Toy(), BPTT()
    _, _, carry = gradients(task, tokens(), learner)
    kept = copy.deepcopy(carry)
    on, _, _ = gradients(task, tokens(fresh=False), learner, carry)
    anew, _, _ = gradients(task, tokens(fresh=True), learner, carry)
    first, _, _ = gradients(task, tokens(fresh=True), learner)
    assert not torch.allclose(on, anew)
    torch.testing.assert_close(anew, first)
    torch.testing.assert_close(named(carry), named(kept))


def test_weight_drop_draws_one_mask_a_call_and_none_in_eval() -> None:
    model = language_model(9, hidden=6, embedding=3, recurrent_dropout=0.5).train()
    xs, start = torch.zeros(1, 4, dtype=torch.int64), model.initial_state(1)
    torch.manual_seed(1)
    fast, _ = model.unroll(xs, start)
    torch.manual_seed(1)
    again, _ = model.unroll(xs, start)
    other, _ = model.unroll(xs, start)
    assert torch.equal(fast, again) and not torch.equal(fast, other)
    plain = language_model(9, hidden=6, embedding=3)
    plain.load_state_dict(
        {k.replace("parametrizations.", "").replace(".original", ""): v for k, v in model.state_dict().items()}
    )
    torch.testing.assert_close(model.eval().unroll(xs, start), plain.eval().unroll(xs, start))
