"""recurra: the toolkit for recurrent networks.

Names are loaded when they are first used, so that `import recurra` is quick and `recurra --help` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recurra.api import load as load
    from recurra.api import train as train
    from recurra.cells import CELLS as CELLS
    from recurra.cells import Cell as Cell
    from recurra.data.batch import Batch as Batch
    from recurra.decode import Sampler as Sampler
    from recurra.decode import generate as generate
    from recurra.drop_in import GRU as GRU
    from recurra.drop_in import LSTM as LSTM
    from recurra.drop_in import RNN as RNN
    from recurra.drop_in import GRUCell as GRUCell
    from recurra.drop_in import LSTMCell as LSTMCell
    from recurra.drop_in import RNNCell as RNNCell
    from recurra.drop_in import replace as replace
    from recurra.drop_in import restore as restore
    from recurra.errors import DamagedError as DamagedError
    from recurra.errors import DataError as DataError
    from recurra.errors import Interrupted as Interrupted
    from recurra.errors import RecurraError as RecurraError
    from recurra.errors import UsageError as UsageError
    from recurra.keras import from_keras as from_keras
    from recurra.kernels import reference as reference
    from recurra.learn import BPTT as BPTT
    from recurra.learn import LEARNERS as LEARNERS
    from recurra.learn import Learner as Learner
    from recurra.models import SequenceModel as SequenceModel
    from recurra.models import language_model as language_model
    from recurra.online import Online as Online
    from recurra.recurrent import Bidirectional as Bidirectional
    from recurra.recurrent import Deep as Deep
    from recurra.recurrent import Recurrent as Recurrent
    from recurra.tasks import TASKS as TASKS
    from recurra.tasks import Task as Task
    from recurra.testing import check_cell as check_cell
    from recurra.testing import check_layer as check_layer

__version__ = "0.1.0"

_HOMES = {
    "recurra.api": ["load", "train"],
    "recurra.cells": ["CELLS", "Cell"],
    "recurra.data.batch": ["Batch"],
    "recurra.decode": ["Sampler", "generate"],
    "recurra.drop_in": ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "replace", "restore"],
    "recurra.errors": ["DamagedError", "DataError", "Interrupted", "RecurraError", "UsageError"],
    "recurra.keras": ["from_keras"],
    "recurra.kernels": ["reference"],
    "recurra.learn": ["BPTT", "LEARNERS", "Learner"],
    "recurra.models": ["SequenceModel", "language_model"],
    "recurra.online": ["Online"],
    "recurra.recurrent": ["Bidirectional", "Deep", "Recurrent"],
    "recurra.tasks": ["TASKS", "Task"],
    "recurra.testing": ["check_cell", "check_layer"],
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
__all__ = [*_HOME, "__version__"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'recurra' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
