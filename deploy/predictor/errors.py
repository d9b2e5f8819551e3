"""Errors that the user can fix: one line, exit code 2, here and in the engine's commands."""

from __future__ import annotations

import re


class UserError(Exception):
    """Input that cannot work. The text says what is wrong, where, and what to do."""


def in_a_line(error: Exception) -> str:
    """An engine's message, without the headings, rules and C++ frames around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = [line for line in lines if not re.fullmatch(r'.*:|\d+ .*|[^a-zA-Z]*', line)]
    return (text or lines or [type(error).__name__])[0]
