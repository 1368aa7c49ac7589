"""Attention: by hand, by laws, and against torch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from recurra.attention import ATTENTIONS, Attention, Covering, LocationAware, MultiHead, attend, dot
from recurra.errors import UsageError

MADE: dict[str, Callable[[], Attention]] = {name: lambda kind=kind: kind(8, 8) for name, kind in ATTENTIONS.items()}


def look(attention: Attention, query: Tensor, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    before = torch.zeros(values.shape[:2], dtype=values.dtype)
    before[:, 0] = 1.0
    return attention(query, attention.remember(values), mask, before if attention.looks_back else None)


def test_dot_attention_by_hand() -> None:
    """Scores 1, 0 and 2 become weights e, 1 and e^2 over their sum."""
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
    values = torch.tensor([[10.0], [20.0], [30.0]])
    summary, weights = attend(torch.tensor([[1.0, 0.0]]), keys, values)
    e = torch.tensor([1.0, 0.0, 2.0]).exp()
    torch.testing.assert_close(weights[0], e / e.sum())
    torch.testing.assert_close(summary[0], ((e / e.sum()) * values[:, 0]).sum(0, keepdim=True))
    assert float(weights[0, 2]) == pytest.approx(0.6652, abs=1e-4)


@pytest.mark.parametrize("name", MADE)
def test_weights_sum_to_one_and_padding_has_none(name: str) -> None:
    torch.manual_seed(0)
    attention = MADE[name]()
    query, values = torch.randn(3, 1, 8), torch.randn(3, 6, 8)
    lengths = torch.tensor([6, 4, 1])
    mask = (torch.arange(6) < lengths[:, None])[:, None]
    summary, weights = look(attention, query, values, mask)
    torch.testing.assert_close(weights.sum(2), torch.ones(3, 1))
    assert not weights[~mask].any() and (weights[mask] > 0).all()
    if name == "uniform":
        torch.testing.assert_close(weights[:, 0], mask[:, 0] / lengths[:, None])
    other = torch.where(mask.transpose(1, 2), values, 1e4)
    torch.testing.assert_close(look(attention, query, other, mask)[0], summary)
    for row, size in enumerate(lengths.tolist()):
        if name != "location":  # its convolution sees zeros past the end either way
            alone = look(attention, query[row : row + 1], values[row : row + 1, :size])[0]
            torch.testing.assert_close(alone[0], summary[row])


@pytest.mark.parametrize("name", [name for name, one in MADE.items() if not one().looks_back])
def test_queries_at_once_are_queries_one_by_one(name: str) -> None:
    torch.manual_seed(0)
    attention, query, values = MADE[name](), torch.randn(2, 5, 8), torch.randn(2, 6, 8)
    together = look(attention, query, values)
    for at in range(5):
        alone = look(attention, query[:, at : at + 1], values)
        for whole, part in zip(together, alone, strict=True):
            torch.testing.assert_close(whole[:, at : at + 1], part)


@pytest.mark.parametrize("name", MADE)
def test_every_parameter_of_an_attention_learns(name: str) -> None:
    if name == "uniform":
        return  # it asks nothing
    attention = MADE[name]().double()
    query, values = torch.randn(2, 1, 8, dtype=torch.float64), torch.randn(2, 4, 8, dtype=torch.float64)
    query.requires_grad_(), values.requires_grad_()
    inputs = [query, values, *attention.parameters()]
    summary, weights = look(attention, query, values)
    grads = torch.autograd.grad(summary.square().sum() + weights.square().sum(), inputs)
    assert all(grad.abs().sum() > 0 or name == "multi-head" for grad in grads)
    assert torch.autograd.gradcheck(lambda q, v: look(attention, q, v), (query, values))


def test_the_heads_are_those_of_torch() -> None:
    torch.manual_seed(0)
    ours, torchs = MultiHead(8, 8, heads=2), nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        torchs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        torchs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
        torchs.out_proj.weight.copy_(ours.out.weight)
        torchs.out_proj.bias.copy_(ours.out.bias)
    query, values = torch.randn(3, 2, 8), torch.randn(3, 5, 8)
    mask = (torch.arange(5) < torch.tensor([5, 3, 1])[:, None])[:, None]
    for mine, theirs in zip(
        look(ours, query, values, mask), torchs(query, values, values, key_padding_mask=~mask[:, 0]), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_location_aware_attention_by_its_formula() -> None:
    torch.manual_seed(0)
    attention = LocationAware(3, 4, units=5, filters=2, width=3).double()
    query, values = torch.randn(1, 1, 3, dtype=torch.float64), torch.randn(1, 6, 4, dtype=torch.float64)
    before = torch.rand(1, 6, dtype=torch.float64)
    padded = torch.cat([torch.zeros(1), before[0], torch.zeros(1)])
    scores = []
    for place in range(6):
        f = torch.stack([(attention.F.weight[k, 0] * padded[place : place + 3]).sum() for k in range(2)])
        additive = attention.additive
        inside = additive.W(query[0, 0]) + additive.U(values[0, place]) + attention.V(f)
        scores.append((additive.v * torch.tanh(inside)).sum())
    weights = attention(query, attention.remember(values), None, before)[1]
    torch.testing.assert_close(weights[0, 0], torch.stack(scores).softmax(0))


def test_covering_attention_by_its_formula() -> None:
    torch.manual_seed(0)
    attention = Covering(3, 4, units=5).double()
    query, values = torch.randn(1, 1, 3, dtype=torch.float64), torch.randn(1, 6, 4, dtype=torch.float64)
    covered = torch.rand(1, 6, dtype=torch.float64)
    _, weights = attention(query, attention.remember(values), None, covered)
    inner, scores = attention.additive, []
    for place in range(6):
        said = inner.W(query[0, 0]) + inner.U(values[0, place]) + attention.V.weight[:, 0] * covered[0, place]
        scores.append(torch.tanh(said) @ inner.v)
    torch.testing.assert_close(weights[0, 0], torch.stack(scores).softmax(0))
    with pytest.raises(UsageError, match="one query at a time"):
        attention(query, attention.remember(values))


def test_the_scores_say_what_fits() -> None:
    assert dot(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])).tolist() == [[11.0]]
    with pytest.raises(UsageError, match="dot attention compares like with like"):
        ATTENTIONS["dot"](3, 4)
    with pytest.raises(UsageError, match="cannot be shared out to 4 heads"):
        ATTENTIONS["multi-head"](6, 4)
    with pytest.raises(UsageError, match="one query at a time"):
        location = LocationAware(3, 3)
        location(torch.zeros(1, 2, 3), location.remember(torch.zeros(1, 4, 3)))
