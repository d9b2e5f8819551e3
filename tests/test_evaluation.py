"""Several views of an image, and images that are left out, against averages made by hand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import paddle
import pytest
from paddle import nn

from engine.data import ArrayBatches, Images
from engine.data.batches import Batch, Batches, BatchOptions
from engine.evaluation import evaluate

CLASSES = 7


class Table(nn.Layer):
    """Logits that are looked up by the value of the upper left pixel."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        logits = np.random.default_rng(5).normal(scale=2, size=(rows, CLASSES))
        self.logits = logits.astype(np.float32)
        self.table = paddle.to_tensor(self.logits)
        self.asked: list[int] = []
        self.sizes: list[int] = []

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        assert not self.training
        rows = x[:, 0, 0, 0].round().astype('int64')
        self.asked += rows.numpy().tolist()
        self.sizes.append(len(rows))
        return self.table[rows]

    def probabilities(self, rows: np.ndarray) -> np.ndarray:
        """float64 [..., CLASSES]."""
        e = np.exp(self.logits.astype(np.float64)[rows])
        return e / e.sum(-1, keepdims=True)


class Views(Batches):
    """Batches whose image `row` has some views; view v of it has the number row * views + v in its
    upper left corner, and that number plus 100 in the upper right one.

    Rows in `bad` are left out, as pictures that cannot be read are.
    """

    def __init__(
        self, count: int, *, views: int, batch_size: int, bad: tuple[int, ...] = ()
    ) -> None:
        labels = np.random.default_rng(count).integers(0, CLASSES, count)
        images = Images(np.zeros((count, 3, 4, 4), np.uint8), labels)
        super().__init__(images, BatchOptions(batch_size, np.zeros(3), np.ones(3)))
        self.views, self.bad = views, bad

    def __iter__(self) -> Iterator[Batch]:
        for rows, _ in self.remaining():
            rows = np.array([row for row in rows if row not in self.bad], dtype=np.int64)
            numbers = (rows[:, None] * self.views + np.arange(self.views)).ravel()
            images = np.zeros((len(numbers), 3, 4, 4), np.float32)
            images[:, :, 0, 0] = numbers[:, None]
            images[:, :, 0, -1] = numbers[:, None] + 100
            yield Batch(images, self.images.labels[rows], rows)


def assert_judged(result, p, labels):
    """The evaluation is that of these probabilities [N, C]."""
    of_label = p[np.arange(len(labels)), labels]
    rank = (p > of_label[:, None]).sum(1)
    np.testing.assert_array_equal(result.labels, labels)
    np.testing.assert_array_equal(result.predictions, p.argmax(1))
    np.testing.assert_array_equal(result.in_top5, rank < 5)
    np.testing.assert_allclose(result.losses, -np.log(of_label), atol=1e-5)
    np.testing.assert_allclose(result.probabilities, p.max(1), atol=1e-6)
    assert result.top1 == pytest.approx((rank == 0).mean())
    assert result.loss == pytest.approx(-np.log(of_label).mean(), abs=1e-5)


@pytest.mark.parametrize('views', [1, 2, 5])
@pytest.mark.parametrize(('count', 'batch_size'), [(1, 1), (13, 5), (13, 13), (12, 100)])
def test_probabilities_of_an_images_views_are_averaged(views, count, batch_size):
    batches = Views(count, views=views, batch_size=batch_size)
    model = Table(100)
    result = evaluate(model, batches)
    assert sorted(model.asked) == list(range(count * views))  # each view once
    numbers = np.arange(count * views).reshape(count, views)
    assert_judged(result, model.probabilities(numbers).mean(1), batches.images.labels)
    np.testing.assert_array_equal(result.rows, np.arange(count))


@pytest.mark.parametrize('views', [1, 5])
def test_mirror_images_are_averaged_too(views):
    batches = Views(13, views=views, batch_size=5)
    model = Table(200)
    result = evaluate(model, batches, mirror=True)
    numbers = np.arange(13 * views).reshape(13, views)
    both = np.concatenate([numbers, numbers + 100], axis=1)
    assert sorted(model.asked) == sorted(both.ravel().tolist())
    assert_judged(result, model.probabilities(both).mean(1), batches.images.labels)
    alone = evaluate(Table(200), batches)
    assert np.abs(alone.losses - result.losses).max() > 0.1


def test_mirroring_a_set_in_memory():
    """The mirror image, not the image upside down."""
    pixels = np.random.default_rng(0).integers(0, 90, (9, 3, 4, 6), np.uint8)
    images = Images(pixels, np.arange(9) % CLASSES)
    batches = ArrayBatches(images, BatchOptions(4, np.zeros(3), np.ones(3)))
    model = Table(100)
    result = evaluate(model, batches, mirror=True)
    corners = pixels[:, 0, 0, [0, -1]]
    assert_judged(result, model.probabilities(corners).mean(1), images.labels)


@pytest.mark.parametrize('mirror', [False, True])
def test_the_loss_of_a_confident_mistake_is_not_limited(mirror):
    """Neither where a probability is 0 in float32, nor at 64, Paddle's own limit on a CPU."""
    batches = Views(13, views=2, batch_size=5)
    model = Table(200)
    model.logits *= 1000
    model.table = paddle.to_tensor(model.logits)
    result = evaluate(model, batches, mirror=mirror)
    numbers = np.arange(26).reshape(13, 2)
    numbers = np.concatenate([numbers, numbers + 100], axis=1) if mirror else numbers
    log_p = model.logits.astype(np.float64)[numbers]
    log_p -= log_p.max(-1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
    average = np.logaddexp.reduce(log_p, axis=1) - np.log(numbers.shape[1])
    expected = -average[np.arange(13), batches.images.labels]
    assert expected.max() > 500
    np.testing.assert_allclose(result.losses, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(result.predictions, average.argmax(1))


# ------------------------------------------------------------------ images that are left out


@pytest.mark.parametrize('views', [1, 5])
@pytest.mark.parametrize('bad', [(0,), (12,), (4, 5, 6, 11), (5, 6, 7, 8, 9)])
def test_unreadable_images_count_in_no_figure(bad, views):
    batches = Views(13, views=views, batch_size=5, bad=bad)
    model = Table(100)
    result = evaluate(model, batches)
    left = np.setdiff1d(np.arange(13), bad)
    np.testing.assert_array_equal(result.rows, left)
    numbers = left[:, None] * views + np.arange(views)
    assert_judged(result, model.probabilities(numbers).mean(1), batches.images.labels[left])
    assert f' total:{13 - len(bad)} ' in result.summary
    assert min(model.sizes) > 0, 'the network was given an empty batch'


def test_the_callback_runs_after_every_batch_even_an_empty_one():
    """There the processes agree whether to stop, so that none may skip it."""
    calls = []
    evaluate(
        Table(100),
        Views(13, views=1, batch_size=5, bad=(5, 6, 7, 8, 9)),
        after_batch=lambda: calls.append(1),
    )
    assert len(calls) == 3
