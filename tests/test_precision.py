"""Mixed precision: nothing of it on a CPU; its bookkeeping on an npu that fake_npu.cc makes up.

That npu computes on the CPU, whose kernels have no float16: no network runs here in 16 bits. The
loss scale, the masters of 16-bit weights and what a checkpoint has of both need no such kernel.
"""

from __future__ import annotations

import json
import warnings

import numpy as np
import paddle
import pytest
from conftest import REPOSITORY
from fake_npu import build, run
from paddle import nn

from engine.config import Config, Model, Optimizer, Train
from engine.errors import UserError
from engine.machine import collectives, devices, processes, support
from engine.training import optimizers
from engine.training.loss import cross_entropy
from engine.training.precision import Precision
from engine.weights import Arrays, state_arrays

MIXED = [
    Train(amp='O1'),
    Train(amp='O2'),
    Train(amp='O1', loss_scale=1024.0),
    Train(amp='O2', amp_dtype='bfloat16'),
]


def mode(config: Train) -> str:
    return f'{config.amp} {config.amp_dtype} {config.loss_scale}'


# ------------------------------------------------------------------ on a CPU


def train(config: Train) -> Arrays:
    """The weights after three steps."""
    paddle.seed(0)
    model = nn.Sequential(nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4), nn.Flatten(), nn.Linear(16, 2))
    optimizer = optimizers.make_optimizer(model, Optimizer())
    precision = Precision(config)
    precision.prepare(model, optimizer)
    images = paddle.to_tensor(np.random.default_rng(0).normal(size=(5, 3, 4, 4)).astype('float32'))
    for _ in range(3):
        with precision.autocast():
            logits = model(images)
        assert logits.dtype == paddle.float32
        loss = cross_entropy(logits, paddle.to_tensor([0, 1, 1, 0, 1]))
        assert precision.scale(loss) is loss
        loss.backward()
        precision.step(optimizer)
        optimizer.clear_grad()
        assert precision.state() == {}
    return state_arrays(model)


@pytest.mark.parametrize('config', MIXED, ids=mode)
def test_on_a_cpu_mixed_precision_is_off_and_no_step_differs(config):
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*(AmpScaler|amp_guard|GradScaler)')
        arrays = train(config)
    assert not Precision(config).enabled
    plain = train(Train())
    for name, value in plain.items():
        np.testing.assert_array_equal(arrays[name], value, err_msg=name)


@pytest.mark.parametrize('config', [Train(), *MIXED], ids=mode)
def test_on_a_cpu_the_loss_scale_of_a_checkpoint_is_left_alone(config):
    precision = Precision(config)
    precision.load_state({})
    precision.load_state({'scale': 32.0, 'use_dynamic_loss_scaling': True})
    assert precision.state() == {}


# ------------------------------------------------------------------ what a device has


@pytest.mark.parametrize('config', MIXED, ids=mode)
def test_on_a_cpu_engine_cpu_conv_reports_mixed_precision(config):
    assert support.check(config, Model()) == []


def test_a_cpu_takes_nhwc():
    assert support.check(Train(), Model(data_format='NHWC')) == []


def test_batch_norms_over_all_processes_are_refused_on_a_cpu():
    with pytest.raises(UserError, match=r'train\.sync_bn: .* for cpu; -o train\.sync_bn=false'):
        support.check(Train(sync_bn=True), Model())


# ------------------------------------------------------------------ on the npu


SCRIPT = '''
import json, sys
import numpy as np
from engine.machine import cpu, devices
from engine.machine.start import start_paddle
cpu.prepare_cpu()
start_paddle('npu')
import paddle
from paddle import nn
from engine import data, models
from engine.machine import collectives, support
from engine.training import optimizers
from engine.config import Config, Data, Model, Optimizer, Schedule, Train
from engine.errors import UserError
from engine.training.trainer import Trainer
from engine.training.precision import Precision, full_precision
from engine.weights import float32_arrays, state_arrays

found = {}


def gradient(model, scale, values):
    """Give the weight a gradient: values, times the scale."""
    model.clear_gradients()
    weight = model.weight
    (weight * (values * scale)).sum().backward()


def model_and_optimizer():
    model = nn.Linear(3, 2, bias_attr=False)
    model.weight.set_value(np.ones((3, 2), np.float32))
    config = Optimizer(lr=0.5, momentum=0.9, weight_decay=0.0)
    return model, optimizers.make_optimizer(model, config)


def made(**train):
    model, optimizer = model_and_optimizer()
    precision = Precision(Train(amp='O1', **train))
    precision.prepare(model, optimizer)
    with precision.autocast():  # as in a step: GradScaler looks at the type of the last one
        pass
    return model, optimizer, precision


def loss_scale():
    model, optimizer, precision = made()
    found['begins'] = precision.state()
    found['scaled'] = precision.scale(paddle.to_tensor([3.0])).numpy().tolist()
    gradient(model, 2.0**16, 0.25)
    precision.step(optimizer)
    found['step'] = model.weight.numpy().tolist()
    found['after a step'] = precision.state()
    velocity = optimizers.optimizer_arrays(optimizer, model)['weight/velocity_0'].tolist()
    for number, bad in enumerate((np.inf, np.nan)):
        gradient(model, 1.0, bad)
        precision.step(optimizer)
        found[f'overflow {number}'] = precision.state()
        found[f'weight {number}'] = model.weight.numpy().tolist()
    found['velocity stays'] = (
        optimizers.optimizer_arrays(optimizer, model)['weight/velocity_0'].tolist() == velocity
    )
    state = json.loads(json.dumps(precision.state()))
    model, optimizer, precision = made()
    precision.load_state(state)
    found['loaded'] = precision.state()
    found['scaled after loading'] = precision.scale(paddle.to_tensor([3.0])).numpy().tolist()
    gradient(model, state['scale'], 0.25)
    precision.step(optimizer)
    found['step after loading'] = model.weight.numpy().tolist()
    fixed = made(loss_scale=128.0)[2]
    fixed.load_state(state)
    found['fixed'] = fixed.state()
    precision.load_state(fixed.state())
    found['dynamic after fixed'] = precision.state()['use_dynamic_loss_scaling']


def growth():
    model, optimizer, precision = made()
    state = precision.state()
    precision.load_state({**state, 'incr_count': state['incr_every_n_steps'] - 1})
    gradient(model, 1.0, 0.0)
    precision.step(optimizer)
    found['grown'] = precision.state()


def fixed():
    model, optimizer, precision = made(loss_scale=128.0)
    found['fixed scale'] = precision.scale(paddle.to_tensor([3.0])).numpy().tolist()
    gradient(model, 128.0, 0.25)
    precision.step(optimizer)
    found['fixed step'] = model.weight.numpy().tolist()
    gradient(model, 1.0, np.inf)
    precision.step(optimizer)
    found['fixed overflow'] = model.weight.numpy().tolist(), precision.state()['scale']


def together():
    """One momentum kernel for all tensors, as off an npu."""
    kind, devices.device_kind = devices.device_kind, lambda: 'gpu'
    model, optimizer = model_and_optimizer()
    devices.device_kind = kind
    precision = Precision(Train(amp='O1'))
    with precision.autocast():
        pass
    found['together'] = [optimizer._use_multi_tensor]
    for gradient_of in (0.25 * 2.0**16, np.inf):
        precision.scale(paddle.to_tensor([3.0]))
        gradient(model, 1.0, gradient_of)
        precision.step(optimizer)
        found['together'] += [model.weight.numpy().tolist(), precision.state()['scale']]


def bfloat16():
    support.LACKING = {}
    precision = made(amp_dtype='bfloat16')[2]
    loss = paddle.to_tensor([3.0])
    found['bfloat16'] = precision.enabled, precision.scale(loss) is loss, precision.state()


CONFIG = Config(
    model=Model(name='wide_resnet10_1'),
    data=Data(name='synthetic', batch_size=8, num_images=16, image_size=8, crop_padding=1),
    train=Train(amp='O2', ema=0.9),
)


def trainer(seed, config=CONFIG):
    paddle.seed(seed)
    model = models.build(config.model.name, num_classes=10)
    exact = state_arrays(model)
    batches = data.train_batches(data.load_data(config), config)
    classes = [str(i) for i in range(10)]
    return exact, Trainer(model, config, batches=batches, classes=classes)


def same(arrays, others):
    return sorted(arrays) == sorted(others) and all(
        array.dtype == others[name].dtype and array.tobytes() == others[name].tobytes()
        for name, array in arrays.items()
    )


def checkpoints():
    """O2, as far as it goes without a step, on a device whose momentum has master weights."""
    support.LACKING = {}
    exact, first = trainer(0)
    types = {name: str(p.dtype) for name, p in first.model.named_parameters()}
    norms = {
        f'{name}.{kind}'
        for name, layer in first.model.named_sublayers()
        if isinstance(layer, nn.BatchNorm2D)
        for kind in ('weight', 'bias', '_mean', '_variance')
    }
    found['16 bits'] = all(('float16' in types[n]) == (n not in norms) for n in types)
    found['tensors'] = len(norms), len(types)
    snapshot = first.snapshot()
    found['model is exact'] = same(snapshot.model, exact)
    found['average is exact'] = same(snapshot.ema, exact)
    found['best is exact'] = same(first.weights(), exact)
    found['state'] = snapshot.state['loss_scale']['scale']
    rng = np.random.default_rng(0)
    snapshot.optimizer = {
        f'{n}/velocity_0': rng.normal(size=p.shape).astype(np.float32)
        for n, p in first.model.named_parameters() if not p.stop_gradient
    }
    snapshot.state['loss_scale']['scale'] = 512.0
    snapshot.state = json.loads(json.dumps(snapshot.state))
    _, second = trainer(1)
    second.restore(snapshot)
    again = second.snapshot()
    found['restored'] = [
        same(again.model, exact), same(again.optimizer, snapshot.optimizer), same(again.ema, exact)
    ]
    found['restored scale'] = again.state['loss_scale']['scale']
    rounded = {
        n: a if n in norms else a.astype(np.float16)
        for n, a in exact.items()
    }
    found['16-bit weights are the masters rounded'] = same(state_arrays(second.model), rounded)
    with second.evaluated_weights() as model:
        # Not to the bit: a CPU's cast of Paddle 2.6 cuts off.
        found['evaluated'] = all(
            a.dtype == rounded[n].dtype and np.allclose(a, rounded[n], rtol=2**-9, atol=1e-7)
            for n, a in state_arrays(model).items()
        )
    import dataclasses
    plain = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, amp='none'))
    _, third = trainer(2, plain)
    third.restore(snapshot)
    last = third.snapshot()
    found['restored in float32'] = [
        same(last.model, exact), same(last.optimizer, snapshot.optimizer), last.state['loss_scale']
    ]
    _, fourth = trainer(3)
    fourth.restore(last)
    last = fourth.snapshot()
    found['and back'] = [same(last.model, exact), same(last.optimizer, snapshot.optimizer)]
    found['and back with scale'] = last.state['loss_scale']['scale']


def supported():
    for name, config in {
        'NHWC': Config(model=Model(data_format='NHWC')),
        'sync_bn': Config(train=Train(sync_bn=True)),
        'O1': Config(train=Train(amp='O1')),
        'O2': Config(train=Train(amp='O2')),
        'bfloat16': Config(train=Train(amp='O1', amp_dtype='bfloat16')),
        'auto': Config(train=Train(amp='O1', amp_dtype='auto')),
        'none': Config(),
    }.items():
        try:
            found[f'support {name}'] = support.check(config.train, config.model)
        except UserError as error:
            found[f'support {name}'] = str(error)


for part in sys.argv[2:]:
    try:
        globals()[part]()
    except Exception as error:
        found[f'{part} failed'] = f'{type(error).__name__}: {error}'[-500:]
with open(sys.argv[1], 'w') as file:
    json.dump(found, file)
'''

PARTS = ('supported', 'loss_scale', 'together', 'growth', 'fixed', 'bfloat16', 'checkpoints')


@pytest.fixture(scope='module')
def npu(tmp_path_factory):
    """What the script has found there."""
    folder = tmp_path_factory.mktemp('npu')
    machine = {**build(folder), 'PYTHONPATH': str(REPOSITORY)}
    (folder / 'script.py').write_text(SCRIPT)
    process = run(folder, machine, 'script.py', 'found.json', *PARTS)
    assert process.returncode == 0, process.stderr
    return json.loads((folder / 'found.json').read_text())


@pytest.mark.parametrize('part', PARTS)
def test_every_part_of_the_script_has_run_to_its_end(npu, part):
    assert f'{part} failed' not in npu, npu[f'{part} failed']


STEPPED = [[1 - 0.5 * 0.25] * 2] * 3  # lr 0.5, gradient 0.25, whatever the scale


def test_the_loss_scale_begins_at_2_to_the_16_and_multiplies_the_loss(npu):
    assert npu['begins']['scale'] == 2**16
    assert npu['begins']['use_dynamic_loss_scaling'] is True
    assert npu['scaled'] == [3 * 2**16]


def test_a_step_takes_the_scale_out_of_the_gradients(npu):
    assert npu['step'] == STEPPED
    assert npu['after a step'] == {**npu['begins'], 'incr_count': 1}


def test_an_overflow_leaves_the_step_out_and_halves_the_scale(npu):
    """Momentum included. One infinity, and then one NaN."""
    assert [npu[f'overflow {number}']['scale'] for number in (0, 1)] == [2**15, 2**14]
    assert npu['overflow 0']['incr_count'] == 0
    assert npu['weight 0'] == npu['weight 1'] == STEPPED
    assert npu['velocity stays']


def test_one_kernel_for_all_tensors_uses_the_loss_scale_too(npu):
    assert npu['together'] == [True, STEPPED, 2**16, STEPPED, 2**15]


def test_the_scale_doubles_after_many_steps_without_overflow(npu):
    assert npu['grown'] == {**npu['begins'], 'scale': 2.0**17}


def test_a_saved_scale_is_restored(npu):
    assert npu['loaded'] == npu['overflow 1']
    assert npu['scaled after loading'] == [3 * 2**14]
    assert npu['step after loading'] == STEPPED


def test_a_scale_that_the_config_fixes_stays(npu):
    assert npu['fixed scale'] == [3 * 128]
    assert npu['fixed step'] == STEPPED
    assert npu['fixed overflow'] == [STEPPED, 128.0]  # left out, and the scale is the same
    assert npu['fixed']['scale'] == 128.0, 'a checkpoint has changed it'
    assert npu['fixed']['use_dynamic_loss_scaling'] is False
    assert npu['dynamic after fixed'] is True


def test_bfloat16_has_no_scale(npu):
    assert npu['bfloat16'] == [True, True, {}]


def test_o2_has_16_bits_in_every_layer_but_batch_norms(npu):
    assert npu['16 bits']
    assert npu['tensors'] == [28, 39]  # of batch norms, of the network


def test_what_o2_saves_and_averages_is_float32_and_exact(npu):
    """Not the 16-bit weights made float32 again: those of before the first step, to the bit."""
    assert npu['model is exact']
    assert npu['average is exact']
    assert npu['best is exact']
    assert npu['state'] == 2**16


def test_resume_in_o2_is_bit_identical(npu):
    assert npu['restored'] == [True, True, True]  # weights, velocities, averages
    assert npu['restored scale'] == 512.0
    assert npu['16-bit weights are the masters rounded']
    assert npu['evaluated']


def test_a_checkpoint_of_o2_continues_in_float32_and_back(npu):
    assert npu['restored in float32'] == [True, True, {}]
    assert npu['and back'] == [True, True]
    assert npu['and back with scale'] == 2**16


def test_an_npu_refuses_what_its_batch_norms_cannot_do(npu):
    assert npu['support NHWC'].startswith('model.data_format: NHWC ')
    assert npu['support NHWC'].endswith('-o model.data_format=NCHW')
    assert npu['support sync_bn'].startswith('train.sync_bn: ')
    assert ' for npu; ' in npu['support sync_bn']


def test_an_npu_reports_its_mixed_precision(npu):
    assert npu['support none'] == []
    assert npu['support O1'] == ['mixed precision: O1 float16']
    lacks = 'momentum there ignores its float32 master weights'
    assert npu['support O2'] == [f'mixed precision: O1 float16 (not O2: {lacks})']
    lacks = 'batch norm there has no bfloat16'
    assert npu['support auto'] == [f'mixed precision: O1 float16 ({lacks})']
    assert npu['support bfloat16'] == f'train.amp_dtype: {lacks}; -o train.amp_dtype=auto'


# ------------------------------------------------------------------ on a GPU, by what it says


class Gpu:
    """What Paddle says of a card, and what is set for it."""

    def __init__(self, monkeypatch, capability: tuple[int, int], kernels: tuple[str, ...]) -> None:
        self.flags: dict[str, int] = {}
        monkeypatch.delenv(PERSISTENT, raising=False)
        monkeypatch.setattr(devices, 'device_kind', lambda: 'gpu')
        at_least_8 = capability >= (8, 0)
        monkeypatch.setattr(paddle.amp, 'is_bfloat16_supported', lambda: at_least_8)
        monkeypatch.setattr(paddle.device.cuda, 'get_device_capability', lambda: capability)
        monkeypatch.setattr(paddle, 'set_flags', self.flags.update)
        momentum = [f'{{data_type[{dtype}]; place[Place(gpu:0)]}}' for dtype in kernels]
        registered = {'momentum': [*momentum, '{data_type[bfloat16]; place[Place(cpu)]}']}
        monkeypatch.setattr(
            paddle.base.core, '_get_all_register_op_kernels', lambda lib: registered
        )


V100, A100, P40 = (7, 0), (8, 0), (6, 1)
OF_2_6 = ('float', 'double', '::phi::dtype::float16')
PERSISTENT = 'FLAGS_cudnn_batchnorm_spatial_persistent'
NHWC = "layout: NHWC, with cuDNN's persistent batch norm"
FLOAT16, BFLOAT16 = 'mixed precision: O1 float16', 'mixed precision: O1 bfloat16'


@pytest.mark.parametrize(
    ('card', 'train', 'layout', 'lines', 'computed'),
    [
        (A100, Train(), 'auto', [], 'NCHW'),
        (A100, Train(amp='O1'), 'auto', [FLOAT16, NHWC], 'NHWC'),
        (A100, Train(amp='O1'), 'NCHW', [FLOAT16], 'NCHW'),
        (A100, Train(amp='O1', amp_dtype='bfloat16'), 'auto', [BFLOAT16], 'NCHW'),
        (A100, Train(amp='O1', amp_dtype='auto'), 'auto', [BFLOAT16], 'NCHW'),
        (
            A100,
            Train(amp='O1', amp_dtype='bfloat16'),
            'NHWC',
            [
                BFLOAT16,
                'layout: NHWC; batch norms transpose bfloat16 there and back, NCHW may be faster',
            ],
            'NHWC',
        ),
        (
            A100,
            Train(),
            'NHWC',
            [
                'layout: NHWC; convolutions and batch norms transpose float32 there and back, '
                'NCHW may be faster'
            ],
            'NHWC',
        ),
        (
            V100,
            Train(amp='O1', amp_dtype='auto'),
            'auto',
            [f'{FLOAT16} (this gpu has no bfloat16)', NHWC],
            'NHWC',
        ),
        (
            A100,
            Train(amp='O2', amp_dtype='auto'),
            'auto',
            [
                'mixed precision: O2 float16 (momentum has no bfloat16 kernel, which O2 needs)',
                NHWC,
            ],
            'NHWC',
        ),
        (
            P40,
            Train(amp='O1'),
            'auto',
            ['mixed precision: off: this gpu has compute capability 6.1, it needs 7.0'],
            'NCHW',
        ),
    ],
)
def test_a_gpu_has_and_reports_what_its_kernels_have(
    card, train, layout, lines, computed, monkeypatch
):
    """cuDNN's persistent batch norm, which costs accuracy in NCHW, is for float16 in NHWC alone."""
    gpu = Gpu(monkeypatch, card, OF_2_6)
    config = Config(model=Model(data_format=layout), train=train)
    assert support.check(config.train, config.model) == lines
    assert support.data_format(config.train, config.model) == computed
    assert gpu.flags == {PERSISTENT: int(NHWC in lines)}
    off = train.amp == 'none' or any('off' in line for line in lines)
    assert (support.mixed_precision(train) is None) == off


def test_the_persistent_batch_norm_of_an_earlier_run_is_off_in_the_next(monkeypatch):
    gpu = Gpu(monkeypatch, A100, OF_2_6)
    assert support.check(Train(amp='O1'), Model()) == [FLOAT16, NHWC]
    assert support.check(Train(), Model()) == []
    assert gpu.flags == {PERSISTENT: 0}
    monkeypatch.setenv(PERSISTENT, '1')  # by the user, as benchmarks.check_device does
    assert support.check(Train(), Model()) == []
    assert gpu.flags == {PERSISTENT: 1}


@pytest.mark.parametrize(
    ('card', 'kernels', 'train', 'line'),
    [
        (V100, OF_2_6, Train(amp='O1', amp_dtype='bfloat16'), 'has no bfloat16; .*=auto'),
        (A100, OF_2_6, Train(amp='O2', amp_dtype='bfloat16'), 'momentum .*; -o train.amp=O1'),
        (A100, OF_2_6, Train(to_static='cinn'), 'without CINN; -o train.to_static=true'),
    ],
)
def test_what_a_gpu_has_no_kernel_for_is_refused(card, kernels, train, line, monkeypatch):
    Gpu(monkeypatch, card, kernels)
    with pytest.raises(UserError, match=line):
        support.check(train, Model())


def test_with_o2_the_masters_of_all_processes_are_the_first_ones(monkeypatch):
    """Unlike cards draw unlike initial weights, and DataParallel sends the 16-bit ones alone."""
    sent = []
    monkeypatch.setattr(processes, 'WORLD_SIZE', 2)
    monkeypatch.setattr(support, 'mixed_precision', lambda train: support.Mixed('O2', 'float16'))
    monkeypatch.setattr(paddle.amp, 'decorate', lambda **options: sent.append('decorated'))
    monkeypatch.setattr(processes, 'barrier', lambda: None)
    monkeypatch.setattr(
        paddle.distributed, 'broadcast', lambda tensor, src: sent.append((tensor.name, src))
    )
    model = nn.Linear(3, 2)
    Precision(Train(amp='O2')).prepare(model, optimizers.make_optimizer(model, Optimizer()))
    assert sent == [(model.weight.name, 0), (model.bias.name, 0), 'decorated']


def test_o2_in_bfloat16_is_taken_where_momentum_has_it(monkeypatch):
    Gpu(monkeypatch, A100, (*OF_2_6, '::phi::dtype::bfloat16'))
    config = Config(train=Train(amp='O2', amp_dtype='bfloat16'))
    assert support.check(config.train, config.model) == ['mixed precision: O2 bfloat16']


# ------------------------------------------------------------------ sums over processes


class TwoProcesses:
    """paddle.distributed of the first of two, the other of which has `theirs`."""

    def __init__(self, monkeypatch, device: str, theirs: np.ndarray) -> None:
        self.theirs, self.sent = theirs, []
        monkeypatch.setattr(processes, 'WORLD_SIZE', 2)
        monkeypatch.setattr(devices, 'device_kind', lambda: device)
        monkeypatch.setattr(paddle.distributed, 'all_reduce', self.all_reduce)

    def all_reduce(self, tensor: paddle.Tensor) -> None:
        self.sent.append(str(tensor.dtype).rpartition('.')[2])
        wide = self.theirs
        if self.sent[-1] == 'float32':
            near = wide.astype(np.float32)
            wide = near if len(self.sent) == 1 else (wide - near).astype(np.float32)
        tensor.set_value(tensor.numpy() + wide)


@pytest.mark.parametrize('device', ['gpu', 'npu', 'cpu'])
def test_a_sum_over_processes_keeps_more_than_float32(device, monkeypatch):
    """So it is in an evaluation, each image of which one process has judged. An npu's collectives
    have float32 alone: there the sum is one of two parts."""
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=50), rng.normal(size=50) * 1e6, [1 / 3, 2**25 + 1]])
    mine = rng.random(len(values)) < 0.5
    others = TwoProcesses(monkeypatch, device, np.where(mine, 0, values))
    summed = collectives.sum_over_ranks(np.where(mine, values, 0))
    assert summed.dtype == np.float64
    assert others.sent == (['float32'] * 2 if device == 'npu' else ['float64'])
    np.testing.assert_allclose(summed, values, rtol=2**-46, atol=0)
    assert (np.abs(values.astype(np.float32) - values) > 2**-40 * np.abs(values)).sum() > 90


@pytest.mark.parametrize('device', ['gpu', 'npu', 'cpu'])
def test_sums_over_processes_are_those_of_all(device, monkeypatch):
    rng = np.random.default_rng(0)
    ours, theirs = rng.random((3, 50)) * 1e3, rng.random((3, 50)) * 1e3
    TwoProcesses(monkeypatch, device, theirs)
    summed = collectives.sum_over_ranks(ours)
    precision = 2**-23 if device == 'npu' else 1e-15
    np.testing.assert_allclose(summed, ours + theirs, rtol=precision, atol=0)
    counts = np.arange(50)
    TwoProcesses(monkeypatch, device, counts * 1000)
    assert collectives.sum_over_ranks(counts).tolist() == (counts * 1001).tolist()
