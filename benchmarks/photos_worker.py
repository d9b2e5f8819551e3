"""Worker: batches of photographs from our pipeline and from paddle.vision's."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any, Callable

import numpy as np
import simplejpeg
from PIL import Image

from benchmarks.processes import Answer, seconds, serve
from engine.data import packing
from engine.data.batches import Batches, BatchOptions
from engine.data.dataset import Files
from engine.data.photo_batches import PhotoBatches, Photos
from engine.data.pictures import EvalView, TrainView
from engine.data.sources.folder import MEAN, STD, walk
from engine.machine import cpu
from engine.machine.start import start_paddle

SIZE, RESIZE = 224, 256
EPOCH = 600  # images: as in a real one, its first batches hardly count


def main() -> None:
    settings = json.loads(sys.argv[1])
    cpu.prepare_cpu()
    start_paddle('cpu')
    scratch = Path(settings['scratch'])
    folder = Path(settings['photos']) if settings['photos'] else make_photos(scratch / 'made')
    packed = scratch / 'packed'
    if not packed.exists():
        with contextlib.redirect_stdout(sys.stderr):
            packing.pack(folder, packed, size=RESIZE, quality=90, workers=1)
    workers = settings.get('workers', 1)
    paths = sorted(walk(str(folder)))
    epoch = EPOCH // len(paths) + 1  # times that a small folder is read for one epoch
    actions = {
        'decoding': lambda: decode(paths),
        'train': drain(batches(paths * epoch, TrainView(SIZE), workers)),
        'vision_train': drain(vision(folder, train=True)),
        'eval': drain(batches(paths * epoch, EvalView(SIZE, RESIZE), workers)),
        'vision_eval': drain(vision(folder, train=False)),
        'packed_train': drain(batches(sorted(walk(str(packed))) * epoch, TrainView(SIZE), workers)),
    }

    def measure(which: str) -> Answer:
        ours = which in ('train', 'eval', 'packed_train')
        return {'images': len(paths) * (epoch if ours else 1), 'seconds': seconds(actions[which])}

    serve({'measure': measure, 'difference': lambda: difference(paths)})


def decode(paths: list[str]) -> None:
    for path in paths:
        simplejpeg.decode_jpeg(Path(path).read_bytes(), 'RGB')


def batches(paths: list[str], view: TrainView | EvalView, workers: int) -> Batches:
    files = Files(paths, np.zeros(len(paths), np.int64))
    mean, std = np.array(MEAN), np.array(STD)
    options = BatchOptions(batch_size=32, mean=mean, std=std, shuffle=isinstance(view, TrainView))
    photos = Photos(files, EvalView(SIZE, RESIZE), workers=workers)
    return PhotoBatches(photos, options, view=view)


def vision(folder: Path, *, train: bool) -> Any:
    """paddle.vision's images, one by one; batching them is not counted."""
    from paddle.vision import datasets, transforms

    crop = (
        [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip()]
        if train
        else [transforms.Resize(RESIZE), transforms.CenterCrop(SIZE)]
    )
    mean, std = [m / 255 for m in MEAN], [s / 255 for s in STD]
    normalise = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    return datasets.ImageFolder(str(folder), transform=transforms.Compose(crop + normalise))


def drain(images: Any) -> Callable[[], None]:
    def go() -> None:
        for _ in images:
            pass

    return go


def difference(paths: list[str]) -> Answer:
    """Grey levels between our evaluation crops and Pillow's resize of the whole and crop."""
    view, means, largest = EvalView(SIZE, RESIZE), [], 0
    for path in paths:
        data = Path(path).read_bytes()
        image = Image.open(io.BytesIO(data)).convert('RGB')
        short = min(image.size)
        width, height = (int(RESIZE * side / short) for side in image.size)
        left, top = round((width - SIZE) / 2), round((height - SIZE) / 2)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        expected = np.asarray(image.crop((left, top, left + SIZE, top + SIZE)), dtype=int)
        apart = np.abs(view(data)[0] - expected)
        means.append(apart.mean())
        largest = max(largest, int(apart.max()))
    return {'mean': float(np.mean(means)), 'largest': largest}


def make_photos(folder: Path) -> Path:
    """A few pictures to show that everything works; what is measured on them means nothing."""
    rng = np.random.default_rng(0)
    (folder / 'class').mkdir(parents=True, exist_ok=True)
    for number in range(8):
        small = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
        small.resize((500, 375)).save(folder / 'class' / f'{number}.jpg')
    return folder


if __name__ == '__main__':
    main()
