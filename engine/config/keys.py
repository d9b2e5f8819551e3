"""The config keys: a frozen dataclass for each section, with defaults, help and bounds."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Literal, Optional


def key(
    default: Any,
    doc: str,
    *,
    low: Optional[float] = None,
    below: Optional[float] = None,
    high: Optional[float] = None,
    example: Optional[list[float]] = None,
) -> Any:
    """A config field: its default, a line of help, and bounds (low <= value < below, <= high).

    `example` is shown where a list is wrong; a default that is not empty serves as one.
    """
    bounds = {'low': low, 'below': below, 'high': high}
    metadata = {'doc': doc, 'example': example, 'bounds': bounds}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Model:
    name: str = key(
        'wide_resnet28_10', 'such as resnext50_32x4d; python3 -m engine.models lists more'
    )
    num_classes: Optional[int] = key(None, 'outputs; null takes the number of classes', low=1)
    dropout: float = key(0.0, 'inside the blocks of wide_resnet{6n + 4}_{k}', low=0, below=1)
    init: Literal['he', 'he_fan_in', 'xavier'] = key(
        'he', 'of convolutions: He normal over fan-out or fan-in, or Xavier uniform'
    )
    zero_init_last_bn: bool = key(False, 'start the blocks of a bottleneck network as shortcuts')
    data_format: Literal['auto', 'NCHW', 'NHWC'] = key(
        'auto', 'memory layout inside; auto: NHWC for float16 on a gpu, else NCHW'
    )
    pretrained: Optional[str] = key(
        None, 'weights to start from: a file, or a name such as resnext50_32x4d'
    )
    pretrained_head: Literal['keep', 'drop'] = key(
        'keep', 'drop: the last layer of those weights, as for other classes'
    )


@dataclass(frozen=True)
class Data:
    # Each is a module in engine/data/sources/.
    name: Literal['cifar10', 'cifar100', 'folder', 'digits', 'synthetic'] = key(
        'cifar10', 'the data set; folder: pictures, a folder for each class'
    )
    root: str = key('data', 'folder or archive that holds it')
    download: bool = key(True, 'download CIFAR into data.root when it is not found')
    batch_size: int = key(128, 'training images in a batch, per card', low=1)
    mean: Optional[tuple[float, ...]] = key(
        None, "per channel, 0-255; null: the data set's own", example=[125.3, 123.0, 113.9]
    )
    std: Optional[tuple[float, ...]] = key(
        None, "per channel, 0-255; null: the data set's own", example=[63.0, 62.1, 66.7]
    )
    image_size: Optional[int] = key(
        None, 'folder, synthetic: side of the input images; null: 224 and 32', low=1
    )
    num_images: int = key(1024, 'synthetic: training images, and as many test images', low=1)
    train_folder: Optional[str] = key(
        None, 'folder: where the training images are; null: train or the like in data.root'
    )
    test_folder: Optional[str] = key(
        None, 'folder: where the test images are; null: val, test or the like in data.root'
    )
    holdout: float = key(
        0.0, 'fraction of each class of the training images to test with', low=0, below=1
    )
    on_bad_file: Literal['stop', 'skip'] = key('stop', 'folder: when a picture cannot be read')
    max_pixels_million: int = key(134, 'folder: a larger picture counts as bad', low=1)
    workers: Optional[int] = key(None, 'folder: threads that read; null or 0: the cores', low=0)
    scale: tuple[float, ...] = key((0.08, 1.0), 'folder: area of a random crop')
    ratio: tuple[float, ...] = key((3 / 4, 4 / 3), 'folder: aspect of a random crop')
    crop_padding: int = key(4, 'sets in memory: pixels of padding before the random crop', low=0)
    padding_mode: Literal['zero', 'reflect', 'mean'] = key(
        'zero', 'what the padding holds; mean: zero once it is normalised'
    )
    flip: bool = key(True, 'mirror half of the training images')
    on_device: Optional[bool] = key(
        None, 'sets in memory: keep and augment them on the device; null: on gpu and npu'
    )
    auto_augment: Literal['none', 'autoaugment_imagenet', 'autoaugment_cifar10', 'randaugment'] = (
        key('none', 'AutoAugment or RandAugment')
    )
    randaugment_operations: int = key(2, 'operations on each image', low=0)
    randaugment_magnitude: float = key(9.0, "on the paper's scale, whose 10 is strong", low=0)
    color_jitter: tuple[float, ...] = key(
        (), 'strengths of brightness, contrast, saturation, hue', example=[0.4, 0.4, 0.4]
    )
    cutout: int = key(0, 'side of a square set to the mean, in pixels; 0: off', low=0)
    random_erasing: float = key(0.0, 'probability of a rectangle of noise', low=0, high=1)
    mixup: float = key(0.0, 'alpha of mixup; 0: off', low=0)
    cutmix: float = key(
        0.0, 'alpha of CutMix; 0: off; with mixup, one of the two for each batch', low=0
    )
    progressive: tuple[int, ...] = key(
        (), 'sets in memory: sides of training images over the epochs', example=[20, 26, 32]
    )


@dataclass(frozen=True)
class Optimizer:
    lr: float = key(0.1, "the schedule's first value; the peak of one_cycle", low=0)
    momentum: float = key(0.9, 'of SGD', low=0, below=1)
    nesterov: bool = key(False, "Nesterov's momentum")
    weight_decay: float = key(5e-4, 'L2 penalty', low=0)
    decay_bn_and_bias: bool = key(True, 'false: no weight decay on batch norms and biases')
    clip_norm: Optional[float] = key(None, 'largest global gradient norm; null: no clipping', low=0)
    lr_scaling: Literal['none', 'linear'] = key(
        'none', 'linear: lr is multiplied by global batch size / reference_batch'
    )
    reference_batch: Optional[int] = key(
        None, 'lr_scaling linear: the global batch size that lr is for', low=1
    )


@dataclass(frozen=True)
class Schedule:
    name: Literal['piecewise', 'step', 'cosine', 'exponential', 'one_cycle', 'constant'] = key(
        'constant', 'learning rate over time'
    )
    boundaries: tuple[float, ...] = key((), 'piecewise: epochs at which the rate changes')
    values: tuple[float, ...] = key(
        (), 'piecewise: the rates, one more than boundaries; scaled so that the first is lr'
    )
    step_size: float = key(30.0, 'step: epochs between changes', low=0)
    gamma: float = key(
        0.1, 'factor of step, of exponential (per epoch), of piecewise without values', low=0
    )
    end_lr: float = key(0.0, 'last rate of cosine and one_cycle; not scaled with lr', low=0)
    phase_pct: float = key(0.3, 'one_cycle: fraction of the steps that rises', low=0, below=1)
    divide_factor: float = key(25.0, 'one_cycle: peak / first rate', low=1)
    anneal_strategy: Literal['cos', 'linear'] = key('cos', 'one_cycle: form of the two ramps')
    warmup_epochs: float = key(0.0, 'linear rise before any of them', low=0)
    warmup_start_lr: float = key(0.0, 'where that rise starts; not scaled with lr', low=0)


@dataclass(frozen=True)
class Train:
    epochs: int = key(200, 'passes over the training images', low=1)
    max_steps: Optional[int] = key(None, 'stop after N optimizer steps; for trials', low=1)
    accumulate: int = key(1, 'batches whose gradients make one step', low=1)
    amp: Literal['none', 'O1', 'O2'] = key('none', 'mixed precision; O2: 16-bit weights, too')
    amp_dtype: Literal['auto', 'float16', 'bfloat16'] = key(
        'float16', 'what amp computes in; auto: bfloat16 where the device has it, else float16'
    )
    loss_scale: Optional[float] = key(
        None,
        'float16: factor of the loss; null: dynamic, the largest that does not overflow',
        low=1,
    )
    sync_bn: bool = key(False, 'batch statistics over all processes; gpu only')
    to_static: Literal[False, True, 'cinn'] = key(
        False, "compile the network (paddle.jit.to_static); cinn: with Paddle's compiler for gpus"
    )
    cpu_conv: Literal['auto', 'onednn', 'paddle'] = key(
        'auto',
        'what computes convolutions and batch norms on a cpu; auto: onednn (in NHWC), else paddle',
    )
    label_smoothing: float = key(
        0.0, 'share of each label that is spread over all classes', low=0, below=1
    )
    ema: float = key(0.0, 'decay of the averaged weights, e.g. 0.999; 0: off', low=0, below=1)
    log_every: int = key(10, 'steps between two iter: lines', low=1)
    save_every: int = key(1, 'epochs between checkpoints (the last epoch is always saved)', low=1)
    save_every_steps: Optional[int] = key(None, 'also save inside epochs, every N steps', low=1)
    keep: int = key(2, 'checkpoints kept', low=1)


@dataclass(frozen=True)
class Eval:
    every: int = key(1, 'epochs between evaluations (the last epoch is always evaluated)', low=1)
    start: int = key(0, 'first epoch that is evaluated', low=0)
    batch_size: int = key(200, 'images in a batch; with ten_crop, crops', low=1)
    resize: Optional[int] = key(
        None, 'folder: short side before the centre crop; null: 256/224 of data.image_size', low=1
    )
    views: Literal['one', 'flip', 'ten_crop'] = key(
        'one', 'average the predictions for an image, its mirror image, or ten crops'
    )

    @property
    def mirror(self) -> bool:
        """Whether mirror images are evaluated, too."""
        return self.views != 'one'


@dataclass(frozen=True)
class Output:
    dir: str = key('', 'run folder; empty: output/<config name>')


@dataclass(frozen=True)
class Config:
    seed: int = key(0, 'decides everything that is random', low=0, below=2**64)
    device: Literal['auto', 'cpu', 'gpu', 'npu'] = key('auto', 'auto: gpu, else npu, else cpu')
    model: Model = Model()
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    train: Train = Train()
    eval: Eval = Eval()
    output: Output = Output()


@functools.cache
def all_keys() -> 'dict[str, dataclasses.Field[Any]]':
    """{'seed': its field, 'optimizer.lr': ...}"""
    found = {}
    for field in dataclasses.fields(Config):
        if dataclasses.is_dataclass(field.default):
            section = dataclasses.fields(field.default)
            found.update({f'{field.name}.{inner.name}': inner for inner in section})
        else:
            found[field.name] = field
    return found
