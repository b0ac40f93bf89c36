"""Passwords are neither sent to trackers nor written into messages."""

import os
import re
from collections.abc import Mapping
from typing import Any

from slimsweep.config.messages import without_password

NAMED = re.compile(r"(?i)\b([\w-]*(?:token|passw(?:or)?d|secret|api_?key|access_?key|signature)[\w-]*)(=|:\s*)[^&\s,;'\")]+")
OF_SECRETS = re.compile(r"(?i)(key|token|secret|password|passwd|credential)")
SHORTEST = 6  # characters of a value from the environment: shorter ones are also words


def without_secrets(text: str) -> str:
    """A text without users and passwords in addresses, named tokens and keys, and secrets of the environment."""
    for name, value in os.environ.items():
        if OF_SECRETS.search(name) and len(value) >= SHORTEST and not os.path.exists(value):
            text = text.replace(value, "***")
    return NAMED.sub(r"\1\2***", without_password(text))


def values_without_secrets(value: Any) -> Any:
    """Nested JSON values whose texts are `without_secrets`."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, Mapping):
        return {key: values_without_secrets(inner) for key, inner in value.items()}
    return [values_without_secrets(inner) for inner in value] if isinstance(value, list) else value
