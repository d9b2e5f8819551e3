"""What the names of networks mean: wide_resnet28_10, resnext50_32x4d."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

_NUMBER = '(0|[1-9][0-9]*)'
_WIDE_RESNET = re.compile(f'wide_resnet{_NUMBER}_{_NUMBER}')
_RESNEXT = re.compile(f'resnext{_NUMBER}_{_NUMBER}x{_NUMBER}d')
_PHOTO_DEPTHS = {'wide_resnet': (50, 101), 'resnext': (50, 101, 152)}

# The networks that the papers report, and where.
MODELS = {
    'wide_resnet16_8': 'WRN paper, Table 4',
    'wide_resnet28_10': 'WRN paper, Table 5',
    'wide_resnet40_4': 'WRN paper, Table 4',
    'wide_resnet40_10': "MindSpore's recipe",
    'wide_resnet50_2': 'WRN paper, Table 8',
    'wide_resnet101_2': 'torchvision',
    'resnext29_8x64d': 'ResNeXt paper, Table 7',
    'resnext29_16x64d': 'ResNeXt paper, Table 7',
    'resnext50_32x4d': 'ResNeXt paper, Table 3',
    'resnext50_64x4d': 'paddle.vision',
    'resnext101_32x4d': 'ResNeXt paper, Table 3',
    'resnext101_64x4d': 'ResNeXt paper, Table 5',
    'resnext152_32x4d': 'paddle.vision',
    'resnext152_64x4d': "MindSpore's recipe",
}


@dataclass(frozen=True)
class Spec:
    """A parsed name."""

    family: str  # wide_resnet or resnext
    depth: int
    cardinality: int  # 1 in a wide_resnet
    width: int  # the widen factor of a wide_resnet
    for_photos: bool  # four stages behind a 7x7 stem, else three behind a 3x3 one

    @property
    def image_size(self) -> int:
        """Side of the images that the network was designed for."""
        return 224 if self.for_photos else 32

    @property
    def preactivated(self) -> bool:
        """The block of WRN-d-k, which has dropout, and no batch norm at its end."""
        return self.family == 'wide_resnet' and not self.for_photos


def parse(name: str) -> Spec:
    """ValueError with the reason if there is no such network."""
    match = _WIDE_RESNET.fullmatch(name) or _RESNEXT.fullmatch(name)
    if match is None:
        raise ValueError(
            'must be like wide_resnet28_10 (depth 28, widen factor 10) or resnext50_32x4d '
            f'(depth 50, 32 groups of width 4), not {name!r}{_nearest(name)}'
        )
    family = name[: match.start(1)]
    depth, *sizes = map(int, match.groups())
    for_photos = depth in _PHOTO_DEPTHS[family]
    rest, step = (4, 6) if family == 'wide_resnet' else (2, 9)
    if not for_photos and (depth < rest + step or (depth - rest) % step):
        below = max(rest + step, depth - (depth - rest) % step)
        photos = ', '.join(map(str, _PHOTO_DEPTHS[family]))
        raise ValueError(
            f'has depth {depth}, which must be {step}n + {rest}, so {below} or {below + step} '
            f'(for small images), or one of {photos} (for photographs)'
        )
    if min(sizes) < 1:
        what = 'widen factor' if family == 'wide_resnet' else 'cardinality or width'
        raise ValueError(f'has {what} 0, which must be 1 or more')
    cardinality, width = (1, *sizes) if family == 'wide_resnet' else sizes
    return Spec(family, depth, cardinality, width, for_photos)


def _nearest(name: str) -> str:
    """A hint for other spellings (ResNeXt50_32x4d, WRN-28-10, resnext50)."""
    plain = re.sub('[-_ ]+', '_', name.lower())
    plain = re.sub('^(wrn|wide_?res_?net)_?(?=[0-9])', 'wide_resnet', plain)
    match = _WIDE_RESNET.match(plain) or _RESNEXT.match(plain)
    starting = [known for known in MODELS if known.startswith(f'{plain}_')]
    near = [match.group()] if match else starting or difflib.get_close_matches(plain, MODELS)
    return f'; did you mean {near[0]}?' if near else ''
