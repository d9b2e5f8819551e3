"""deploy/predictor/listing.py: which files are pictures, for training and for deploy/ alike."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import picture_files
import pytest
from conftest import REPOSITORY
from PIL import Image

from engine.data import packing
from engine.data.pictures import open_picture
from engine.data.sources import folder
from engine.errors import UserError
from predictor import inputs, labels, listing, pictures

PIXELS = picture_files.smooth()
SYSTEM = (
    '@eaDir',
    '#recycle',
    '$RECYCLE.BIN',
    'System Volume Information',
    '__MACOSX',
    'FOUND.000',
)
SYSTEM += ('lost+found', '.AppleDouble', '.ipynb_checkpoints', '@Recently-Snapshot')


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b'not looked at')
    return root


@pytest.mark.parametrize('name', SYSTEM)
def test_folders_of_a_system_or_a_nas_are_neither_pictures_nor_classes(tmp_path, name):
    touch(tmp_path, 'cat/a.jpg', f'cat/{name}/a.jpg', f'{name}/a.jpg/THUMB_M.jpg')
    touch(
        tmp_path, 'cat/Thumbs.db', 'cat/desktop.ini', 'cat/.DS_Store', 'cat/b.jpg', f'{name}/x.jpg'
    )
    data = folder.find_folder(tmp_path, holdout=0.5)
    assert data.classes == ['cat']
    assert sorted(data.train.paths + data.test.paths) == [
        str(tmp_path / 'cat' / name) for name in ('a.jpg', 'b.jpg')
    ]
    reported: list[str] = []
    assert len(inputs.find_pictures([str(tmp_path)], report=reported.append)) == 2
    assert not reported


def test_a_name_that_only_resembles_a_system_s_is_a_class(tmp_path):
    touch(tmp_path, 'recycle/a.jpg', 'recycle/b.jpg', 'found/a.jpg', 'found/b.jpg')
    assert folder.find_folder(tmp_path, holdout=0.5).classes == ['found', 'recycle']


def test_every_suffix_of_jpeg_is_read(tmp_path):
    names = [f'cat/{number}{suffix}' for number, suffix in enumerate(listing.SUFFIXES)]
    touch(tmp_path, *names, 'cat/LOUD.JFIF')
    assert {'.jfif', '.jpe', '.pjpeg', '.jif', '.jpg'} <= set(listing.SUFFIXES)
    assert len(inputs.find_pictures([str(tmp_path)], report=print)) == len(names) + 1
    assert len(list(folder.walk(str(tmp_path)))) == len(names) + 1


def test_skipped_files_are_counted_in_one_line(tmp_path, capsys):
    touch(tmp_path, 'cat/b.xyz', 'cat/c.XYZ', 'cat/none', 'cat/d.ico', 'cat/Thumbs.db')
    (tmp_path / 'cat' / 'a.jpg').write_bytes(picture_files.jpeg(PIXELS))
    reported: list[str] = []
    inputs.find_pictures([str(tmp_path)], report=reported.append)
    packing.check(tmp_path, workers=1)
    packing.pack(tmp_path, tmp_path.with_name('out'), size=8, quality=90, workers=1)
    expected = '2 .xyz, 1 without a suffix, 1 .ico'
    assert len(reported) == 1
    assert expected in reported[0]
    assert capsys.readouterr().out.count(expected) == 2


def test_a_folder_without_pictures_is_an_error_that_counts_its_files(tmp_path):
    touch(tmp_path, 'cat/b.xyz', 'cat/c.xyz')
    for look in (
        lambda: inputs.find_pictures([str(tmp_path)], report=print),
        lambda: folder.find_folder(tmp_path, holdout=0.5),
        lambda: packing.check(tmp_path, workers=1),
    ):
        with pytest.raises(Exception, match=r'2 \.xyz') as caught:
            look()
        assert type(caught.value).__name__ == 'UserError'


def test_an_unsupported_format_names_the_missing_package():
    text = listing.describe_left_out(['a.HEIC', 'none'] + 1199 * ['b.heic'])
    assert text.startswith('1,200 .heic (HEIC needs the package pillow-heif')
    assert text.endswith('1 without a suffix')
    many = [f'a.{suffix}' for suffix in 'abcdefghabcdefghyy']
    assert ', 2 others' in listing.describe_left_out(many)


BEGINNINGS = {
    b'\0\0\0\x18ftypheic\0\0\0\0mif1heic': 'is HEIC, which',
    b'\0\0\0\x1cftypmif1\0\0\0\0': 'is HEIC, which',
    b'\xff\x0a' + bytes(40): 'is JPEG XL, which',
    b'\0\0\1\0\1\0' + bytes(40): 'is ICO, which',
    b'<?xml version="1.0"?>\n<!-- a -->\n<svg xmlns="x">': 'is SVG, which',
    b'\n<!DOCTYPE html><html><svg>': 'is not a picture but a web page',
    b'%PDF-1.7': 'is not a picture but a PDF',
    b'version https://git-lfs.github.com/spec/v1\noid': 'is not a picture but a pointer of Git LFS',
    b'\0\0\0\x18ftypmp42': 'is not a picture but a film',
    b'plain text': 'is not a picture',
    b'': 'is empty',
}


@pytest.mark.parametrize('data', BEGINNINGS)
def test_the_type_of_a_file_is_named_by_its_content(data, monkeypatch):
    monkeypatch.setattr(pictures, 'FORMATS', ('JPEG', 'PNG'))  # a plug-in may be there
    for read in (pictures.read_picture, lambda data: open_picture(data).pixels()):
        with pytest.raises(pictures.BadPicture) as caught:
            read(data)
        assert str(caught.value).startswith(BEGINNINGS[data])


@pytest.mark.parametrize(('name', 'kind'), [('AVIF', 'AVIF'), ('JPEG 2000', 'JPEG2000')])
def test_what_pillow_reads_is_read_by_training_and_deploy(name, kind, tmp_path):
    if kind not in pictures.FORMATS:
        pytest.skip(f'this Pillow has no {name}')
    options = {'quality': 95} if kind == 'AVIF' else {}
    data = picture_files.encode(Image.fromarray(PIXELS), kind, **options)
    there = open_picture(data).pixels()
    np.testing.assert_array_equal(there, np.asarray(pictures.read_picture(data)))
    assert np.abs(there.astype(int) - PIXELS).mean() < 3
    for length in (20, 100, len(data) // 2):
        with pytest.raises(pictures.BadPicture, match=r'^is damaged \('):
            pictures.read_picture(data[:length])
    suffix = listing.OPTIONAL[name][0][0]
    touch(tmp_path, f'a{suffix}')
    assert len(list(folder.walk(str(tmp_path)))) == 1


def test_a_link_to_a_folder_above_adds_nothing(tmp_path):
    touch(tmp_path, 'train/cat/a.jpg', 'train/dog/b.jpg', 'val/cat/c.jpg', 'val/dog/d.jpg')
    for number, target in enumerate((tmp_path, tmp_path / 'train', tmp_path / 'train' / 'cat')):
        (tmp_path / 'train' / 'cat' / f'up{number}').symlink_to(target)
    data = folder.find_folder(tmp_path)
    assert [os.path.basename(path) for path in data.train.paths] == ['a.jpg', 'b.jpg']
    found = inputs.find_pictures([str(tmp_path / 'train' / 'cat')], report=print)
    assert [path.name for path in found] == ['a.jpg']


def test_a_folder_that_macos_has_named_is_its_class():
    """With accents as signs of their own; classes have them in one letter."""
    pictures = [Path('e\u0301te\u0301/a.jpg'), Path('zoo/b.jpg')]
    assert labels.find_labels('folder', pictures, ['zoo', '\u00e9t\u00e9']) == [1, 0]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    touch(tmp_path, 'cat/in/a.jpg')
    scan = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith('in'):
            raise PermissionError(13, 'Permission denied', str(path))
        return scan(path)

    monkeypatch.setattr(listing.os, 'scandir', refuse)
    with pytest.raises(UserError, match=r'cannot read .*in: Permission denied'):
        list(folder.walk(str(tmp_path)))


@pytest.mark.parametrize('page', ['docs/data.md', 'docs/zh_cn/data.md'])
def test_the_page_names_every_suffix(page):
    text = (REPOSITORY / page).read_text(encoding='utf-8')
    named = set(re.findall(r'(?<=[` ])\.[a-z0-9]+(?=[` ])', text))
    optional = (suffix for suffixes, _ in listing.OPTIONAL.values() for suffix in suffixes)
    assert named == {*listing.SUFFIXES, *optional}
