"""engine/data/sources/folder.py: every layout is found by looking, every disagreement is named."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from engine.data.dataset import Files
from engine.data.sources import folder as folders
from engine.data.sources.folder import LABEL_LISTS, find_folder
from engine.errors import UserError
from predictor.pictures import SUFFIXES


def touch(root: Path, *names: str) -> Path:
    """Empty files: nothing here looks into them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def found(files: Files, root: Path) -> dict[str, int]:
    return {
        os.path.relpath(path, root): int(label) for path, label in zip(files.paths, files.labels)
    }


def refusal(root: Path, **options) -> str:
    """The one line of the UserError."""
    with pytest.raises(UserError) as caught:
        find_folder(root, **options)
    assert '\n' not in str(caught.value)
    return str(caught.value)


TRAIN = ('train/cat/a.jpg', 'train/dog/b.jpg', 'train/dog/c.png')


@pytest.mark.parametrize('test', ['val', 'test', 'valid', 'validation', 'eval'])
def test_train_and_test_folders(tmp_path, test):
    touch(tmp_path, *TRAIN, f'{test}/cat/d.jpg', f'{test}/dog/e.jpg')
    data = find_folder(tmp_path)
    assert data.classes == ['cat', 'dog']
    assert found(data.train, tmp_path) == dict(zip(TRAIN, (0, 1, 1)))
    assert found(data.test, tmp_path) == {f'{test}/cat/d.jpg': 0, f'{test}/dog/e.jpg': 1}
    assert data.train.labels.dtype == np.int64


def test_val_comes_before_test_and_test_folder_before_both(tmp_path):
    parts = ('val', 'test', 'mine')
    touch(tmp_path, *TRAIN, *(f'{part}/{name}/a.jpg' for part in parts for name in ('cat', 'dog')))
    assert found(find_folder(tmp_path).test, tmp_path) == {'val/cat/a.jpg': 0, 'val/dog/a.jpg': 1}
    for part in parts:
        chosen = find_folder(tmp_path, test_folder=part)
        assert found(chosen.test, tmp_path) == {f'{part}/cat/a.jpg': 0, f'{part}/dog/a.jpg': 1}
    assert 'data.test_folder' in refusal(tmp_path, test_folder='nowhere')


def test_pictures_at_any_depth_of_any_suffix_and_nothing_else(tmp_path):
    expected = {f'cat/deep/er/{number}{suffix}' for number, suffix in enumerate(SUFFIXES)}
    expected |= {'cat/LOUD.JPEG', 'cat/two words.Png', 'cat/folder.jpg/inside.jpg'}
    others = ('cat/Thumbs.db', 'cat/notes.txt', 'cat/._a.jpg', 'cat/.hidden/a.jpg', 'cat/jpg')
    touch(tmp_path, *(f'train/{name}' for name in (*expected, *others)), 'train/.git/a.jpg')
    touch(tmp_path, 'val/cat/a.jpg', 'val/.DS_Store')
    data = find_folder(tmp_path)
    assert data.classes == ['cat']
    assert set(found(data.train, tmp_path / 'train')) == expected


def test_links_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path, 'elsewhere/b.jpg', 'train/cat/a.jpg', 'train/cat/in/c.jpg', 'val/cat/a.jpg')
    cat = tmp_path / 'train' / 'cat'
    (cat / 'linked').symlink_to(tmp_path / 'elsewhere')
    (cat / 'in' / 'circle').symlink_to(cat)
    (tmp_path / 'elsewhere' / 'back').symlink_to(cat / 'in')
    (cat / 'itself').symlink_to('itself')
    (cat / 'itself.jpg').symlink_to('itself.jpg')
    (cat / 'broken.jpg').symlink_to('nowhere')
    (tmp_path / 'train' / 'itself').symlink_to('itself')
    data = find_folder(tmp_path)
    assert data.classes == ['cat']
    names = set(found(data.train, cat))
    assert {'a.jpg', 'in/c.jpg', 'linked/b.jpg', 'broken.jpg', 'itself.jpg'} <= names
    assert len(names) < 12


def test_order_and_labels_do_not_depend_on_the_disk(tmp_path, monkeypatch):
    touch(tmp_path, *(f'{c}/{i}.jpg' for c in 'bca' for i in (3, 1, 2)))
    data = find_folder(tmp_path, holdout=0.3)
    scan = os.scandir
    monkeypatch.setattr(os, 'scandir', lambda path: list(scan(path))[::-1])
    again = find_folder(tmp_path, holdout=0.3)
    assert data.train.paths == again.train.paths == sorted(data.train.paths)
    assert data.test.paths == again.test.paths
    assert data.classes == ['a', 'b', 'c']


# ------------------------------------------------------------------ parts by other names

SPLITS = {
    'Kaggle': ('Training/{}', 'Testing/{}'),
    'capitals': ('Train/{}', 'Val/{}'),
    'Intel': ('seg_train/seg_train/{}', 'seg_test/seg_test/{}'),
    'twice': ('x/x/train/{}', 'x/x/test/{}'),
    'twice, elsewhere': ('y/y/train/{}', 'y/y/test/{}'),
    'sets': ('training_set/{}', 'validation-set/{}'),
    'Chinese': ('训练集/{}', '测试集/{}'),
    'joined': ('trainset/{}', 'TestSet/{}'),
}


@pytest.mark.parametrize('name', SPLITS)
def test_the_usual_names_of_parts_are_found_in_any_case(tmp_path, name):
    root = tmp_path / 'x'
    train, test = SPLITS[name]
    touch(root, f'{train}/a.jpg'.format('cat'), f'{train}/b.jpg'.format('dog'))
    touch(root, f'{test}/c.jpg'.format('cat'), f'{test}/d.jpg'.format('dog'))
    data = find_folder(root)
    assert data.classes == ['cat', 'dog']
    assert [os.path.basename(path) for path in data.train.paths] == ['a.jpg', 'b.jpg']
    assert [os.path.basename(path) for path in data.test.paths] == ['c.jpg', 'd.jpg']
    assert not data.notes
    assert 'leave one of the two out' in refusal(root, holdout=0.2)


def test_an_exact_name_comes_before_others_and_two_others_are_a_choice(tmp_path):
    touch(tmp_path, *TRAIN, 'val/cat/a.jpg', 'val/dog/a.jpg', 'Train/owl/a.jpg', 'VAL/owl/a.jpg')
    assert find_folder(tmp_path).classes == ['cat', 'dog']
    touch(tmp_path / 'two', 'Train/cat/a.jpg', 'seg_train/cat/a.jpg', 'val/cat/a.jpg')
    message = refusal(tmp_path / 'two')
    assert 'Train and seg_train: choose with -o data.train_folder=Train' in message


def test_the_keys_name_parts_of_any_name(tmp_path):
    touch(tmp_path, *(f'{part}/{name}/a.jpg' for part in ('one', 'two') for name in ('cat', 'dog')))
    data = find_folder(tmp_path, train_folder='one', test_folder='two')
    assert found(data.train, tmp_path) == {'one/cat/a.jpg': 0, 'one/dog/a.jpg': 1}
    assert found(data.test, tmp_path) == {'two/cat/a.jpg': 0, 'two/dog/a.jpg': 1}
    message = refusal(tmp_path, train_folder='nowhere', test_folder='two')
    assert message == f'data.train_folder: {tmp_path / "nowhere"} is not a folder'


@pytest.mark.parametrize('options', [{}, {'holdout': 0.5}])
def test_parts_of_a_set_are_not_taken_for_classes(tmp_path, options):
    touch(tmp_path, *(f'part{p}/{name}/{i}.jpg' for p in '12' for name in 'ab' for i in '12'))
    message = refusal(tmp_path, **options)
    assert f'{tmp_path / "part1"} has only folders (a, b), no pictures' in message
    assert 'data.train_folder and data.test_folder' in message


@pytest.mark.parametrize('options', [{}, {'holdout': 0.5}])
def test_lists_beside_folders_are_not_passed_over_in_silence(tmp_path, options):
    """PaddleClas's Oxford flowers."""
    touch(tmp_path, 'jpg/image_1.jpg', 'jpg/image_2.jpg', 'train_list.txt', 'val_list.txt')
    message = refusal(tmp_path, **options)
    assert 'train_list.txt, val_list.txt beside its folders' in message
    assert 'train/<class>/' in message


def test_the_training_part_alone_leads_to_the_whole(tmp_path):
    touch(tmp_path, *TRAIN, 'val/cat/a.jpg', 'val/dog/a.jpg')
    message = refusal(tmp_path / 'train')
    assert f'{tmp_path / "train"} is a part of a set' in message
    assert message.endswith(str(tmp_path))


def test_one_class_alone_is_said_to_teach_nothing(tmp_path):
    touch(tmp_path, 'train/cat/a.jpg', 'val/cat/b.jpg')
    assert any('nothing can be learned' in note for note in find_folder(tmp_path).notes)
    assert not find_folder(tmp_path, train=False).notes


def test_the_same_name_in_two_forms_of_unicode_is_one_class(tmp_path):
    composed, apart = '\u00e9t\u00e9', 'e\u0301te\u0301'
    touch(tmp_path, f'train/{apart}/a.jpg', 'train/zoo/a.jpg')
    touch(tmp_path, f'val/{composed}/b.jpg', 'val/zoo/b.jpg')
    data = find_folder(tmp_path)
    assert data.classes == ['zoo', composed]
    assert found(data.test, tmp_path) == {f'val/{composed}/b.jpg': 1, 'val/zoo/b.jpg': 0}
    touch(tmp_path, f'train/{composed}/a.jpg')
    assert f'two folders that read {composed}' in refusal(tmp_path)


def test_what_is_no_picture_is_counted(tmp_path):
    touch(tmp_path, *TRAIN, 'train/cat/a.xyz', 'val/cat/a.jpg', 'val/dog/a.jpg', 'val/dog/b.xml')
    assert find_folder(tmp_path).notes == [
        f'left out of {tmp_path / "train"}: 1 .xyz',
        f'left out of {tmp_path / "val"}: 1 .xml',
    ]


# ------------------------------------------------------------------ evaluation alone


def test_only_evaluation_needs_no_training_images(tmp_path):
    touch(tmp_path, 'val/cat/a.jpg', 'val/dog/b.jpg')
    data = find_folder(tmp_path, train=False)
    assert data.classes == ['cat', 'dog']
    assert len(data.train) == 0
    assert found(data.test, tmp_path) == {'val/cat/a.jpg': 0, 'val/dog/b.jpg': 1}
    assert f'{tmp_path / "train"} not found' in refusal(tmp_path)


def test_without_training_images_the_classes_of_the_weights_say_what_is_missing(tmp_path):
    touch(tmp_path, 'val/cat/a.jpg', 'val/dog/b.jpg')
    data = find_folder(tmp_path, train=False, known=['ant', 'dog', 'cat'])
    assert data.classes == ['ant', 'dog', 'cat']
    assert found(data.test, tmp_path) == {'val/cat/a.jpg': 2, 'val/dog/b.jpg': 1}
    assert 'no image of 1 of 3 classes: ant' in data.notes[0]
    assert find_folder(tmp_path, train=False, known=['dog', 'fox']).classes == ['cat', 'dog']
    touch(tmp_path, *TRAIN)
    assert find_folder(tmp_path, known=['ant', 'dog', 'cat']).classes == ['cat', 'dog']


def test_evaluation_takes_the_classes_of_training_where_they_are(tmp_path):
    touch(tmp_path, *TRAIN, 'val/dog/a.jpg')
    data = find_folder(tmp_path, train=False)
    assert (len(data.train), data.classes) == (0, ['cat', 'dog'])
    assert data.test.labels.tolist() == [1]


# ------------------------------------------------------------------ what cannot work


def test_a_root_that_is_missing_a_file_or_empty(tmp_path):
    touch(tmp_path, 'file')
    (tmp_path / 'empty').mkdir()
    for name in ('missing', 'file'):
        assert refusal(tmp_path / name) == f'data.root: {tmp_path / name} is not a folder'
    assert 'no test images' in refusal(tmp_path / 'empty')
    assert 'data.holdout' in refusal(tmp_path / 'empty')
    assert 'has no class folders' in refusal(tmp_path / 'empty', holdout=0.2)


def test_pictures_without_class_folders(tmp_path):
    touch(tmp_path, 'train/a.jpg', 'val/cat/a.jpg')
    assert f'{tmp_path / "train"}/<class>/' in refusal(tmp_path)


def test_an_empty_class_is_named(tmp_path):
    touch(tmp_path, *TRAIN, 'val/cat/a.jpg', 'val/dog/a.jpg', 'train/fox/notes.txt')
    message = refusal(tmp_path)
    assert f'{tmp_path / "train" / "fox"} has no images' in message
    assert 'but 1 .txt' in message


@pytest.mark.parametrize('empty', [False, True])
def test_a_test_set_without_some_classes_is_measured_and_shifts_no_label(tmp_path, empty):
    touch(tmp_path, *(f'train/{name}/a.jpg' for name in ('ant', 'cat', 'dog', 'eel')))
    touch(tmp_path, 'val/cat/b.jpg', 'val/eel/b.jpg')
    if empty:
        touch(tmp_path, 'val/ant/notes.txt')
        (tmp_path / 'val' / 'dog').mkdir()
    data = find_folder(tmp_path)
    assert found(data.test, tmp_path) == {'val/cat/b.jpg': 1, 'val/eel/b.jpg': 3}
    (note,) = data.notes
    assert f'{tmp_path / "val"} has no image of 2 of 4 classes: ant, dog' in note


def test_classes_that_differ_are_named_five_at_most(tmp_path):
    touch(tmp_path, *TRAIN, 'val/cat/a.jpg', 'val/fox/a.jpg', 'val/owl/a.jpg')
    text = refusal(tmp_path)
    assert 'only there: fox, owl; missing there: dog' in text
    assert str(tmp_path / 'val') in text
    touch(tmp_path, 'train/eel/a.jpg')  # three of each now
    assert 'only there: fox, owl; missing there: dog, eel' in refusal(tmp_path)
    touch(tmp_path, *(f'train/k{number}/a.jpg' for number in range(9)))
    assert 'missing there: dog, eel, k0, k1, k2, ...' in refusal(tmp_path)


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    """Root may read everything, so that the refusal is played."""
    touch(tmp_path, *TRAIN, 'val/cat/a.jpg', 'val/dog/a.jpg')
    scan = os.scandir

    def refuse(path):
        if str(path).endswith('dog'):
            raise PermissionError(13, 'Permission denied', str(path))
        return scan(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    assert refusal(tmp_path) == f'cannot read {tmp_path}/train/dog: Permission denied'


# ------------------------------------------------------------------ names of classes


def test_classes_may_have_spaces_dots_and_chinese_names(tmp_path):
    names = sorted(['polar bear', 'v1.0', '熊猫', 'été', '10', '9', 'a,b', '$x_$'])
    touch(tmp_path, *(f'{part}/{name}/熊 1.jpg' for part in ('train', 'val') for name in names))
    data = find_folder(tmp_path)
    assert data.classes == names
    assert data.train.labels.tolist() == list(range(len(names)))


@pytest.mark.parametrize(
    'name', ['two\nlines', 'form\x0cfeed', b'caf\xe9', '\N{CAT FACE}'.encode() + b'\xe9']
)
def test_classes_that_no_list_could_hold_are_refused(tmp_path, name):
    for part in (b'train', b'val'):
        os.makedirs(os.path.join(os.fsencode(tmp_path), part, os.fsencode(name)))
    text = refusal(tmp_path)
    assert 'rename' in text
    text.encode()


def test_a_class_in_gbk_bytes_is_shown_as_it_reads_there(tmp_path):
    os.makedirs(os.path.join(os.fsencode(tmp_path), b'train', '熊猫'.encode('gbk')))
    touch(tmp_path, 'val/cat/a.jpg')
    text = refusal(tmp_path)
    assert 'in GBK: 熊猫; unpack anew with unzip -O GBK' in text
    text.encode()


def test_three_hundred_classes(tmp_path):
    touch(tmp_path, *(f'{n:03d}/{i}.jpg' for n in range(300) for i in range(2)))
    data = find_folder(tmp_path, holdout=0.5)
    assert len(data.classes) == 300
    assert data.train.labels.tolist() == data.test.labels.tolist() == list(range(300))


def test_the_confusion_plot_takes_every_such_name(tmp_path):
    from engine import plots

    names = ['polar bear', 'v1.0', '熊猫', 'a,b', '50 $']
    plots.confusion(np.eye(5, dtype=np.int64), names, tmp_path / 'a.png', of='run')
    many = [f'熊{number}' for number in range(300)]
    plots.confusion(np.eye(300, dtype=np.int64), many, tmp_path / 'b.png', of='run')
    assert (tmp_path / 'a.png').stat().st_size > 1000
    assert (tmp_path / 'b.png').stat().st_size > 1000


# ------------------------------------------------------------------ holding out


def pictures_of(tmp_path: Path, counts: dict[str, int], where: str = '') -> Path:
    return touch(
        tmp_path, *(f'{where}{n}/{i:04d}.jpg' for n, c in counts.items() for i in range(c))
    )


@pytest.mark.parametrize('where', ['', 'train/'])
def test_a_part_of_every_class_is_held_out(tmp_path, where):
    counts = {'a': 100, 'b': 10, 'c': 3, 'd': 2}
    pictures_of(tmp_path, counts, where)
    data = find_folder(tmp_path, holdout=0.2)
    assert np.bincount(data.test.labels).tolist() == [20, 2, 1, 1]
    assert np.bincount(data.train.labels).tolist() == [80, 8, 2, 1]
    assert not set(data.train.paths) & set(data.test.paths)
    assert len(set(data.train.paths) | set(data.test.paths)) == sum(counts.values())
    numbers = [int(Path(path).stem) for path in data.test.paths if '/a/' in path]
    assert 25 < np.mean(numbers) < 75  # not the first, not the last


def test_nearly_everything_held_out_leaves_one_to_train_with(tmp_path):
    pictures_of(tmp_path, {'a': 10, 'b': 2})
    data = find_folder(tmp_path, holdout=0.99)
    assert np.bincount(data.train.labels).tolist() == [1, 1]


def test_a_class_of_one_image_cannot_be_held_out_from(tmp_path):
    pictures_of(tmp_path, {'a': 10, 'b': 1})
    assert f'{tmp_path / "b"} has one image' in refusal(tmp_path, holdout=0.2)


def test_the_same_is_held_out_wherever_the_folder_is_and_however_it_is_named(tmp_path, monkeypatch):
    pictures_of(tmp_path / 'one', {'a': 50, 'b': 50})
    pictures_of(tmp_path / 'two' / 'deeper', {'a': 50, 'b': 50})

    def held(root: Path) -> set[str]:
        return set(found(find_folder(root, holdout=0.2).test, root))

    first = held(tmp_path / 'one')
    assert first == held(tmp_path / 'two' / 'deeper')
    monkeypatch.chdir(tmp_path / 'one')
    assert first == held(Path('.')) == held(Path('../one'))


def test_what_is_held_out_hardly_changes_when_images_are_added(tmp_path):
    pictures_of(tmp_path, {'a': 100, 'b': 100})
    before = set(find_folder(tmp_path, holdout=0.2).test.paths)
    touch(tmp_path, *(f'a/new{i}.jpg' for i in range(10)))
    after = set(find_folder(tmp_path, holdout=0.2).test.paths)
    assert len(after) == 42
    assert {path for path in before if '/b/' in path} < after
    assert len(before & after) >= 34
    assert all('new' in path for path in after - before if '/a/' in path) or len(after - before) < 6


def test_names_that_are_not_utf_8_can_be_held_out(tmp_path):
    pictures_of(tmp_path, {'a': 4})
    with open(os.path.join(os.fsencode(tmp_path), b'a', b'caf\xe9.jpg'), 'wb'):
        pass
    data = find_folder(tmp_path, holdout=0.5)
    assert len(data.train) + len(data.test) == 5


def test_holding_out_beside_a_test_folder_is_refused(tmp_path):
    touch(tmp_path, *TRAIN, 'val/cat/a.jpg', 'val/dog/a.jpg')
    text = refusal(tmp_path, holdout=0.2)
    assert 'data.holdout' in text
    assert str(tmp_path / 'val') in text


# ------------------------------------------------------------------ a flat folder with a list


FLAT = {
    'val.txt': 'a.JPEG 1\nb.JPEG 0\n\nc.JPEG 2\n',
    'val_list.txt': 'val/a.JPEG 1\r\nval/b.JPEG 0\r\nval/c.JPEG 2',
    'val_labels.txt': '\ufeffa.JPEG n02\n  b.JPEG\tn01  \nc.JPEG polar bear\n',
    'LOC_val_solution.csv': 'ImageId,PredictionString\na,n02 1 2 3 4 n02 5 6 7 8 \nb,n01 1 2 3 4\n'
    'c,2 9 9 9 9\n',
}


@pytest.mark.parametrize('name', FLAT)
@pytest.mark.parametrize('place', ['', 'val'])
def test_a_flat_folder_takes_its_labels_from_a_list(tmp_path, name, place):
    touch(tmp_path, *(f'train/{c}/x.jpg' for c in ('n01', 'n02', 'polar bear')))
    touch(tmp_path, 'val/a.JPEG', 'val/b.JPEG', 'val/c.JPEG')
    (tmp_path / place / name).write_text(FLAT[name], encoding='utf-8')
    data = find_folder(tmp_path)
    assert found(data.test, tmp_path) == {'val/a.JPEG': 1, 'val/b.JPEG': 0, 'val/c.JPEG': 2}


def flat(root: Path, text: str | bytes, name: str = 'val.txt', classes=('cat', 'dog')) -> Path:
    touch(root, *(f'train/{c}/x.jpg' for c in classes), 'val/a.jpg', 'val/b.jpg')
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


@pytest.mark.parametrize(
    ('text', 'line', 'expected'),
    [
        ('a.jpg 0\nb.jpg 2\n', 2, "'2' is not a class or its number (cat, dog)"),
        ('a.jpg -1\nb.jpg 1\n', 1, "'-1'"),
        ('a.jpg 0\n\nb.jpg fox\n', 3, "'fox'"),
        ('a.jpg 0\nb.jpg\n', 2, 'not a picture and a class'),
        ('a.jpg 0\nb.jpg 1\nval/a.jpg 1\n', 3, 'a.jpg is listed before, with another class'),
    ],
)
def test_a_line_that_is_wrong_is_named_with_file_and_number(tmp_path, text, line, expected):
    message = refusal(flat(tmp_path, text))
    assert message.startswith(f'{tmp_path / "val.txt"}, line {line}: ')
    assert expected in message


@pytest.mark.parametrize('name', ['val.txt', 'val_list.txt', 'val_labels.txt'])
def test_a_list_that_counts_from_1_shifts_no_label(tmp_path, name):
    """No picture of the last class is listed: each label is one that there is."""
    message = refusal(flat(tmp_path, 'a.jpg 1\nb.jpg 2\n', name, classes=('cat', 'dog', 'fox')))
    assert message.startswith(f'{tmp_path / name}: no picture has label 0')
    assert 'subtract 1' in message
    (tmp_path / name).write_text('a.jpg dog\nb.jpg fox\n')
    assert find_folder(tmp_path).test.labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    'text',
    [
        'val\\a.jpg 1\r\nval\\b.jpg 0\r\n',
        '\ufeffa.jpg,1\r\nb.jpg,0\r\n',
        'a.jpg, dog\nb.jpg, cat',
        'a.jpg dog\r\nb.jpg cat\r\n'.encode('utf-16'),
    ],
)
def test_a_list_from_windows_is_read(tmp_path, text):
    assert find_folder(flat(tmp_path, text)).test.labels.tolist() == [1, 0]


def test_a_line_of_kaggles_table_that_is_wrong_is_named(tmp_path):
    text = 'ImageId,PredictionString\na,cat 1 2 3 4\nb\n'
    message = refusal(flat(tmp_path, text, 'LOC_val_solution.csv'))
    assert message.startswith(f'{tmp_path / "LOC_val_solution.csv"}, line 3: ')


def test_where_classes_are_numbers_a_label_is_a_name_and_never_a_place(tmp_path):
    """Of classes 1 and 2, label 1 is the first; label 0 is nothing."""
    data = find_folder(flat(tmp_path, 'a.jpg 1\nb.jpg 2\n', classes=('1', '2')))
    assert data.test.labels.tolist() == [0, 1]
    (tmp_path / 'val.txt').write_text('a.jpg 0\nb.jpg 1\n')
    assert ", line 1: '0' is not a class (1, 2)" in refusal(tmp_path)


def test_a_list_and_a_folder_that_disagree(tmp_path):
    flat(tmp_path, 'a.jpg 0\n')
    assert f'no label for {tmp_path / "val" / "b.jpg"}' in refusal(tmp_path)
    (tmp_path / 'val.txt').write_text('a.jpg 0\nb.jpg 1\nc.jpg 1\n')
    message = refusal(tmp_path)
    assert 'lists 3 images' in message
    assert 'no image c.jpg' in message


def test_a_flat_folder_without_a_list_says_which_lists_there_are(tmp_path):
    touch(tmp_path, *TRAIN, 'val/a.jpg')
    message = refusal(tmp_path)
    assert all(name in message for name in LABEL_LISTS)


def test_a_list_in_another_encoding_is_refused_by_name(tmp_path):
    message = refusal(flat(tmp_path, '熊.jpg 0\n'.encode('gbk')))
    assert f'{tmp_path / "val.txt"} is not in UTF-8' in message
    assert 'save it as UTF-8' in message


def test_names_with_spaces_can_be_listed(tmp_path):
    touch(tmp_path, *TRAIN, 'val/my photo.jpg', 'val/熊 猫.jpg')
    (tmp_path / 'val.txt').write_text('my photo.jpg dog\nval/熊 猫.jpg 0\n', encoding='utf-8')
    expected = {'val/my photo.jpg': 1, 'val/熊 猫.jpg': 0}
    assert found(find_folder(tmp_path).test, tmp_path) == expected


def test_a_million_files_are_kept_in_order_within_seconds(tmp_path, monkeypatch):
    """1.28 million names without a disk."""
    names = [str(tmp_path / f'n{number:08d}') for number in range(1000)]
    paths = {name: [f'{name}/{number:06d}.JPEG' for number in range(1280)] for name in names}
    for name in paths:
        os.mkdir(name)
    monkeypatch.setattr(folders, 'walk', lambda folder, others: iter(paths[folder]))
    start = time.process_time()
    data = find_folder(tmp_path, holdout=0.1)
    assert (len(data.train), len(data.test)) == (1_152_000, 128_000)
    assert time.process_time() - start < 30
