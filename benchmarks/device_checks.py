"""Worker: one check of benchmarks/check_device.py in a process of its own.

python3 -m benchmarks.device_checks NAME ARGUMENTS FILE    ARGUMENTS and the answer in FILE are JSON
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any, Callable

import numpy as np

from engine import models
from engine.config import Config, load_config
from engine.machine import cpu, devices, processes, support
from engine.machine.start import start_paddle

REPOSITORY = Path(__file__).resolve().parent.parent
STEPS = 10
# What a step of the recipes runs, by Paddle's names of kernels, and of operators before.
KERNELS = (
    *('conv2d', 'conv2d_grad', 'batch_norm', 'batch_norm_grad', 'sync_batch_norm', 'relu'),
    *('pool2d', 'mean reduce_mean', 'add elementwise_add', 'multiply elementwise_mul'),
    *('matmul matmul_v2', 'matmul_grad matmul_v2_grad', 'dropout', 'log_softmax'),
    *('cross_entropy_with_softmax softmax_with_cross_entropy', 'argmax arg_max', 'gather'),
    *('momentum', 'merged_momentum', 'check_finite_and_unscale', 'logsumexp'),
)


def start(device: str) -> str:
    cpu.prepare_cpu()
    return start_paddle(device)


def describe(device: str) -> dict[str, Any]:
    """The machine, and how far a product and a convolution are off in float32."""
    line = start(device)
    import paddle
    from paddle.nn import functional as F

    kind = devices.device_kind()
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 512, 512))
    product = paddle.matmul(*(paddle.to_tensor(x.astype(np.float32)) for x in (a, b)))
    images, filters = rng.normal(size=(2, 8, 9, 9)), rng.normal(size=(8, 8, 3, 3))
    convolved = F.conv2d(*(paddle.to_tensor(x.astype(np.float32)) for x in (images, filters)))
    expected = sum(
        np.einsum('nchw,oc->nohw', images[..., i : i + 7, j : j + 7], filters[..., i, j])
        for i in range(3)
        for j in range(3)
    )
    about: dict[str, Any] = {
        'line': line,
        'kind': kind,
        'name': kind.upper(),
        'cards': 1,
        'computed on': str(product.place),
        'paddle': paddle.__version__,
        'python': sys.version.split()[0],
        'product error': _error(product.numpy(), a @ b),
        'convolution error': _error(convolved.numpy(), expected),
    }
    if kind == 'gpu':
        cuda = paddle.device.cuda
        about.update(
            name=cuda.get_device_name(),
            cards=cuda.device_count(),
            capability='.'.join(map(str, cuda.get_device_capability())),
            cuda=paddle.version.cuda(),
            cudnn=paddle.get_cudnn_version(),
        )
    if kind == 'npu':
        cards = paddle.device.get_available_custom_device()
        about['cards'] = sum(card.partition(':')[0] == 'npu' for card in cards)
    return about


def kernels(device: str) -> dict[str, list[str]]:
    """The kernels that are registered for the device."""
    start(device)
    return registered(devices.device_kind())


def registered(kind: str) -> dict[str, list[str]]:
    """{operator: types that this Paddle has of it for cpu, gpu or npu}; no device is needed."""
    import paddle

    entries_of = paddle.base.core._get_all_register_op_kernels('phi')
    place, found = f'place[place({kind}', {}
    for names in KERNELS:
        name, *_ = names.split()
        known = [entry for alias in names.split() for entry in entries_of.get(alias, [])]
        entries = [entry for entry in known if place in entry.lower()]
        types = [re.search(r'data_type\[(?:.*::)?(\w+)\]', entry) for entry in entries]
        found[name] = sorted({match[1] for match in types if match})
    return found


def losses(
    device: str, overrides: list[str], networks: list[str], side: int, batch: int, lacking: bool
) -> dict[str, Any]:
    """{network: losses of ten steps} from weights and images that depend on nothing but NumPy;
    without `lacking`, also of what engine.machine.support refuses on the device."""
    if not lacking:
        support.LACKING = {}
    start(device)
    found: dict[str, Any] = {'lines': [], 'losses': {}, 'weights': ''}
    for name in networks:
        settings = [
            *(f'model.name={name}', 'data.name=synthetic', f'data.num_images={STEPS * batch}'),
            *(f'data.image_size={side}', f'data.batch_size={batch}', 'data.crop_padding=2'),
            *('optimizer.lr=0.01', 'schedule.name=constant', 'train.epochs=1', 'train.log_every=1'),
            *overrides,
        ]
        config = load_config(REPOSITORY / 'configs' / 'quickstart.yaml', settings)
        found['lines'] = support.check(config.train, config.model)
        found['losses'][name], weights = _train(config)
        found['weights'] += weights
    return found


def _train(config: Config) -> tuple[list[float], str]:
    """The losses, and a checksum of the weights."""
    from engine import cpu_conv, data
    from engine.training.trainer import Trainer

    dataset = data.load_data(config)
    onednn, _ = cpu_conv.choose(config.train)
    layout = 'NHWC' if onednn else support.data_format(config.train, config.model)
    model = models.build(config.model.name, num_classes=10, data_format=layout)
    rng = np.random.default_rng(0)
    for tensor in model.state_dict().values():
        if tensor.ndim > 1:
            inputs = tensor.shape[0] if tensor.ndim == 2 else np.prod(tensor.shape[1:])
            values = rng.normal(size=tensor.shape) * np.sqrt(1 / inputs)
            tensor.set_value(values.astype(np.float32))
    if onednn:
        cpu_conv.accelerate(model, onednn)
    trainer = Trainer(
        model,
        config,
        batches=data.train_batches(dataset, config),
        classes=dataset.classes,
    )
    step_losses: list[float] = []
    trainer.train_one_epoch(after_step=lambda _: step_losses.append(trainer.last_loss))
    digest = hashlib.sha256()
    for name, array in sorted(trainer.snapshot().model.items()):
        if not name.endswith(('_mean', '_variance')):  # each process's own, but for sync_bn
            digest.update(array.tobytes())
    return step_losses, digest.hexdigest()


def sync_bn(device: str) -> dict[str, Any]:
    """The running mean of a SyncBatchNorm after one batch that differs between the processes, and
    what it is if it sees all, and if it sees its own alone."""
    start(device)
    import paddle

    paddle.seed(0)
    layer = paddle.nn.SyncBatchNorm(4)
    means = [np.arange(4) + 10.0 * rank for rank in range(processes.WORLD_SIZE)]
    batch = np.zeros((8, 4, 3, 3)) + means[processes.RANK][:, None, None]
    layer(paddle.to_tensor(batch.astype(np.float32)))
    share = 1 - layer._momentum
    return {
        'mean': layer._mean.numpy().tolist(),
        'of all': (share * np.mean(means, axis=0)).tolist(),
        'of its own': (share * means[processes.RANK]).tolist(),
    }


def logits(device: str, folder: str, engine: str, precision: str, batches: list[int]) -> Any:
    """{batch size: largest difference from dygraph on the CPU}, of an exported folder, relative to
    the largest logit."""
    sys.path.insert(0, str(REPOSITORY / 'deploy'))
    cpu.prepare_cpu()
    import predictor

    found, stored = {}, np.load(Path(folder) / 'expected.npz')
    for size in batches:
        chosen = predictor.Predictor(
            folder, engine=engine, device=device, batch=max(batches), precision=precision
        )
        images, expected = stored['images'][:size], stored['logits'][:size]
        found[size] = _error(chosen.logits(images), expected)
    return found


def expected_logits(weights: str, config: str, folder: str, count: int) -> dict[str, Any]:
    """Write images and dygraph's logits on the CPU beside an exported graph."""
    start('cpu')
    import paddle

    from engine.weights import load_weights

    name = load_config(config).model.name
    model = models.build(name, num_classes=10)
    load_weights(model, weights)
    model.eval()
    side = models.parse(name).image_size
    images = np.random.default_rng(0).normal(size=(count, 3, side, side)).astype(np.float32)
    with paddle.no_grad():
        answers = model(paddle.to_tensor(images)).numpy()
    np.savez(Path(folder) / 'expected.npz', images=images, logits=answers)
    return {}


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


CHECKS: dict[str, Callable[..., Any]] = {
    check.__name__: check for check in (describe, kernels, losses, sync_bn, logits, expected_logits)
}


def main() -> None:
    name, arguments, file = sys.argv[1:]
    processes.connect()
    answer = CHECKS[name](**json.loads(arguments))
    Path(f'{file}.{processes.RANK}').write_text(json.dumps(answer))
    processes.announce_exit(0)


if __name__ == '__main__':
    main()
