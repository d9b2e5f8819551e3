"""export.py --triton: a model repository that fits Triton's own schema and does what it says.

The command is run once, with all that it can write.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import execute
from exporting import HAS_CONVERTER, QUICKSTART, a_file, by_inference, description, image_of, raw

from engine.config import load_config
from engine.errors import UserError
from engine.export import triton, verification
from engine.export.exported_folder import new_folder
from engine.export.forms import Forms
from engine.run.chosen_weights import read_chosen
from export import export
from predictor.onnx_engines import import_onnxruntime

pytestmark = pytest.mark.skipif(not HAS_CONVERTER, reason='paddle2onnx has no wheels')
NAME = 'wide_resnet10_1'
TYPES = {'TYPE_FP32': np.float32, 'TYPE_UINT8': np.uint8}


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """The network, the folder in which the command was run, and its output."""
    root = tmp_path_factory.mktemp('served')
    network = a_file(root / 'weights.pdparams', NAME, classes=10)
    (root / 'models' / 'other' / '1').mkdir(parents=True)
    arguments = ('-c', str(QUICKSTART), '-w', 'weights.pdparams', '--output', 'out')
    forms = ('--uint8', '--format', 'pdmodel', '--triton', 'models')
    result = execute(root, 'export.py', *arguments, *forms)
    assert (result.returncode, result.stderr) == (0, '')
    return network, root, result.stdout


def config_of(folder):
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    text = (folder / 'config.pbtxt').read_text(encoding='utf-8')
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_both_folders_are_written_and_nothing_else_is_touched(exported):
    _, root, out = exported
    assert {path.name for path in root.iterdir()} == {'weights.pdparams', 'models', 'out'}
    assert {path.name for path in (root / 'models').iterdir()} == {'other', NAME}
    files = {str(p.relative_to(root / 'models' / NAME)) for p in (root / 'models').rglob('*.*')}
    assert files == {'1/model.onnx', 'config.pbtxt', 'labels.txt'}
    copy = (root / 'models' / NAME / '1' / 'model.onnx').read_bytes()
    assert copy == (root / 'out' / 'model.onnx').read_bytes()
    forms = [line for line in out.splitlines() if ' through ' in line]
    assert [form.partition(' through ')[0] for form in forms] == [
        *['inference.pdmodel'] * 3,
        'model.onnx',
    ]
    assert 'model.onnx' in description(root / 'out')['files']
    assert f'wrote models/{NAME}/: 1/model.onnx, config.pbtxt, labels.txt' in out


def test_the_graph_is_one_that_paddle_2_reads(exported):
    network, root, _ = exported
    assert not (root / 'out' / 'inference.json').exists()
    about, pixels = description(root / 'out')['input'], raw(3, 32)
    images = ((pixels - about['mean']) / about['std']).transpose(0, 3, 1, 2).astype(np.float32)
    expected = network(paddle.to_tensor(images)).numpy()
    np.testing.assert_allclose(by_inference(root / 'out', pixels), expected, atol=1e-5)


def test_the_config_has_what_triton_needs(exported):
    folder = exported[1] / 'models' / NAME
    config = config_of(folder)
    assert (config.name, config.platform, config.backend) == (
        NAME,
        'onnxruntime_onnx',
        'onnxruntime',
    )
    assert config.max_batch_size == 32
    assert max(config.dynamic_batching.preferred_batch_size) <= config.max_batch_size
    assert config.dynamic_batching.max_queue_delay_microseconds > 0
    (group,) = config.instance_group
    assert (group.count, group.Kind.Name(group.kind)) == (1, 'KIND_AUTO')
    assert [warmup.batch_size for warmup in config.model_warmup] == [1, 32]
    for warmup in config.model_warmup:
        sample = warmup.inputs['image']
        assert (sample.dims, sample.data_type) == (config.input[0].dims, config.input[0].data_type)
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == 'tensorrt'
    assert accelerator.parameters['precision_mode'] == 'FP32'
    assert accelerator.parameters['trt_engine_cache_enable'] == 'true'
    assert not config.optimization.execution_accelerators.cpu_execution_accelerator
    labels = (folder / config.output[0].label_filename).read_text().splitlines()
    assert len(labels) == config.output[0].dims[0]


@pytest.mark.parametrize('batch', [1, 5, 32])
def test_the_model_takes_and_gives_what_the_config_declares(exported, batch):
    onnxruntime = import_onnxruntime()
    from tritonclient.grpc import model_config_pb2

    folder = exported[1] / 'models' / NAME
    (image,), (logits,) = config_of(folder).input, config_of(folder).output
    kind = TYPES[model_config_pb2.DataType.Name(image.data_type)]
    session = onnxruntime.InferenceSession(
        str(folder / '1' / 'model.onnx'), providers=['CPUExecutionProvider']
    )
    (found,) = session.run([logits.name], {image.name: np.zeros([batch, *image.dims], kind)})
    assert found.shape == (batch, *logits.dims)
    assert found.dtype == TYPES[model_config_pb2.DataType.Name(logits.data_type)]


def test_other_weights_have_other_engines_and_a_label_is_a_line(tmp_path):
    paths = []
    for content in (b'one', b'two'):
        model, folder = tmp_path / 'model.onnx', tmp_path / content.decode()
        model.write_bytes(content)
        triton.write(folder, model, image_of(8), ['a\nb', 'Kätzchen'], name='net')
        config = config_of(folder)
        assert (config.input[0].dims, config.input[0].data_type) == ([3, 8, 8], 11)
        (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
        paths.append(accelerator.parameters['trt_engine_cache_path'])
        assert accelerator.parameters['trt_profile_min_shapes'] == 'image:1x3x8x8'
        assert accelerator.parameters['trt_profile_max_shapes'] == 'image:32x3x8x8'
        assert (folder / 'labels.txt').read_text(encoding='utf-8') == 'a b\nKätzchen\n'
    assert paths[0] != paths[1]


# ------------------------------------------------------------------ adding it to a repository


@pytest.fixture
def folder(tmp_path):
    """An exported folder, as far as Triton needs it."""
    with new_folder(tmp_path / 'out') as folder:
        (folder / 'model.onnx').write_bytes(b'model')
        yield folder


def add(target, folder):
    triton.add(target, folder, image_of(8), ['cat', 'dog'])


@pytest.fixture
def written_to(monkeypatch):
    """The folders that Triton's files are written to, before they are renamed."""
    folders, write = [], triton.write
    monkeypatch.setattr(
        triton, 'write', lambda folder, *a, **k: (write(folder, *a, **k), folders.append(folder))
    )
    return folders


def test_nothing_but_models_is_ever_in_a_model_repository(tmp_path, folder, written_to):
    add(tmp_path / 'models' / NAME, folder)
    assert written_to[0].parent == folder
    assert [path.name for path in (tmp_path / 'models').iterdir()] == [NAME]
    assert [path.name for path in folder.iterdir()] == ['model.onnx']


def test_a_repository_on_another_disk_gets_the_whole_folder(tmp_path, folder, written_to):
    other = next((disk for disk in ('/dev/shm', '/run/shm') if os.access(disk, os.W_OK)), None)
    if other is None or os.stat(other).st_dev == tmp_path.stat().st_dev:
        pytest.skip('there is one disk')
    with tempfile.TemporaryDirectory(dir=other) as models:
        left = Path(models) / f'.{NAME}.writing' / '1'  # by an export that was killed
        left.mkdir(parents=True)
        add(Path(models) / NAME, folder)
        assert written_to[0].parent == Path(models)
        assert [path.name for path in Path(models).iterdir()] == [NAME]
        assert (Path(models) / NAME / 'config.pbtxt').is_file()


def test_a_model_that_was_added_in_the_meantime_stays_and_nothing_is_exported(tmp_path):
    target = tmp_path / 'models' / NAME

    def export() -> None:
        with new_folder(tmp_path / 'out') as folder:
            (folder / 'model.onnx').write_bytes(b'model')
            target.mkdir(parents=True)
            (target / 'mine.txt').write_text('mine')
            add(target, folder)

    with pytest.raises(UserError, match='not empty'):
        export()
    assert sorted(tmp_path.rglob('*')) == [tmp_path / 'models', target, target / 'mine.txt']


def test_an_output_that_was_filled_in_the_meantime_leaves_no_model(tmp_path, monkeypatch):
    a_file(tmp_path / 'weights.pdparams', NAME, classes=10)
    output = tmp_path / 'out'

    def fill(*_: object) -> list[str]:
        output.mkdir()
        (output / 'mine.txt').write_text('mine')
        return []

    monkeypatch.setattr(verification, 'verify', fill)
    config = load_config(QUICKSTART, [f'model.name={NAME}'])
    weights, target = read_chosen(tmp_path / 'weights.pdparams'), tmp_path / 'models' / NAME
    with pytest.raises(UserError, match='not empty'):
        export(config, weights, output, Forms(onnx=True), triton_model=target)
    assert not (tmp_path / 'models').exists()
    assert [path.name for path in output.iterdir()] == ['mine.txt']


def test_an_error_leaves_no_new_repository(tmp_path, folder):
    (folder / 'model.onnx').unlink()
    with pytest.raises(FileNotFoundError):
        add(tmp_path / 'a' / 'models' / NAME, folder)
    assert not (tmp_path / 'a').exists()
    (folder / 'model.onnx').write_bytes(b'model')


def test_output_and_repository_may_share_a_folder(tmp_path):
    """It is locked during the export, and must not be locked twice."""
    with new_folder(tmp_path / 'out') as folder:
        (folder / 'model.onnx').write_bytes(b'model')
        add(tmp_path / NAME, folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out', NAME]
