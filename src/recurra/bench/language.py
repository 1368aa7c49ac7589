"""Characters per second of the language model, beside the same model written directly in torch.nn, interleaved."""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra.data.batch import Batch
from recurra.learn import BPTT
from recurra.models import Snapshot, language_model

VOCABULARY, EMBEDDING, ROWS, CHUNK = 96, 64, 32, 64


class Plain(nn.Module):
    """What a user of torch.nn writes: nn.Embedding, nn.LSTM, nn.Linear."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, EMBEDDING)
        self.lstm = nn.LSTM(EMBEDDING, hidden, batch_first=True)
        self.readout = nn.Linear(hidden, VOCABULARY)

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        ys, state = self.lstm(self.embedding(tokens), state)
        return self.readout(ys), state


class _Task:
    def __init__(self, hidden: int) -> None:
        self.model = language_model(VOCABULARY, hidden=hidden, embedding=EMBEDDING)

    def loss(self, batch: Batch, state: Any) -> tuple[Tensor, Any]:
        scores, state = self.model.unroll(batch.inputs, state)
        return F.cross_entropy(scores.flatten(0, 1), batch.targets.flatten()), state


def compare(hidden: int, seconds: float, threads: int | None = None, rounds: int = 5) -> dict[str, Any]:
    """Medians over `rounds` of characters per second, both sides in turn in each round, and the median of the ratios."""
    if threads:
        torch.set_num_threads(threads)
    sides = {
        "training": (_train_ours(hidden), _train_plain(hidden)),
        "generation": (_write_ours(hidden), _write_plain(hidden)),
    }
    report: dict[str, Any] = {"hidden": hidden, "threads": torch.get_num_threads(), "torch": torch.__version__}
    for what, (ours, plain) in sides.items():
        share = seconds / rounds
        pairs = [(_rate(ours, share), _rate(plain, share)) for _ in range(rounds + 1)][1:]
        report[what] = {
            "recurra": _median([a for a, _ in pairs]),
            "torch.nn": _median([b for _, b in pairs]),
            "ratio": _median([a / b for a, b in pairs]),
        }
    return report


def _rate(work: Callable[[], int], seconds: float) -> float:
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        done += work()
    return done / (time.perf_counter() - began)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _tokens() -> Tensor:
    return torch.randint(VOCABULARY, (ROWS, CHUNK + 1), generator=torch.Generator().manual_seed(0))


def _train_ours(hidden: int) -> Callable[[], int]:
    task, learner, tokens = _Task(hidden), BPTT(), _tokens()
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-3)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], None, float(ROWS * CHUNK), torch.zeros(ROWS, dtype=torch.bool))
    carry = learner.start(task, batch)

    def work() -> int:
        nonlocal carry
        _, carry = learner(task, batch, carry)
        optimizer.step()
        optimizer.zero_grad()
        return ROWS * CHUNK

    return work


def _train_plain(hidden: int) -> Callable[[], int]:
    model, tokens = Plain(hidden), _tokens()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    state: Any = None

    def work() -> int:
        nonlocal state
        scores, state = model(tokens[:, :-1], state)
        state = tuple(part.detach() for part in state)
        F.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        return ROWS * CHUNK

    return work


def _write_ours(hidden: int) -> Callable[[], int]:
    stream = Snapshot(_Task(hidden).model)
    token, state = torch.zeros(1, dtype=torch.int64), stream.initial_state(1)

    def work() -> int:
        nonlocal token, state
        scores, state = stream.step(token, state)
        token = scores.argmax(1)
        return 1

    return work


def _write_plain(hidden: int) -> Callable[[], int]:
    model = Plain(hidden).eval()
    token, state = torch.zeros(1, 1, dtype=torch.int64), None

    @torch.inference_mode()
    def work() -> int:
        nonlocal token, state
        scores, state = model(token, state)
        token = scores[:, -1].argmax(1, keepdim=True)
        return 1

    return work
