"""How does a template become a page? One way for all: every text is escaped, and what is missing is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SHARED = Path(__file__).parent  # pages.css


def page(template: Path, **values: Any) -> str:
    """The page that ``template`` makes of ``values``; it may include what lies beside it and what is shared."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([template.parent, SHARED]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    return environment.get_template(template.name).render(**values)
