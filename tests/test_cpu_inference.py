"""Evaluation on a CPU through Paddle Inference with oneDNN: the logits are the same."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from engine import models
from engine.config import load_config
from engine.data import preparation
from engine.export import cpu_inference, static_model
from engine.export.exported_folder import graph_input


@pytest.fixture(scope='module')
def image():
    return graph_input(preparation(load_config('configs/quickstart.yaml')))


@pytest.fixture(scope='module')
def model():
    paddle.seed(3)
    model = models.build('wide_resnet10_1', num_classes=10)
    for name, tensor in model.state_dict().items():
        if name.endswith('_mean'):  # else a batch norm in evaluation would be nearly the identity
            tensor.set_value(0.1 * paddle.randn(tensor.shape))
    return model


needs_onednn = pytest.mark.skipif(not static_model.has_onednn(), reason='this Paddle has none')


@needs_onednn
def test_logits_are_those_of_dygraph_for_any_batch(model, image):
    layer, computed_by = cpu_inference.compiled(model, image)
    assert computed_by == 'Paddle Inference with oneDNN'
    assert layer is not model
    model.eval()
    for count in (1, 5, 2):
        images = paddle.randn([count, 3, image.size, image.size])
        np.testing.assert_allclose(layer(images).numpy(), model(images).numpy(), atol=1e-4)


@needs_onednn
def test_the_compiled_layer_has_weights_of_its_own(model, image):
    layer, _ = cpu_inference.compiled(model, image)
    images = paddle.randn([2, 3, image.size, image.size])
    before, kept = layer(images).numpy(), model.fc.bias.numpy()
    model.fc.bias.set_value(model.fc.bias + 1)
    np.testing.assert_array_equal(layer(images).numpy(), before)
    model.fc.bias.set_value(kept)


@needs_onednn
@pytest.mark.parametrize(
    ('wrong', 'reason'),
    [
        (lambda images: 1 / 0, 'oneDNN fails: division by zero'),
        (lambda images: np.zeros((len(images), 10), np.float32), 'logits differ by at most'),
        (lambda images: np.full((len(images), 10), np.nan, np.float32), 'logits differ by at most'),
    ],
)
def test_dygraph_computes_where_onednn_fails_or_differs(model, image, monkeypatch, wrong, reason):
    monkeypatch.setattr(static_model, 'by_inference', lambda folder, onednn: wrong)
    layer, computed_by = cpu_inference.compiled(model, image)
    assert layer is model
    assert computed_by.startswith("Paddle's own kernels (")
    assert reason in computed_by


def test_dygraph_computes_where_paddle_has_no_onednn(model, image, monkeypatch):
    monkeypatch.setattr(static_model, 'has_onednn', lambda: False)
    layer, computed_by = cpu_inference.compiled(model, image)
    assert layer is model
    assert computed_by == "Paddle's own kernels (this Paddle has no oneDNN)"
