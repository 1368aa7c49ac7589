"""Recurrent cells, one file a family. `CELLS` is every name that `--cell` takes."""

from recurra.cells.base import Cell
from recurra.cells.elman import Elman, ElmanState, Jordan, JordanState
from recurra.cells.gru import GRU, MGU, GRUState, LayerNormGRU
from recurra.cells.leaky import Leaky, LeakyState
from recurra.cells.lstm import LSTM, CoupledLSTM, LayerNormLSTM, LSTMState, PeepholeLSTM, ProjectedLSTM, ProjectedState
from recurra.cells.packed import Packed, with_packed_weights
from recurra.cells.window import Window, WindowState
from recurra.cells.wrap import LearntStart, LockedDropout, Projected, RandomStart, Residual, Stacked, Zoneout

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
}

__all__ = [
    "CELLS",
    "GRU",
    "LSTM",
    "MGU",
    "Cell",
    "CoupledLSTM",
    "Elman",
    "ElmanState",
    "GRUState",
    "Jordan",
    "JordanState",
    "LSTMState",
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
    "Residual",
    "Stacked",
    "Window",
    "WindowState",
    "Zoneout",
    "with_packed_weights",
]  # fmt: skip
