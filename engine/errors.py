"""The ways a command ends other than well; `engine.cli.run` turns each into its exit code."""

from __future__ import annotations


class UserError(Exception):
    """Input that cannot work (exit 2). The text is the one line that the user reads."""


class Diverged(Exception):
    """The loss is no longer finite (exit 3)."""


class Stopped(Exception):
    """A signal asked to stop, and the run has been saved (exit 75)."""
