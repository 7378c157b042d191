"""What a public function says of itself: a model what it computes, a job what it refuses."""

import ast
from collections.abc import Iterator
from pathlib import Path

from conftest import PROJECT
from test_tree import PACKAGES


def functions(*folders: str) -> Iterator[tuple[Path, ast.FunctionDef]]:
    """Every public function and method below ``folders``."""
    for folder in folders:
        for path in sorted((PROJECT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                    yield path.relative_to(PROJECT), node


def names_input_error(raised: ast.expr) -> bool:
    return isinstance(raised, ast.Call) and ast.unparse(raised.func) in ("InputError", "unknown")


def test_every_forward_says_what_it_computes() -> None:
    forwards = [(path, node) for path, node in functions(*PACKAGES) if node.name == "forward"]
    assert len(forwards) >= 10, "the models are looked at"
    assert not [f"{path}:{node.lineno}" for path, node in forwards if not ast.get_docstring(node)]


def test_a_job_that_refuses_an_input_says_so() -> None:
    refusing = [
        (path, node)
        for path, node in functions("slurm/jobs")
        if any(isinstance(part, ast.Raise) and part.exc and names_input_error(part.exc) for part in ast.walk(node))
    ]
    assert len(refusing) >= 10, "the jobs are looked at"
    assert not [
        f"{path}:{node.lineno}" for path, node in refusing if "InputError" not in (ast.get_docstring(node) or "")
    ]
