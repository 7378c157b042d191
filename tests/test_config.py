"""A digest is the same for the same settings and another for others, whoever computes it."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import config
from harness.data.world import facts

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@dataclass(frozen=True)
class Inner:
    k: int
    path: Path


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    rows: tuple[tuple[int, int], ...]


def test_a_dataclass_is_its_fields() -> None:
    outer = Outer("a", Inner(8, Path("x/y")), ((1, 2),))
    assert config.plain(outer) == {"name": "a", "inner": {"k": 8, "path": "x/y"}, "rows": [[1, 2]]}


def test_the_digest_is_pinned() -> None:
    """Records are found by digest: a change here orphans every run that exists."""
    assert config.digest({"b": [1, 2.5, None, True], "a": "é"}) == "0c187fb652afca80"


@given(st.dictionaries(st.text(), JSON, min_size=2, max_size=6))
def test_key_order_does_not_matter(settings: dict[str, object]) -> None:
    assert config.digest(settings) == config.digest(dict(reversed(settings.items())))


@given(JSON, JSON)
def test_different_settings_have_different_digests(one: object, two: object) -> None:
    assert (config.digest(one) == config.digest(two)) == (config.canonical_json(one) == config.canonical_json(two))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_cannot_say_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        config.digest({"lr": value})


def test_a_file_digest_is_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12")
    (tmp_path / "b").write_bytes(b"3")
    (tmp_path / "c").write_bytes(b"123")
    assert config.file_digest(tmp_path / "a", tmp_path / "b") == config.file_digest(tmp_path / "c")
    assert config.file_digest(tmp_path / "a") != config.file_digest(tmp_path / "c")


def test_load_finds_a_name_in_a_module() -> None:
    assert config.load("harness.data.world.facts:chance") is facts.chance
