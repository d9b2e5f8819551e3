"""Weights of other frameworks: names and biases are converted to ours, and the report is right."""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn
from safetensors.numpy import save_file

from engine import cli
from engine.errors import UserError
from engine.models import build
from engine.run import chosen_weights
from engine.weights import (
    OFFICIAL,
    Converted,
    fit_weights,
    load_weights,
    official,
    read_weights,
    resolve,
    state_arrays,
)
from engine.weights import __main__ as command
from engine.weights.names.networks import looks_like

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = ROOT / 'configs' / 'quickstart.yaml'
WIDE_NAME = 'wide_resnet16_1'


def network(name: str = WIDE_NAME, seed: int = 1, num_classes: int = 3) -> nn.Layer:
    """With statistics that are not those of a fresh network, in evaluation mode."""
    paddle.seed(seed)
    model = build(name, num_classes=num_classes)
    rng = np.random.default_rng(seed)
    for entry, tensor in model.state_dict().items():
        if tensor.ndim == 1:
            low, high = (0.5, 2.0) if entry.endswith('_variance') else (-0.5, 0.5)
            tensor.set_value(rng.uniform(low, high, tensor.shape).astype(np.float32))
    model.eval()
    return model


def as_torch(arrays: dict, prefix: str = '') -> dict:
    """PyTorch's names and layout, with its counters."""
    state = {}
    for name, value in arrays.items():
        name = name.replace('_mean', 'running_mean').replace('_variance', 'running_var')
        state[prefix + name] = value.T.copy() if name == 'fc.weight' else value
        if name.endswith('running_var'):
            counter = name.replace('running_var', 'num_batches_tracked')
            state[prefix + counter] = np.array(100)
    return state


def as_clas(arrays: dict) -> dict:
    """PaddleClas's names, written down from its resnext.py."""

    def rename(name: str) -> str:
        layer, entry = name.rsplit('.', 1)
        part = '_conv' if re.search(r'conv\d$|downsample\.0$', layer) else '_batch_norm'
        if layer == 'fc':
            return f'out.{entry}'
        if match := re.fullmatch(r'layer(\d)\.(\d+)\.(.+)', layer):
            stage, block, inner = int(match[1]) - 1, match[2], match[3]
            slot = 'short' if 'downsample' in inner else f'conv{int(inner[-1]) - 1}'
            return f'bb_{stage}_{block}.{slot}.{part}.{entry}'
        return f'conv.{part}.{entry}'

    return {rename(name): value for name, value in arrays.items()}


def write(path: Path, content: object) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


def assert_same(arrays: dict, expected: dict) -> None:
    assert sorted(arrays) == sorted(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(arrays[name], value, err_msg=name)


def refused(path: Path, model: nn.Layer, **options: str) -> str:
    before = state_arrays(model)
    with pytest.raises(UserError) as error:
        load_weights(model, path, **options)
    assert_same(state_arrays(model), before)
    text = str(error.value)
    assert '\n' not in text
    assert str(path) in text
    return text


# ------------------------------------------------------------------ names


@pytest.mark.parametrize('prefix', ['', 'module.', 'model.', '_orig_mod.module.', '_layers.'])
@pytest.mark.parametrize('name', [WIDE_NAME, 'resnext29_2x4d'])
def test_pytorch_names_are_converted(tmp_path, name, prefix):
    expected = state_arrays(network(name))
    path = write(tmp_path / 'weights.pkl', as_torch(expected, prefix))
    model = network(name, seed=2)
    report = load_weights(model, path)
    assert_same(state_arrays(model), expected)
    assert sorted(report.mapped) == sorted(expected)
    assert "PyTorch's names" in report.source
    assert (prefix in report.source) == bool(prefix) or not prefix
    assert report.initial == []
    assert {entry.partition(' (')[2] for entry in report.dropped} == {'counters)'}


def test_square_last_layer_is_transposed_by_names_only(tmp_path):
    """Shapes can't tell [out, in] from [in, out] here."""
    square = network(num_classes=64)
    expected = state_arrays(square)
    assert expected['fc.weight'].shape == (64, 64)
    for content in (expected, as_torch(expected)):
        assert_same(read_weights(write(tmp_path / 'square', content)).arrays, expected)


@pytest.mark.parametrize('prefix', ['', 'backbone.', 'Student.', 'Student.backbone.'])
def test_paddleclas_names_are_converted(tmp_path, prefix):
    expected = state_arrays(network('resnext29_2x4d'))
    content = {prefix + key: value for key, value in as_clas(expected).items()}
    beside = {
        'neck.fc.weight': np.zeros((2, 2)),
        'Teacher.conv._conv.weight': np.zeros((1, 1, 1, 1)),
    }
    if prefix:
        content.update(beside)
    found = read_weights(write(tmp_path / 'clas.pdparams', content))
    assert_same(found.arrays, expected)
    assert "PaddleClas's names" in found.source
    assert found.dropped == [f'{key} (beside the network)' for key in beside if prefix]


def test_paddleclas_names_are_those_of_its_code():
    """Literally, so that a mistake in as_clas can't hide one in the converter."""
    kernel, vector = np.zeros((2, 2, 1, 1)), np.zeros(2)
    theirs = {
        'conv._conv.weight': kernel,
        'conv._batch_norm._mean': vector,
        'bb_0_0.conv0._conv.weight': kernel + 1,
        'bb_0_0.short._conv.weight': kernel,
        'bb_0_0.short._batch_norm.bias': vector,
        'bb_2_22.conv1._batch_norm._variance': vector,
        'bb_3_2.conv2._conv.weight': kernel,
        'out.weight': np.zeros((2, 3)),
        'out.bias': np.zeros(3),
    }
    from engine.weights.names import convert

    assert list(convert(theirs, Path('x'), torch=False).arrays) == [
        'conv1.weight',
        'bn1._mean',
        'layer1.0.conv1.weight',
        'layer1.0.downsample.0.weight',
        'layer1.0.downsample.1.bias',
        'layer3.22.bn2._variance',
        'layer4.2.conv3.weight',
        'fc.weight',
        'fc.bias',
    ]


@pytest.mark.slow
def test_paddle_vision_file_loads(tmp_path):
    theirs = paddle.vision.models.resnext50_32x4d(num_classes=5)
    path = tmp_path / 'vision.pdparams'
    paddle.save(theirs.state_dict(), str(path))
    model = build('resnext50_32x4d', num_classes=5)
    load_weights(model, path)
    assert_same(state_arrays(model), {k: v.numpy() for k, v in theirs.state_dict().items()})


@pytest.mark.parametrize('name', sorted(OFFICIAL))
def test_our_names_are_those_of_paddle_vision(name):
    with paddle.LazyGuard():
        theirs, ours = getattr(paddle.vision.models, name)(), build(name, num_classes=1000)
    expected = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == expected


def test_mixed_and_doubled_names_are_refused(tmp_path):
    arrays = state_arrays(network())
    mixed = {**arrays, 'x.running_mean': np.zeros(3)}
    assert 'mixes' in refused(write(tmp_path / 'mixed', mixed), network())
    doubled = {**as_clas(state_arrays(network('resnext29_2x4d'))), 'fc.bias': np.zeros(3)}
    assert 'two arrays' in refused(write(tmp_path / 'doubled', doubled), network())
    twice = {**arrays, **{f'module.{name}': value for name, value in arrays.items()}}
    assert 'several networks' in refused(write(tmp_path / 'twice', twice), network())


# ------------------------------------------------------------------ where in a checkpoint


@pytest.mark.parametrize(
    ('layout', 'source'),
    [
        (lambda new, old: {'state_dict': new}, "from 'state_dict'"),
        (lambda new, old: {'model': new, 'optimizer': {'velocity': np.ones(3)}}, "from 'model'"),
        (lambda new, old: {'state_dict': old, 'state_dict_ema': new}, "rather than 'state_dict')"),
        (lambda new, old: {'model': old, 'model_ema': {'module': new}}, "rather than 'model')"),
        (lambda new, old: {'ema': {'state_dict': new}, 'net': old}, "rather than 'net')"),
        (lambda new, old: {'epoch': 1, 'whatever': new, 'loss': 0.5}, "from 'whatever'"),
        (lambda new, old: {'mean': np.zeros(3), 'model': new}, "from 'model'"),
        (lambda new, old: {'ema': {'decay': 0.9, 'step': 3}, 'model': new}, "from 'model'"),
    ],
)
def test_state_dict_inside_a_checkpoint_is_found(tmp_path, layout, source):
    expected, other = state_arrays(network(seed=1)), state_arrays(network(seed=2))
    found = read_weights(write(tmp_path / 'weights', layout(as_torch(expected), as_torch(other))))
    assert_same(found.arrays, expected)
    assert source in found.source
    assert ('averaged' in found.source) == ('rather' in found.source)


def test_report_is_short_and_complete(tmp_path):
    content = {**as_torch(state_arrays(network()), 'module.'), 'module.note': 'text'}
    content['n_averaged'] = np.array(3)
    report = load_weights(
        network(), write(tmp_path / 'weights', {'state_dict': content}), head='drop'
    )
    text = '\n'.join(report.lines())
    assert len(report.lines()) <= 6
    assert f'{len(report.mapped)} arrays' in text
    assert 'counters: module.block1.layer.0.bn1.num_batches_tracked' in text
    assert 'not arrays: module.note' in text
    assert 'of the head: fc.weight, fc.bias' in text
    assert 'initial values: fc.weight, fc.bias' in text
    counters = [entry for entry in report.dropped if entry.endswith('(counters)')]
    assert f'and {len(counters) - 3} more' in text


@pytest.mark.parametrize('prefix', ['timm_model.', 'feature_extractor.', 'model.timm_model.'])
def test_prefixes_of_wrappers_are_removed(tmp_path, prefix):
    expected = state_arrays(network())
    found = read_weights(write(tmp_path / 'weights', as_torch(expected, prefix)))
    assert_same(found.arrays, expected)
    assert f'without {prefix}' in found.source


@pytest.mark.parametrize('averaged', ['ema_model.module.', 'model_ema.', 'ema.'])
def test_averaged_weights_are_preferred_in_one_state_dict(tmp_path, averaged):
    expected, other = state_arrays(network(seed=1)), state_arrays(network(seed=2))
    content = {**as_torch(other, 'model.'), **as_torch(expected, averaged)}
    content[f'{averaged}n_averaged'] = np.array(3)
    found = read_weights(write(tmp_path / 'weights', {'state_dict': content}))
    assert_same(found.arrays, expected)
    assert f'without {averaged} (averaged weights, rather than model.)' in found.source


# ------------------------------------------------------------------ the last layer, by other names


@pytest.mark.parametrize(
    ('backbone', 'head'),
    [
        ('', 'fc.1.'),  # what follows on dropout
        ('model.', 'model.fc.1.'),
        ('backbone.', 'head.fc.'),  # mmpretrain
        ('module.backbone.', 'module.head.fc.'),
        ('encoder.', 'fc.'),
        ('timm_model.', 'classifier.'),
        ('', 'last_linear.'),
    ],
)
def test_last_layer_is_found_by_its_names(tmp_path, backbone, head):
    expected = state_arrays(network())
    content = {
        key.replace(f'{backbone}fc.', head): value
        for key, value in as_torch(expected, backbone).items()
    }
    model = network(seed=2)
    report = load_weights(model, write(tmp_path / 'weights', content))
    assert_same(state_arrays(model), expected)
    assert report.initial == []
    model = network(seed=2, num_classes=9)
    report = load_weights(model, tmp_path / 'weights', head='drop')
    assert report.dropped[-2:] == ['fc.weight (of the head)', 'fc.bias (of the head)']


def test_other_layers_are_not_taken_for_the_last(tmp_path):
    """Behind a neck, a layer reads something else; several are no single one."""
    expected = state_arrays(network())
    content = as_torch({k: v for k, v in expected.items() if 'fc' not in k}, 'backbone.')
    for beside in (['neck.fc.weight', 'head.fc.weight'], ['head.0.weight', 'head.2.weight']):
        path = write(tmp_path / 'x', {**content, **dict.fromkeys(beside, np.zeros((3, 64)))})
        text = refused(path, network(seed=2))
        assert 'model.pretrained_head: drop' in text
        assert 'other classes' not in text
        report = load_weights(network(seed=2), path, head='drop')
        assert report.initial == ['fc.weight', 'fc.bias']


def test_several_last_layers_are_named(tmp_path):
    arrays = as_torch(state_arrays(network()))
    content = {k.replace('fc.', 'fc.0.'): v for k, v in arrays.items()}
    path = write(tmp_path / 'several', {**content, 'fc.3.weight': arrays['fc.weight']})
    text = refused(path, network(seed=2))
    assert 'it ends in several layers (fc.0.weight, fc.0.bias, fc.3.weight)' in text
    assert 'pretrained_head: drop' in text
    load_weights(network(seed=2), path, head='drop')


# ------------------------------------------------------------------ other files, several files


@pytest.mark.parametrize(
    ('name', 'what'),
    [
        ('inference.pdiparams', 'parameters without their names'),
        ('config.json', 'describes a model'),
        ('inference.json', 'describes a model'),
        ('net.mindir', 'is an exported model'),
        ('model.onnx', 'is an exported model'),
        ('best.pdopt', "is an optimizer's state"),
        ('latest.pdstates', 'state of a training run'),
        ('resnext_50_32x4d.t7', 'Torch 7'),
    ],
)
def test_files_without_weights_are_refused(tmp_path, name, what):
    path = tmp_path / name
    path.write_bytes(b'{"model": "x"}')
    text = refused(path, network())
    assert what in text
    assert 'pickle' not in text


def sharded(folder: Path, arrays: dict) -> Path:
    folder.mkdir()
    names = sorted(arrays)
    parts = [names[:20], names[20:]]
    files = [f'model-0000{i}-of-00002.safetensors' for i in (1, 2)]
    for file, part in zip(files, parts):
        save_file({name: np.ascontiguousarray(arrays[name]) for name in part}, folder / file)
    where = {name: file for file, part in zip(files, parts) for name in part}
    index = folder / 'model.safetensors.index.json'
    index.write_text(json.dumps({'metadata': {}, 'weight_map': where}))
    return index


def test_weights_in_several_files_are_joined(tmp_path):
    """Named by their index, their folder, or any one of them."""
    expected = state_arrays(network())
    index = sharded(tmp_path / 'hub', as_torch(expected, 'timm_model.'))
    first = index.with_name('model-00001-of-00002.safetensors')
    for path in (index, index.parent, first):
        assert_same(read_weights(path).arrays, expected)
    text = index.read_text()
    (index.parent / 'broken.bin').write_bytes(pickle.dumps([1]))
    index.write_text(text.replace(first.name, 'broken.bin'))
    with pytest.raises(UserError, match=r'broken\.bin holds a list, not a state dict'):
        read_weights(index)
    index.write_text(text)
    first.with_name('model-00002-of-00002.safetensors').unlink()
    for path in (index, first):
        with pytest.raises(UserError, match=r'names .*model-00002-of-00002\.safetensors, which is'):
            read_weights(path)
    for text in ('{"weight_map": {"a": "../a"}}', '{}', '[' * 100_000):
        index.write_text(text)
        assert 'not an index of weight files' in refused(index, network())
    index.unlink()
    assert 'is one of 2 files, and their index' in refused(first, network())


def test_folder_of_hugging_face_is_read(tmp_path):
    expected = state_arrays(network())
    (tmp_path / 'config.json').write_text('{}')
    file = write(tmp_path / 'pytorch_model.bin', as_torch(expected))
    assert_same(read_weights(tmp_path).arrays, expected)
    assert chosen_weights.read_chosen(tmp_path).file == file
    write(tmp_path / 'inference.pdiparams', {})
    with pytest.raises(UserError, match='is an exported network, whose arrays have no names'):
        read_weights(tmp_path)


# ------------------------------------------------------------------ biases


def add_biases(model: nn.Layer, seed: int = 3, only: str = '') -> int:
    """Give every convolution a bias, in the model itself: Paddle then computes with it."""
    rng, count = np.random.default_rng(seed), 0
    for name, layer in model.named_sublayers():
        if isinstance(layer, nn.Conv2D) and only in name:
            channels = layer.weight.shape[0]
            layer.bias = paddle.create_parameter([channels], layer.weight.dtype)
            layer.bias.set_value(rng.normal(0, 0.5, channels).astype(layer.bias.numpy().dtype))
            count += 1
    return count


def logits(model: nn.Layer, dtype: str = 'float64') -> np.ndarray:
    images = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(dtype)
    with paddle.no_grad():
        return model(paddle.to_tensor(images)).numpy()


@pytest.mark.parametrize(
    ('name', 'convolutions'), [('wide_resnet16_2', 16), ('wide_resnet22_1', 21),
                               ('resnext29_2x4d', 31), ('wide_resnet10_1', 9)],
)  # fmt: skip
@pytest.mark.parametrize('only', ['', 'conv1', 'conv2', 'hortcut'])
def test_folding_is_exact(tmp_path, name, convolutions, only):
    """In double precision, so that rounding hides nothing."""
    biased = network(name).to(dtype='float64')
    count = add_biases(biased, only=only.replace('hortcut', 'convShortcut' if 'wide' in name else
                                                 'downsample'))  # fmt: skip
    path = write(tmp_path / 'biased.pdparams', state_arrays(biased))
    model = network(name, seed=2).to(dtype='float64')
    report = load_weights(model, path)
    assert report.folded == count
    assert count == convolutions or only
    assert f'{count} convolution biases folded' in '\n'.join(report.lines()) or not count
    expected = logits(biased)
    np.testing.assert_allclose(logits(model), expected, rtol=0, atol=1e-11 * np.abs(expected).max())
    for layer in biased.sublayers():
        if isinstance(layer, nn.Conv2D):
            layer.bias = None
    assert not count or np.abs(logits(biased) - expected).max() > 1e-4  # they do matter


def test_folding_in_single_precision(tmp_path):
    biased, model = network(), network(seed=2)
    add_biases(biased)
    load_weights(model, write(tmp_path / 'biased', as_torch(state_arrays(biased))))
    np.testing.assert_allclose(logits(model, 'float32'), logits(biased, 'float32'), atol=2e-5)


def test_folding_in_training(tmp_path):
    """Batch norms subtract their batch's mean, so that a step doesn't see the biases either."""
    biased, model = network(), network(seed=2)
    add_biases(biased)
    load_weights(model, write(tmp_path / 'biased', state_arrays(biased)))
    biased.train(), model.train()
    np.testing.assert_allclose(logits(model, 'float32'), logits(biased, 'float32'), atol=1e-4)
    for name, value in state_arrays(model).items():
        if name.endswith('_variance'):
            np.testing.assert_allclose(value, biased.state_dict()[name].numpy(), rtol=1e-4)


@pytest.mark.parametrize(
    'change',
    [
        {'other.weight': np.zeros((2, 2, 1, 1)), 'other.bias': np.zeros(2)},
        {'conv1.bias': np.zeros(7, np.float32)},
        {'block1.layer.0.conv2.bias': np.zeros(7, np.float32)},
        {'block2.layer.0.conv1.bias': np.zeros(1, np.float32)},
        {'block1.layer.0.bn2._mean': None},
        {'bn1._mean': None},
    ],
)
def test_biases_that_cannot_be_folded_are_refused(tmp_path, change):
    biased = network()
    add_biases(biased)
    content = {**state_arrays(biased), **change}
    content = {name: value for name, value in content.items() if value is not None}
    text = refused(write(tmp_path / 'biased', content), network(seed=2))
    assert 'cannot be folded' in text


@pytest.mark.parametrize(
    'change',
    [
        {'layer1.0.bn3._mean': None},
        {'conv1.bias': np.zeros(3)},
        {'stem.weight': np.zeros((2, 2, 1, 1)), 'stem.bias': np.zeros(2)},
    ],
)
def test_bottleneck_biases_that_cannot_be_folded_are_refused(tmp_path, change):  # fmt: skip
    biased = network('resnext29_2x4d')
    add_biases(biased)
    content = {**state_arrays(biased), **change}
    content = {name: value for name, value in content.items() if value is not None}
    text = refused(write(tmp_path / 'biased', content), network('resnext29_2x4d', 2))
    assert 'cannot be folded' in text


# ------------------------------------------------------------------ last layers, misfits


def test_other_classes_need_head_drop(tmp_path):
    path = write(tmp_path / 'ten', state_arrays(network(num_classes=10)))
    model = network(seed=2)
    assert 'model.pretrained_head: drop' in refused(path, model)
    head = state_arrays(model)['fc.weight']
    report = load_weights(model, path, head='drop')
    assert report.initial == ['fc.weight', 'fc.bias']
    assert report.dropped == ['fc.weight (of the head)', 'fc.bias (of the head)']
    np.testing.assert_array_equal(model.fc.weight.numpy(), head)
    expected = state_arrays(network())['conv1.weight']
    np.testing.assert_array_equal(model.conv1.weight.numpy(), expected)


def test_head_drop_also_drops_a_head_that_fits(tmp_path, recwarn):
    model = network(seed=2)
    head = state_arrays(model)['fc.weight']
    load_weights(model, write(tmp_path / 'same', state_arrays(network())), head='drop')
    np.testing.assert_array_equal(model.fc.weight.numpy(), head)
    assert not recwarn.list


def test_file_without_last_layer_needs_head_drop(tmp_path):
    arrays = state_arrays(network())
    del arrays['fc.weight'], arrays['fc.bias']
    path = write(tmp_path / 'headless', arrays)
    text = refused(path, network(seed=2))
    assert 'its last layer is missing there: fc.weight, fc.bias' in text
    assert 'model.pretrained_head: drop' in text
    assert 'classes' not in text
    load_weights(network(seed=2), path, head='drop')


def test_head_drop_still_refuses_other_missing_arrays(tmp_path):
    arrays = state_arrays(network())
    del arrays['conv1.weight']
    text = refused(write(tmp_path / 'less', arrays), network(seed=2), head='drop')
    assert 'conv1.weight' in text
    assert 'pretrained_head' not in text


@pytest.mark.parametrize('head', ['keep', 'drop'])
def test_error_names_both_networks(tmp_path, head):
    path = write(tmp_path / 'wide', as_torch(state_arrays(network())))
    text = refused(path, network('resnext29_2x4d'), head=head)
    assert 'look like wide_resnet16_1, not resnext29_2x4d' in text
    deeper = network('wide_resnet22_1')
    assert 'look like wide_resnet16_1, not wide_resnet22_1' in refused(path, deeper, head=head)


@pytest.mark.parametrize(
    'name',
    ['wide_resnet10_1', 'wide_resnet28_2', 'wide_resnet50_2', 'resnext50_32x4d', 'resnext29_2x4d'],
)
def test_network_is_recognised_by_its_shapes(name):
    with paddle.LazyGuard():
        model = build(name, num_classes=10)
    assert looks_like({key: tuple(t.shape) for key, t in model.state_dict().items()}) == name


def test_unknown_networks_are_not_recognised():
    assert looks_like({}) is None
    assert looks_like({'layer1.0.conv2.weight': (0, 0, 1, 1)}) is None
    assert looks_like({f'layer{i}.0.conv2.weight': (4, 0) for i in (1, 2, 3)}) is None


def test_fit_weights_takes_the_result_of_read_weights(tmp_path):
    """As eval.py does: read once, then fit."""
    path = write(tmp_path / 'weights', as_torch(state_arrays(network())))
    read, model = read_weights(path), network(seed=2)
    assert isinstance(read, Converted)
    report = fit_weights(model, read, str(path))
    assert (report.source, report.dropped) == (read.source, read.dropped)
    assert_same(state_arrays(model), state_arrays(network()))
    with pytest.raises(ValueError, match='head'):
        fit_weights(model, read, str(path), head='keeps')


# ------------------------------------------------------------------ official weights


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(official, 'CACHE', tmp_path / 'cache')
    return tmp_path / 'cache'


def test_official_addresses_are_those_of_paddle_vision():
    from paddle.vision.models.resnet import model_urls

    for name, md5 in OFFICIAL.items():
        assert model_urls[name] == (official.ADDRESS.format(name), md5)
    assert len(OFFICIAL) == 8


def test_official_weights_are_downloaded_once(cache, monkeypatch):
    content = pickle.dumps(state_arrays(network()))
    monkeypatch.setitem(OFFICIAL, 'wide_resnet50_2', hashlib.md5(content).hexdigest())
    fetched = []

    def download(urls, target, *, md5):
        fetched.append((urls, md5))
        target.write_bytes(content)

    monkeypatch.setattr('engine.download.download', download)
    for _ in range(2):
        assert resolve('wide_resnet50_2') == cache / 'wide_resnet50_2.pdparams'
    address = 'https://paddle-hapi.bj.bcebos.com/models/wide_resnet50_2.pdparams'
    assert fetched == [([address], OFFICIAL['wide_resnet50_2'])]
    model = network(seed=2)
    load_weights(model, 'wide_resnet50_2')
    assert_same(state_arrays(model), state_arrays(network()))


def test_official_weights_without_network_name_the_address(cache, monkeypatch):
    def download(*_, **__):
        raise OSError('no route')

    monkeypatch.setattr('engine.download.download', download)
    with pytest.raises(UserError) as error:
        resolve('resnext50_32x4d')
    text = str(error.value)
    assert '\n' not in text
    assert 'https://paddle-hapi.bj.bcebos.com/models/resnext50_32x4d.pdparams' in text
    assert str(cache / 'resnext50_32x4d.pdparams') in text


def test_damaged_official_file_is_refused(cache):
    cache.mkdir()
    (cache / 'resnext50_32x4d.pdparams').write_bytes(b'half')
    with pytest.raises(UserError, match='MD5'):
        resolve('resnext50_32x4d')


def test_suffix_can_be_left_out(tmp_path):
    """As Paddle's suites write it."""
    write(tmp_path / 'best.pdparams', state_arrays(network()))
    assert resolve(tmp_path / 'best') == tmp_path / 'best.pdparams'
    args = argparse.Namespace(weights=tmp_path / 'best', config=QUICKSTART, override=[])
    _, path = chosen_weights.resolve_weights(args)
    assert path == tmp_path / 'best.pdparams'
    assert chosen_weights.read_chosen(path).file == path
    (tmp_path / 'best').mkdir()
    assert resolve(tmp_path / 'best') == tmp_path / 'best'


def test_file_has_priority_over_an_official_name(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('resnext50_32x4d').write_bytes(b'')
    assert resolve('resnext50_32x4d') == Path('resnext50_32x4d')
    with pytest.raises(UserError, match=r'did you mean resnext101_32x4d\?'):
        resolve('resnext101_32x4')


# ------------------------------------------------------------------ python3 -m engine.weights


def convert(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, '-X', 'importtime', '-m', 'engine.weights', *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize('suffix', ['.pdparams', '.safetensors'])
def test_convert_writes_our_names(tmp_path, suffix):
    expected = state_arrays(network())
    source, target = write(tmp_path / 'in.pth', as_torch(expected)), tmp_path / f'out{suffix}'
    done = convert('convert', source, target)
    assert done.returncode == 0, done.stderr
    assert 'which looks like wide_resnet16_1' in done.stdout
    assert f'{len(expected)} arrays' in done.stdout
    assert f'wrote {target}' in done.stdout
    assert '| paddle' not in done.stderr
    found = read_weights(target)
    assert_same(found.arrays, expected)
    assert found.dropped == []
    if suffix == '.pdparams':
        assert_same(paddle.load(str(target), return_numpy=True), expected)
    again = convert('convert', source, target)
    assert again.returncode == 2
    assert f'engine.weights: {target} exists already; it was not overwritten\n' in again.stderr


@pytest.mark.parametrize(
    ('arguments', 'complaint'),
    [
        (['convert', '{folder}/nothing.pth', '{folder}/out.pdparams'], 'No such file'),
        (['convert', '{folder}/text.pth', '{folder}/out.pdparams'], 'damaged or not a pickle'),
        (['convert', '{folder}/text.pth', '{folder}/out.pth'], 'must end with .pdparams'),
        (['convert', '{folder}/text.pth', '{folder}/no/out.pdparams'], 'does not exist'),
        (['convert', '{folder}/complex', '{folder}/out.safetensors'], 'safetensors cannot hold'),
        (['convert', '{folder}/text.pth'], 'the following arguments are required: OUT'),
        ([], 'the following arguments are required: convert'),
    ],
)
def test_convert_refuses_wrong_arguments(tmp_path, arguments, complaint, monkeypatch, capsys):
    (tmp_path / 'text.pth').write_text('hello')
    write(tmp_path / 'complex', {'w': np.zeros(2, np.complex64)})
    given = [argument.format(folder=tmp_path) for argument in arguments]
    monkeypatch.setattr(sys, 'argv', ['engine.weights', *given])
    with pytest.raises(SystemExit, match='2'):
        cli.run(command.main)
    assert complaint in capsys.readouterr().err.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ['complex', 'text.pth']


def test_convert_help_lists_suffixes(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['engine.weights', 'convert', '--help'])
    with pytest.raises(SystemExit, match='0'):
        cli.run(command.main)
    assert '.pth' in capsys.readouterr().out


# ------------------------------------------------------------------ with PyTorch


@pytest.mark.torch
@pytest.mark.parametrize('parallel', [False, True])
def test_logits_equal_those_of_a_network_trained_with_pytorch(tmp_path, parallel):
    """The same logits from the file that torch.save wrote of the network itself."""
    torch = pytest.importorskip('torch')
    from benchmarks.torch_wide_resnet import WideResNet

    torch.manual_seed(0)
    theirs = WideResNet(depth=16, widen_factor=1, num_classes=3, dropout=0.0)
    with torch.no_grad():
        for _ in range(3):
            theirs(torch.randn(8, 3, 32, 32))  # moves the statistics
    theirs.eval()
    wrapped = torch.nn.DataParallel(theirs) if parallel else theirs
    path = tmp_path / 'checkpoint.pth.tar'
    torch.save({'epoch': 1, 'state_dict': wrapped.state_dict()}, path)
    model = network(seed=2)
    load_weights(model, path)
    images = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(images)).numpy()
    np.testing.assert_allclose(logits(model, 'float32'), expected, atol=1e-4)
