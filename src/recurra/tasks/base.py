"""Task: what a network is for. It owns the meaning of data, loss, score and prediction; it owns no training loop."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from torch import Tensor, nn

from recurra.config import Config
from recurra.data.batch import Batch
from recurra.errors import DataError, UsageError
from recurra.state import State


@dataclass(frozen=True)
class Sources:
    """The files of a run. Without `valid` a share of `train` is kept back."""

    train: Sequence[Path]
    valid: Sequence[Path] = ()
    test: Sequence[Path] = ()

    @property
    def paths(self) -> list[Path]:
        return [*self.train, *self.valid, *self.test]


def refuse(config: Config, what: str, *keys: str) -> None:
    """Raise UsageError where one of these keys of [data] was given to a task that has no use for it."""
    for key in keys:
        if getattr(config.data, key) is not None:
            raise UsageError(f"{what}, and data.{key} was given; leave it out")


class Validation(NamedTuple):
    """How a model does on the validation data: its mean loss, and the number by which models are compared, lower is better."""

    loss: float
    error: float


class Unit(NamedTuple):
    """How a loss is shown: `factor` times the loss is so many `name`; speed counts `counted` a second."""

    name: str
    factor: float
    counted: str


class Task(ABC):
    """A purpose, its data and its model.

    Two doors lead in: `prepare` learns vocabulary, labels and scales from data, `restore` reads them back from the files
    that `write_assets` wrote. `build` then makes the model of a settled config. Behind the doors all is the same.
    """

    name: ClassVar[str]
    data_files: ClassVar[frozenset[str]]  # what `prepare` may leave in its folder
    assets: ClassVar[frozenset[str]]  # what `write_assets` writes and `restore` needs, of `bundle.OF_THE_TASK`
    unit: ClassVar[Unit]
    config: Config
    model: nn.Module  # has `initial_state(batch)`, which is () where no state is carried from batch to batch

    @classmethod
    @abstractmethod
    def prepare(cls, config: Config, sources: Sources, folder: Path) -> Self:
        """Learn what is to be learnt from the data, and leave it tokenised in `folder`, ready to be memory-mapped."""

    @classmethod
    @abstractmethod
    def reopen(cls, config: Config, folder: Path) -> Self:
        """The task over the data that `prepare` left in `folder`."""

    @classmethod
    @abstractmethod
    def restore(cls, config: Config, folder: Path) -> Self:
        """The task without training data, from the assets in `folder`; the model is built, its weights are not set."""

    @abstractmethod
    def write_assets(self, folder: Path) -> None:
        """Write the files that `restore` reads."""

    @abstractmethod
    def attach(self, data: Callable[[], Path]) -> None:
        """Take the folder that `prepare` filled into use; `data` names it, once it is verified, when it is first needed."""

    @abstractmethod
    def settle(self, config: Config, passes: float | None = None) -> Config:
        """The config with every `auto` replaced, for a budget in which the reference model reads the data `passes` times;
        without `passes` the reference model itself."""

    @abstractmethod
    def build(self, config: Config) -> None:
        """Make `model` anew, from torch's random numbers, as the settled config says."""

    def notes(self) -> list[str]:
        """What is worth saying of the data before a training begins."""
        return []

    def held(self, share: float) -> list[nn.Parameter]:
        """The parameters that keep their values while `share` of the training is done."""
        return []

    @abstractmethod
    def batches(self, start: int = 0) -> Iterator[Batch]:
        """The training batches of step `start` and after, without end: a function of the step alone."""

    @abstractmethod
    def steps_per_epoch(self) -> int:
        """How many batches read the training data once."""

    @abstractmethod
    def loss(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        """The summed losses of the batch divided by `batch.weight`, and the state after it. Pure."""

    @abstractmethod
    def validate(self) -> Validation:
        """How the model does on the validation data."""

    @abstractmethod
    def evaluate(self, data: Sequence[Path] | None = None) -> dict[str, Any]:
        """A report on files, or on the test data of this run, or on its validation data: `scores` by name, `floors` of methods
        without a network in the score that `headline` names (`higher_is_better` says which way), `n` and `seconds`."""

    @abstractmethod
    def lines(self, report: dict[str, Any]) -> list[str]:
        """A report of `evaluate` as lines for people."""

    @abstractmethod
    def predict(self, data: Any) -> Any:
        """The answer to one input."""

    @abstractmethod
    def answers(
        self, source: Path | Iterable[str], best: int = 5, search: Any = None
    ) -> Iterator["dict[str, Any] | DataError"]:
        """The answer to each input of a file, or of lines as they come, in their order, ready for JSON; where an input cannot be
        read, what is wrong with it. `best` is how many guesses are named where there are several; `search` what `self.search`
        made."""

    def search(self, **how: Any) -> Any:
        """How texts are to be written, for tasks that write about something (`writing.Search`). Raises UsageError for others."""
        if how:
            called = {"width": "beam", "look": "attention", "phrases": "phrase"}
            raise UsageError(
                f"what a network writes about each input is searched for (by {', '.join(called.get(name, name) for name in how)}), "
                f"and this one was trained to {self.name}; leave it out"
            )

    @abstractmethod
    def shown(self, answer: dict[str, Any]) -> str:
        """An answer as a line for people."""

    @classmethod
    @abstractmethod
    def survey(cls, config: Config, sources: Sources) -> dict[str, Any]:
        """What the data looks like, and under `warnings` what is wrong with it, in words."""
