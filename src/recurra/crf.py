"""The conditional random field: the last layer of a tagger, which knows which label follows which.

    crf = CRF(len(labels), *bio_allowed(labels))
    crf.loss(scores, tags, lengths).sum().backward()  # scores [batch, time, labels], from a network
    crf.decode(scores, lengths)                       # [batch, time]

All three that it says of scores (`loss`, `decode`, `marginals`) are one recursion along the sequence, `_along`, with another
step each.
"""

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor, nn

from recurra.cells.base import check_lengths
from recurra.errors import UsageError
from recurra.state import flipped, masked

SPAN = 60.0  # nats that the least of the transitions may lie below the greatest in the loss
FORBIDDEN = -1e30  # nats: less than any scores add up to, and finite, so that gradients of marginals are too


@final
class CRF(nn.Module):
    """A linear chain: the probability of the labels y of a sequence of length n, given a score of each label at each step,

        p(y) = exp(s(y)) / sum over all y' of exp(s(y'))
        s(y) = start[y_1] + sum over t of scores[t, y_t] + sum over t > 1 of transitions[y_t-1, y_t] + end[y_n]

    With all parameters at zero, as they begin, this is a softmax at each step.

    Scores are floating-point [batch, time, labels], `lengths` int64 [batch] or None where every row is full. What stands
    past a row's end has no influence on anything. `allowed` boolean [from, to] and `starts` boolean [labels] say which label
    may follow which and which may come first; what they do not allow is never decoded and has no probability in `marginals`.

    `loss` does not know of them. Data that breaks a rule is not impossible: it is there. A loss that forbade it would be
    infinite, or would ask for scores without end at such places; so the loss is that of all sequences, the transitions learn
    how rare such a thing is, and the rule is applied to what is said in the end.

    Raises UsageError where arguments do not fit each other.

    Parameters: transitions [labels, labels] (from, to), start [labels], end [labels]
    Reference: Lafferty, McCallum & Pereira 2001, "Conditional random fields"; on a recurrent network: Huang, Xu & Yu 2015,
    arXiv:1508.01991, Lample et al. 2016, arXiv:1603.01360
    """

    allowed: Tensor
    starts: Tensor

    def __init__(self, labels: int, allowed: Tensor | None = None, starts: Tensor | None = None) -> None:
        super().__init__()
        if labels < 1:
            raise UsageError(f"CRF was given {labels} labels, wanted at least one")
        allowed = torch.ones(labels, labels, dtype=torch.bool) if allowed is None else allowed
        starts = torch.ones(labels, dtype=torch.bool) if starts is None else starts
        _check_rules(labels, allowed, starts)
        self.transitions = nn.Parameter(torch.zeros(labels, labels))
        self.start = nn.Parameter(torch.zeros(labels))
        self.end = nn.Parameter(torch.zeros(labels))
        self.register_buffer("allowed", allowed)
        self.register_buffer("starts", starts)

    def loss(self, scores: Tensor, tags: Tensor, lengths: Tensor | None = None) -> Tensor:
        """- log p(tags) of each row, in nats [batch]; `tags` int64 [batch, time]. Zero for a row of no length.

        A transition more than 60 nats below the greatest counts as if it were 60 below, and does not learn.
        """
        lengths = self._checked(scores, lengths)
        self._check_tags(tags, scores, lengths)
        if not scores.shape[1]:
            return scores.sum((1, 2))
        scores, tags = _levelled(scores, lengths), masked(tags, lengths)
        transitions = (self.transitions - self.transitions.detach().max()).clamp(min=-SPAN)
        last = (lengths - 1).clamp(min=0)[:, None]

        said = scores.gather(2, tags[..., None])[..., 0]
        said[:, 1:] += transitions.flatten()[tags[:, :-1] * len(self.end) + tags[:, 1:]]
        said = masked(said, lengths).sum(1) + self.start[tags[:, 0]] + self.end[tags.gather(1, last)[:, 0]]

        sums = _along(scores, self.start, _quick_sum(transitions))
        every = torch.logsumexp(sums.gather(1, last[..., None].expand(-1, 1, len(self.end)))[:, 0] + self.end, 1)
        return torch.where(lengths > 0, every - said, 0.0)

    @torch.no_grad()
    def decode(self, scores: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The most probable allowed labels, int64 [batch, time], zeros past the end; of several the first in lexicographic order.

        Reference: Viterbi 1967, "Error bounds for convolutional codes"
        """
        lengths = self._checked(scores, lengths)
        start, transitions = self._ruled()
        scores = _levelled(scores, lengths)
        # From the end to the start, so that the labels can then be read off forwards, the lowest first.
        best = self._backwards(scores, lengths, lambda after: (after[:, None] + transitions).amax(2))
        labels: list[Tensor] = []
        for step in best.unbind(1):
            before = transitions[labels[-1]] if labels else start
            labels.append((before + step).argmax(1))
        return masked(torch.stack(labels, 1), lengths) if labels else lengths.new_zeros(scores.shape[:2])

    def marginals(self, scores: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The probability of each label at each step [batch, time, labels]; zeros past the end.

        Reference: Baum et al. 1970 (forward-backward)
        """
        lengths = self._checked(scores, lengths)
        start, transitions = self._ruled()
        scores = _levelled(scores, lengths)
        before = _along(scores, start, lambda sums: torch.logsumexp(sums[:, :, None] + transitions, 1))
        after = self._backwards(scores, lengths, lambda sums: torch.logsumexp(sums[:, None] + transitions, 2))
        return masked(torch.softmax(before + after - scores, 2), lengths)  # the scores are in both

    def _backwards(self, scores: Tensor, lengths: Tensor, step: Callable[[Tensor], Tensor]) -> Tensor:
        return flipped(_along(flipped(scores, lengths), self.end, step), lengths)

    def _ruled(self) -> tuple[Tensor, Tensor]:
        """The scores to start with each label and of the transitions, where what is not allowed cannot be made up for."""
        return (
            self.start.masked_fill(~self.starts, FORBIDDEN),
            self.transitions.masked_fill(~self.allowed, FORBIDDEN),
        )

    def _checked(self, scores: Tensor, lengths: Tensor | None) -> Tensor:
        """The lengths, also where every row is full."""
        if scores.dim() != 3 or scores.shape[2] != len(self.end) or not scores.is_floating_point():
            raise UsageError(
                f"CRF was given scores of {scores.dtype} and shape {tuple(scores.shape)}, wanted floating-point "
                f"[batch, time, {len(self.end)}]"
            )
        if lengths is None:
            return torch.full(scores.shape[:1], scores.shape[1], device=scores.device)
        check_lengths("CRF", scores, lengths)
        return lengths

    def _check_tags(self, tags: Tensor, scores: Tensor, lengths: Tensor) -> None:
        if tags.dtype != torch.int64 or tags.shape != scores.shape[:2] or tags.device != scores.device:
            raise UsageError(
                f"CRF was given tags of {tags.dtype} and shape {tuple(tags.shape)} on {tags.device}, wanted int64 of "
                f"shape {tuple(scores.shape[:2])} on {scores.device}"
            )
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or not tags.numel():
            return  # values are looked at only where they can be
        inside = masked(tags, lengths)
        if int(inside.min()) < 0 or int(inside.max()) >= len(self.end):
            raise UsageError(
                f"CRF was given tags from {int(inside.min())} to {int(inside.max())}, wanted each between 0 and "
                f"{len(self.end) - 1}; only what stands past a row's length may be anything"
            )


def bio_allowed(labels: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Which label may follow which, boolean [from, to], and which may come first, boolean [labels], as `CRF` takes them.

    `I-X` goes on with what `B-X` or `I-X` began, and stands nowhere else; all other labels (`O`, `B-X`, any without such a
    prefix) may stand anywhere. An `I-X` with no `B-X` among the labels may stand anywhere too, since it could never begin.
    """
    begun = [label[2:] if label[:2] == "I-" and f"B-{label[2:]}" in labels else None for label in labels]
    allowed = [[kind is None or before in (f"B-{kind}", f"I-{kind}") for kind in begun] for before in labels]
    return torch.tensor(allowed, dtype=torch.bool), torch.tensor([kind is None for kind in begun], dtype=torch.bool)


def _along(scores: Tensor, start: Tensor, step: Callable[[Tensor], Tensor]) -> Tensor:
    """sums[0] = start + scores[0], sums[t] = step(sums[t-1]) + scores[t], for `scores` [batch, time, labels] in that shape."""
    sums: list[Tensor] = []
    for score in scores.unbind(1):
        sums.append((step(sums[-1]) if sums else start) + score)
    return torch.stack(sums, 1) if sums else scores


def _quick_sum(transitions: Tensor) -> Callable[[Tensor], Tensor]:
    """log sum over i of exp(sums_i + transitions_ij) as a matrix product of exponentials, quicker than `logsumexp`. It is as
    exact for transitions between -60 and 0: what is lost to underflow is far less than what the largest sum leaves."""
    weights = torch.exp(transitions)

    def step(sums: Tensor) -> Tensor:
        largest = sums.detach().amax(1, keepdim=True)
        return torch.log(torch.exp(sums - largest) @ weights) + largest

    return step


def _levelled(scores: Tensor, lengths: Tensor) -> Tensor:
    """The scores with zero as the greatest of each step, which changes no probability and keeps the digits of large ones;
    zeros past the end."""
    scores = masked(scores, lengths)
    return scores - scores.detach().amax(2, keepdim=True)


def _check_rules(labels: int, allowed: Tensor, starts: Tensor) -> None:
    given = [(allowed.dtype, tuple(allowed.shape)), (starts.dtype, tuple(starts.shape))]
    if given != [(torch.bool, (labels, labels)), (torch.bool, (labels,))]:
        raise UsageError(
            f"CRF was given allowed of {given[0][0]} and shape {given[0][1]} and starts of {given[1][0]} and shape "
            f"{given[1][1]}, wanted bool of ({labels}, {labels}) and ({labels},)"
        )
    if allowed.is_meta:
        return  # shapes only, where a model is built to be compared with a file
    if not starts.any() or not allowed.any(1).all():
        raise UsageError(
            "CRF was given rules by which a sequence cannot go on: at least one label must be allowed to start, and after "
            "each label another one"
        )
