"""The ways a command ends other than well; `engine.cli.run` turns each into its exit code."""

from __future__ import annotations

EXIT_USER, EXIT_DIVERGED, EXIT_STOPPED = 2, 3, 75


class UserError(Exception):
    """Input that cannot work (exit 2). The text is the one line that the user reads."""


class Diverged(Exception):
    """The loss is no longer finite (exit 3)."""


class Stopped(Exception):
    """The end before its time, through no fault of the run, which --resume continues (exit 75)."""
