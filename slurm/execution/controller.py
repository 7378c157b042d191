"""The processes of one job on this machine: submitit's controller of them, which keeps how they ended.

Its own exit code says nothing of them. This one's is 128 + the signal that killed one of them, as a shell's is.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from submitit.local.local import Controller

KILLED = 128


def in_place_of_submitits(folder: Path) -> str:
    """As the ``setup`` of a ``submitit.LocalExecutor``: its shell becomes this controller, with the same process id."""
    return f"exec {shlex.join([sys.executable, '-m', __name__, str(folder)])}"


class Noting(Controller):  # type: ignore[misc]
    """Keeps the exit codes."""

    codes: Sequence[int | None] = ()

    def wait(self, freq: int = 24) -> Sequence[int | None]:
        self.codes = super().wait(freq)
        return self.codes


def main() -> int:
    os.environ["SUBMITIT_LOCAL_WITH_SHELL"] = ""  # the shell is this process
    controller = Noting(Path(sys.argv[1]))
    controller.run()
    return max((KILLED - code for code in controller.codes if code is not None and code < 0), default=0)


if __name__ == "__main__":
    sys.exit(main())
