"""The conditional random field against all label sequences, one by one."""

import math
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

import recurra
from recurra.crf import CRF, bio_allowed

SCORES = st.integers(-12, 12).map(lambda n: n / 4)  # exact in binary, so that sequences can be equally good


def score(crf: CRF, row: Tensor, path: tuple[int, ...]) -> float:
    """s(y) by the formula."""
    if not path:
        return 0.0
    steps = sum(row[t, label].item() for t, label in enumerate(path))
    pairs = sum(crf.transitions[a, b].item() for a, b in pairwise(path))
    return crf.start[path[0]].item() + steps + pairs + crf.end[path[-1]].item()


def paths(crf: CRF, length: int, ruled: bool = False) -> list[tuple[int, ...]]:
    """All label sequences in lexicographic order, or those that are allowed."""
    every = product(range(len(crf.end)), repeat=length)
    return [path for path in every if not ruled or keeps(crf, path)]


def keeps(crf: CRF, path: tuple[int, ...]) -> bool:
    return not path or (bool(crf.starts[path[0]]) and all(bool(crf.allowed[a, b]) for a, b in pairwise(path)))


def log_sum(values: list[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))


@st.composite
def cases(draw: st.DrawFn, ruled: bool = False) -> tuple[CRF, Tensor, Tensor, Tensor]:
    """A CRF, scores, lengths and tags, with parameters drawn too."""
    labels, steps, batch = draw(st.integers(1, 4)), draw(st.integers(0, 5)), draw(st.integers(1, 3))
    numbers = lambda *shape: torch.tensor(  # noqa: E731
        draw(st.lists(SCORES, min_size=math.prod(shape), max_size=math.prod(shape))), dtype=torch.float64
    ).view(shape)
    rules: tuple[Tensor, ...] = ()
    if ruled:
        holds = lambda count: draw(st.lists(st.booleans(), min_size=count, max_size=count))  # noqa: E731
        allowed, starts = torch.tensor(holds(labels**2)).view(labels, labels), torch.tensor(holds(labels))
        allowed[torch.arange(labels), draw(st.permutations(range(labels)))] = True
        starts[draw(st.integers(0, labels - 1))] = True
        rules = (allowed, starts)
    crf = CRF(labels, *rules).double()
    with torch.no_grad():
        for part in crf.parameters():
            part.copy_(numbers(*part.shape))
        crf.transitions.mul_(draw(st.sampled_from([1, 9])))  # up to 54 nats from least to greatest
    lengths = torch.tensor(draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch)))
    tags = draw(st.lists(st.integers(0, labels - 1), min_size=batch * steps, max_size=batch * steps))
    return crf, numbers(batch, steps, labels), lengths, torch.tensor(tags, dtype=torch.int64).view(batch, steps)


def normal(labels: int, *rules: Tensor, seed: int = 0) -> CRF:
    crf, generator = CRF(labels, *rules), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in crf.parameters():
            part.normal_(generator=generator)
    return crf


def drawn(batch: int, steps: int, labels: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Scores and tags."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, steps)
    return torch.randn(*shape, labels, generator=generator), torch.randint(labels, shape, generator=generator)


# --- against all sequences ---


@settings(max_examples=60, deadline=None)
@given(cases())
def test_the_loss_is_that_of_all_sequences(case: tuple[CRF, Tensor, Tensor, Tensor]) -> None:
    crf, scores, lengths, tags = case
    losses = crf.loss(scores, tags, lengths)
    for row, length, path, loss in zip(scores, lengths.tolist(), tags.tolist(), losses.tolist(), strict=True):
        every = log_sum([score(crf, row, other) for other in paths(crf, length)])
        assert loss == pytest.approx(every - score(crf, row, tuple(path[:length])), rel=1e-12, abs=1e-11)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_the_losses_of_all_sequences_are_one_distribution(case: tuple[CRF, Tensor, Tensor, Tensor]) -> None:
    crf, scores, lengths, _ = case
    length = int(lengths[0])
    every = torch.tensor(paths(crf, length), dtype=torch.int64)
    losses = crf.loss(scores[:1, :length].expand(len(every), -1, -1), every)
    assert torch.exp(-losses).sum().item() == pytest.approx(1, abs=1e-11)


@settings(max_examples=60, deadline=None)
@given(cases(ruled=True))
def test_the_labels_decoded_are_the_first_of_the_best_allowed_ones(case: tuple[CRF, Tensor, Tensor, Tensor]) -> None:
    crf, scores, lengths, _ = case
    for row, length, found in zip(scores, lengths.tolist(), crf.decode(scores, lengths).tolist(), strict=True):
        best = max(paths(crf, length, ruled=True), key=lambda path: score(crf, row, path))  # the first of equals
        assert found == [*best, *[0] * (len(found) - length)]


@settings(max_examples=60, deadline=None)
@given(cases(ruled=True))
def test_the_marginals_are_sums_over_allowed_sequences(case: tuple[CRF, Tensor, Tensor, Tensor]) -> None:
    crf, scores, lengths, _ = case
    found = crf.marginals(scores, lengths)
    for row, length, marginals in zip(scores, lengths.tolist(), found, strict=True):
        want = torch.zeros_like(marginals)
        allowed = paths(crf, length, ruled=True)
        every = log_sum([score(crf, row, path) for path in allowed])
        for path in allowed:
            for t, label in enumerate(path):
                want[t, label] += math.exp(score(crf, row, path) - every)
        torch.testing.assert_close(marginals.detach(), want, rtol=1e-10, atol=1e-12)
        assert bool((marginals[want == 0] == 0).all()), "what is not allowed has no probability at all"


# --- derivatives ---


def test_gradients_are_right_twice() -> None:
    crf = normal(3).double()
    scores, tags = drawn(3, 4, 3)
    scores, lengths = scores.double().requires_grad_(), torch.tensor([4, 0, 2])

    def loss(scores: Tensor, *parameters: Tensor) -> Tensor:
        named = dict(zip(["transitions", "start", "end"], parameters, strict=True))
        return torch.func.functional_call(_Loss(crf), {f"crf.{name}": part for name, part in named.items()}, scores)

    class _Loss(torch.nn.Module):
        def __init__(self, crf: CRF) -> None:
            super().__init__()
            self.crf = crf

        def forward(self, scores: Tensor) -> Tensor:
            return self.crf.loss(scores, tags, lengths)

    given = (scores, *(part.detach().clone().requires_grad_() for part in (crf.transitions, crf.start, crf.end)))
    assert torch.autograd.gradcheck(loss, given)
    assert torch.autograd.gradgradcheck(loss, given)
    only_first = torch.tensor([[False, True, True]] * 3)  # nothing comes before label 0
    for one in (crf, normal(3, only_first, torch.tensor([True, False, True])).double()):
        assert torch.autograd.gradcheck(lambda scores, one=one: one.marginals(scores, lengths), scores)


def test_the_gradient_of_the_loss_is_marginals_less_what_was_said() -> None:
    crf, lengths = normal(5), torch.tensor([6, 3, 0, 1])
    scores, tags = drawn(4, 6, 5)
    scores.requires_grad_()
    crf.loss(scores, tags, lengths).sum().backward()
    inside = torch.arange(6) < lengths[:, None]
    said = torch.nn.functional.one_hot(tags, 5) * inside[..., None]
    torch.testing.assert_close(scores.grad, crf.marginals(scores.detach(), lengths).detach() - said, rtol=0, atol=1e-6)


# --- laws ---


def test_at_the_start_it_is_a_softmax_at_each_step() -> None:
    scores, tags = drawn(2, 7, 4)
    crf = CRF(4)
    each = cross_entropy(scores.flatten(0, 1), tags.flatten(), reduction="none").view(2, 7)
    torch.testing.assert_close(crf.loss(scores, tags), each.sum(1))
    torch.testing.assert_close(crf.marginals(scores), torch.softmax(scores, 2))
    assert crf.decode(scores).equal(scores.argmax(2))


def everything(crf: CRF, scores: Tensor, tags: Tensor, lengths: Tensor | None) -> dict[str, Tensor]:
    """What a CRF says, and the gradients of its loss."""
    scores = scores.clone().requires_grad_()
    loss = crf.loss(scores, tags, lengths)
    grads = torch.autograd.grad(loss.sum(), [scores, *crf.parameters()])
    said = {"loss": loss, "labels": crf.decode(scores, lengths), "marginals": crf.marginals(scores, lengths)}
    names = ["scores", *(name for name, _ in crf.named_parameters())]
    return {name: part.detach() for name, part in (said | dict(zip(names, grads, strict=True))).items()}


@pytest.mark.parametrize("content", [math.nan, math.inf, -math.inf, 1e30])
def test_what_stands_past_the_end_has_no_influence(content: float) -> None:
    crf, lengths = normal(4, *bio_allowed(["O", "B-X", "I-X", "B-Y"])), torch.tensor([5, 2, 0, 3])
    scores, tags = drawn(4, 5, 4)
    past = torch.arange(5) >= lengths[:, None]
    want = everything(crf, scores, tags, lengths)
    found = everything(crf, scores.masked_fill(past[..., None], content), tags.masked_fill(past, -(10**15)), lengths)
    for name, part in want.items():
        assert part.equal(found[name]), name
    assert not want["labels"][past].any() and not want["marginals"][past].any() and not want["scores"][past].any()
    assert want["loss"][2] == 0
    for row, length in enumerate(lengths.tolist()):  # each as it is without the others and without padding
        alone = crf.loss(scores[row : row + 1, :length], tags[row : row + 1, :length])
        torch.testing.assert_close(want["loss"][row : row + 1], alone.detach())


def test_rows_do_not_see_each_other() -> None:
    crf, lengths, order = normal(6), torch.tensor([3, 7, 0, 5, 1]), torch.tensor([4, 2, 0, 3, 1])
    scores, tags = drawn(5, 7, 6)
    want, found = (
        everything(crf, scores, tags, lengths),
        everything(crf, scores[order], tags[order], lengths[order]),
    )
    for name in ("loss", "labels", "marginals", "scores"):
        torch.testing.assert_close(found[name], want[name][order])
    for name in ("transitions", "start", "end"):
        torch.testing.assert_close(found[name], want[name])


@pytest.mark.parametrize(("batch", "steps"), [(0, 3), (2, 0), (0, 0)])
def test_nothing_is_an_answer_to_nothing(batch: int, steps: int) -> None:
    crf = normal(3)
    scores, tags = torch.zeros(batch, steps, 3, requires_grad=True), torch.zeros(batch, steps, dtype=torch.int64)
    loss = crf.loss(scores, tags)
    loss.sum().backward()
    assert loss.tolist() == [0.0] * batch and scores.grad is not None and scores.grad.shape == scores.shape
    assert crf.decode(scores).shape == (batch, steps) and crf.decode(scores).dtype == torch.int64
    assert crf.marginals(scores).shape == (batch, steps, 3)


# --- rules ---


def test_bio_lets_nothing_go_on_that_was_not_begun() -> None:
    labels = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "I-MISC", "PLACE", "B-a-b", "I-a-b"]
    allowed, starts = bio_allowed(labels)
    follow = {label: {labels[a] for a in range(len(labels)) if allowed[a, b]} for b, label in enumerate(labels)}
    assert follow["I-PER"] == {"B-PER", "I-PER"}
    assert follow["I-LOC"] == {"B-LOC", "I-LOC"}
    assert follow["I-a-b"] == {"B-a-b", "I-a-b"}
    for free in ("O", "B-PER", "B-LOC", "I-MISC", "PLACE"):
        assert follow[free] == set(labels)
    assert [label for label, may in zip(labels, starts.tolist(), strict=True) if not may] == ["I-PER", "I-LOC", "I-a-b"]


def test_what_is_forbidden_is_never_said_however_much_speaks_for_it() -> None:
    labels = ["I-X", "O", "B-X"]
    crf = normal(3, *bio_allowed(labels))
    scores, _ = drawn(8, 30, 3)
    scores[..., 0] += 1e4  # I-X everywhere
    with torch.no_grad():
        crf.transitions[1, 0] = crf.start[0] = 1e4
    scores[:, 10, 1] = 3e4  # but O here, after which no I-X may stand
    said = [[labels[label] for label in row] for row in crf.decode(scores).tolist()]
    assert all(row == ["B-X", *["I-X"] * 9, "O", "B-X", *["I-X"] * 18] for row in said)
    marginals = crf.marginals(scores)
    assert bool((marginals[:, [0, 11], 0] == 0).all()) and bool(torch.isfinite(marginals).all())


def test_data_that_breaks_a_rule_has_a_loss_that_can_be_learnt() -> None:
    """The loss is that without rules."""
    scores, tags = drawn(2, 3, 3)
    tags[:] = torch.tensor([1, 0, 0])  # O I-X I-X
    ruled, free = normal(3, *bio_allowed(["I-X", "O", "B-X"])), normal(3)
    want = everything(free, scores, tags, None)
    for name, part in everything(ruled, scores, tags, None).items():
        if name not in ("labels", "marginals"):
            assert part.equal(want[name]), name
            assert bool(torch.isfinite(part).all())


def test_rules_are_part_of_what_is_saved() -> None:
    labels = ["O", "B-X", "I-X"]
    crf, other = normal(3, *bio_allowed(labels)), CRF(3)
    other.load_state_dict(crf.state_dict())
    scores, _ = drawn(4, 9, 3)
    assert other.decode(scores).equal(crf.decode(scores)) and other.marginals(scores).equal(crf.marginals(scores))


# --- numbers ---


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_large_scores_stay_finite(size: float) -> None:
    crf, lengths = normal(5), torch.tensor([9, 4])
    scores, tags = drawn(2, 9, 5)
    for name, part in everything(crf, size * scores, tags, lengths).items():
        assert bool(torch.isfinite(part).all()), name
    assert crf.decode(size * scores, lengths)[0].equal(scores[0].argmax(1))


def test_a_large_score_of_all_labels_costs_no_digits() -> None:
    crf = normal(5)
    scores, tags = drawn(2, 9, 5)
    scores = (scores * 64).round() / 64
    want, found = everything(crf, scores, tags, None), everything(crf, scores + 1e4, tags, None)
    for name, part in want.items():
        torch.testing.assert_close(found[name], part)


def test_large_transitions_stay_finite() -> None:
    crf = normal(4)
    with torch.no_grad():
        crf.transitions[0, 1] = -1e4
        crf.transitions[:, 2] = -1e30
        crf.transitions[3, 3] = 1e4
    scores, tags = drawn(3, 6, 4)
    for name, part in everything(crf, 100 * scores, tags, None).items():
        assert bool(torch.isfinite(part).all()), name


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1.0, 10.0]), st.sampled_from([1.0, 100.0, 1e4]))
def test_float32_keeps_to_float64(seed: int, spread: float, size: float) -> None:
    """Whatever the scores, while transitions lie within 60 nats."""
    crf = normal(7, seed=seed)
    with torch.no_grad():
        crf.transitions.mul_(spread).clamp_(-29, 29)
    scores, tags = drawn(3, 40, 7, seed=seed + 1)
    lengths = torch.tensor([40, 17, 1])
    found = everything(crf, size * scores, tags, lengths)
    crf = crf.double()
    want = everything(crf, (size * scores).double(), tags, lengths)
    assert bool((found["loss"] >= -1e-3).all())
    torch.testing.assert_close(found["loss"].double(), want["loss"], rtol=1e-5, atol=1e-3)
    for name in ("marginals", "scores"):
        torch.testing.assert_close(found[name].double(), want[name], rtol=0, atol=2e-3)


# --- wrong calls ---


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda crf, xs, ys: crf.loss(xs[..., :2], ys), r"shape \(2, 3, 2\), wanted .* \[batch, time, 4\]"),
        (lambda crf, xs, ys: crf.decode(xs[0]), r"shape \(3, 4\)"),
        (lambda crf, xs, ys: crf.marginals(xs.long()), "scores of torch.int64"),
        (lambda crf, xs, ys: crf.loss(xs, ys.int()), "tags of torch.int32"),
        (lambda crf, xs, ys: crf.loss(xs, ys[:, 1:]), r"tags of .* shape \(2, 2\) .* wanted int64 of shape \(2, 3\)"),
        (lambda crf, xs, ys: crf.loss(xs, ys + 4), "tags from 4 to 7, wanted each between 0 and 3"),
        (lambda crf, xs, ys: crf.loss(xs, ys - 5, torch.tensor([1, 0])), "tags from -5 to 0"),
        (lambda crf, xs, ys: crf.decode(xs, torch.tensor([4, 1])), "lengths from 1 to 4"),
        (lambda crf, xs, ys: crf.decode(xs, [3, 1]), "torch.tensor"),
        (lambda crf, xs, ys: CRF(0), "0 labels"),
        (lambda crf, xs, ys: CRF(2, torch.ones(3, 3, dtype=torch.bool)), r"shape \(3, 3\)"),
        (lambda crf, xs, ys: CRF(2, torch.ones(2, 2)), "torch.float32"),
        (lambda crf, xs, ys: CRF(2, None, torch.zeros(2, dtype=torch.bool)), "cannot go on"),
        (lambda crf, xs, ys: CRF(2, torch.tensor([[True, True], [False, False]])), "cannot go on"),
    ],
)
def test_wrong_calls_are_answered_in_words(call, words: str) -> None:
    crf, xs, ys = CRF(4), torch.zeros(2, 3, 4), torch.tensor([[0, 1, 2], [3, 0, 1]])
    with pytest.raises(recurra.UsageError, match=words):
        call(crf, xs, ys)


def test_it_learns_which_label_follows_which() -> None:
    """Labels that take turns, scores that say nothing: only the transitions can know."""
    crf = CRF(2)
    tags = torch.tensor([[0, 1] * 5, [1, 0] * 5])
    scores = torch.zeros(2, 10, 2)
    optimizer = torch.optim.Adam(crf.parameters(), lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        crf.loss(scores, tags).sum().backward()
        optimizer.step()
    scores[0, 4, 0] = scores[1, 7, 0] = 1.0  # one step says where it stands in the turn
    assert crf.decode(scores).equal(tags)
