"""``refrag-bench``: parse, run one verb, and turn what went wrong into an exit code.

Exit codes: 0 done; 1 ran, but something in it failed or regressed; 2 bad input, or could not be judged;
130 interrupted (start the same command again: it goes on where it stopped).
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from harness.cli.catalog import SEED_NAMES
from harness.errors import Broken, GateMissed, InputError

VERBS = (
    "run",
    "index",
    "retrieve",
    "data",
    "train",
    "align",
    "generate",
    "inspect",
    "evaluate",
    "compare",
    "lm-eval",
    "export",
    "latency",
    "tables",
    "report",
    "gate",
    "history",
    "ledger",
    "plan",
    "sweep",
    "status",
    "cluster",
    "doctor",
)

# Where a verb's file has another name: as a script, main.py would find it in place of the module of that name.
FILES = {"inspect": "inspection", "lm-eval": "lm_evaluation"}

# What a user can mend: space, rights, quotas. Every other OSError keeps its traceback.
MENDABLE = {errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT, errno.EFBIG, errno.ENOTDIR}

EPILOG = """\
first steps:
  refrag-bench run tiny               train the tiny decoder, evaluate, draw results/ (offline, minutes on a CPU)
  refrag-bench run real --data DIR    the same systems on NQ, TriviaQA and PopQA questions of a local mirror
  refrag-bench doctor                 what is installed here, what is missing and how to get it

exit codes: 0 done; 1 ran, but something failed; 2 bad input; 130 interrupted (run it again to go on)
"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def build_parser() -> Parser:
    parser = Parser(
        prog="refrag-bench",
        description="Benchmark and replication harness for retrieval-augmented generation: "
        "standard RAG, CEPE, REFRAG v1 and v2 (arXiv:2509.01092).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)
    for name in VERBS:
        module = importlib.import_module(f"harness.cli.{FILES.get(name, name)}")
        verb = verbs.add_parser(name, help=module.HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
        module.add_arguments(verb)
        verb.add_argument(
            "--allow-download", action="store_true", help="let the model and dataset hub be asked (default: offline)"
        )
        verb.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in SEED_NAMES:
        arguments = ["train", "refrag_v2", *arguments]
    args = build_parser().parse_args(arguments)
    if not args.allow_download:
        # Read when huggingface_hub is imported; without it every look-up of a missing file waits for a time-out.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        code: int = args.run(args)
        return code
    except InputError as error:
        return _fail(f"{error}")
    except (GateMissed, Broken) as error:
        return _fail(f"{error}", code=1)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        if error.errno not in MENDABLE:
            raise
        return _fail(f"{error.filename or 'the output'}: {error.strerror}")
    except KeyboardInterrupt:
        print("refrag-bench: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _fail(message: str, code: int = 2) -> int:
    print(f"refrag-bench: error: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
