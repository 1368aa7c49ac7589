"""Recurrent cells, one file a family. `CELLS` is every name that `--cell` takes."""

from recurra.cells.base import Cell
from recurra.cells.elman import Elman, ElmanState
from recurra.cells.gru import GRU, GRUState
from recurra.cells.lstm import LSTM, LSTMState
from recurra.cells.wrap import LockedDropout, Stacked

CELLS: dict[str, type[Cell]] = {"elman": Elman, "lstm": LSTM, "gru": GRU}

__all__ = ["CELLS", "GRU", "LSTM", "Cell", "Elman", "ElmanState", "GRUState", "LSTMState", "LockedDropout", "Stacked"]
