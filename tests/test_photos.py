"""Batches from files; a hundred bad files, from load_data to --check; train.py on a folder under
signals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import paddle
import picture_files
import pytest
from conftest import REPOSITORY
from PIL import Image

from engine.config import Config, Data, Eval
from engine.data import file_checks, load_data, packing, photo_batches, test_batches, train_batches
from engine.data.augmentation import Augmentation
from engine.data.batches import Batch, BatchOptions
from engine.data.dataset import Files
from engine.data.file_checks import check_fully, check_quickly, parallel
from engine.data.photo_batches import PhotoBatches, Photos
from engine.data.pictures import EvalView, TrainView
from engine.errors import UserError
from engine.machine import devices

test_batches.__test__ = False  # it is no test, but is named like one

MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
WHOLE, DAMAGED = picture_files.whole_files(), picture_files.damaged_files()


def batches_of(files: Files, *, size: int = 16, train: bool = True, **options) -> PhotoBatches:
    known = {
        name: options.pop(name) for name in ('workers', 'skip_bad', 'report') if name in options
    }
    view = EvalView(size=size, resize=size + 2, five_crops=options.pop('five_crops', False))
    on_device = options.pop('on_device', False)
    options = {'mean': MEAN, 'std': STD, 'batch_size': 8, 'shuffle': train, **options}
    images, view = Photos(files, view, **known), TrainView(size) if train else view
    return PhotoBatches(images, BatchOptions(**options), view=view, on_device=on_device)


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> Files:
    """Thirty pictures, every one different, labelled with their places."""
    folder = tmp_path_factory.mktemp('pictures')
    for seed in range(30):
        data = picture_files.encode(picture_files.smooth(20, 24, seed), 'PNG')
        (folder / f'{seed:02d}.png').write_bytes(data)
    return Files(sorted(str(path) for path in folder.iterdir()), np.arange(30))


def by_row(*parts: PhotoBatches) -> dict[int, np.ndarray]:
    """Row -> image, of the batches of one or several processes."""
    seen: dict[int, np.ndarray] = {}
    for part in parts:
        for batch in part:
            assert len(batch.images) == len(batch.labels) == len(batch.rows)
            for row, label, image in zip(batch.rows, batch.labels, batch.images):
                assert row == label
                assert int(row) not in seen
                seen[int(row)] = image
    return seen


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second):
        np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)


# ------------------------------------------------------------------ order, content, determinism


def test_pixels_are_normalised_exactly(tmp_path):
    pixels = picture_files.noisy(16, 16)
    (tmp_path / 'a.png').write_bytes(picture_files.encode(pixels, 'PNG'))
    view = EvalView(size=16, resize=16)
    images = Photos(Files([str(tmp_path / 'a.png')], np.array([3])), view)
    (batch,) = PhotoBatches(images, BatchOptions(4, MEAN, STD), view=view)
    expected = ((pixels.astype(np.float64) - MEAN) / STD).transpose(2, 0, 1).astype(np.float32)
    assert batch.images.dtype == np.float32
    np.testing.assert_array_equal(batch.images, expected[None])
    assert batch.labels.tolist() == [3]
    np.testing.assert_array_equal(images.pictures(np.array([0])), pixels.transpose(2, 0, 1)[None])


@pytest.mark.parametrize('count', [1, 7, 8, 9, 1003])
@pytest.mark.parametrize('world_size', [1, 2])
def test_every_image_comes_once_in_an_evaluation_and_in_order(files, count, world_size):
    many = Files([files.paths[row % 30] for row in range(count)], np.arange(count))
    parts = [
        batches_of(
            many, train=False, size=8, batch_size=4, rank=rank, world_size=world_size, workers=2
        )
        for rank in range(world_size)
    ]
    assert {len(part) for part in parts} == {-(-count // (4 * world_size))}
    ranks = [list(part) for part in parts]
    rows = [np.concatenate([part[b].rows for part in ranks]) for b in range(len(parts[0]))]
    np.testing.assert_array_equal(np.concatenate(rows), np.arange(count))
    np.testing.assert_array_equal(
        np.concatenate(
            [np.concatenate([part[b].labels for part in ranks]) for b in range(len(rows))]
        ),
        np.arange(count),
    )


def test_an_epoch_of_training_has_every_image_once_and_a_new_order(files):
    batches = batches_of(files, size=8)
    orders = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        orders.append([int(row) for batch in batches for row in batch.rows])
        assert sorted(orders[-1]) == list(range(30))
    assert orders[0] != orders[1]
    assert [len(batch.labels) for batch in batches] == [8, 8, 8, 6]


def test_an_image_depends_on_seed_epoch_and_place_alone(files):
    """Not on threads, batch size or number of processes."""
    first = by_row(batches_of(files, batch_size=8, workers=1))
    assert len(first) == 30
    for options in ({'workers': 4}, {'batch_size': 7}, {'batch_size': 30, 'workers': 3}):
        again = by_row(batches_of(files, **options))
        for row, image in first.items():
            np.testing.assert_array_equal(again[row], image)
    both = by_row(*(batches_of(files, batch_size=4, rank=rank, world_size=2) for rank in (0, 1)))
    for row, image in first.items():
        np.testing.assert_array_equal(both[row], image)


def test_seed_and_epoch_change_every_image(files):
    batches = batches_of(files)
    first = by_row(batches)
    batches.set_epoch(1)
    for other in (by_row(batches), by_row(batches_of(files, seed=1))):
        assert sum(np.array_equal(other[row], image) for row, image in first.items()) <= 1


def test_images_of_an_epoch_are_cropped_each_in_its_own_way(files):
    same = Files(files.paths[:1] * 16, np.arange(16))
    images = list(by_row(batches_of(same)).values())
    assert len({image.tobytes() for image in images}) >= 15


def test_a_batch_keeps_its_memory_as_long_as_anybody_has_a_part_of_it(files, monkeypatch):
    monkeypatch.setattr(sys, 'getrefcount', lambda thing: 1)  # borrowed ones are not counted
    batches = batches_of(files, batch_size=4)
    expected = [batch.images.copy() for batch in batches]
    assert len(expected) == 8
    parts = [batch.images[-1:, 0] for batch in batches]  # views, of batches that are gone
    for part, images in zip(parts, expected):
        np.testing.assert_array_equal(part, images[-1:, 0])


@pytest.mark.parametrize(
    'options', [{'train': True}, {'train': False, 'five_crops': True}], ids=str
)
def test_pixels_that_are_normalised_on_the_device_are_the_same_to_rounding(files, options):
    there = list(batches_of(files, on_device=True, **options))
    here = list(batches_of(files, **options))
    assert len(there) == len(here) == 4
    for one, other in zip(there, here):
        assert isinstance(one.images, paddle.Tensor)
        np.testing.assert_allclose(one.images.numpy(), other.images, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(one.rows, other.rows)


@pytest.mark.parametrize(
    'changes', [{'mixup': 1.0}, {'random_erasing': 1.0}, {'cutout': 4}], ids=str
)
def test_what_is_done_to_normalised_images_is_done_on_the_host(files, changes):
    augmentation = Augmentation(**changes)
    there = list(batches_of(files, on_device=True, augmentation=augmentation))
    assert_same(there, list(batches_of(files, augmentation=augmentation)))


def test_memory_of_batches_that_are_gone_is_used_again(files):
    addresses = [
        batch.images.__array_interface__['data'][0] for batch in batches_of(files, batch_size=2)
    ]
    assert len(addresses) == 15
    assert len(set(addresses)) <= photo_batches.AHEAD + 3


def test_leaving_out_the_first_images_gives_the_rest_to_the_bit(files):
    options = {'augmentation': Augmentation(random_erasing=0.5, mixup=0.4), 'seed': 3}
    whole, resumed = batches_of(files, **options), batches_of(files, **options)
    whole.set_epoch(4)
    resumed.set_epoch(4, done=16)
    assert_same(list(whole)[2:], list(resumed))


def test_with_ten_crop_eval_batch_size_counts_crops(tmp_path):
    for seed in range(6):
        picture = picture_files.encode(picture_files.smooth(20, 24, seed), 'PNG')
        for part in ('train', 'val'):
            path = tmp_path / part / str(seed % 2) / f'{seed}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture)
    settings = Data(name='folder', root=str(tmp_path), image_size=16)
    sizes = {}
    for views, batch_size in (('one', 4), ('ten_crop', 11), ('ten_crop', 3)):
        config = Config(data=settings, eval=Eval(views=views, batch_size=batch_size))
        batches = test_batches(load_data(config, train=False), config)
        sizes[views, batch_size] = [len(batch.images) for batch in batches]
    assert sizes == {('one', 4): [4, 2], ('ten_crop', 11): [10] * 3, ('ten_crop', 3): [5] * 6}


def test_five_crops_come_one_after_another(files):
    five = next(iter(batches_of(files, train=False, five_crops=True, batch_size=3)))
    one = next(iter(batches_of(files, train=False, batch_size=3)))
    assert five.images.shape == (15, 3, 16, 16)
    np.testing.assert_array_equal(five.images[::5], one.images)
    assert five.labels.tolist() == [0, 1, 2]


# ------------------------------------------------------------------ threads


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith('reader')]


def wait_until(true, seconds: float = 5.0) -> float:
    start = time.monotonic()
    while not true():
        assert time.monotonic() - start < seconds
        time.sleep(0.01)
    return time.monotonic() - start


@pytest.mark.parametrize('how', ['to the end', 'closed', 'forgotten', 'error'])
def test_no_thread_outlives_its_epoch(files, monkeypatch, how):
    """However slow the disk is: of 1,000 pictures that take 50 ms each, hardly any is read."""
    many = Files(files.paths * 34, np.tile(np.arange(30), 34))
    wait_until(lambda: not readers())
    if how == 'to the end':
        assert len(list(batches_of(files, workers=3))) == 4
    else:
        read, calls = photo_batches.read_file, []

        def slowly(path: str) -> bytes:
            calls.append(path)
            time.sleep(0.05)
            if how == 'error' and len(calls) > 12:
                raise photo_batches.BadPicture('is gone')
            return read(path)

        monkeypatch.setattr(photo_batches, 'read_file', slowly)
        batches = iter(batches_of(many, batch_size=8, workers=3))
        next(batches)
        assert readers()
        if how == 'closed':
            batches.close()
        elif how == 'forgotten':
            del batches
        else:
            with pytest.raises(UserError, match='is gone'):
                list(batches)
        count = len(calls)
        wait_until(lambda: not readers(), 1.0)
        assert len(calls) <= count + 3
    wait_until(lambda: not readers(), 1.0)


@pytest.mark.parametrize('error', [KeyboardInterrupt, UserError])
def test_whoever_leaves_a_check_early_cancels_the_rest(error):
    done = []

    def job(item: int) -> None:
        time.sleep(0.01)
        done.append(item)

    def leave() -> None:
        with parallel(job, range(5000), workers=2) as results:
            for item, _ in results:
                if item == 3:
                    raise error

    with pytest.raises(error):
        leave()
    count = len(done)
    time.sleep(0.1)
    assert len(done) <= count + 2 < 30


def test_results_come_in_order_and_a_bug_in_a_job_is_raised(monkeypatch):
    monkeypatch.setattr('engine.data.file_checks.BLOCK', 7)
    with parallel(lambda item: 100 // (item - 30), range(40), workers=3) as results:
        seen = [next(results) for _ in range(28)]  # four blocks
        with pytest.raises(ZeroDivisionError):
            list(results)
    assert seen == [(item, 100 // (item - 30)) for item in range(28)]


def test_no_file_stays_open(files, tmp_path):
    before = len(os.listdir('/proc/self/fd'))
    bad = picture_files.put_what_is_no_file(tmp_path)
    (tmp_path / 'text.jpg').write_bytes(DAMAGED['text.jpg'])
    for path in [*files.paths, *(str(tmp_path / name) for name in (*bad, 'text.jpg'))]:
        check_quickly(path)
        check_fully(path)
    assert len(os.listdir('/proc/self/fd')) == before


def test_a_bug_while_reading_says_of_which_file(files, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(TrainView, 'draw_box', fail)
    with pytest.raises(RuntimeError, match=r'while reading .*\d\d\.png'):
        list(batches_of(files))


# ------------------------------------------------------------------ the check before the first step


def every_file(folder: Path) -> tuple[list[str], list[str]]:
    """Paths of files of every kind: the good, and the bad."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in WHOLE.items():
        (folder / name).write_bytes(file.data)
    for name, data in DAMAGED.items():
        (folder / name).write_bytes(data)
    bad = [*DAMAGED, *picture_files.put_what_is_no_file(folder)]
    return [str(folder / name) for name in WHOLE], [str(folder / name) for name in bad]


def test_the_full_check_finds_every_bad_file_and_no_other(tmp_path):
    good, bad = every_file(tmp_path)
    assert [path for path in good if check_fully(path)] == []
    assert [path for path in bad if not check_fully(path)] == []


def test_the_quick_check_misses_only_what_is_lost_in_the_middle(tmp_path):
    good, bad = every_file(tmp_path)
    assert [path for path in good if check_quickly(path)] == []
    missed = {Path(path).name for path in bad if not check_quickly(path)}
    assert missed == {'sector_lost.jpg', 'sector_lost.png'}


def test_the_quick_check_decodes_no_sound_jpeg_or_png(tmp_path, monkeypatch):
    noise = picture_files.noisy(300, 300)
    for name, data in (
        ('a.jpg', picture_files.jpeg(noise)),
        ('a.png', picture_files.encode(noise, 'PNG')),
    ):
        assert len(data) > file_checks.HEAD
        (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(file_checks, 'check_fully', lambda path: pytest.fail('decoded'))
    assert check_quickly(str(tmp_path / 'a.jpg')) is None
    assert check_quickly(str(tmp_path / 'a.png')) is None


def test_a_jpeg_with_a_long_header_is_good(tmp_path):
    data = WHOLE['baseline.jpg'].data
    segments = (b'\xff\xe2\xff\xf0' + bytes(0xFFEE)) * 3
    (tmp_path / 'a.jpg').write_bytes(data[:2] + segments + data[2:])
    assert check_quickly(str(tmp_path / 'a.jpg')) is None


def test_a_file_of_gigabytes_is_not_read(tmp_path):
    with (tmp_path / 'a.jpg').open('wb') as file:
        file.truncate(2**31)
    for check in (check_quickly, check_fully):
        assert 'bytes, more than' in check(str(tmp_path / 'a.jpg'))


def test_what_may_not_be_read_is_told(tmp_path):
    if os.geteuid() == 0:
        pytest.skip('root may read everything')
    path = tmp_path / 'a.jpg'
    path.write_bytes(WHOLE['baseline.jpg'].data)
    path.chmod(0)
    for check in (check_quickly, check_fully):
        assert check(str(path)) == 'cannot be read (Permission denied)'


def test_the_quick_check_is_cut_short_and_says_so_also_where_it_found_something(
    files, tmp_path, monkeypatch
):
    monkeypatch.setattr(file_checks, 'QUICK_CHECK_S', 2)
    monkeypatch.setattr(
        file_checks, 'check_quickly', lambda path, most: time.sleep(0.1) or 'is bad'
    )
    many, lines = Files(files.paths * 100, np.tile(np.arange(30), 100)), []
    start = time.monotonic()
    with pytest.raises(UserError, match=r'\d\d\.png is bad, and so are'):
        file_checks.without_bad_files(many, skip=False, workers=2, report=lines.append)
    assert time.monotonic() - start < 20  # of the 37 that 8 threads need for all
    assert any('of 3,000 are left for when they are read' in line for line in lines)


def test_nothing_is_left_where_every_file_is_bad(files):
    gone = Files([f'{path}.gone' for path in files.paths], files.labels)
    with pytest.raises(UserError, match=r'none of 30 files .*00\.png\.gone'):
        file_checks.without_bad_files(gone, skip=True, workers=2, report=lambda text: None)


# ------------------------------------------------------------------ a hundred bad files


@pytest.fixture
def hundred(tmp_path):
    """root/{train,val}/{good,mixed}/: a hundred bad files and more among good ones of each kind."""
    bad: list[str] = []
    for part in ('train', 'val'):
        picture = picture_files.encode(picture_files.smooth(), 'PNG')
        for number in range(4):
            path = tmp_path / part / 'plain' / f'{number}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture)
        bad += every_file(tmp_path / part / 'mixed')[1]
    for number in range(100 - len(bad)):
        path = tmp_path / 'train' / 'plain' / f'cut{number}.jpg'
        path.write_bytes(DAMAGED['truncated50.jpg'])
        bad.append(str(path))
    return tmp_path, bad


def config_of(root: Path, **data) -> Config:
    return Config(
        data=Data(name='folder', root=str(root), image_size=32, batch_size=16, **data),
        eval=Eval(resize=40, batch_size=16),
    )


@pytest.mark.parametrize('kind', ['jpg', 'png'])
def test_the_key_of_the_most_pixels_decides_what_is_too_large(tmp_path, kind):
    picture_files.write_set(tmp_path)
    large = tmp_path / 'train' / 'zoo' / f'a.{kind}'
    large.parent.mkdir()
    (tmp_path / 'val' / 'zoo').mkdir()
    Image.new('L', (1001, 1000)).save(large)
    lines: list[str] = []
    with pytest.raises(UserError, match=r'1001 x 1000 pixels, more than 1 million \(max_pixels_m'):
        load_data(config_of(tmp_path, max_pixels_million=1), report=lines.append)
    config = config_of(tmp_path, max_pixels_million=2)
    data = load_data(config, report=lines.append)
    assert sum(len(batch.rows) for batch in train_batches(data, config)) == len(data.train)
    with pytest.raises(UserError, match='cannot be read'):
        packing.check(tmp_path, workers=1, max_pixels=1_000_000)
    packing.check(tmp_path, workers=1, max_pixels=2_000_000)


@pytest.mark.parametrize('kind', ['cpu', 'gpu', 'npu'])
def test_a_gpu_is_sent_bytes(tmp_path, kind, monkeypatch):
    picture_files.write_set(tmp_path)
    monkeypatch.setattr(devices, 'device_kind', lambda: kind)
    monkeypatch.setattr(devices, 'to_device', paddle.to_tensor)
    config = config_of(tmp_path)
    data = load_data(config, report=lambda text: None)
    for batches in (train_batches(data, config), test_batches(data, config)):
        assert isinstance(next(iter(batches)).images, paddle.Tensor) == (kind == 'gpu')


def test_with_stop_a_bad_file_is_named_before_the_first_step(hundred):
    root, bad = hundred
    lines: list[str] = []
    with pytest.raises(UserError) as caught:
        load_data(config_of(root), report=lines.append)
    text = str(caught.value)
    assert '\n' not in text
    assert any(text.startswith(f'{path} ') for path in bad)
    assert re.search(r'and so are \d+ more of', text)
    assert 'data.on_bad_file=skip' in text
    named = {path for path in bad for line in lines if f' {path} ' in line}
    assert len(named) > 50


def test_with_skip_each_file_is_read_right_or_told_by_name(hundred):
    root, bad = hundred
    assert len(bad) >= 100
    lines: list[str] = []
    data = load_data(config_of(root, on_bad_file='skip'), report=lines.append)
    for batches in (train_batches(data, config_of(root)), test_batches(data, config_of(root))):
        for _ in range(2):
            seen = list(batches)
        paths = [batches.images.files.paths[row] for batch in seen for row in batch.rows]
        pixels = np.concatenate([batch.images for batch in seen])
        assert len(set(paths)) == len(paths) == 4 + len(WHOLE)
        if batches.options.shuffle:
            continue
        for path, image in zip(paths, pixels):
            expected = WHOLE.get(Path(path).name)
            if expected is None:
                continue
            shown = (image.transpose(1, 2, 0) * STD + MEAN).round()
            centre = expected.pixels[4:36, 14:46]  # of 40 x 60, which eval.resize leaves as it is
            assert np.abs(shown - centre).mean() <= max(expected.tolerance, 1e-6), path
    for path in bad:
        assert len([line for line in lines if f' {path} ' in line]) == 1, path
    assert not [name for name in WHOLE for line in lines if f'/{name} ' in line]


def test_the_check_command_names_every_bad_file_and_no_other(hundred):
    root, bad = hundred
    result = command('-m', 'engine.data', '--check', str(root), cwd=REPOSITORY)
    assert result.returncode == 2, result.stderr
    named = [path for path in bad if f'{path} ' in result.stdout]
    assert sorted(named) == sorted(bad)
    assert len(result.stdout.splitlines()) == len(bad)
    total = len(bad) + 2 * (4 + len(WHOLE))
    assert f'{len(bad)} of {total} pictures below {root} cannot be read' in result.stderr
    assert 'Traceback' not in result.stderr


def test_the_check_command_of_a_sound_folder_and_of_none(tmp_path):
    picture_files.write_set(tmp_path / 'set')
    result = command('-m', 'engine.data', '--check', str(tmp_path / 'set'), cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f'24 pictures below {tmp_path / "set"}: all can be read\n'
    (tmp_path / 'empty').mkdir()
    for name, expected in (('empty', 'no pictures below'), ('missing', 'is not a folder')):
        result = command('-m', 'engine.data', '--check', str(tmp_path / name), cwd=REPOSITORY)
        assert result.returncode == 2
        assert expected in result.stderr
        assert len(result.stderr.splitlines()) == 1


# ------------------------------------------------------------------ damage found while training


def spoil(path: str) -> None:
    """Lose a sector: what only a decoder sees."""
    data = picture_files.encode(picture_files.noisy(), 'PNG')
    Path(path).write_bytes(picture_files.overwritten(data))


@pytest.fixture
def spoiled(files, tmp_path) -> tuple[Files, list[str]]:
    """Of thirty pictures, three with damage that the quick check does not see."""
    paths = []
    for number, path in enumerate(files.paths):
        copy = tmp_path / f'{number:02d}.png'
        copy.write_bytes(Path(path).read_bytes())
        paths.append(str(copy))
    bad = [paths[4], paths[11], paths[29]]
    for path in bad:
        spoil(path)
    return Files(paths, files.labels), bad


def test_damage_inside_stops_with_the_name(spoiled):
    files, bad = spoiled
    with pytest.raises(UserError) as caught:
        list(batches_of(files))
    assert any(str(caught.value).startswith(f'{path} is damaged') for path in bad)


def test_damage_inside_is_skipped_and_told_once_and_the_rest_is_the_same(spoiled, files):
    spoiled_files, bad = spoiled
    lines: list[str] = []
    batches = batches_of(spoiled_files, skip_bad=True, report=lines.append)
    seen = by_row(batches)
    assert sorted(set(range(30)) - set(seen)) == [4, 11, 29]
    assert sorted(line.split()[2] for line in lines) == sorted(bad)
    for row, image in by_row(batches_of(files)).items():
        if row in seen:
            np.testing.assert_array_equal(seen[row], image)
    batches.set_epoch(1)
    assert len(by_row(batches)) == 27
    assert len(lines) == 3
    assert batches.images.bad == set(bad)


def test_not_more_bad_files_are_told_than_anybody_would_read(tmp_path, monkeypatch):
    monkeypatch.setattr(photo_batches, 'MAX_REPORTED', 2)
    whole = tmp_path / 'whole.png'
    whole.write_bytes(WHOLE['rgba.png'].data)
    paths = [str(whole)] + [str(tmp_path / f'{number}.png') for number in range(5)]
    lines: list[str] = []
    batches = batches_of(Files(paths, np.zeros(6, int)), skip_bad=True, report=lines.append)
    assert sum(len(batch.rows) for batch in batches) == 1
    assert len(lines) == 3
    assert 'more will be left out' in lines[-1]


def test_a_batch_of_which_nothing_can_be_read_gets_another_image_in_training(spoiled):
    """As where a last batch holds one image, and a step of several processes needs one of each."""
    files, _ = spoiled
    batches = batches_of(files, batch_size=1, skip_bad=True, report=lambda text: None)
    seen = [int(row) for batch in batches for row in batch.rows]
    assert len(seen) == 30
    assert set(seen) == set(range(30)) - {4, 11, 29}


def test_a_batch_of_which_nothing_can_be_read_is_empty_in_an_evaluation(spoiled):
    files, _ = spoiled
    batches = list(
        batches_of(files, train=False, batch_size=1, skip_bad=True, report=lambda _: None)
    )
    assert [len(batch.rows) for batch in batches] == [n not in (4, 11, 29) for n in range(30)]
    assert batches[4].images.shape == (0, 3, 16, 16)


def test_a_data_root_that_has_gone_ends_even_with_skip(files):
    gone = Files([f'{path}.gone' for path in files.paths], files.labels)
    for train in (True, False):
        with pytest.raises(UserError, match=r'is data\.root still available'):
            list(batches_of(gone, train=train, skip_bad=True, report=lambda text: None))


def test_a_picture_that_has_gone_before_the_report_is_named(files, tmp_path):
    images = Photos(Files([str(tmp_path / 'gone.jpg')], np.zeros(1, int)), EvalView(8, 8))
    with pytest.raises(UserError, match=r'gone\.jpg cannot be read \(No such file'):
        images.pictures(np.array([0]))


def test_names_that_cannot_be_printed_are_told_all_the_same(tmp_path):
    names = [b'caf\xe9.png', b'two\nlines.png', '熊 猫.png'.encode()]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), 'wb') as file:
            file.write(b'text')
    paths = [os.path.join(str(tmp_path), os.fsdecode(name)) for name in names]
    lines: list[str] = []
    with pytest.raises(UserError) as caught:
        file_checks.without_bad_files(
            Files(paths, np.zeros(3, int)), skip=False, workers=1, report=lines.append
        )
    for text in (*lines, str(caught.value)):
        assert '\n' not in text
        text.encode()
    assert any('熊 猫.png' in text for text in lines)
    with pytest.raises(UserError, match=r'caf\\udce9\.png'):
        list(batches_of(Files(paths[:1], np.zeros(1, int))))


# ------------------------------------------------------------------ train.py


SMALL = (
    *('data.name=folder', 'data.image_size=32', 'data.batch_size=8', 'data.workers=2'),
    *('model.name=resnext11_2x4d', 'train.epochs=2', 'train.log_every=1', 'schedule.name=cosine'),
    *('data.crop_padding=4', 'data.cutout=0'),
)
QUICKSTART = str(REPOSITORY / 'configs' / 'quickstart.yaml')


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=240
    )


def training(*settings: str) -> list[str]:
    return [str(REPOSITORY / 'train.py'), '-c', QUICKSTART, '-o', *SMALL, *settings]


def start(folder: Path, *settings: str) -> subprocess.Popen:
    """train.py in the background, with what it starts in a group of its own."""
    return subprocess.Popen(
        [sys.executable, *training(*settings)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_line(process: subprocess.Popen, pattern: str) -> None:
    for line in process.stdout:
        if re.search(pattern, line):
            return
    raise AssertionError(f'it ended without {pattern!r}: {process.stderr.read()}')


@pytest.mark.parametrize(
    'signals',
    [
        'SIGTERM',
        pytest.param('SIGINT', marks=pytest.mark.slow),
        pytest.param('SIGINT twice', marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_training_and_every_reader_in_seconds(tmp_path, signals):
    """In the middle of reading: most of the time goes into decoding large PNGs."""
    picture_files.write_set(tmp_path / 'set', train=2)
    large = picture_files.encode(picture_files.smooth(1500, 1500), 'PNG', compress_level=1)
    first = tmp_path / 'set' / 'train' / 'class0' / 'large0.png'
    first.write_bytes(large)
    for number in range(1, 60):
        os.link(first, first.with_name(f'large{number}.png'))
    process = start(tmp_path, f'data.root={tmp_path / "set"}', 'train.epochs=50')
    wait_for_line(process, r'^iter:1 ')
    name, *again = signals.split()
    process.send_signal(getattr(signal, name))
    begin = time.monotonic()
    if again:
        while 'once more ends at once' not in process.stderr.readline():
            pass
        process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - begin < 15
    assert 'Traceback' not in err
    with pytest.raises(ProcessLookupError):  # nobody of its group is left
        os.killpg(process.pid, 0)
    saved = list((tmp_path / 'output' / 'quickstart' / 'checkpoints').glob('epoch_0000_batch_*'))
    if again and process.returncode == 130:
        assert 'interrupted' in err
        return
    assert process.returncode == 75, err
    assert len(saved) == 1


def test_damage_inside_ends_train_with_the_name_or_is_left_out_and_told(tmp_path):
    """The check before the first step does not see it. What was saved before it stays intact."""
    root = picture_files.write_set(tmp_path / 'set', train=32)
    bad = root / 'train' / 'class1' / '017.png'
    spoil(str(bad))
    run = tmp_path / 'output' / 'quickstart'
    order = np.random.default_rng([0, 0]).permutation(64)
    step = order.tolist().index(32 + 17) // 8
    settings = (f'data.root={root}', 'train.save_every_steps=1', 'train.keep=100')
    if step < 4:
        settings = (*settings, 'seed=1')
        order = np.random.default_rng([1, 0]).permutation(64)
        step = order.tolist().index(32 + 17) // 8
    assert step >= 4  # three batches are begun before the first one is used
    stopped = command(*training(*settings), cwd=tmp_path)
    assert stopped.returncode == 2, stopped.stderr
    assert len(stopped.stderr.splitlines()) == 1
    assert f'{bad} is damaged' in stopped.stderr
    assert 'data.on_bad_file=skip' in stopped.stderr
    saved = (run / 'checkpoints' / 'latest').read_text().strip()
    assert saved == f'epoch_0000_batch_{step:05d}'
    skipped = command(*training(*settings, 'data.on_bad_file=skip'), '--resume', cwd=tmp_path)
    assert skipped.returncode == 0, skipped.stderr
    assert f'/{saved}, step {step}' in skipped.stdout
    assert skipped.stdout.count(f'left out: {bad} is damaged') == 1
    records = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    assert [record['step'] for record in records] == [8, 16]
    for record in records:  # of 63 images: a multiple of 1/63, and of nothing else
        assert record['train_accuracy'] * 63 == pytest.approx(round(record['train_accuracy'] * 63))
        assert np.isfinite(record['train_loss'])


@pytest.mark.slow
def test_two_processes_train_on_a_folder_and_count_every_image_once(tmp_path):
    root = picture_files.write_set(tmp_path / 'set', train=22, test=5)
    truncated = root / 'train' / 'class0' / '000.png'
    truncated.write_bytes(truncated.read_bytes()[:-200])
    lost = root / 'train' / 'class1' / '003.png'
    spoil(str(lost))
    launch = ['-m', 'paddle.distributed.launch', '--nproc_per_node', '2', '--log_dir', 'workers']
    settings = (f'data.root={root}', 'data.batch_size=4', 'data.on_bad_file=skip')
    result = command(*launch, *training(*settings), cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert 'total:10' in result.stdout
    logs = ''.join(path.read_text() for path in (tmp_path / 'workers').glob('workerlog.*'))
    assert f'bad file: {truncated}' in logs
    assert f'left out: {lost}' in logs
    lines = (tmp_path / 'output' / 'quickstart' / 'metrics.jsonl').read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record['step'] for record in records] == [6, 12]


@pytest.mark.slow
def test_a_bad_file_stops_both_processes(tmp_path):
    root = picture_files.write_set(tmp_path / 'set', train=20)
    spoil(str(root / 'train' / 'class1' / '003.png'))
    launch = ['-m', 'paddle.distributed.launch', '--nproc_per_node', '2', '--log_dir', 'workers']
    result = command(*launch, *training(f'data.root={root}', 'data.batch_size=4'), cwd=tmp_path)
    assert result.returncode != 0
    logs = ''.join(path.read_text() for path in (tmp_path / 'workers').glob('workerlog.*'))
    assert '003.png is damaged' in logs
