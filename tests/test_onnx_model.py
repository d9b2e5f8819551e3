"""model.onnx: the network, named as its users expect, or one line that says why there is none."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from exporting import HAS_CONVERTER, QUICKSTART, a_file, image_of

from engine import models
from engine.errors import UserError
from engine.export import onnx_model, static_model, verification

pytestmark = pytest.mark.skipif(not HAS_CONVERTER, reason='paddle2onnx has no wheels')
NAME = 'wide_resnet10_1'


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """A network, and the folder of its graph with model.onnx."""
    folder = tmp_path_factory.mktemp('onnx')
    model = models.build(NAME, num_classes=3)
    static_model.save(model, folder, image_of(8))
    onnx_model.write(static_model.graph_file(folder), name=NAME)
    return model, folder


@pytest.fixture
def copied(written, tmp_path):
    """A copy of both that a test may change."""
    model, folder = written
    return model, Path(shutil.copytree(folder, tmp_path / 'copy'))


def verify(model, folder: Path) -> list[str]:
    return verification.verify(model, folder, image_of(8))


def test_it_has_the_names_that_its_users_expect(written):
    import onnx

    model = onnx.load(written[1] / 'model.onnx')
    onnx.checker.check_model(model, full_check=True)
    dims = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert dims == {'image': ['batch', 3, 8, 8], 'logits': ['batch', 3]}
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [('', 17)]
    assert model.graph.name == NAME
    assert f'\n## {model.producer_version}' in (REPOSITORY / 'CHANGELOG.md').read_text('utf-8')


def test_onnxruntime_reads_it_without_a_warning(written, capfd):
    onnx_model.load(written[1] / 'model.onnx')
    assert capfd.readouterr() == ('', '')


def test_it_is_compared_with_the_network(copied):
    import onnx

    model, folder = copied
    line = verify(model, folder)[-1]
    assert line.startswith('model.onnx through onnxruntime ')
    changed = onnx.load(folder / 'model.onnx')
    weights = max(
        (a.t for node in changed.graph.node for a in node.attribute if a.HasField('t')),
        key=lambda tensor: tensor.ByteSize(),
    )
    weights.raw_data = bytes(len(weights.raw_data))
    onnx.save(changed, folder / 'model.onnx')
    with pytest.raises(UserError, match=r'model\.onnx through onnxruntime .* is another network'):
        verify(model, folder)


def test_a_truncated_model_is_refused(copied):
    model, folder = copied
    os.truncate(folder / 'model.onnx', 20_000)
    with pytest.raises(UserError, match='cannot be read back') as error:
        verify(model, folder)
    assert '\n' not in str(error.value)


def test_without_onnxruntime_a_warning_says_that_nothing_was_compared(written, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    *others, last = verify(*written)
    assert last.startswith('warning: model.onnx was not run: onnxruntime is missing')
    assert len(others) == 3


def test_a_graph_that_cannot_be_converted_is_refused_in_one_line(copied, capfd):
    _, folder = copied
    (folder / 'model.onnx').unlink()
    os.truncate(folder / 'inference.pdiparams', 1000)
    with pytest.raises(UserError, match=r'gave no sound model \(.*(conv|Nodes).*\)') as error:
        onnx_model.write(static_model.graph_file(folder), name=NAME)
    assert '\n' not in str(error.value)
    assert not (folder / 'model.onnx').exists()
    assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize(
    ('script', 'reason'), [('kill -SEGV $$', 'exit code -11'), ('echo rubbish', '')]
)
def test_a_converter_that_crashes_or_prints_rubbish_is_refused(
    written, tmp_path, monkeypatch, script, reason
):
    program = tmp_path / 'python'
    program.write_text(f'#!/bin/sh\n{script}\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, 'executable', str(program))
    with pytest.raises(UserError, match='gave no sound model') as error:
        onnx_model.write(static_model.graph_file(written[1]), name=NAME)
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ('paddle', 'installed', 'expected'),
    [
        (3, {'paddle2onnx': '2.1.0', 'onnx': '1.17.0'}, None),
        (2, {'paddle2onnx': '1.3.1', 'onnx': '1.17.0'}, None),
        (3, {'onnx': '1.17.0'}, r'paddle2onnx, which is not .* pip install "paddle2onnx>=2,<3"'),
        (2, {'onnx': '1.17.0'}, r'paddle2onnx, which is not .* pip install "paddle2onnx>=1,<2"'),
        (3, {'paddle2onnx': '2.1.0'}, r'needs onnx, which is not .* "onnx>=1.16.1,<1.18"'),
        (
            2,
            {'paddle2onnx': '2.1.0', 'onnx': '1.17.0'},
            r'2\.1\.0 does not suit Paddle 2: .*>=1,<2"',
        ),
        (
            3,
            {'paddle2onnx': '1.3.1', 'onnx': '1.17.0'},
            r'1\.3\.1 does not suit Paddle 3: .*>=2,<3"',
        ),
    ],
)
def test_the_converter_must_suit_paddle(monkeypatch, paddle, installed, expected):
    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, 'version', version)
    if expected is None:
        onnx_model.require_converter(paddle)
        return
    with pytest.raises(UserError, match=expected):
        onnx_model.require_converter(paddle)


def test_a_full_disk_gives_one_line_and_leaves_nothing(tmp_path):
    """RLIMIT_FSIZE stands for the disk: of all files, model.onnx alone is larger."""
    a_file(tmp_path / 'weights.pdparams', NAME, classes=10)
    code = (
        'import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); '
        'resource.setrlimit(resource.RLIMIT_FSIZE, (314_500, 314_500)); '
        'script = sys.argv[1]; sys.argv = sys.argv[1:]; '
        f'sys.path.insert(0, {str(REPOSITORY)!r}); runpy.run_path(script, run_name="__main__")'
    )
    arguments = ['-c', str(QUICKSTART), '-w', 'weights.pdparams', '--output', 'out', '--onnx']
    result = subprocess.run(
        [sys.executable, '-c', code, str(REPOSITORY / 'export.py'), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.count('\n') == 1
    assert 'File too large' in result.stderr
    assert 'through' not in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ['weights.pdparams']
