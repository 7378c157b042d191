"""The operations that experiments are made of and that the command line offers one by one.

Each is a frozen dataclass of plain values, so that it can be printed, hashed and sent to another machine, with a
``title``, one ``run``, and ``said``: its result in one line. Running a job whose result is there already is a no-op.
"""

from collections.abc import Callable

Progress = Callable[..., None]
