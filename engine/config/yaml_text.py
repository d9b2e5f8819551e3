"""YAML as version 1.2 has it: 5e-4 is a number, 2024-12-05 and 1:30 are texts.

PyYAML alone reads the first as a text, the second as a date and the third as 90.
"""

from __future__ import annotations

import re
from typing import Any, Mapping

import yaml


class Loader(yaml.SafeLoader):
    """Reads such scalars."""


class _Dumper(yaml.SafeDumper):
    """Quotes every text that Loader would read as a number."""


_FLOAT = (
    'tag:yaml.org,2002:float',
    re.compile(r'^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$'),
    list('-+.0123456789'),
)
_BASE_60 = ('tag:yaml.org,2002:str', re.compile(r'^[-+]?[\d_]+(:[\d_.]+)+$'))
Loader.yaml_implicit_resolvers = {
    first: [rule for rule in rules if rule[0] != 'tag:yaml.org,2002:timestamp']
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _digit in '-+0123456789':
    Loader.yaml_implicit_resolvers.setdefault(_digit, []).insert(0, _BASE_60)
Loader.add_implicit_resolver(*_FLOAT)
_Dumper.add_implicit_resolver(*_FLOAT)


def parse(text: str) -> Any:
    """One value. Raises yaml.YAMLError or ValueError."""
    return yaml.load(text, Loader=Loader)


def dump(values: Mapping[str, Any]) -> str:
    """YAML that Loader reads back unchanged."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
