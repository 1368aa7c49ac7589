"""What can go wrong, as the user meets it.

    RecurraError          exit code 1: the run failed
    |-- UsageError        2: wrong call: an option, a config key, a shape
    |-- DataError         3: bad data: a missing, empty, unreadable or ill-formed input
    |-- DamagedError      4: a file of ours that is not as it was written
    `-- Interrupted       130 (SIGINT) or 143 (SIGTERM): stopped on request, everything saved

A message says what was given, what was wanted and the remedy. It is written where the fault is found; the command line
prints it, and nothing else, and leaves with the code. Python users catch the class.
"""


class RecurraError(Exception):
    """The run failed for a reason that the message explains."""

    exit_code = 1


class UsageError(RecurraError, ValueError):
    """Something was asked for that does not exist or does not fit."""

    exit_code = 2


class DataError(RecurraError, ValueError):
    """The data given cannot be used."""

    exit_code = 3


class DamagedError(RecurraError):
    """A file written by us was altered, cut or lost; it is reported, never used."""

    exit_code = 4


class Interrupted(RecurraError):  # noqa: N818 - a request, not a fault
    """Stopped by the user after the step was finished and saved."""

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code
