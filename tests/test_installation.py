"""A missing or old package, or an old Python, is one line with what to do, and exit code 2."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from conftest import REPOSITORY

import installation
from engine import cli
from engine.errors import UserError
from engine.machine.start import start_paddle
from installation import SERVING, TRAINING
from predictor import devices as serving_devices

COMMANDS = ('train.py', 'eval.py', 'export.py', '-m engine.data', '-m engine.weights')
DEPLOY = ('deploy/predict.py', 'deploy/serve.py', 'deploy/benchmark.py')


@pytest.mark.parametrize('command', [*COMMANDS, '-m engine.models', *DEPLOY])
def test_without_packages_a_command_is_one_line(command):
    done = subprocess.run(
        [sys.executable, '-S', *command.split()],  # without site-packages
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f'{"engine" if "-m" in command else Path(command).name}: {sys.executable} '
    )
    assert ' lacks numpy, yaml, PIL' in line
    folder = 'deploy/' if 'deploy' in command else ''
    assert f'{sys.executable} -m pip install -r {folder}requirements.txt' in line
    assert ('paddle' in line) == ('-m' not in command)
    assert done.stdout == ''


@pytest.mark.parametrize(
    'file', [*DEPLOY, 'train.py', 'eval.py', 'export.py', 'engine/__init__.py']
)
def test_an_old_python_can_parse_the_files_up_to_the_check(file):
    """And nothing that may be missing is imported before it."""
    for path in (file, 'deploy/installation.py', 'deploy/predictor/__init__.py'):
        text = (REPOSITORY / path).read_text(encoding='utf-8')
        tree = ast.parse(text, feature_version=(3, 7))
        modules: list[str] = []
        for node in tree.body:
            if isinstance(node, ast.Import):
                modules += [name.name for name in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules.append(node.module or '')
        first = [name.split('.')[0] for name in modules]
        checked = [name for name in ('engine', 'predictor', 'installation') if name in first]
        before = first[: min(map(first.index, checked))] if checked else first
        assert not {*sum({**TRAINING, **SERVING}.values(), ())} & {*before}


def test_the_table_of_networks_needs_paddle(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [str(REPOSITORY / 'engine' / 'models' / '__main__.py')])
    monkeypatch.setattr(installation, 'installed', lambda name: name != 'paddle')
    with pytest.raises(SystemExit, match=r'^2$'):
        cli.run(lambda: pytest.fail('it was run'))
    assert capsys.readouterr().err.startswith(f'engine.models: {sys.executable} lacks paddle: ')


@pytest.fixture
def python_3_8(monkeypatch):
    Version = namedtuple('Version', 'major minor micro releaselevel serial')
    monkeypatch.setattr(sys, 'version_info', Version(3, 8, 10, 'final', 0))


def test_an_old_python_is_named_with_a_newer_one(python_3_8, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        installation.shutil, 'which', lambda name: f'/x/{name}' if name == 'python3.12' else None
    )
    problem = installation.find_problem(tmp_path, (), ())
    assert problem == (
        f'Python 3.8.10 ({sys.executable}) is too old; 3.9 to 3.13 will do: /x/python3.12 -m venv '
        '.venv && .venv/bin/python -m pip install -r requirements.txt'
    )


def test_only_our_own_commands_exit(python_3_8, monkeypatch, tmp_path, capsys):
    for program in (str(tmp_path / 'train.py'), '', '/usr/bin/pytest'):
        monkeypatch.setattr(sys, 'argv', [program])
        installation.require(REPOSITORY, TRAINING)
    for folder, needed, program in (
        (REPOSITORY, TRAINING, 'train.py'),
        (REPOSITORY / 'deploy', SERVING, 'predict.py'),
    ):
        monkeypatch.setattr(sys, 'argv', [str(folder / program)])
        with pytest.raises(SystemExit, match=r'^2$'):
            installation.require(folder, needed)
        assert capsys.readouterr().err.startswith(f'{program}: Python 3.8.10 (')


def test_the_environment_of_make_is_suggested(monkeypatch, tmp_path):
    own = tmp_path / '.venv' / 'bin' / 'python'
    own.parent.mkdir(parents=True)
    own.touch()
    monkeypatch.chdir(tmp_path)
    problem = installation.find_problem(tmp_path, ('no_such_module',), ())
    assert problem is not None
    assert ' lacks no_such_module: ' in problem
    assert problem.endswith(', or start it with .venv/bin/python')


def test_one_engine_is_enough_for_deploy(monkeypatch):
    monkeypatch.setattr(installation, 'installed', lambda name: name == 'openvino')
    assert installation.find_problem(REPOSITORY, (), installation.ENGINES) is None
    monkeypatch.setattr(installation, 'installed', lambda name: False)
    problem = installation.find_problem(REPOSITORY, (), installation.ENGINES)
    assert problem is not None
    assert 'lacks all of paddle, onnxruntime, openvino (one is enough): ' in problem


def fake_paddle(monkeypatch, folder: Path, about: str) -> None:
    """A package of that name, which cannot be imported."""
    version = folder / 'paddle' / 'version' / '__init__.py'
    version.parent.mkdir(parents=True, exist_ok=True)
    version.write_text(about)
    (folder / 'paddle' / '__init__.py').write_text('raise ImportError')
    monkeypatch.delitem(sys.modules, 'paddle', raising=False)
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.parametrize(
    ('about', 'wheel'),
    [
        ("full_version = '2.4.2'\ncuda_version = 'False'\n", 'paddlepaddle'),
        ("full_version = '2.6.1.post117'\ncuda_version = '11.7'\n", 'paddlepaddle-gpu'),
        ("full_version = '2.6.2'\ncuda_version = 'False'\n", None),
        ("full_version = '3.10.0rc1'\ncuda_version = 'False'\n", None),
        ("full_version = '0.0.0'\ncuda_version = 'False'\n", None),
        ('', None),
    ],
)
def test_an_old_paddle_is_named_with_the_command(monkeypatch, tmp_path, about, wheel):
    fake_paddle(monkeypatch, tmp_path, about)
    problem = installation.find_problem(REPOSITORY, ('paddle',), ())
    if wheel is None:
        assert problem is None
    else:
        assert problem is not None
        assert f' of {sys.executable} is too old; ' in problem
        assert problem.endswith(f'{sys.executable} -m pip install -U "{wheel}>=2.6.2,<4"')


def test_a_paddle_that_cannot_be_imported_is_one_line(monkeypatch, tmp_path):
    fake_paddle(monkeypatch, tmp_path, '')
    (tmp_path / 'paddle' / '__init__.py').write_text('raise ImportError("libgomp.so.1: no\\nsuch")')
    with pytest.raises(UserError) as refused:
        start_paddle('cpu')
    assert str(refused.value) == f'{sys.executable} cannot import its Paddle: libgomp.so.1: no'


@pytest.fixture
def card(monkeypatch, tmp_path):
    """A machine that has the device file of a card."""

    def put(name: str) -> None:
        (tmp_path / name).touch()
        monkeypatch.setattr(installation, 'DEV', tmp_path)
        monkeypatch.setattr(installation, 'built_for', lambda device: device == 'cpu')
        for variable in ('CUDA_VISIBLE_DEVICES', 'CUSTOM_DEVICE_ROOT'):
            monkeypatch.delenv(variable, raising=False)

    return put


@pytest.mark.parametrize(
    ('file', 'device', 'package'),
    [('nvidia0', 'gpu', 'paddlepaddle-gpu'), ('davinci0', 'npu', 'paddle-custom-npu')],
)
def test_a_paddle_that_cannot_use_the_card_is_named(card, file, device, package, monkeypatch):
    assert installation.unused_card() is None
    card(file)
    line = installation.unused_card()
    assert line is not None
    assert sys.executable in line
    assert line.endswith(f'{sys.executable} -m pip install {package}')
    assert line in start_paddle('auto')
    with pytest.raises(UserError) as refused:
        start_paddle(device)
    assert line in str(refused.value)
    monkeypatch.setattr(serving_devices, '_cards', lambda: {'gpu': 0, 'npu': 0})
    with pytest.raises(UserError) as refused_there:
        serving_devices.find_device(device)
    assert line in str(refused_there.value)


def test_a_hidden_card_is_not_reported(card, monkeypatch):
    card('nvidia0')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    assert installation.unused_card() is None
