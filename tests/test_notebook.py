"""The notebook for AI Studio: its commands are understood, its outputs are a clean run's."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from cifar_files import small_cifar
from conftest import REPOSITORY
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from engine.config import load_config
from engine.run.reading import resolve_config

PATH = REPOSITORY / 'notebooks' / 'aistudio.ipynb'
NOTEBOOK = nbformat.read(PATH, as_version=nbformat.NO_CONVERT)
COMMAND = r'^ *(?:%shell |!)(python.* \S*\.py\b.*)$'
LARGEST = 600_000  # bytes of a file that everybody clones
MACHINE = re.compile(r'(?<![\w.~])/(tmp|work|home|root|opt|usr|mnt|Users)\b')


def cells(kind: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in NOTEBOOK.cells if cell.cell_type == kind]


def commands() -> list[str]:
    """All that it runs or advises: `python3 train.py ...`, and so on."""
    texts = [text for cell in cells('code') for text in run_by(cell.source)]
    texts += [text for cell in cells('markdown') for text in advised_by(cell.source)]
    return [text for text in texts if '--help' not in text]


def run_by(source: str) -> list[str]:
    """The commands after ! and %shell, with a setting for what only a run knows."""
    whole = re.sub(r'\s*\\\n\s*', ' ', source)
    known = whole.replace('{where}', 'data.root=data').replace('{picture}', 'four.png')
    return re.findall(COMMAND, known, re.M)


def advised_by(source: str) -> list[str]:
    return re.findall(r'python3 [^`\n]*?\.py\b[^`\n]*', source)


def arguments(command: str) -> tuple[str, list[str]]:
    """The script, and what it is given."""
    words = shlex.split(command, comments=True)
    at = next(index for index, word in enumerate(words) if word.endswith('.py'))
    return words[at], words[at + 1 :]


def understood(command: str, monkeypatch: pytest.MonkeyPatch):
    """What the script makes of its arguments."""
    script, given = arguments(command)
    assert (REPOSITORY / script).is_file()
    monkeypatch.setattr(sys, 'argv', [script, *given])
    monkeypatch.chdir(REPOSITORY)
    return importlib.import_module(Path(script).stem).parse_arguments()


def first_line(script: str) -> str:
    """What this script begins with; with data.root= it needs CIFAR-10."""
    return ' through paddle (as asked for)' if script == 'deploy/predict.py' else 'CPU: '


def text_of(output: nbformat.NotebookNode) -> str:
    """All of an output but its pictures."""
    data = output.get('data', {})
    texts = [value for kind, value in data.items() if not kind.startswith('image/')]
    return '\n'.join([output.get('text', ''), *texts])


def printed(notebook: nbformat.NotebookNode) -> str:
    return '\n'.join(text_of(o) for cell in notebook.cells for o in cell.get('outputs', []))


def execute(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Run all cells in a kernel of this Python's own, started in that folder."""
    options = {'timeout': 600, 'kernel_name': 'python3'}
    NotebookClient(notebook, resources={'metadata': {'path': str(folder)}}, **options).execute()
    return notebook


def test_it_is_a_notebook_without_traces_of_a_machine():
    nbformat.validate(NOTEBOOK)
    assert PATH.stat().st_size < LARGEST
    assert NOTEBOOK.nbformat_minor == 4  # later ones have cell ids, of which old Jupyters complain
    assert NOTEBOOK.metadata == {
        'kernelspec': {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'},
        'language_info': {'name': 'python'},
    }
    assert not any(cell.metadata for cell in NOTEBOOK.cells)
    assert PATH.read_text(encoding='utf-8') == nbformat.writes(NOTEBOOK) + '\n'


def test_its_outputs_are_those_of_one_run_without_errors():
    counts = [cell.execution_count for cell in cells('code')]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in cells('code') for output in cell.outputs]
    assert {output.output_type for output in outputs} == {'stream', 'display_data'}
    assert sum('image/png' in output.get('data', {}) for output in outputs) == 5
    text = printed(NOTEBOOK)
    assert not MACHINE.search(text)
    assert not re.search(r'warning|error|traceback', text, re.I)
    for cell in cells('code'):
        outputs = '\n'.join(text_of(output) for output in cell.outputs)
        for command in run_by(cell.source):
            assert first_line(arguments(command)[0]) in outputs or 'data.root=' in command


@pytest.mark.parametrize('command', commands())
def test_its_commands_are_understood(command, monkeypatch):
    args = understood(command, monkeypatch)
    if hasattr(args, 'override'):
        resolve_config(args, None)


def test_it_measures_and_exports_what_it_has_trained(monkeypatch):
    trained, exported = set(), set()
    for command in commands():
        args, (script, _) = understood(command, monkeypatch), arguments(command)
        if script == 'train.py':
            trained.add(resolve_config(args, None).output.dir)
        elif script in ('eval.py', 'export.py'):
            assert str(args.weights) in trained
            exported.add(f'{args.weights}/inference')
        else:
            assert str(args.folder) in exported


def test_a_command_that_fails_stops_it(tmp_path):
    notebook = nbformat.read(PATH, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == 'code'][:2]
    command = '%shell python3 train.py -o train.lr=1'
    notebook.cells[1].source = f'%load_ext engine.notebook\n{command}'
    with pytest.raises(CellExecutionError, match='exit code 2: python3 train'):
        execute(notebook, PATH.parent)
    assert 'did you mean optimizer.lr?' in printed(notebook)


def test_it_clones_the_repository_where_there_is_none(tmp_path):
    origin, elsewhere = tmp_path / 'origin', tmp_path / 'elsewhere'
    (origin / 'engine').mkdir(parents=True)
    shutil.copy(REPOSITORY / 'engine' / 'notebook.py', origin / 'engine')
    elsewhere.mkdir()
    git = ('git', '-C', str(origin), '-c', 'user.name=Test', '-c', 'user.email=test@localhost')
    for arguments in (('init', '-q'), ('add', '.'), ('commit', '-q', '-m', 'First')):
        subprocess.run([*git, *arguments], check=True)
    notebook = nbformat.read(PATH, as_version=4)
    notebook.cells = [next(cell for cell in notebook.cells if cell.cell_type == 'code')]
    source = notebook.cells[0].source
    notebook.cells[0].source = source.replace("REPOSITORY = ''", f'REPOSITORY = {str(origin)!r}')
    execute(notebook, elsewhere)
    assert (elsewhere / 'wide-resnet-resnext' / 'engine' / 'notebook.py').is_file()


@pytest.mark.slow
def test_it_runs_from_top_to_bottom_and_again_from_the_root_with_cifar(tmp_path, monkeypatch):
    home, copy = tmp_path / 'home', tmp_path / 'repository'
    home.mkdir()
    monkeypatch.setenv('HOME', str(home))  # no data set of Paddle's lies there
    for name in ('configs', 'deploy', 'engine', 'notebooks'):
        ignore = shutil.ignore_patterns('__pycache__')
        shutil.copytree(REPOSITORY / name, copy / name, ignore=ignore)
    for file in (*REPOSITORY.glob('*.py'), REPOSITORY / 'requirements.txt'):
        shutil.copy(file, copy)

    first = printed(execute(nbformat.read(PATH, as_version=4), copy / 'notebooks'))
    ratio = float(re.findall(r'^acc:\d+ total:359 ratio:(\S+)', first, re.M)[-1])
    assert ratio > 0.97
    assert re.search(r'^acc:5 total:5 ratio:1 ', first, re.M)
    assert re.search(r'^output/notebook/four\.png +4 ', first, re.M)
    assert 'CIFAR-10 is not in data: put cifar-10-python.tar.gz there' in first

    small_cifar('cifar10', images=40).write_python_archive(copy / 'data')
    again = printed(execute(nbformat.read(PATH, as_version=4), copy))
    assert again.count('finished after epoch') == 2
    last = (copy / 'output' / 'notebook' / 'cifar10' / 'metrics.jsonl').read_text().splitlines()[-1]
    short = load_config(copy / 'configs' / 'wrn16_2_cifar10_short.yaml')
    assert json.loads(last)['step'] == 2 * short.train.epochs  # of 128 and of 72 images
