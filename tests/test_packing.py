"""python3 -m engine.data --pack: what is written, left out, refused, and taken up again."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import picture_files
import pytest
from conftest import REPOSITORY
from PIL import Image

from engine.data import packing
from engine.data.pictures import EvalView, open_picture
from engine.data.sources.folder import find_folder
from engine.errors import UserError

WHOLE, DAMAGED = picture_files.whole_files(), picture_files.damaged_files()


def pack(source: Path, target: Path, *, size: int = 32, quality: int = 90) -> None:
    packing.pack(source, target, size=size, quality=quality, workers=2)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()}


def put(folder: Path, **files: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name.replace('__', '.')).write_bytes(data)
    return folder


def test_every_kind_of_picture_is_packed_with_the_short_side_and_its_aspect(tmp_path, capsys):
    put(tmp_path / 'in' / 'cat', **{name: file.data for name, file in WHOLE.items()})
    pack(tmp_path / 'in', tmp_path / 'out', size=20)
    written = names(tmp_path / 'out' / 'cat')
    jpegs = {name for name in WHOLE if name.lower().endswith(('.jpg', '.jpeg'))}
    assert written == jpegs | {f'{name}.jpg' for name in WHOLE if name not in jpegs}
    for name, file in WHOLE.items():
        data = (tmp_path / 'out' / 'cat' / (name if name in jpegs else f'{name}.jpg')).read_bytes()
        assert data[:2] == b'\xff\xd8'
        with Image.open(
            tmp_path / 'out' / 'cat' / (name if name in jpegs else f'{name}.jpg')
        ) as im:
            assert im.size == (30, 20)
            assert im.mode == 'RGB'
        if file.tolerance:  # a photograph: the sharp edges of the others suffer from JPEG
            small = Image.fromarray(file.pixels).resize((30, 20), Image.Resampling.BILINEAR)
            difference = np.abs(open_picture(data).pixels().astype(int) - np.asarray(small))
            assert difference.mean() < 6
    assert f'wrote {len(WHOLE)} pictures of short side 20' in capsys.readouterr().out


def test_a_jpeg_that_is_small_already_is_copied_byte_for_byte(tmp_path):
    small = picture_files.jpeg(picture_files.smooth(20, 90))
    turned = picture_files.jpeg(picture_files.smooth(20, 30), orientation=6)
    png = picture_files.encode(picture_files.smooth(20, 30), 'PNG')
    put(tmp_path / 'in', small__jpg=small, turned__jpg=turned, png__jpg=png)
    pack(tmp_path / 'in', tmp_path / 'out', size=20)
    assert (tmp_path / 'out' / 'small.jpg').read_bytes() == small
    upright = open_picture((tmp_path / 'out' / 'turned.jpg').read_bytes())
    assert upright.orientation == 1
    assert upright.pixels().shape == (30, 20, 3)
    assert (tmp_path / 'out' / 'png.jpg').read_bytes()[:2] == b'\xff\xd8'


def test_no_two_pictures_get_the_same_name(tmp_path):
    """Of a.png, a.png.jpg and a.jpg, three come out, each with its own pixels."""
    grey = {'a.jpg': 10, 'a.png': 60, 'a.png.jpg': 110, 'a.png.jpg.png': 160, 'a.bmp': 210}
    for name, value in grey.items():
        pixels = np.full((8, 8, 3), value, np.uint8)
        data = picture_files.jpeg(pixels) if name.endswith('jpg') else None
        put(tmp_path / 'in', **{name: data or picture_files.encode(pixels, 'PNG')})
    pack(tmp_path / 'in', tmp_path / 'out')
    out = tmp_path / 'out'
    values = {n: round(open_picture((out / n).read_bytes()).pixels().mean()) for n in names(out)}
    assert len(values) == 5
    assert sorted(values.values()) == sorted(grey.values())
    assert values['a.jpg'] == 10
    assert values['a.png.jpg'] == 110


def test_names_as_long_as_a_file_system_allows_are_packed(tmp_path):
    pixels = picture_files.smooth()
    longest = [f'{"x" * 250}{number}.png' for number in (1, 2)] + [f'{"熊" * 83}12.jpg']
    for name in longest:
        (tmp_path / 'in' / 'cat').mkdir(parents=True, exist_ok=True)
        kind = 'PNG' if name.endswith('png') else 'JPEG'
        (tmp_path / 'in' / 'cat' / name).write_bytes(picture_files.encode(pixels, kind))
    out = tmp_path / ('o' * 255)
    pack(tmp_path / 'in', out, size=16)
    written = names(out)
    assert len(written) == 3
    assert f'cat/{longest[-1]}' in written
    assert all(name.endswith('.jpg') for name in written)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['in', out.name]


def test_bad_ones_are_left_out_by_name(tmp_path, capsys):
    put(tmp_path / 'in' / 'cat', **DAMAGED, good__jpg=WHOLE['baseline.jpg'].data)
    bad = [*DAMAGED, *picture_files.put_what_is_no_file(tmp_path / 'in' / 'cat')]
    pack(tmp_path / 'in', tmp_path / 'out')
    message = capsys.readouterr().out
    assert names(tmp_path / 'out') == {'cat/good.jpg'}
    assert all(message.count(f'left out: {tmp_path / "in" / "cat" / name} ') == 1 for name in bad)
    assert 'wrote 1 picture ' in message


def test_a_picture_too_long_for_a_jpeg_is_left_out_by_name(tmp_path, capsys):
    long = np.zeros((2, 70_000), np.uint8)
    put(tmp_path / 'in', long__png=picture_files.encode(long, 'PNG'), a__jpg=WHOLE['444.jpeg'].data)
    pack(tmp_path / 'in', tmp_path / 'out')
    assert 'long.png is too long for a JPEG' in capsys.readouterr().out
    assert names(tmp_path / 'out') == {'a.jpg'}


def test_where_nothing_can_be_read_nothing_appears(tmp_path):
    put(tmp_path / 'in', **DAMAGED)
    with pytest.raises(UserError, match='no picture below'):
        pack(tmp_path / 'in', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_out_that_exists_or_lies_inside_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    source = picture_files.write_set(tmp_path / 'in')
    (tmp_path / 'there').mkdir()
    (tmp_path / 'link').symlink_to(source)
    before = names(tmp_path)
    for target, expected in (
        (tmp_path / 'there', 'exists already'),
        (source, 'exists already'),
        (source / 'out', 'lies inside'),
        (tmp_path / 'link' / 'deep' / 'out', 'lies inside'),
    ):
        with pytest.raises(UserError, match=expected):
            pack(source, target)
    monkeypatch.chdir(source)
    with pytest.raises(UserError, match='lies inside'):
        pack(Path('.'), Path('out'))
    assert names(tmp_path) == before


def test_a_missing_or_empty_source_is_refused(tmp_path):
    for expected in ('is not a folder', 'no pictures'):
        with pytest.raises(UserError, match=expected):
            pack(tmp_path / 'in', tmp_path / 'out')
        (tmp_path / 'in').mkdir(exist_ok=True)


def test_the_packed_set_is_found_like_the_first_and_evaluates_nearly_the_same(tmp_path):
    for number in range(4):
        for part, label in (('train', 'a'), ('train', 'b'), ('val', 'a'), ('val', 'b')):
            pixels = picture_files.smooth(150 + number, 200, number)
            data = {f'{number}.jpg': picture_files.jpeg(pixels)}
            put(tmp_path / 'in' / part / label, **data)
    pack(tmp_path / 'in', tmp_path / 'out', size=73)
    first, packed = find_folder(tmp_path / 'in'), find_folder(tmp_path / 'out')
    assert packed.classes == first.classes
    assert packed.test.labels.tolist() == first.test.labels.tolist()
    view = EvalView(size=64, resize=73, five_crops=True)
    for old, new in zip(first.test.paths, packed.test.paths):
        before, after = (view(Path(path).read_bytes()).astype(int) for path in (old, new))
        assert np.abs(before - after).mean() < 1.5


@pytest.mark.parametrize(
    ('place', 'encoding'), [('', 'utf-8'), ('val', 'utf-8'), ('', 'utf-8-sig'), ('', 'utf-16')]
)
def test_a_flat_folder_keeps_its_labels_under_the_new_names(tmp_path, place, encoding):
    """Also where one was a PNG, and one could not be read."""
    source = tmp_path / 'in'
    good, png = WHOLE['baseline.jpg'].data, WHOLE['rgba.png'].data
    for label in ('cat', 'dog'):
        put(source / 'train' / label, x__jpg=good)
    put(source / 'val', a__jpg=good, **{'my photo.png': png}, bad__jpg=b'text')
    text = 'val/my photo.png dog\nval/a.jpg 1\nbad.jpg 0\n'
    (source / place / 'val.txt').write_text(text, encoding)
    pack(source, tmp_path / 'out', size=20)
    packed = (tmp_path / 'out' / place / 'val.txt').read_text()
    assert packed == 'val/my photo.png.jpg dog\nval/a.jpg 1\n'
    assert find_folder(tmp_path / 'out').test.labels.tolist() == [1, 1]


def test_kaggles_table_is_copied_without_what_was_left_out(tmp_path):
    source = tmp_path / 'in'
    good = WHOLE['baseline.jpg'].data
    put(source / 'train' / 'cat', x__jpg=good)
    put(source / 'val', a__JPEG=good, b__JPEG=b'text')
    head = 'ImageId,PredictionString\n'
    (source / 'LOC_val_solution.csv').write_text(f'{head}b,cat 1 2 3 4\na,cat 1 2 3 4\n')
    pack(source, tmp_path / 'out')
    assert (tmp_path / 'out' / 'LOC_val_solution.csv').read_text() == f'{head}a,cat 1 2 3 4\n'
    assert len(find_folder(tmp_path / 'out').test) == 1


def test_a_full_disk_is_said_and_the_same_command_completes(tmp_path, monkeypatch, capsys):
    source = picture_files.write_set(tmp_path / 'in')
    write, count = packing.write_atomically, []

    def full(path, content):
        count.append(path)
        if len(count) > 5:
            raise OSError(28, 'No space left on device', str(path))
        write(path, content)

    monkeypatch.setattr(packing, 'write_atomically', full)
    with pytest.raises(OSError, match='No space left'):
        pack(source, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    for thread in threading.enumerate():  # those that were still writing, in a process of its own
        if thread.name.startswith('ThreadPoolExecutor'):
            thread.join(60)
    monkeypatch.setattr(packing, 'write_atomically', write)
    pack(source, tmp_path / 'out')
    assert len(names(tmp_path / 'out')) == 24
    assert 'wrote 24 pictures' in capsys.readouterr().out


def command(*arguments: str) -> list[str]:
    return [sys.executable, '-m', 'engine.data', *arguments]


def test_killed_and_started_again_it_completes_without_doing_all_again(tmp_path):
    source = tmp_path / 'in' / 'cat'
    source.mkdir(parents=True)
    data = picture_files.encode(picture_files.noisy(400, 500), 'PNG')
    for number in range(400):
        (source / f'{number:03d}.png').write_bytes(data) if not number else os.link(
            source / '000.png', source / f'{number:03d}.png'
        )
    arguments = command('--pack', str(tmp_path / 'in'), str(tmp_path / 'out'), '--size', '64')
    process = subprocess.Popen(arguments, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    written: list[Path] = []
    while len(written) < 20:
        assert process.poll() is None
        written = sorted(tmp_path.glob('out.partial*/cat/*.jpg'))
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / 'out').exists()
    before = {path.name: path.stat().st_mtime_ns for path in written}
    result = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert 'wrote 400 pictures' in result.stdout
    out = tmp_path / 'out' / 'cat'
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert names(out) == {f'{number:03d}.png.jpg' for number in range(400)}
    assert not list(tmp_path.glob('out.partial*'))
    sizes = {open_picture(path.read_bytes()).pixels().shape for path in out.iterdir()}
    assert sizes == {(64, 80, 3)}


def test_another_size_does_not_go_on_with_what_was_begun(tmp_path, monkeypatch):
    source = picture_files.write_set(tmp_path / 'in')
    rename = Path.rename
    monkeypatch.setattr(Path, 'rename', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / 'out', size=20)
    monkeypatch.setattr(Path, 'rename', rename)
    pack(source, tmp_path / 'out', size=30)
    shapes = {
        open_picture(p.read_bytes()).pixels().shape for p in (tmp_path / 'out').rglob('*.jpg')
    }
    assert shapes == {(30, 45, 3)}


@pytest.mark.parametrize(
    'arguments',
    [
        ('--pack', 'in', 'out', '--size', '0'),
        ('--pack', 'in', 'out', '--quality', '101'),
        ('--check', 'in', '--workers', '-1'),
        ('--check', 'in', '--pack', 'in', 'out'),
        (),
    ],
)
def test_arguments_that_cannot_work_are_refused_without_a_traceback(tmp_path, arguments):
    result = subprocess.run(command(*arguments), cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 2
    assert 'Traceback' not in result.stderr
    assert 'engine.data: ' in result.stderr
