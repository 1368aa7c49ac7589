"""Recurrent cells, one file a family. `CELLS` is every name that `--cell` takes."""

from recurra.cells.base import Cell
from recurra.cells.clockwork import Clockwork, ClockworkState
from recurra.cells.conv import ConvLSTM
from recurra.cells.elman import Elman, ElmanState, IndRNN, Jordan, JordanState
from recurra.cells.gru import GRU, MGU, GRUState, LayerNormGRU, LiGRU
from recurra.cells.latent import HMM, HMMState, Kalman, KalmanState, Latent
from recurra.cells.leaky import Leaky, LeakyState
from recurra.cells.linear import LRU, QRNN, SRU, LRUState, MinGRU, MinimalState, MinLSTM, QRNNState, SRUState
from recurra.cells.liquid import LTC, CfC
from recurra.cells.lstm import LSTM, CoupledLSTM, LayerNormLSTM, LSTMState, PeepholeLSTM, ProjectedLSTM, ProjectedState
from recurra.cells.multiplicative import Mogrifier, MultiplicativeLSTM
from recurra.cells.orthogonal import Orthogonal
from recurra.cells.packed import Packed, with_packed_weights
from recurra.cells.reservoir import Reservoir, ReservoirState
from recurra.cells.window import Window, WindowState
from recurra.cells.wrap import (
    Block,
    Convolved,
    LearntStart,
    LockedDropout,
    Projected,
    RandomStart,
    Residual,
    Stacked,
    Zoneout,
)
from recurra.cells.xlstm import SLSTM, MatrixLSTM, MatrixState, ScalarState
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
    "indrnn": IndRNN,
    "mingru": MinGRU,
    "minlstm": MinLSTM,
    "lru": LRU,
    "qrnn": QRNN,
    "sru": SRU,
    "ligru": LiGRU,
    "lstm-multiplicative": MultiplicativeLSTM,
    "mogrifier": Mogrifier,
    "slstm": SLSTM,
    "lstm-matrix": MatrixLSTM,
    "clockwork": Clockwork,
    "orthogonal": Orthogonal,
    "ltc": LTC,
    "cfc": CfC,
    "convlstm": ConvLSTM,
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
    "LRU",
    "LSTM",
    "LTC",
    "MGU",
    "QRNN",
    "SLSTM",
    "SRU",
    "Block",
    "Cell",
    "CfC",
    "Clockwork",
    "ClockworkState",
    "ConvLSTM",
    "Convolved",
    "CoupledLSTM",
    "Elman",
    "ElmanState",
    "GRUState",
    "HMMState",
    "IndRNN",
    "Jordan",
    "JordanState",
    "Kalman",
    "KalmanState",
    "LRUState",
    "LSTMState",
    "Latent",
    "LayerNormGRU",
    "LayerNormLSTM",
    "Leaky",
    "LeakyState",
    "LearntStart",
    "LiGRU",
    "LockedDropout",
    "MatrixLSTM",
    "MatrixState",
    "MinGRU",
    "MinLSTM",
    "MinimalState",
    "Mogrifier",
    "MultiplicativeLSTM",
    "Orthogonal",
    "Packed",
    "PeepholeLSTM",
    "Projected",
    "ProjectedLSTM",
    "ProjectedState",
    "QRNNState",
    "RandomStart",
    "Reservoir",
    "ReservoirState",
    "Residual",
    "SRUState",
    "ScalarState",
    "Stacked",
    "Window",
    "WindowState",
    "Zoneout",
    "cell_called",
    "with_packed_weights",
]  # fmt: skip
