"""What a user can mend, as one line; `predictor.console.run` makes exit code 2 of it."""

from __future__ import annotations

import re


class UserError(Exception):
    """Input that cannot work. The text says what is wrong, where, and what to do."""


def in_a_line(error: Exception) -> str:
    """What an engine says, without the headings, rules and C++ frames around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not re.fullmatch(r'.*:|\d+ .*|[^a-zA-Z]*', line)]
    return (said or lines or [type(error).__name__])[0]
