"""deploy/predict.py as a user runs it: which pictures, what it prints where, how it ends."""

from __future__ import annotations

import csv
import functools
import importlib
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import unicodedata
from pathlib import Path

import exported
import numpy as np
import picture_files
import pytest
from conftest import REPOSITORY
from PIL import Image

from engine import data, evaluation, models
from predictor import console, inputs
from predictor.exported_folder import open_folder

PREDICT = REPOSITORY / 'deploy' / 'predict.py'
ENGINE = ('--engine', 'onnxruntime' if exported.HAS_ONNX else 'paddle')


@pytest.fixture
def predict(tmp_path):
    """Run the command, in an empty folder, with an engine that starts at once."""
    return functools.partial(execute, tmp_path)


def execute(cwd: Path, *arguments: object, **options) -> subprocess.CompletedProcess[str]:
    engine = () if '--engine' in arguments or options.pop('auto', False) else ENGINE
    return subprocess.run(
        [*command(cwd), *map(os.fspath, engine + arguments)],
        cwd=cwd,
        stdin=options.pop('stdin', None),
        stdout=options.pop('stdout', subprocess.PIPE),
        stderr=subprocess.PIPE,
        text=True,
        errors='replace',
        timeout=120,
        env=environment(cwd, **options),
    )


def command(cwd: Path) -> list[str]:
    return [sys.executable, str(PREDICT)]


def environment(cwd: Path, **changes: str) -> dict[str, str]:
    """Without PYTHONPATH, by which the repository could be found."""
    own = {'XDG_CACHE_HOME': str(cwd / 'cache'), 'PYTHONIOENCODING': 'utf-8'}
    own['PYTHONUNBUFFERED'] = ''  # or what is lost at the end, with the buffer, goes unseen
    inherited = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    return {**inherited, **own, **changes}


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 15, 3), np.uint8)
    Image.fromarray(pixels).save(path, 'PNG')
    return path


def paths(result: subprocess.CompletedProcess[str]) -> list[str]:
    return [line['picture'] for line in json.loads(result.stdout)]


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    """Of an error that ends the command."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == ''
    (line,) = result.stderr.splitlines()
    assert line.startswith('predict.py: ')
    return line


@pytest.fixture
def refusal(tmp_path, monkeypatch, capsys):
    """The line of a command that ends before an engine starts, run in this process."""
    main = importlib.import_module('predict').main

    def run(*arguments: object) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', ['predict.py', *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            console.run(main)
        reported = capsys.readouterr()
        return one_line(
            subprocess.CompletedProcess(arguments, end.value.code, reported.out, reported.err)
        )

    return run


# ------------------------------------------------------------------ which pictures


def test_files_folders_and_patterns_are_taken_in_order_once_each(predict, tmp_path):
    for name in ('b.png', 'a.png', 'f/2.jpg', 'f/deep/1.PNG', 'f/.hidden.png', 'f/.t/x.png'):
        picture(tmp_path / name)
    (tmp_path / 'f' / 'notes.txt').write_text('not a picture')
    picture(tmp_path / 'out' / 'linked.png')
    (tmp_path / 'g').mkdir()
    (tmp_path / 'g' / 'link').symlink_to(tmp_path / 'out')
    arguments = ('b.png', 'f/deep', 'f/2.jpg', './b.png', 'g', '[ab].png', 'f/**/*.PNG')
    result = predict(exported.folder(), *arguments, '--format', 'json')
    assert result.returncode == 0, result.stderr
    expected = ['b.png', 'f/deep/1.PNG', 'f/2.jpg', 'g/link/linked.png', 'a.png']
    assert paths(result) == expected
    (tmp_path / 'f' / 'circle').symlink_to('.')
    (tmp_path / 'f' / 'deep' / 'above').symlink_to('..')
    result = predict(exported.folder(), 'f', '--format', 'json')
    assert paths(result) == ['f/2.jpg', 'f/deep/1.PNG']


def test_a_name_that_is_a_pattern_or_an_option_is_taken_as_the_file_it_names(predict, tmp_path):
    for name in ('[ab].png', '-x.png', '--top', '*.png'):
        picture(tmp_path / name)
    arguments = ('[ab].png', '*.png', '--', '-x.png', '--top')
    result = predict(exported.folder(), '--format', 'json', *arguments)
    assert result.returncode == 0, result.stderr
    assert paths(result) == ['[ab].png', '*.png', '-x.png', '--top']


def test_arguments_without_any_picture_are_one_error_line(refusal, predict, tmp_path):
    picture(tmp_path / 'a.png')
    (tmp_path / 'empty').mkdir()
    folder = exported.folder()
    assert 'nowhere.png: no such file' in refusal(folder, 'nowhere.png', '*.gif')
    assert 'empty has no pictures (.jpg, ' in refusal(folder, 'empty')
    assert 'File name too long' in one_line(predict(folder, 'x' * 300))
    assert 'has no inference.yml' in refusal('empty', 'a.png')
    assert 'is not a folder' in one_line(predict('a.png', 'a.png'))


def test_what_cannot_be_read_is_named_and_the_others_are_answered(predict, tmp_path):
    picture(tmp_path / 'd' / 'good.png')
    picture(tmp_path / 'd' / 'last.png', seed=1)
    names = picture_files.put_what_is_no_file(tmp_path / 'd')
    (tmp_path / 'd' / 'cut.jpg').write_bytes(picture_files.jpeg(picture_files.noisy())[:900])
    (tmp_path / 'd' / 'text.gif').write_text('GIF, no')
    (tmp_path / 'd' / 'empty.bmp').write_bytes(b'')
    bad = {f'd/{name}' for name in [*names, 'cut.jpg', 'text.gif', 'empty.bmp']}
    for arguments in (('d',), sorted(bad | {'d/good.png', 'd/last.png'})):
        result = predict(exported.folder(), *arguments, '--format', 'json', '--batch-size', '3')
        assert result.returncode == 2, result.stderr
        lines = {line['picture']: line for line in json.loads(result.stdout)}
        assert {path for path, line in lines.items() if 'error' in line} == bad
        assert len(lines['d/good.png']['classes']) == 5
        for path in bad:
            assert f'\n{path} {lines[path]["error"]}\n' in '\n' + result.stderr
        assert lines['d/pipe.jpg']['error'] == 'is not a file'
        assert lines['d/broken_link.jpg']['error'].startswith('cannot be read (No such file')
        assert '2 pictures in ' in result.stderr
        assert f'; {len(bad)} could not be read' in result.stderr
    table = predict(exported.folder(), 'd')
    assert table.returncode == 2
    assert [line.split()[0] for line in table.stdout.splitlines()[1:]] == [
        'd/good.png',
        'd/last.png',
    ]


def test_what_is_missing_is_named_and_the_others_are_answered(predict, tmp_path):
    picture(tmp_path / 'good.png')
    (tmp_path / 'empty').mkdir()
    arguments = ('missing.jpg', '*.gif', 'empty', 'good.png', '-', '--format', 'json')
    with (tmp_path / 'good.png').open('rb') as file:
        result = predict(exported.folder(), *arguments, stdin=file)
    assert result.returncode == 2
    found = json.loads(result.stdout)
    assert [line['picture'] for line in found] == [*arguments[:5]]
    assert [line.get('error', '') for line in found] == [
        'cannot be read (No such file or directory)',
        'cannot be read (No such file or directory)',
        'has no pictures',
        '',
        '',
    ]
    assert found[3]['classes'] == found[4]['classes']


def test_damaged_exif_is_ignored_silently(predict, tmp_path):
    for name in ('wrong_exif.jpg', 'wrong_exif.png'):
        (tmp_path / name).write_bytes(picture_files.whole_files()[name].data)
    result = predict(exported.folder(), 'wrong_exif.jpg', 'wrong_exif.png')
    assert result.returncode == 0
    assert [line.split()[0] for line in result.stderr.splitlines()] == ['wide_resnet10_1', '2']


def test_no_readable_picture_is_exit_2_without_traceback(predict, tmp_path):
    (tmp_path / 'a.png').write_text('no')
    result = predict(exported.folder(), 'a.png', '--labels', 'folder', '--format', 'csv')
    assert 'is not a class (' in one_line(result)
    result = predict(exported.folder(), 'a.png', '--format', 'csv', '--log-dir', 'logs')
    assert result.returncode == 2
    assert 'Traceback' not in result.stderr
    assert result.stdout.splitlines()[1].endswith(',is not a picture')


# ------------------------------------------------------------------ what is printed


ODD = ('new\nline.png', 'comma,"q".png', '猫 一.png', ' lead.png', "it's.png", 'tab\there.png')


@pytest.fixture
def odd(tmp_path):
    for seed, name in enumerate(ODD):
        picture(tmp_path / name, seed)
    return ODD


def test_json_and_csv_parse_back_to_the_same_answers(predict, odd):
    as_json = predict(exported.folder(), *odd, '--format', 'json', '--top', '999')
    as_csv = predict(exported.folder(), *odd, '--format', 'csv', '--top', '2')
    lines = json.loads(as_json.stdout)
    assert [line['picture'] for line in lines] == list(odd)
    header, *rows = list(csv.reader(io.StringIO(as_csv.stdout)))
    assert header == ['picture', 'class1', 'probability1', 'class2', 'probability2', 'error']
    assert len(rows) == len(odd)
    for line, row in zip(lines, rows):
        classes = line['classes']
        assert [one['name'] for one in classes] == [exported.CLASSES[c['index']] for c in classes]
        assert sorted(one['name'] for one in classes) == sorted(exported.CLASSES)
        likely = [one['probability'] for one in classes]
        assert likely == sorted(likely, reverse=True)
        assert sum(likely) == pytest.approx(1, abs=1e-5)
        assert row[0] == line['picture']
        assert row[1::2] == [classes[0]['name'], classes[1]['name'], '']
        assert [float(row[2]), float(row[4])] == likely[:2]


def columns(text: str) -> int:
    """That a terminal takes."""
    return sum(2 if unicodedata.east_asian_width(letter) in 'WF' else 1 for letter in text)


def test_columns_of_a_table_are_aligned(predict, odd):
    result = predict(exported.folder(), *odd, '--top', '3')
    header, *rows = result.stdout.splitlines()
    assert len(rows) == len(odd)  # a line each, whatever a name holds
    assert {columns(row) for row in rows} == {columns(header)}
    places = [match.start() for match in re.finditer('top ', header)]
    assert len(places) == 3
    for row in rows:
        found = [columns(row[: match.end()]) for match in re.finditer(r'\d\.\d\d %', row)]
        ends = [place - 2 for place in places[1:]] + [columns(header)]
        assert found == ends
    narrow = predict(exported.folder(), "it's.png", '--top', '1').stdout.splitlines()
    assert columns(narrow[0]) == columns(narrow[1])


def test_a_name_that_is_not_utf_8_is_printed_and_json_returns_it(predict, tmp_path):
    name = os.fsdecode(b'not_utf8_\xff.png')
    picture(tmp_path / name)
    # As a terminal with a language has it: it refuses what it cannot print.
    strict = {'PYTHONIOENCODING': 'utf-8:strict'}
    result = predict(exported.folder(), name, '--format', 'json', **strict)
    assert result.returncode == 0, result.stderr
    assert paths(result) == [name]
    for form in ('table', 'csv'):
        result = predict(exported.folder(), name, '--format', form, **strict)
        assert result.returncode == 0, result.stderr
        assert 'not_utf8_' in result.stdout


@pytest.mark.parametrize('encoding', ['ascii', 'gbk:strict'])
def test_names_that_a_terminal_cannot_encode_are_not_an_error(predict, tmp_path, encoding):
    picture(tmp_path / '猫é😀.png')
    for form in ('table', 'csv', 'json'):
        result = predict(
            exported.folder(), '猫é😀.png', '--format', form, PYTHONIOENCODING=encoding
        )
        assert result.returncode == 0, result.stderr
        if form == 'json':
            assert paths(result) == ['猫é😀.png']


def test_closed_streams_are_not_an_error(predict, tmp_path):
    picture(tmp_path / 'a.png')
    folder = str(exported.folder())
    script = 'exec "$@" <&- >&- 2>errors'
    for form in ('table', 'json', 'csv'):
        arguments = [*command(tmp_path), folder, 'a.png', '--format', form, '--log-dir', form]
        run = subprocess.run(
            ['sh', '-c', script, 'sh', *arguments, *ENGINE],
            cwd=tmp_path,
            env=environment(tmp_path),
            timeout=120,
        )
        assert run.returncode == 0, (tmp_path / 'errors').read_text()
        assert (tmp_path / form / 'time_result.txt').is_file()
    assert 'Traceback' not in (tmp_path / 'errors').read_text()


def test_csv_in_a_file_starts_with_a_byte_order_mark_for_excel(predict, tmp_path):
    picture(tmp_path / '猫.png')
    with (tmp_path / 'answers.csv').open('wb') as file:
        result = predict(exported.folder(), '猫.png', '--format', 'csv', stdout=file)
    assert result.returncode == 0
    data = (tmp_path / 'answers.csv').read_bytes()
    assert data.startswith(b'\xef\xbb\xbfpicture,class1,')
    assert '猫.png'.encode() in data


@pytest.mark.skipif(not exported.HAS_ONNX, reason='paddle2onnx or onnxruntime is not installed')
def test_runs_without_modules_missing_on_windows(tmp_path):
    picture(tmp_path / 'a.png')
    arguments = [str(PREDICT), str(exported.folder()), 'a.png', *ENGINE]
    run = subprocess.run(
        [sys.executable, str(REPOSITORY / 'tests' / 'as_on_windows.py'), *arguments],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert '\n1 picture in ' in run.stderr


def test_a_run_folder_is_searched_for_its_exported_folder(predict, tmp_path):
    picture(tmp_path / 'a.png')
    (tmp_path / 'my run' / 'checkpoints').mkdir(parents=True)
    line = one_line(predict('my run', 'a.png'))
    assert line.endswith("is a run that is not exported: python3 export.py -w 'my run'")
    shutil.copytree(exported.folder(), tmp_path / 'my run' / 'inference')
    assert predict('my run', 'a.png').returncode == 0


def test_max_pixels_million_allows_larger_pictures(predict, tmp_path):
    Image.new('1', (1100, 1000)).save(tmp_path / 'large.png')
    for most, code in (('1', 2), ('2', 0)):
        arguments = ('large.png', '--max-pixels-million', most)
        result = predict(exported.folder(), *arguments)
        assert result.returncode == code
    assert predict(exported.folder(), 'large.png').returncode == 0


def test_standard_output_holds_the_answers_and_nothing_else(predict, tmp_path):
    """Also of Paddle, whose C++ prints there."""
    picture(tmp_path / 'a.png')
    picture(tmp_path / 'b.png', seed=1)
    for engine in ('paddle', ENGINE[1]):
        for batch in ('1', '2'):
            arguments = ('a.png', 'b.png', '--engine', engine, '--batch-size', batch)
            result = predict(exported.folder(), *arguments, '--format', 'json')
            assert result.returncode == 0, result.stderr
            assert len(json.loads(result.stdout)) == 2
            assert f'wide_resnet10_1 through {engine} (as asked for)\n' in result.stderr


def test_the_engine_and_why_it_was_chosen_are_reported(predict, tmp_path):
    for seed in range(3):
        picture(tmp_path / f'{seed}.png', seed)
    result = predict(exported.folder(), '0.png', '1.png', '2.png', '--device', 'cpu', auto=True)
    assert result.returncode == 0, result.stderr
    assert '(the first of openvino, onnxruntime, paddle that runs on cpu' in result.stderr
    assert len(result.stdout.splitlines()) == 4


@pytest.mark.parametrize(
    'arguments',
    [
        *(('--top', wrong) for wrong in ('0', '-1', 'x')),
        *(('--batch-size', '0'), ('--threads', '0'), ('--format', 'xml')),
        *(('--engine', 'caffe'), ('--to', '3')),
    ],
)
def test_a_wrong_option_is_exit_2(refusal, tmp_path, arguments):
    picture(tmp_path / 'a.png')
    assert arguments[0] in refusal(exported.folder(), 'a.png', *arguments)


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        (('--engine', 'tensorrt'), 'TensorRT needs an NVIDIA GPU, and the device is cpu'),
        (('--device', 'gpu'), '--device gpu is not available: 0 GPUs, 0 NPUs'),
        (('--device', 'npu:7'), '--device npu:7 is not available'),
        (('--device', 'nonsense'), '--device nonsense: use auto, cpu, gpu, gpu:1, npu or npu:1'),
        (('--precision', 'float16', '--engine', 'paddle'), 'float16 needs a GPU or an NPU'),
    ],
)
def test_a_missing_device_or_engine_is_one_line_and_exit_2(predict, tmp_path, arguments, expected):
    picture(tmp_path / 'a.png')
    result = predict(exported.folder(), 'a.png', *arguments, CUSTOM_DEVICE_ROOT='')
    assert expected in one_line(result)


def test_help_takes_less_than_half_a_second(predict):
    """By processor time, as the machine may have other things to do."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = predict('--help')
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 0
    assert '--log-dir' in result.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


# ------------------------------------------------------------------ labels and logs


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """val/<class>/*.png of noise in each of many sizes, and a link, a JPEG and a GIF among them."""
    root = tmp_path_factory.mktemp('data')
    rng = np.random.default_rng(3)
    for label, name in enumerate(exported.CLASSES):
        folder = root / 'val' / name
        folder.mkdir(parents=True)
        for number in range(6):
            sides = rng.integers(5, 40, 2)
            image = Image.fromarray(rng.integers(0, 256, (*sides, 3), np.uint8))
            suffix = ('png', 'jpg', 'gif')[(label + number) % 3]
            image.save(folder / f'{number}.{suffix}')
        shutil.copy(next(folder.iterdir()), root / f'all{label}.png')
        (folder / 'link.png').symlink_to(root / f'all{label}.png')
    return root


def test_accuracy_is_that_of_evaluation(predict, pictures):
    where = (f'data.root={pictures}', 'data.workers=1', 'eval.batch_size=16')
    settled = exported.config('wide_resnet10_1', exported.SIZE, exported.RESIZE, *where)
    found = data.load_data(settled, train=False, report=pytest.fail)
    assert found.classes == exported.CLASSES
    model = models.build('wide_resnet10_1', num_classes=len(exported.CLASSES))
    model.set_state_dict(exported.arrays('wide_resnet10_1'))
    expected = evaluation.evaluate(model, data.test_batches(found, settled))
    result = predict(exported.folder(), pictures / 'val', '--labels', 'folder', '--top', '1')
    assert result.returncode == 0, result.stderr
    *rows, line = result.stdout.splitlines()
    assert len(rows) == 1 + len(expected.labels)
    assert line == f'{expected.summary}  top-5 {100 * expected.top5:.2f} %'
    assert 0 < expected.correct < len(expected.labels)
    likeliest = [row[:-9].rstrip() for row in rows[1:]]
    for path, text, index in zip(sorted(found.test.files.paths), likeliest, expected.predictions):
        assert text.endswith(exported.CLASSES[index]), path


def test_labels_of_a_file_are_numbers_or_names_with_spaces(predict, tmp_path):
    names = [f'p {seed}.png' for seed in range(4)]
    for seed, name in enumerate(names):
        picture(tmp_path / 'in' / name, seed)
    every = predict(exported.folder(), 'in', '--format', 'json', '--top', '7')
    indices = [line['classes'][0]['index'] for line in json.loads(every.stdout)]
    texts = [exported.CLASSES[indices[0]], str(indices[1]), 'great white shark', '家猫']
    lines = [f'{name}\t {text}' for name, text in zip(names, texts)]
    for start, end in (('', '\n'), ('\ufeff', '\r\n\r\n')):
        (tmp_path / 'in' / 'list.txt').write_text(start + end.join(lines), encoding='utf-8')
        result = predict(exported.folder(), 'in', '--labels', 'in/list.txt', '--format', 'json')
        assert result.returncode == 0, result.stderr
        assert len(json.loads(result.stdout)) == 4
        right = 2 + (indices[2] == 3) + (indices[3] == 6)
        assert f'\nacc:{right} total:4 ratio:{right / 4:g}  top-5 ' in result.stderr


@pytest.mark.parametrize(('classes', 'told'), [(5, False), (6, True)])
def test_top_5_needs_more_than_five_classes_and_one_picture_is_singular(classes, told):
    tally = importlib.import_module('predict').Tally(images=1, correct=1, correct5=1, seconds=1)
    line = 'acc:1 total:1 ratio:1' + ('  top-5 100.00 %' if told else '')
    assert tally.accuracy(classes) == line
    assert tally.timing.startswith('1 picture in 1.0 s, ')


def test_wrong_labels_are_one_line_before_any_work(refusal, tmp_path):
    """What can be wrong with them: test_labels.py."""
    picture(tmp_path / 'a.png')
    (tmp_path / 'list.txt').write_text('a.png zebra')
    for labels, expected in (
        ('list.txt', "'zebra' is not a class or its number"),
        ('folder', 'its folder'),
    ):
        line = refusal(exported.folder(), 'a.png', '--log-dir', 'logs', '--labels', labels)
        assert expected in line
    assert not (tmp_path / 'logs').exists()


def test_logs_are_in_mindspores_words_and_never_overwritten(predict, tmp_path, pictures):
    folder, where = exported.folder(), pictures / 'val'
    result = predict(folder, where, '--labels', 'folder', '--log-dir', 'logs/new')
    assert result.returncode == 0, result.stderr
    accuracy, time_result = (
        (tmp_path / 'logs' / 'new' / name).read_text() for name in ('acc.log', 'time_result.txt')
    )
    number = r'([0-9.]+(?:e-\d+)?)'
    match = re.fullmatch(
        rf'Total data: 49, top1 accuracy: {number}, top5 accuracy: {number}\.\n', accuracy
    )
    right = int(re.search(r'^acc:(\d+) total:49 ', result.stdout, re.M).group(1))
    assert float(match.group(1)) == right / 49
    assert re.fullmatch(
        rf'NN inference cost average time: {number} ms of infer_count 49\n', time_result
    )
    again = predict(folder, where, '--log-dir', 'logs/new')
    assert 'acc.log already exists; choose another folder with --log-dir' in one_line(again)
    assert (tmp_path / 'logs' / 'new' / 'acc.log').read_text() == accuracy
    unlabelled = predict(folder, where, '--log-dir', 'plain')
    assert unlabelled.returncode == 0
    assert os.listdir(tmp_path / 'plain') == ['time_result.txt']
    (tmp_path / 'file').write_text('')
    assert 'file: File exists' in one_line(predict(folder, where, '--log-dir', 'file'))
    assert 'Not a directory' in one_line(predict(folder, where, '--log-dir', 'file/x'))


# ------------------------------------------------------------------ ends


def test_a_closed_pipe_is_exit_141_without_traceback(predict, tmp_path, pictures):
    for form in ('table', 'json', 'csv'):
        process = subprocess.Popen(
            [*command(tmp_path), *ENGINE, exported.folder(), pictures / 'val', '--format', form],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(tmp_path),
        )
        process.stdout.close()  # as `| head` may have, before anything is written
        errors = process.stderr.read()
        assert process.wait(60) == 141
        assert 'Broken' not in errors
        assert 'Traceback' not in errors


def test_a_full_disk_is_one_line(predict, tmp_path):
    picture(tmp_path / 'a.png')
    for form in ('table', 'json', 'csv'):
        with open('/dev/full', 'w') as full:
            result = predict(exported.folder(), 'a.png', '--format', form, stdout=full)
        assert result.returncode == 2
        assert result.stderr.splitlines()[-1] == 'predict.py: writing: No space left on device'


def test_an_interrupt_is_exit_130_without_traceback(tmp_path):
    file = picture(tmp_path / 'a.png')
    (tmp_path / 'many').mkdir()
    for number in range(3000):
        (tmp_path / 'many' / f'{number}.png').symlink_to(file)
    process = subprocess.Popen(
        [*command(tmp_path), *ENGINE, exported.folder(), 'many', '--batch-size', '1'],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(tmp_path),
    )
    for _ in range(10):
        assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert 'Traceback' not in errors


def test_standard_input_is_read_in_the_main_thread(tmp_path, monkeypatch):
    """In the main thread: another one would have to be waited for, whoever presses Ctrl-C."""
    data, threads = picture(tmp_path / 'a.png').read_bytes(), []

    class Stream(io.BytesIO):
        def read(self, *size):
            threads.append(threading.current_thread())
            return super().read(*size)

    monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(Stream(data)))
    view = open_folder(exported.folder()).input
    for pictures in inputs.read_ahead([Path('-')], view, batch=1, workers=2):
        assert [found.error for found in pictures] == ['']
    assert {*threads} == {threading.main_thread()}


def test_deploy_works_when_copied_alone(tmp_path):
    away = tmp_path / 'away'
    shutil.copytree(REPOSITORY / 'deploy', away / 'deploy', ignore=shutil.ignore_patterns('__py*'))
    shutil.copytree(exported.folder(), away / 'inference')
    picture(tmp_path / 'a.png')
    command = [sys.executable, away / 'deploy' / 'predict.py', *ENGINE, away / 'inference']
    result = subprocess.run(
        [*command, tmp_path / 'a.png', '--format', 'json'],
        cwd='/',
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(tmp_path),
    )
    assert result.returncode == 0, result.stderr
    assert paths(result) == [str(tmp_path / 'a.png')]


def test_a_user_without_a_home_is_not_an_error(tmp_path):
    """As in a container that is run with a number for a user."""
    nameless = ['setpriv', '--reuid', '54321', '--clear-groups']
    if os.getuid() != 0 or not shutil.which('setpriv'):
        pytest.skip('needs root and setpriv')
    probe = [*nameless, sys.executable, '-c', f'import numpy; open({str(PREDICT)!r})']
    if subprocess.run(probe, cwd='/', capture_output=True).returncode:
        pytest.skip('this Python, or the repository, is for root alone')
    picture(tmp_path / 'a.png')
    tmp_path.chmod(0o755)
    for folder in (*exported.folder().parents, *tmp_path.parents):
        if folder.stat().st_mode & 0o005 != 0o005:
            folder.chmod(folder.stat().st_mode | 0o055)
    arguments = [*ENGINE, exported.folder(), tmp_path / 'a.png']
    kept = {k: v for k, v in environment(tmp_path).items() if k not in ('HOME', 'XDG_CACHE_HOME')}
    result = subprocess.run(
        [*nameless, *command(tmp_path), *arguments],
        cwd='/',
        capture_output=True,
        text=True,
        timeout=60,
        env=kept,
    )
    assert result.returncode == 0, result.stderr
