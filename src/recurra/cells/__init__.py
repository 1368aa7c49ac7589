"""Recurrent cells, one file a family. `CELLS` is every name that `--cell` takes."""

from recurra.cells.base import Cell
from recurra.cells.elman import Elman, ElmanState, Jordan, JordanState
from recurra.cells.gru import GRU, MGU, GRUState, LayerNormGRU
from recurra.cells.latent import HMM, HMMState, Kalman, KalmanState, Latent
from recurra.cells.leaky import Leaky, LeakyState
from recurra.cells.lstm import LSTM, CoupledLSTM, LayerNormLSTM, LSTMState, PeepholeLSTM, ProjectedLSTM, ProjectedState
from recurra.cells.packed import Packed, with_packed_weights
from recurra.cells.reservoir import Reservoir, ReservoirState
from recurra.cells.window import Window, WindowState
from recurra.cells.wrap import LearntStart, LockedDropout, Projected, RandomStart, Residual, Stacked, Zoneout
from recurra.errors import UsageError

CELLS: dict[str, type[Cell]] = {
    "elman": Elman,
    "jordan": Jordan,
    "leaky": Leaky,
    "lstm": LSTM,
    "lstm-peephole": PeepholeLSTM,
    "lstm-coupled": CoupledLSTM,
    "lstm-projected": ProjectedLSTM,
    "lstm-layernorm": LayerNormLSTM,
    "gru": GRU,
    "gru-layernorm": LayerNormGRU,
    "mgu": MGU,
    "window": Window,
    "reservoir": Reservoir,
    "hmm": HMM,
    "kalman": Kalman,
}


def cell_called(name: str) -> type[Cell]:
    """The cell of this name. Raises UsageError, which names those there are."""
    if name not in CELLS:
        raise UsageError(f"there is no cell called {name!r}; the cells are {', '.join(CELLS)}")
    return CELLS[name]


__all__ = [
    "CELLS",
    "GRU",
    "HMM",
    "LSTM",
    "MGU",
    "Cell",
    "CoupledLSTM",
    "Elman",
    "ElmanState",
    "GRUState",
    "HMMState",
    "Jordan",
    "JordanState",
    "Kalman",
    "KalmanState",
    "LSTMState",
    "Latent",
    "LayerNormGRU",
    "LayerNormLSTM",
    "Leaky",
    "LeakyState",
    "LearntStart",
    "LockedDropout",
    "Packed",
    "PeepholeLSTM",
    "Projected",
    "ProjectedLSTM",
    "ProjectedState",
    "RandomStart",
    "Reservoir",
    "ReservoirState",
    "Residual",
    "Stacked",
    "Window",
    "WindowState",
    "Zoneout",
    "cell_called",
    "with_packed_weights",
]  # fmt: skip
