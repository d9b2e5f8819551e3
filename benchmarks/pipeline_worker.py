"""Worker: the same batches from our pipeline and from paddle.vision's transforms, on one core."""

from __future__ import annotations

import json
import sys
from typing import Any, Iterable

import numpy as np
from PIL import Image

from benchmarks.processes import Answer, seconds, serve
from engine.data.augmentation import Augmentation
from engine.data.batches import ArrayBatches, BatchOptions
from engine.data.dataset import Images
from engine.data.sources.cifar_layouts import VARIANTS
from engine.machine import cpu
from engine.machine.start import start_paddle

VISION_IMAGES = 1024  # for paddle.vision, which takes the same time for each


def main() -> None:
    count = json.loads(sys.argv[1])['images']
    cpu.prepare_cpu()
    start_paddle('cpu')
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 3, 32, 32), np.uint8)
    images = Images(pixels, rng.integers(0, 10, count))
    pictures = [Image.fromarray(p) for p in pixels[:VISION_IMAGES].transpose(0, 2, 3, 1)]
    serve(
        {
            'ours': lambda batch_size: drain(our_batches(images, batch_size), count),
            'vision': lambda batch_size: drain(
                vision_batches(pictures, images.labels, batch_size), len(pictures)
            ),
        }
    )


def drain(batches: Iterable[Any], images: int) -> Answer:
    """One epoch, with nothing done to the batches."""

    def epoch() -> None:
        for _ in batches:
            pass

    return {'images': images, 'seconds': seconds(epoch)}


def our_batches(images: Images, batch_size: int) -> ArrayBatches:
    options = BatchOptions(
        batch_size=batch_size,
        mean=np.array(VARIANTS['cifar10'].mean),
        std=np.array(VARIANTS['cifar10'].std),
        augmentation=Augmentation(crop_padding=4, flip=True),
        shuffle=True,
    )
    return ArrayBatches(images, options)


def vision_batches(pictures: list[Image.Image], labels: np.ndarray, batch_size: int) -> Any:
    from paddle.io import DataLoader, Dataset
    from paddle.vision import transforms

    mean, std = VARIANTS['cifar10'].mean, VARIANTS['cifar10'].std
    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([m / 255 for m in mean], [s / 255 for s in std]),
        ]
    )

    class Pictures(Dataset):
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return transform(pictures[index]), int(labels[index])

    return DataLoader(Pictures(), batch_size=batch_size, shuffle=True, num_workers=0)


if __name__ == '__main__':
    main()
