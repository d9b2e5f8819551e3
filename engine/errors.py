"""The expected errors of a command; `engine.cli.run` turns each into its exit code."""

from __future__ import annotations

from predictor.errors import UserError as UserError

EXIT_USER, EXIT_DIVERGED, EXIT_STOPPED = 2, 3, 75


class Diverged(Exception):
    """The loss is no longer finite (exit 3)."""


class Stopped(Exception):
    """An early end without a fault of the run, which --resume continues (exit 75)."""
