"""The report of an evaluation, and the figures of a run: tables, files, pictures."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine import plots
from engine.config import Config, Data
from engine.data import Images, load_data, train_batches
from engine.data.augmentation import Augmentation, normalise
from engine.data.batches import ArrayBatches, Batch, BatchOptions
from engine.evaluation import Evaluation, report
from engine.run.folder import RunFolder
from engine.run.log import Log

MEAN, STD = np.array([125.3, 123.0, 113.9]), np.array([63.0, 62.1, 66.7])


def evaluation(labels, predictions, *, losses=None, rows=None):
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    count = len(labels)
    return Evaluation(
        rows=np.arange(count) if rows is None else np.asarray(rows),
        labels=labels,
        predictions=predictions,
        in_top5=np.ones(count, bool),
        losses=np.ones(count) if losses is None else np.asarray(losses, float),
        probabilities=np.full(count, 0.5),
        seconds=2.0,
    )


def lines_of(matrix, names):
    """The table's lines without its head, each as its words."""
    head, *lines = report.class_table(np.asarray(matrix), names).splitlines()
    assert head.split()[:4] == ['class', 'images', 'correct', 'accuracy']
    return lines


# ------------------------------------------------------------------ the table of classes


def test_each_class_has_a_line_with_its_most_frequent_mistake():
    lines = lines_of([[8, 2, 0], [1, 0, 3], [0, 0, 0]], ['cat', 'dog', 'a long name'])
    assert [line.split() for line in lines] == [
        ['cat', '10', '8', '80.00', '%', 'dog', '(2)'],
        ['dog', '4', '0', '0.00', '%', 'a', 'long', 'name', '(3)'],
        ['a', 'long', 'name', '0', '0', '-', '-'],
    ]
    assert len({line.index('0 ') for line in lines[1:2]}) == 1
    assert lines[0].startswith('cat          ')  # as wide as the longest name


def of_accuracies(correct, images=100):
    """A confusion matrix with these numbers of correct images; the others go to the next class."""
    count = len(correct)
    matrix = np.diag(correct)
    matrix[np.arange(count), (np.arange(count) + 1) % count] += images - np.asarray(correct)
    return matrix


def test_fifty_classes_are_all_shown_in_their_order():
    names = [f'c{i}' for i in range(50)]
    lines = lines_of(of_accuracies(np.arange(50)[::-1]), names)
    assert [line.split()[0] for line in lines] == names


@pytest.mark.parametrize('count', [51, 100, 2388])
def test_of_more_classes_the_fifty_worst_are_shown_worst_first(count):
    correct = np.random.default_rng(count).permutation(count) * 100 // count
    matrix = of_accuracies(correct)
    matrix[7] = 0  # a class without a test image is no bad one
    *lines, last = lines_of(matrix, [f'c{i}' for i in range(count)])
    shown = [int(line.split()[0][1:]) for line in lines]
    order = sorted((i for i in range(count) if i != 7), key=lambda i: (correct[i], i))
    assert shown == order[:50]
    assert [int(line.split()[2]) for line in lines] == correct[shown].tolist()
    assert last == f'(the 50 least accurate of {count:,} classes)'


def test_of_many_classes_those_without_a_test_image_are_not_shown():
    matrix = np.zeros((1000, 1000), int)
    matrix[[3, 500], [3, 3]] = 1
    *lines, last = lines_of(matrix, [f'c{i}' for i in range(1000)])
    assert [line.split()[0] for line in lines] == ['c500', 'c3']
    assert last == '(the 2 least accurate of 1,000 classes)'


# ------------------------------------------------------------------ the files


class Recorder:
    """An ImageSet that notes which rows it was asked for."""

    def __init__(self, images):
        self._images, self.asked = images, []

    @property
    def labels(self):
        return self._images.labels

    def __len__(self):
        return len(self._images)

    def pictures(self, rows):
        self.asked += rows.tolist()
        return self._images.pictures(rows)


def random_images(count):
    rng = np.random.default_rng(3)
    return Images(rng.integers(0, 256, (count, 3, 8, 8), np.uint8), rng.integers(0, 3, count))


def write(folder, result, classes=('cat', 'dog', 'fox'), images=None):
    images = images or Recorder(random_images(100))
    about = {'views': 'flip'}
    *_, last = report.write_report(
        folder, result, images, classes, title='run, epoch_0001', about=about
    )
    return last.partition(f'wrote {folder}/: ')[2].split(', '), images


def test_mistakes_are_shown_by_their_indices_in_the_set_worst_first(tmp_path):
    """Images that were left out have no row in the evaluation, so that row 1 is not image 1."""
    result = evaluation(
        [0, 1, 2, 0, 1], [0, 2, 0, 0, 0], losses=[9, 1, 5, 8, 7], rows=[3, 10, 20, 50, 90]
    )
    names, images = write(tmp_path, result)
    assert images.asked == [90, 20, 10]
    assert 'mistakes.png' in names


def test_no_more_than_forty_mistakes_are_shown(tmp_path):
    losses = np.random.default_rng(0).permutation(70)
    result = evaluation([0] * 70, [1] * 70, losses=losses)
    _, images = write(tmp_path, result)
    assert images.asked == np.argsort(-losses)[:40].tolist()


def test_a_network_that_makes_no_mistake_has_no_picture_of_them(tmp_path):
    names, images = write(tmp_path, evaluation([0, 1, 2], [0, 1, 2]))
    assert names == ['eval.json', 'confusion.csv', 'confusion.png']
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert images.asked == []


def test_figures_and_the_matrix_are_those_of_the_evaluation(tmp_path):
    write(tmp_path, evaluation([0, 0, 0, 1], [0, 1, 1, 1], losses=[1, 2, 3, 6]))
    content = json.loads((tmp_path / 'eval.json').read_text())
    assert {name: content[name] for name in ('correct', 'total', 'top1', 'top5', 'loss')} == {
        'correct': 2,
        'total': 4,
        'top1': 0.5,
        'top5': 1.0,
        'loss': 3.0,
    }
    assert content['views'] == 'flip'
    assert content['images_per_second'] == 2.0
    assert content['class_accuracy'] == pytest.approx({'cat': 1 / 3, 'dog': 1.0, 'fox': 0.0})
    with (tmp_path / 'confusion.csv').open(encoding='utf-8-sig') as file:
        head, *rows = csv.reader(file)
    assert head[1:] == ['cat', 'dog', 'fox']
    assert rows == [['cat', '1', '2', '0'], ['dog', '0', '1', '0'], ['fox', '0', '0', '0']]


def test_names_are_written_as_they_are_and_for_a_chinese_excel(tmp_path):
    write(tmp_path, evaluation([0, 1, 2], [0, 1, 2]), classes=('\u732b', '\u72d7', 'fox'))
    assert '"\u732b": 1.0' in (tmp_path / 'eval.json').read_text(encoding='utf-8')
    table = (tmp_path / 'confusion.csv').read_bytes()
    assert table.startswith(b'\xef\xbb\xbftrue')  # without this mark Excel takes it for GBK
    assert '\u732b'.encode() in table


# ------------------------------------------------------------------ pictures


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    figures = []
    monkeypatch.setattr(plots, '_save', lambda figure, path: figures.append(figure))
    return figures


def test_titles_of_mistakes_have_the_true_and_the_predicted_class(tmp_path, drawn):
    result = evaluation([0, 1], [1, 2], losses=[2, 1])
    write(tmp_path, result, classes=('3', '9', 'a name that is much longer than a picture is wide'))
    titles = [axes.get_title() for axes in drawn[-1].axes[:2]]
    assert titles == ['3, predicted 9 (50 %)', '9,\npredicted a name \u2026is wide (50 %)']


def test_the_confusion_names_what_was_measured_and_its_accuracy(drawn):
    plots.confusion(np.array([[3, 1], [0, 4]]), ['$a', 'b'], Path('x.png'), of='run, epoch_0008')
    assert drawn[0].get_suptitle().splitlines()[:2] == ['run, epoch_0008', 'accuracy 87.50 %']


def records(**changed):
    """Of 20 epochs; changed: {key: {epoch: value}}."""
    shrinking = [0.7**epoch for epoch in range(20)]
    result = [
        {
            'epoch': epoch,
            'lr': 0.1,
            'train_loss': 2.2 * rest + 0.1,
            'train_accuracy': 0.97 - 0.8 * rest,
            'eval_loss': 2.0 * rest + 0.3,
            'eval_accuracy': 0.95 - 0.6 * rest,
        }
        for epoch, rest in enumerate(shrinking)
    ]
    for key, values in changed.items():
        for epoch, value in values.items():
            result[epoch][key] = value
    return result


def test_curves_name_the_run_and_count_epochs_from_1(drawn):
    plots.curves(records(), Path('curves.png'), run=Path('output/quick_$start'))
    (figure,) = drawn
    assert figure.get_suptitle() == r'quick_\$start'
    loss, accuracy, _ = figure.axes
    for axes in (loss, accuracy):
        training, test = axes.lines
        assert training.get_linestyle() != test.get_linestyle()
        assert training.get_xdata()[0] == 1
        assert test.get_xdata()[-1] == 20
        top, bottom = max(axes.get_ylim()), min(axes.get_ylim())
        shown = [value for line in axes.lines for value in line.get_ydata()]
        assert bottom < min(shown)
        assert max(shown) < top
    assert accuracy.get_legend_handles_labels()[1] == ['training', 'test, final 94.93 %']
    assert loss.get_legend_handles_labels()[1] == ['training', 'test, final 0.3023']


@pytest.mark.parametrize('bad', [30.0, 2e7])
@pytest.mark.parametrize('key', ['eval_loss', 'train_loss'])
@pytest.mark.parametrize('epoch', [6, 19])
def test_one_bad_epoch_does_not_flatten_the_rest(drawn, bad, key, epoch):
    plots.curves(records(**{key: {epoch: bad}}), Path('x.png'), run=Path('x'))
    loss = drawn[0].axes[0]
    assert 2.3 < loss.get_ylim()[1] < 3.0
    assert f'up to {bad:.4g}' in loss.get_xlabel()


def test_one_bad_accuracy_among_good_ones(drawn):
    good = {key: {i: 0.95 + 0.001 * i for i in range(20)} for key in ('train_accuracy',)}
    good['eval_accuracy'] = {**good['train_accuracy'], 7: 0.1}
    plots.curves(records(**good), Path('x.png'), run=Path('x'))
    assert 90 < drawn[0].axes[1].get_ylim()[0] < 95
    assert 'down to 10' in drawn[0].axes[1].get_xlabel()


@pytest.mark.parametrize('count', [1, 2, 3, 4])
def test_curves_of_few_epochs_show_all(drawn, count):
    plots.curves(records()[:count], Path('x.png'), run=Path('x'))
    assert drawn[0].axes[0].get_ylim()[1] > 2.3
    assert drawn[0].axes[0].get_xlabel() == 'epoch'


@pytest.mark.parametrize('count', [300, 2388])
def test_the_confusion_matrix_of_many_classes_is_drawn_quickly_and_is_not_huge(tmp_path, count):
    """Names and numbers, of which there would be thousands, are left out."""
    rng = np.random.default_rng(0)
    matrix = np.diag(rng.integers(1, 50, count))
    names = [f'a rather long name of class {i}' for i in range(count)]
    before = time.process_time()
    plots.confusion(matrix, names, tmp_path / 'confusion.png', of='run')
    assert time.process_time() - before < 5
    with Image.open(tmp_path / 'confusion.png') as picture:
        assert max(picture.size) <= 1600
        dark = np.asarray(picture.convert('L')) < 200
    inside = dark[200:1300, 100:1500]
    assert inside.any(1).mean() > 0.99, 'the diagonal cannot be seen'
    assert (np.diff(inside.argmax(1)) >= 0).mean() > 0.99


@pytest.mark.parametrize('count', [1, 2, 20, 21, 120])
def test_the_confusion_of_few_classes(tmp_path, count):
    plots.confusion(
        np.eye(count, dtype=int), [f'c{i}' for i in range(count)], tmp_path / 'x.png', of='run'
    )
    with Image.open(tmp_path / 'x.png') as picture:
        assert min(picture.size) > 200


def test_unnormalised_pixels_equal_the_original_ones():
    """Every value that a pixel can have, in each channel, and through a real batch."""
    values = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, axis=1)
    for mean, std in ((MEAN, STD), (np.full(3, 127.5), np.full(3, 127.5)), (MEAN, STD / 50)):
        result = plots.unnormalise(normalise(values, mean, std), mean, std)
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(result, values)
    images = random_images(30)
    for batch in ArrayBatches(images, BatchOptions(8, MEAN, STD, shuffle=True)):
        shown = plots.unnormalise(batch.images, MEAN, STD)
        np.testing.assert_array_equal(shown, images.pixels[batch.rows])


def test_values_beyond_black_and_white_are_clipped():
    batch = np.array([-1e6, -3.0, 3.0, 1e6], np.float32).reshape(1, 1, 2, 2).repeat(3, axis=1)
    shown = plots.unnormalise(batch, MEAN, STD)
    assert shown[0, :, 0].tolist() == [[0, 0]] * 3
    assert shown[0, :, 1].tolist() == [[255, 255]] * 3


def flat_colours(count):
    """uint8 [N, 3, 8, 8]: one colour an image, no two alike and none that a letter has."""
    colours = np.array([[200, 5 * i, 255 - 5 * i] for i in range(count)], np.uint8)
    return colours, colours[:, :, None, None].repeat(8, axis=2).repeat(8, axis=3)


def colours_in(path):
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert('RGB')).reshape(-1, 3)
    found, counts = np.unique(pixels, axis=0, return_counts=True)
    return {tuple(colour) for colour in found[counts > 200].tolist()}


def test_the_picture_of_the_first_batch_shows_its_first_images(tmp_path):
    colours, pixels = flat_colours(40)
    batch = Batch(normalise(pixels, MEAN, STD), np.arange(40), np.arange(40))
    plots.first_batch(batch, MEAN, STD, [f'class {i}' for i in range(40)], tmp_path / 'x.png')
    shown = colours_in(tmp_path / 'x.png')
    assert {tuple(colour) for colour in colours[:32].tolist()} <= shown
    assert not {tuple(colour) for colour in colours[32:].tolist()} & shown


@pytest.mark.parametrize('count', [1, 3, 9])
def test_a_first_batch_of_few_images(tmp_path, count):
    colours, pixels = flat_colours(count)
    batch = Batch(normalise(pixels, MEAN, STD), np.zeros(count, int), np.arange(count))
    plots.first_batch(batch, MEAN, STD, ['only'], tmp_path / 'x.png')
    assert {tuple(colour) for colour in colours.tolist()} <= colours_in(tmp_path / 'x.png')


@pytest.mark.parametrize(
    ('partners', 'titles'),
    [
        (None, ['cat', 'dog', 'cat']),
        ([1, 1, 0], ['30 % cat\n70 % dog', '30 % dog\n70 % dog', '30 % cat\n70 % cat']),
    ],
)
def test_titles_of_the_first_batch_are_its_labels(tmp_path, monkeypatch, partners, titles):
    drawn = []
    monkeypatch.setattr(plots, 'picture_grid', lambda pixels, titles, path: drawn.append(titles))
    mixed = {} if partners is None else {'partners': np.array(partners), 'own_weight': 0.3}
    batch = Batch(np.zeros((3, 3, 8, 8), np.float32), np.array([0, 1, 0]), np.arange(3), **mixed)
    plots.first_batch(batch, MEAN, STD, ['cat', 'dog'], tmp_path / 'x.png')
    assert drawn == [titles]


def logged_first_batch(folder, config):
    """What the log of a run draws: the batches, and the picture's path."""
    data = load_data(config)
    batches = train_batches(data, config)
    run, log = RunFolder(folder), Log()
    run.open(config, data.classes)
    log.attach(run, step=0, epoch=0)
    log.first_batch(batches, data.classes)
    log.close()
    return batches, run.first_batch_file


def test_the_log_of_a_run_draws_the_batch_that_comes_first(tmp_path):
    """Augmented as the network gets it, and at every start the same."""
    strong = {'mixup': 0.4, 'random_erasing': 1.0, 'auto_augment': 'randaugment'}
    config = Config(
        seed=4, data=Data(name='synthetic', num_images=20, image_size=8, batch_size=6, **strong)
    )
    batches, drawn = logged_first_batch(tmp_path / 'run', config)
    first = next(iter(batches))
    assert first.partners is not None
    classes = [str(i) for i in range(10)]
    plots.first_batch(
        first, batches.options.mean, batches.options.std, classes, tmp_path / 'expected.png'
    )
    assert drawn.name == 'first_batch.png'
    assert drawn.read_bytes() == (tmp_path / 'expected.png').read_bytes()
    _, again = logged_first_batch(tmp_path / 'again', config)
    assert again.read_bytes() == drawn.read_bytes()
    plain = Config(seed=4, data=Data(name='synthetic', num_images=20, image_size=8, batch_size=6))
    _, other = logged_first_batch(tmp_path / 'plain', plain)
    assert other.read_bytes() != drawn.read_bytes()


def test_drawing_the_first_batch_does_not_change_the_training():
    augmentation = Augmentation(crop_padding=2, flip=True, random_erasing=0.5, mixup=0.4)
    batches, others = (
        ArrayBatches(
            random_images(20), BatchOptions(6, MEAN, STD, augmentation=augmentation, shuffle=True)
        )
        for _ in range(2)
    )
    next(iter(batches))
    for ours, theirs in zip(batches, others):
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.partners, theirs.partners)
