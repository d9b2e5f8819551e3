"""MindSpore's checkpoints, from files that it wrote itself (data/make_mindspore_files.py)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from engine.errors import UserError
from engine.models import build
from engine.weights import read_weights
from engine.weights.formats import mindspore as mindspore_file

DATA = Path(__file__).resolve().parent / 'data'
_spec = importlib.util.spec_from_file_location('made', DATA / 'make_mindspore_files.py')
assert _spec is not None
made = importlib.util.module_from_spec(_spec)
assert _spec.loader is not None
_spec.loader.exec_module(made)

OURS = {
    'conv1.weight': 'backbone.conv.weight',
    'bn1._mean': 'backbone.bn.moving_mean',
    'bn1._variance': 'backbone.bn.moving_variance',
    'bn1.weight': 'backbone.bn.gamma',
    'bn1.bias': 'backbone.bn.beta',
    'layer1.0.conv2.weight': 'backbone.layer1.0.conv2.weight',
    'layer1.0.bn2._mean': 'backbone.layer1.0.bn2.moving_mean',
    'layer1.0.downsample.0.weight': 'backbone.layer1.0.down_sample.conv.weight',
    'layer1.0.downsample.1.weight': 'backbone.layer1.0.down_sample.bn.gamma',
    'fc.weight': 'head.fc.weight',
    'fc.bias': 'head.fc.bias',
}


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_weights(path)
    text = str(error.value)
    assert '\n' not in text
    assert str(path) in text
    return text


# ------------------------------------------------------------------ files of its own


@pytest.mark.parametrize('name', ['training.ckpt', 'ascend.ckpt', 'plain.safetensors'])
def test_resnext_of_the_model_zoo_is_read(name):
    found = read_weights(DATA / f'mindspore_{name}')
    assert sorted(found.arrays) == sorted(OURS)
    for ours, theirs in OURS.items():
        expected = made.ENTRIES[theirs]
        np.testing.assert_array_equal(
            found.arrays[ours], expected.T if ours == 'fc.weight' else expected, err_msg=ours
        )
    text = '\n'.join(found.lines())
    assert text.startswith("MindSpore's names, without backbone.\n11 arrays")
    assert 'pad_mode same' in text
    if name == 'training.ckpt':
        assert 'dropped, of its training: moments.backbone.conv.weight' in text
        assert 'dropped, not arrays: run' in text  # a text beside the arrays


def test_all_types_are_read():
    with (DATA / 'mindspore_types.ckpt').open('rb') as file:
        found = mindspore_file.read(file)
    for kind in made.TYPES:
        np.testing.assert_array_equal(found[kind], np.arange(4).astype(kind.replace('bf', 'f')))
        assert found[kind].dtype == ('float32' if kind == 'bfloat16' else kind.rstrip('_'))


def test_tensor_in_several_entries_is_joined():
    path = DATA / 'mindspore_split.ckpt'
    assert path.read_bytes().count(b'large.moving_mean') == 3
    with path.open('rb') as file:
        found = mindspore_file.read(file)
    np.testing.assert_array_equal(found['large.moving_mean'], made.LARGE)
    np.testing.assert_array_equal(found['head.fc.bias'], made.ENTRIES['head.fc.bias'])
    assert found['complex'] == 'Complex64'


# ------------------------------------------------------------------ damage


@pytest.mark.parametrize('name', ['training', 'ascend', 'split'])
def test_damaged_file_is_refused_in_one_line(tmp_path, name):
    content = (DATA / f'mindspore_{name}.ckpt').read_bytes()
    path = tmp_path / 'damaged.ckpt'
    rng, complaints = np.random.default_rng(0), []
    for place in rng.integers(0, len(content), 80):
        changed = bytearray(content)
        changed[place] ^= 1 << rng.integers(8)
        for damaged in (content[:place], bytes(changed)):
            path.write_bytes(damaged)
            try:
                read_weights(path)
            except UserError as error:  # nothing else is raised
                complaints.append(str(error))
    assert len(complaints) > 80
    assert all(str(path) in text and '\n' not in text for text in complaints)


def test_checksum_is_verified(tmp_path):
    content = bytearray((DATA / 'mindspore_ascend.ckpt').read_bytes())
    content[content.index(b'Float32', content.index(b'head.fc.bias')) + 9] ^= 1  # in its numbers
    path = tmp_path / 'changed.ckpt'
    path.write_bytes(content)
    assert 'its checksum does not match' in refused(path)


@pytest.mark.parametrize(
    ('names', 'says'),
    [
        (['conv.weight', 'conv1.weight'], 'two arrays for conv1.weight'),
        (['layer1.0.conv2.convs.1.weight'], 'lacks an array for each group of layer1.0.conv2.w'),
        (['a.conv2.convs.0.weight', 'a.conv2.weight'], 'lacks an array for each group of a.conv2'),
        (['a.conv2.convs.0.weight', 'a.conv2.convs.1.weight'], 'damaged: '),
    ],
)
def test_inconsistent_names_and_groups_are_refused(tmp_path, names, says):
    path = tmp_path / 'odd.safetensors'
    arrays = {name: np.zeros((2, 2 + i, 1, 1), np.float32) for i, name in enumerate(names)}
    save_file({**arrays, 'bn1.moving_mean': np.zeros(2, np.float32)}, path)
    assert says in refused(path)


# ------------------------------------------------------------------ its other networks


def of_mindspore(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The names of its zoo's resnext152_64x4d, and of the groups on an Ascend."""
    of_norms = {'weight': 'gamma', 'bias': 'beta'}
    of_norms.update({'_mean': 'moving_mean', '_variance': 'moving_variance'})
    renamed = {}
    for name, array in arrays.items():
        module, _, entry = name.rpartition('.')
        if module == 'fc':
            renamed[f'head.{name}'] = np.ascontiguousarray(array.T)
            continue
        norm = 'bn' in module or module.endswith('downsample.1')
        entry = of_norms[entry] if norm else entry
        module = {'conv1': 'conv', 'bn1': 'bn'}.get(module, module)
        module = module.replace('downsample.0', 'down_sample.conv')
        module = module.replace('downsample.1', 'down_sample.bn')
        parts = np.split(array, 4) if module.endswith('conv2') else [array]
        for i, part in enumerate(parts):
            inner = f'convs.{i}.' if len(parts) > 1 else ''
            renamed[f'backbone.{module}.{inner}{entry}'] = part
    return renamed


def test_all_names_of_a_network_are_converted(tmp_path):
    model = build('resnext11_4x2d', num_classes=5)
    expected = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    path = tmp_path / 'whole.safetensors'
    save_file(of_mindspore(expected), path)
    found = read_weights(path).arrays
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_names_of_mindcv_are_converted(tmp_path):
    path = tmp_path / 'mindcv.safetensors'
    names = [
        *('conv1.weight', 'bn1.moving_mean', 'layer1.0.down_sample.0.weight'),
        *('layer1.0.down_sample.1.gamma', 'moments.conv1.weight', 'global_step'),
    ]
    save_file({**dict.fromkeys(names, np.zeros(2)), 'classifier.weight': np.zeros((3, 2))}, path)
    assert sorted(read_weights(path).arrays) == [
        *('bn1._mean', 'conv1.weight', 'fc.weight', 'layer1.0.downsample.0.weight'),
        'layer1.0.downsample.1.weight',
    ]


def test_wide_resnets_of_mindspore_are_refused(tmp_path):
    path = tmp_path / 'wide.safetensors'
    conv, vector = np.zeros((160, 16, 3, 3), np.float32), np.zeros(16, np.float32)
    blocks = {f'conv2.{i}.conv1.weight': conv for i in range(6)}
    save_file({**blocks, 'conv1.weight': conv, 'bn1.gamma': vector, 'bn.moving_mean': vector}, path)
    text = refused(path)
    assert "MindSpore's WRN-40-10" in text
    assert 'batch norm after its first convolution' in text
    blocks = {f'layer3.{i}.conv2.weight': conv for i in range(3)}
    stem = {'conv1.weight': conv, 'bn1.moving_mean': vector, 'layer1.0.shortcut.0.weight': conv}
    save_file({**blocks, **stem}, path)
    text = refused(path)
    assert "MindSpore's WRN-50-2 for RP2K" in text
    assert 'third stage has 3 blocks (here: 6)' in text
