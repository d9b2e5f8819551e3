"""The weights that paddle.vision publishes, by the names of their networks.

They are kept where Paddle itself keeps them, so that each is downloaded once.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Union

from engine.errors import UserError
from engine.files import beside, md5_of
from engine.locks import locked

ADDRESS = 'https://paddle-hapi.bj.bcebos.com/models/{}.pdparams'
CACHE = Path('~/.cache/paddle/hapi/weights')

OFFICIAL = {  # name -> MD5, as in paddle.vision.models.resnet
    'resnext50_32x4d': 'dc47483169be7d6f018fcbb7baf8775d',
    'resnext50_64x4d': '063d4b483e12b06388529450ad7576db',
    'resnext101_32x4d': '967b090039f9de2c8d06fe994fb9095f',
    'resnext101_64x4d': '98e04e7ca616a066699230d769d03008',
    'resnext152_32x4d': '18ff0beee21f2efc99c4b31786107121',
    'resnext152_64x4d': '77c4af00ca42c405fa7f841841959379',
    'wide_resnet50_2': '0282f804d73debdab289bd9fea3fa6dc',
    'wide_resnet101_2': 'd4360a2d23657f059216f5d5a1a9ac93',
}


def on_disk(path: Path) -> Path:
    """The path, with .pdparams if that was left out, as Paddle's suites write it (RUN/best)."""
    file = Path(f'{path}.pdparams')
    return file if not path.exists() and file.is_file() else path


def resolve(path_or_name: Union[str, Path]) -> Path:
    """The file at that path; if there is none, the official weights of that name.

    They are downloaded once, and their MD5 is checked each time. If that fails, UserError gives the
    address to fetch and where to put the file.
    """
    path, name = on_disk(Path(path_or_name)), str(path_or_name)
    if path.exists():
        return path
    if name not in OFFICIAL:
        near = difflib.get_close_matches(name, OFFICIAL, n=1)
        hint = f'; did you mean {near[0]}?' if near else ''
        raise UserError(f'cannot read the weights {name}: No such file or directory{hint}')
    try:
        target = CACHE.expanduser() / f'{name}.pdparams'
    except RuntimeError:
        raise UserError(
            f'{name}: no home folder to keep its weights in; fetch {ADDRESS.format(name)} and '
            'name the file'
        ) from None
    try:
        _fetch(name, target)
    except OSError as error:
        raise UserError(
            f'{name}: cannot download its weights ({error}); fetch {ADDRESS.format(name)} '
            f'elsewhere and put it at {target}'
        ) from None
    return target


def _fetch(name: str, target: Path) -> None:
    """One of several processes downloads, and the others wait for it."""
    from engine.download import download  # imports what only a download needs

    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(beside(target, 'lock')):
        if not target.exists():
            download([ADDRESS.format(name)], target, md5=OFFICIAL[name])
        elif md5_of(target) != OFFICIAL[name]:
            raise UserError(
                f'{target} is damaged or not the official file of {name}: its MD5 is not '
                f'{OFFICIAL[name]}; remove it to have it downloaded again'
            )
