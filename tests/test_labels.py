"""deploy/predictor/labels.py: lists of labels in all the forms that they come in."""

from __future__ import annotations

from pathlib import Path

import pytest
from exported import CLASSES

from predictor.errors import UserError
from predictor.labels import find_labels

ANIMALS = ['cat', 'great white shark', 'dog, wild']


@pytest.fixture
def labels(tmp_path, monkeypatch):
    """The labels of a picture by a list of these lines, or these bytes."""
    monkeypatch.chdir(tmp_path)

    def find(content: str | bytes, picture: str, classes: list[str] = ANIMALS) -> int:
        data = content if isinstance(content, bytes) else content.encode()
        Path('list.txt').write_bytes(data)
        (label,) = find_labels('list.txt', [Path(picture)], classes)
        return label

    return find


@pytest.mark.parametrize(
    ('line', 'label'),
    [
        ('d/a b.png\tgreat white shark', 1),
        ('d/a b.png 1', 1),
        ('d\\a b.png 1', 1),
        ('.\\d\\a b.png,great white shark', 1),
        ('d/a b.png,1', 1),
        ('d/a b.png, cat', 0),
        ('d/a b.png,"dog, wild"', 2),
        ('d/a b.png,dog, wild', 2),
        ('"d/a b.png","dog, wild"', 2),
    ],
)
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_lines_of_all_kinds(labels, line, label, encoding):
    content = f'x.png 0\r\n{line}\r\n\r\n'.encode(encoding)
    assert labels(content, 'd/a b.png') == label


@pytest.mark.parametrize('end', ['\r', '\n', '\r\n'])
@pytest.mark.parametrize('gap', [' ', ',', '\t'])
def test_line_ends_of_all_systems(labels, end, gap):
    assert labels(end.join((f'x.png{gap}0', f'a.png{gap}2', '')), 'a.png') == 2


def test_a_name_with_a_backslash_is_taken_as_it_is_where_such_a_file_is(labels, tmp_path):
    (tmp_path / 'a\\b.png').write_bytes(b'')
    assert labels('a\\b.png 0', 'a\\b.png') == 0


def test_links_to_one_picture_have_their_own_labels(labels, tmp_path):
    (tmp_path / 'd').mkdir()
    (tmp_path / 'here').symlink_to('d')
    (tmp_path / 'd' / 'a.png').write_bytes(b'')
    (tmp_path / 'd' / 'b.png').symlink_to('a.png')
    lines = 'd/a.png 0\nd/b.png 2\n'
    assert [labels(lines, f'here/{name}.png') for name in 'ab'] == [0, 2]


def test_a_name_of_a_class_in_the_letters_of_macos(labels):
    assert labels('my a.png,e\u0301te\u0301\n', 'my a.png', ['zoo', '\u00e9t\u00e9']) == 1


def test_numbers_that_count_from_1_are_refused(labels):
    for text in ('a.png 1\n', 'a.png 1\nb.png 2\n'):
        with pytest.raises(UserError, match='no picture has label 0, but labels count from 0'):
            labels(text, 'a.png')
    with pytest.raises(UserError, match="line 2: '3' is not a class or its number"):
        labels('a.png 1\nb.png 3\n', 'a.png')
    assert labels('a.png 1\nb.png 0\n', 'a.png') == 1
    assert labels('a.png 01\nb.png 00\n', 'a.png') == 1
    assert labels('a.png great white shark\n', 'a.png') == 1
    assert labels('a.png 2\nb.png 1\n', 'a.png', ['0', '1', '2']) == 2  # they are names
    assert labels('a.png 家猫\n', 'a.png', CLASSES) == 6


@pytest.mark.parametrize(
    ('content', 'says'),
    [
        (
            'a.png 0\nb.png zebra\n',
            "list.txt, line 2: 'zebra' is not a class or its number (cat, gre",
        ),
        ('a.png 0\nb.png 3\n', "list.txt, line 2: '3' is not a class or its number"),
        ('a.png 0\n\nb.png\n', 'list.txt, line 3: not a picture and a class'),
        ('a.png 0\n./a.png 1\n', 'line 2: ./a.png is listed before, with another class'),
        ('a.png 0\nb.png,' + 200_000 * 'x', "line 2: 'xxx"),
        ('a.png 0\nb.png ' + 5000 * '9', "line 2: '999"),
        ('a\\' + 300 * 'b' + ' 0', 'list.txt has no line for a.png'),
        ('a.png 0\na\0/b.png 1\n', 'list.txt is not a list of lines: it contains zero bytes'),
        ('b.png 0\n', 'list.txt has no line for a.png; its first line is for '),
        ('', 'list.txt has no line for a.png'),
        ('a.png 家猫'.encode('gbk'), 'list.txt is not in UTF-8; save it as UTF-8'),
    ],
)
def test_wrong_lists_are_refused_with_the_line(labels, content, says):
    with pytest.raises(UserError) as caught:
        labels(content, 'a.png')
    assert says in str(caught.value)
    assert len(str(caught.value)) < 500


def test_missing_files_are_named(labels):
    Path('list.txt').write_text('c.png 0')
    with pytest.raises(
        UserError, match=r'no line for a.png and 1 more; its first line is for .*c\.png'
    ):
        find_labels('list.txt', [Path('a.png'), Path('b.png')], ANIMALS)
    with pytest.raises(UserError, match="no such file; use 'folder' for the names of folders"):
        find_labels('nowhere.txt', [Path('a.png')], ANIMALS)
