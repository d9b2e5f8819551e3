"""What the commands share: their options and their exit codes.

Nothing here imports paddle, so that --help and a wrong key are answered at once.
"""

from engine.cli.parser import ConfigParser, Parser
from engine.cli.running import run

__all__ = ['ConfigParser', 'Parser', 'run']
