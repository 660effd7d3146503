"""Protobuf's text form, as far as config.pbtxt needs it: the schema's own library is Triton's client, a large one."""

from __future__ import annotations

import json
from typing import Any

Text = dict[str, Any]
"""A message: a str is a string, or an enum's name behind '!'; a list repeats a field."""


def message(fields: Text, depth: int = 0) -> str:
    """The text of a message, a field a line."""
    return "".join(_field(name, value, "  " * depth, depth) for name, value in fields.items())


def _field(name: str, value: Any, indent: str, depth: int) -> str:
    if isinstance(value, dict):
        return f"{indent}{name} {{\n{message(value, depth + 1)}{indent}}}\n"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "".join(_field(name, entry, indent, depth) for entry in value)
    if isinstance(value, list):
        return f"{indent}{name}: [{', '.join(str(entry) for entry in value)}]\n"
    return f"{indent}{name}: {_scalar(value)}\n"


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value[1:] if value.startswith("!") else json.dumps(value)
    return str(value)
