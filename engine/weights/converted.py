"""What reading a weight file gives: arrays under our names, and a report of how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Optional

from engine.weights.arrays import Arrays


class Normalisation(NamedTuple):
    """The mean and std of the images that weights were trained with, in 0-255 units."""

    data: str  # the data.name
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def as_keys(self) -> str:
        """Config keys, to be copied behind -o."""
        mean, std = (','.join(map(str, values)) for values in (self.mean, self.std))
        return f"'data.mean=[{mean}]' 'data.std=[{std}]'"


@dataclass
class Converted:
    """The arrays of a file under our names.

    `dropped` has 'name (reason)' of what was left out, `folded` counts convolution biases, `notes`
    are further lines for the user, `normalisation` is set where it differs from the data set's own.
    """

    arrays: Arrays
    source: str  # whose names the file has, and where in it they were found
    dropped: list[str] = field(default_factory=list)
    folded: int = 0
    sha256: str = ''  # of the file; of several, of their checksums
    notes: list[str] = field(default_factory=list)
    normalisation: Optional[Normalisation] = None

    def lines(self) -> list[str]:
        """The report for the user."""
        return [self.source, *summary(len(self.arrays), self.folded, self.dropped), *self.notes]


def summary(mapped: int, folded: int, dropped: list[str]) -> list[str]:
    """Totals, and what was dropped and why, in a few lines."""
    total = f'{mapped} arrays'
    if folded:
        total += f', {folded} convolution biases folded into running means'
    reasons: dict[str, list[str]] = {}
    for entry in dropped:
        name, _, reason = entry.partition(' (')
        reasons.setdefault(reason.rstrip(')'), []).append(name)
    return [total, *(f'dropped, {reason}: {some(names)}' for reason, names in reasons.items())]


def some(names: list[str]) -> str:
    """Up to three names, and how many more there are."""
    more = f' and {len(names) - 3} more' if len(names) > 3 else ''
    return f'{", ".join(names[:3])}{more}'
