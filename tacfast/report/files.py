"""Reports as JSON, written whole or not at all."""

from __future__ import annotations

import json
import math
import os
from typing import Any

from ..solver._files import write_atomically


def write_json(path: str | os.PathLike[str], payload: Any) -> None:
    """Write ``payload`` as indented JSON, atomically. JSON has no NaN or infinity: they become null."""
    write_atomically(path, (json.dumps(finite(payload), indent=2, allow_nan=False) + "\n").encode())


def finite(value: Any) -> Any:
    """Plain values as JSON can hold them: NaN and infinities as None, tuples as lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
