"""hubconf.py: paddle.hub lists, describes and loads the networks from a copy of the repository."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import paddle
import pytest
from conftest import REPOSITORY
from exporting import a_file, noise

from engine.models import MODELS

HUB = {'repo_dir': str(REPOSITORY), 'source': 'local'}
NAME = 'wide_resnet10_1'


def test_the_networks_of_the_papers_are_listed_and_nothing_else():
    assert sorted(paddle.hub.list(**HUB)) == sorted(MODELS)


@pytest.mark.parametrize('name', [*MODELS, NAME])
def test_help_names_the_network_and_its_options(name):
    text = paddle.hub.help(model=name, **HUB)
    assert text.startswith(name)
    for option in ('num_classes', 'pretrained', 'dropout'):
        assert option in text


def test_a_network_has_the_weights_of_the_file(tmp_path):
    expected = a_file(tmp_path / 'weights.pdparams', NAME, classes=7)
    file = str(tmp_path / 'weights.pdparams')
    model = paddle.hub.load(model=NAME, num_classes=7, pretrained=file, **HUB)
    model.eval()
    images = paddle.to_tensor(noise(2, 8))
    np.testing.assert_array_equal(model(images).numpy(), expected(images).numpy())


@pytest.mark.parametrize(('name', 'classes'), [(NAME, 10), ('resnext50_1x4d', 1000)])
def test_the_default_is_the_number_of_classes_of_the_papers(name, classes):
    assert paddle.hub.load(model=name, **HUB).fc.weight.shape[1] == classes


def test_pretrained_true_takes_the_official_weights_of_that_name(monkeypatch):
    named = []
    monkeypatch.setattr('engine.weights.load_weights', lambda model, path: named.append(path))
    paddle.hub.load(model='resnext50_32x4d', pretrained=True, **HUB)
    assert named == ['resnext50_32x4d']


@pytest.mark.parametrize('name', ['wide_resnet28_0', 'resnet50', 'network'])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(RuntimeError, match=f'Cannot find callable {name}'):
        paddle.hub.load(model=name, **HUB)


def test_a_program_elsewhere_loads_a_network(tmp_path):
    """paddle.hub takes the repository's folder off sys.path before it builds the network."""
    a_file(tmp_path / 'weights.pdparams', NAME, classes=7)
    code = (
        'import paddle\n'
        f'model = paddle.hub.load({str(REPOSITORY)!r}, {NAME!r}, source="local", num_classes=7,'
        ' pretrained="weights.pdparams")\n'
        'print(model(paddle.zeros([2, 3, 32, 32])).numpy().shape)\n'
        f'paddle.hub.load({str(REPOSITORY)!r}, "wide_resnet50_1", source="local")'
    )
    result = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == '(2, 7)\n'
