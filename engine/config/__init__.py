"""The configuration. Precedence: default < YAML file < -o.

Nothing here imports paddle: a wrong key is answered in milliseconds.
"""

from engine.config.key_help import describe_keys
from engine.config.keys import (
    Config,
    Data,
    Eval,
    Model,
    Optimizer,
    Output,
    Schedule,
    Train,
    all_keys,
)
from engine.config.plain import chosen, differences, fingerprint, to_dict, to_yaml
from engine.config.reading import load_config

__all__ = [
    'Config',
    'Data',
    'Eval',
    'Model',
    'Optimizer',
    'Output',
    'Schedule',
    'Train',
    'all_keys',
    'chosen',
    'describe_keys',
    'differences',
    'fingerprint',
    'load_config',
    'to_dict',
    'to_yaml',
]
