"""The command line as tests call it."""

import os
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

os.environ.setdefault("RECURRA_CROWD", "0")  # what is asked of several threads is asked of them, whatever else runs

from recurra import cli


class Answer(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """The one line on standard error, progress aside."""
        lines = [line for line in self.err.splitlines() if line.startswith("recurra: ")]
        assert len(lines) == 1, self.err
        assert self.err.splitlines()[-1] == lines[0]
        assert "Traceback" not in self.err
        return lines[0]


class Shell:
    """The command line in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> Answer:
        self._monkeypatch.setattr(sys, "argv", ["recurra", *map(str, arguments)])
        self._capsys.readouterr()
        threads = torch.get_num_threads()
        try:
            with pytest.raises(SystemExit) as left:
                cli.main()
        finally:
            torch.set_num_threads(threads)
        captured = self._capsys.readouterr()
        return Answer(int(left.value.code or 0), captured.out, captured.err)


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Shell:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    return Shell(monkeypatch, capsys)
