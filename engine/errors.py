"""The expected errors of a command; `engine.cli.run` turns each into its exit code."""

from __future__ import annotations

EXIT_USER, EXIT_DIVERGED, EXIT_STOPPED = 2, 3, 75


class UserError(Exception):
    """Invalid input (exit 2). The text is the line that the user reads."""


class Diverged(Exception):
    """The loss is no longer finite (exit 3)."""


class Stopped(Exception):
    """An early end without a fault of the run, which --resume continues (exit 75)."""
