"""JSON texts of any origin."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: no JSON, no UTF-8, or nested too deep.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("one that is nested too deep") from None
