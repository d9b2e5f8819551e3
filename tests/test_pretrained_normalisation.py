"""Weights that were trained with another mean and std than the data set's own set them."""

from __future__ import annotations

import importlib
import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import REPOSITORY

from engine import data
from engine.config import load_config
from engine.run.chosen_weights import initial_weights
from engine.weights import read_weights
from engine.weights.__main__ import convert

CONTRIB = (51.5865, 50.847, 51.255)  # 0.2023, 0.1994 and 0.2010 of 255
KEYS = "'data.mean=[125.307,122.961,113.8575]' 'data.std=[51.5865,50.847,51.255]'"
PAPER = ('-c', str(REPOSITORY / 'configs' / 'wrn28_10_cifar10_paper.yaml'))


@pytest.fixture
def contrib(tmp_path):
    """A file like Paddle Contrib's: its names, and a bias in each convolution."""
    blocks = [f'block{block}.layer.0.' for block in (1, 2, 3)]
    arrays = {}
    for layer in ('conv1', *(f'{block}conv{i}' for block in blocks for i in (1, 2))):
        arrays[f'{layer}.weight'] = np.zeros((16, 16, 3, 3), np.float32)
        arrays[f'{layer}.bias'] = np.zeros(16, np.float32)
    for norm in ('bn1', *(f'{block}bn{i}' for block in blocks for i in (1, 2))):
        arrays[f'{norm}._mean'] = np.zeros(16, np.float32)
    path = tmp_path / 'contrib.pdparams'
    path.write_bytes(pickle.dumps(arrays))
    return path


class Stop(Exception):
    """Ends the command at this point."""


def config_of(command, monkeypatch, *arguments):
    """The config of a command after it has read the weights."""
    module = importlib.import_module(command)

    def stop(config, *_, **__):
        raise Stop(config)

    monkeypatch.setattr(sys, 'argv', [command, *arguments])
    if command == 'train':
        monkeypatch.setattr(data, 'load_data', stop)
    else:
        monkeypatch.setattr(module, 'evaluate' if command == 'eval' else 'export', stop)
    with pytest.raises(Stop) as stopped:
        module.main()
    return stopped.value.args[0]


@pytest.mark.parametrize('command', ['train', 'eval', 'export'])
def test_weights_of_contrib_set_mean_and_std(contrib, command, monkeypatch, tmp_path, capsys):
    place = (f'model.pretrained={contrib}',) if command == 'train' else ()
    weights = () if command == 'train' else ('-w', str(contrib))
    output = ('-o', f'output.dir={tmp_path / "run"}', 'device=cpu', *place)
    config = config_of(command, monkeypatch, *PAPER, *weights, *output)
    assert config.data.std == CONTRIB
    assert f'{KEYS}, as these weights were trained' in capsys.readouterr().out
    given = (*output, 'data.mean=[120,120,120]', 'data.std=[60,60,60]')
    assert config_of(command, monkeypatch, *PAPER, *weights, *given).data.std == (60.0,) * 3
    assert 'as these weights were trained' not in capsys.readouterr().out
    other = (*output, 'data.name=cifar100')
    assert config_of(command, monkeypatch, *PAPER, *weights, *other).data.std is None


def test_convert_reports_mean_and_std(contrib, tmp_path, capsys):
    convert(contrib, tmp_path / 'ours.pdparams')
    assert f'trained on cifar10 with {KEYS}; OUT does not say so' in capsys.readouterr().out
    assert read_weights(tmp_path / 'ours.pdparams').normalisation is None


def test_resumed_run_keeps_mean_and_std():
    """Also where the file is gone, and the config, which is read anew, does not name them."""
    config = load_config(PAPER[1], ['model.pretrained=gone.pdparams'])
    before = {'data': {'mean': [1.0, 2.0, 3.0], 'std': list(CONTRIB)}}
    snapshot = SimpleNamespace(state={'config': before})
    resumed, content = initial_weights(config, snapshot, print)
    assert resumed.data.std == CONTRIB
    assert content is None
