"""Numbers of a training for whoever watches it elsewhere (MLflow), and nothing that the training depends on.

What is logged is handed to a thread and forgotten, so a slow or silent server costs the training no time; at the end
the thread has ``CLOSING_S`` to finish. The first exception in there ends the tracking, with one line on standard error.
Neither the thread nor MLflow touches a tensor or a generator of random numbers, so weights are the same with and
without (tests/test_tracking.py).

    --track URI    sqlite:///FILE, http://HOST:PORT, or what else MLflow takes
    --track off    none
    neither        $MLFLOW_TRACKING_URI (off: none); where it is not set, `refrag-bench train` makes RUNS/mlflow.db, and
                   the jobs of experiments and sweeps, many at once, none. Nothing without MLflow.

A user and password in a URI stay in this process: nothing that is written or said has them (``without_secrets``).
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import unquote

from harness.config import plain
from harness.errors import InputError, Interrupted
from harness.progress import say

if TYPE_CHECKING:
    from collections.abc import Callable

Status = Literal["FINISHED", "FAILED", "KILLED"]
OFF = "off"
VARIABLE = "MLFLOW_TRACKING_URI"
CLOSING_S = 30.0  # a new sqlite file takes some ten seconds of migrations
INTERRUPTED_S = 2.0  # a signal came: the end is seconds away


class Run(Protocol):
    """Where the numbers go. All of it is called in the tracking's thread, in this order, and may raise anything."""

    def begin(self) -> None: ...

    def write(self, rows: Sequence[Row]) -> None: ...

    def end(self, status: Status, files: Sequence[Path]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Row:
    """What was logged after ``step`` optimizer steps, at ``at_ms`` since 1970."""

    step: int
    at_ms: int
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class _End:
    status: Status
    files: Sequence[Path]


class Tracker:
    """A thread that gives a ``run`` what is logged. Nothing here raises, and nothing waits but ``close``."""

    def __init__(self, run: Run, uri: str) -> None:
        self._run, self._uri = run, uri
        self._queue: SimpleQueue[Row | _End] = SimpleQueue()
        self._failed = False
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def logged(self, row: Mapping[str, Any]) -> None:
        """A row of the training's log: its ``step``, and numbers, also in mappings (their names are then a.b)."""
        if not self._failed:
            values = {name: value for name, value in numbers(row) if name != "step"}
            self._queue.put(Row(step=row["step"], at_ms=int(time.time() * 1000), values=values))

    def close(self, status: Status, files: Sequence[Path], patience_s: float) -> None:
        """The training is over; ``files`` are kept with its numbers. Waits at most ``patience_s``."""
        self._queue.put(_End(status=status, files=files))
        self._thread.join(patience_s)
        if self._thread.is_alive() and not self._failed:
            self._failed = True
            _say(f"tracking did not end within {patience_s:g} s and is left behind; the training is whole")

    def _work(self) -> None:
        try:
            self._run.begin()
            while True:
                waiting = [self._queue.get()]
                while not self._queue.empty():
                    waiting.append(self._queue.get())
                rows = [each for each in waiting if isinstance(each, Row)]
                if rows:
                    self._run.write(rows)
                if isinstance(end := waiting[-1], _End):
                    self._run.end(end.status, end.files)
                    return
        except Exception as error:
            if not self._failed:
                self._failed = True
                _say_off(error, self._uri)


@contextmanager
def tracking(
    open_run: Callable[[], Run] | None, uri: str, files: Sequence[Path]
) -> Iterator[Callable[[Mapping[str, Any]], None] | None]:
    """What the loop is to call with each row of its log; None where nothing is tracked, or ``open_run`` raises.

    ``files`` are kept where all went well. Whatever ends the block ends the run: an ``Interrupted`` one counts as
    killed, and goes on when the training does.
    """
    tracker = None
    if open_run:
        try:
            tracker = Tracker(open_run(), uri)
        except Exception as error:
            _say_off(error, uri)
    if tracker is None:
        yield None
        return
    try:
        yield tracker.logged
    except (Interrupted, KeyboardInterrupt):
        tracker.close("KILLED", (), INTERRUPTED_S)
        raise
    except BaseException:
        tracker.close("FAILED", (), CLOSING_S)
        raise
    tracker.close("FINISHED", files, CLOSING_S)


def store(asked: str | None, runs: Path | None = None) -> str | None:
    """The URI to track to (module docstring); None for no tracking. Without ``runs`` no file is made unasked.

    Raises ``InputError`` where what was ``asked`` cannot be; an environment is never an error.
    """
    named = asked or os.environ.get(VARIABLE)
    if named == OFF:
        return None
    installed = importlib.util.find_spec("mlflow") is not None
    if asked and "://" not in asked:
        raise InputError(
            "expected a tracking URI such as sqlite:////home/me/mlflow.db or http://HOST:5000, or off; got no ://"
        )
    if asked and not installed:
        raise InputError("tracking needs MLflow: pip install -c constraints.txt -e '.[mlflow]', or --track off")
    if not named and runs:
        named = f"sqlite:///{(runs / 'mlflow.db').absolute().as_posix()}"
    return named if installed else None


def numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in nested mappings, by dotted name."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", float(value)


def parameters(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """A configuration laid flat: ``a`` is the class, ``a.b`` its field b; a sequence is one value, as JSON."""
    if is_dataclass(value) and not isinstance(value, type):
        yield name, type(value).__name__
        for field in fields(value):
            yield from parameters(getattr(value, field.name), f"{name}.{field.name}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from parameters(item, f"{name}.{re.sub(r'[^A-Za-z0-9_.:/ -]', '_', str(key))}")
    else:
        yield name, value if isinstance(value, str) else json.dumps(plain(value))


def without_secrets(text: str, uri: str) -> str:
    """``text`` without the user, password and query that ``uri`` has."""
    _, _, rest = uri.partition("://")
    user, at, _ = rest.rpartition("@")
    if uri.startswith("sqlite"):
        user, at = "", ""  # an @ is of a path
    password = user.partition(":")[2]
    query = rest.partition("?")[2]
    text = text.replace(uri, uri.replace(f"{user}{at}", "", 1)) if user else text
    for secret in sorted({user, unquote(user), password, unquote(password), query, unquote(query)}, key=len)[::-1]:
        text = text.replace(secret, "***") if secret else text
    return text


def _say_off(error: Exception, uri: str) -> None:
    said = without_secrets(" ".join(f"{type(error).__name__}: {error}".split()), uri)
    _say(f"tracking is off from here on, the training goes on: {said[:400]}")


def _say(line: str) -> None:
    """One line on standard error, whatever is in it."""
    from rich.markup import escape

    with suppress(Exception):
        say(escape(f"refrag-bench: {line}"))
