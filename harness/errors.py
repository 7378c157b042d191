"""What is no defect of ours, as exception types: wrong input, a result that nothing may be built on, an interruption.

The command line prints the first ones as one line and exits with code 2 or 1; an interruption is for the cluster's jobs
(slurm/execution/payload.py). Every other exception keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Input that the user can correct. The message says what was expected, what came, and the valid choices."""


class Busy(InputError):
    """Another process is writing what this one would write."""


class GateMissed(Exception):
    """What ran fell short of a bound that was set for it: what comes after it must not start."""


class Broken(Exception):
    """Of processes that work together one was lost: the others cannot go on without it."""


class Interrupted(BaseException):
    """The job is to give its place away (a time limit, a preemption): keep what there is, and end.

    Raised out of the progress callback, between two batches or steps. Not an ``Exception``: nobody is to handle it as
    a failure.
    """


def unknown(kind: str, name: str, valid: Iterable[str]) -> InputError:
    """The error for a name that is not one of ``valid``; suggests the closest one."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return InputError(f"unknown {kind} {name!r}{hint}; valid choices: {', '.join(names) or 'none'}")


def headline(error: BaseException) -> str:
    """An error's type and the first line of its message: what stands in the journal for an example that raised."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
