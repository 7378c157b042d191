"""What a user can get wrong, as one exception type.

The command line prints an ``InputError`` as one line and exits with code 2; every other exception keeps its
traceback, because it is a defect of ours.
"""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Input that the user can correct. The message says what was expected, what came, and the valid choices."""


def unknown(kind: str, name: str, valid: Iterable[str]) -> InputError:
    """The error for a name that is not one of ``valid``; suggests the closest one."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return InputError(f"unknown {kind} {name!r}{hint}; valid choices: {', '.join(names) or 'none'}")
