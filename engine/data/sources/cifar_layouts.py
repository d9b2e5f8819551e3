"""The files of CIFAR-10 and CIFAR-100: their names and contents."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Encoding:
    """One way to write the files: python pickles or binary records."""

    archive: str
    folder: str
    train: tuple[str, ...]
    test: str
    names: str


@dataclass(frozen=True)
class Variant:
    title: str
    classes: int
    sizes: tuple[int, int]
    python: Encoding
    binary: Encoding
    label_key: bytes
    names_key: bytes
    label_bytes: int
    md5: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


VARIANTS = {
    'cifar10': Variant(
        title='CIFAR-10',
        classes=10,
        sizes=(50_000, 10_000),
        python=Encoding(
            archive='cifar-10-python.tar.gz',
            folder='cifar-10-batches-py',
            train=tuple(f'data_batch_{i}' for i in range(1, 6)),
            test='test_batch',
            names='batches.meta',
        ),
        binary=Encoding(
            archive='cifar-10-binary.tar.gz',
            folder='cifar-10-batches-bin',
            train=tuple(f'data_batch_{i}.bin' for i in range(1, 6)),
            test='test_batch.bin',
            names='batches.meta.txt',
        ),
        label_key=b'labels',
        names_key=b'label_names',
        label_bytes=1,
        md5='c58f30108f718f92721af3b95e74349a',
        mean=(125.3, 123.0, 113.9),  # of the paper's code
        std=(63.0, 62.1, 66.7),
    ),
    'cifar100': Variant(
        title='CIFAR-100',
        classes=100,
        sizes=(50_000, 10_000),
        python=Encoding(
            archive='cifar-100-python.tar.gz',
            folder='cifar-100-python',
            train=('train',),
            test='test',
            names='meta',
        ),
        binary=Encoding(
            archive='cifar-100-binary.tar.gz',
            folder='cifar-100-binary',
            train=('train.bin',),
            test='test.bin',
            names='fine_label_names.txt',
        ),
        label_key=b'fine_labels',
        names_key=b'fine_label_names',
        label_bytes=2,  # coarse, then fine
        md5='eb9058c3a382ffc7106e4002c42a8d85',
        mean=(129.3, 124.1, 112.4),  # of the training images
        std=(68.2, 65.4, 70.4),
    ),
}
