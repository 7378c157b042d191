"""The tree of docs/layout.md is the tree."""

import re

from conftest import PROJECT

PACKAGES = ("harness", "baselines", "refrag_v1", "refrag_v2", "suites", "slurm", "results")


def test_the_tree_names_every_module_once() -> None:
    (tree,) = re.findall(
        r"^```\n(harness/ .*?)^```", (PROJECT / "docs" / "layout.md").read_text(), re.MULTILINE | re.DOTALL
    )
    named = sorted(re.findall(r"\b(\w+\.py)\b", tree.replace("test_<file>.py", "")))
    there = sorted(
        path.name for package in PACKAGES for path in (PROJECT / package).rglob("*.py") if path.name != "__init__.py"
    )
    assert named == there


def test_the_readme_names_every_room() -> None:
    readme = (PROJECT / "README.md").read_text()
    rooms = {
        path.parent.relative_to(PROJECT) for package in PACKAGES for path in (PROJECT / package).rglob("__init__.py")
    }
    # Those of results/ stand there by their last name.
    missing = {room for room in rooms if str(room) not in readme and f"{room.name}/" not in readme}
    assert not missing
