"""Reports as JSON, written whole or not at all."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from .._files import write_atomically

SCHEMA = Path(__file__).with_name("schema.json")


def write_json(path: str | os.PathLike[str], payload: Any) -> None:
    """Write ``payload`` as indented JSON, atomically. JSON has no NaN or infinity: they become null."""
    write_atomically(path, as_json(payload).encode())


def as_json(payload: Any) -> str:
    """What `write_json` writes."""
    return json.dumps(finite(payload), indent=2, allow_nan=False) + "\n"


def schema_text() -> str:
    """The JSON Schema (draft 2020-12) of a report as `write_json` writes it."""
    return SCHEMA.read_text(encoding="utf-8")


def finite(value: Any) -> Any:
    """Plain values as JSON can hold them: NaN and infinities as None, tuples as lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
