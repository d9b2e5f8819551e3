"""What a user can mend, as one line; `predictor.console.run` makes exit code 2 of it."""

from __future__ import annotations


class UserError(Exception):
    """Input that cannot work. The text says what is wrong, where, and what to do."""
