"""The commands that the READMEs and docs show can be read, and those of the quick start run."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image

from engine import cli, config
from engine.config import reading
from engine.errors import UserError

PAGES = sorted([*REPOSITORY.glob('README*.md'), *REPOSITORY.glob('docs/**/*.md')])
LAUNCHER = ['-m', 'paddle.distributed.launch']
SHOWN_TO_BE_REFUSED = ['train.py', '-o', 'train.lr=0.1']


def commands(file: Path) -> list[list[str]]:
    """What follows python3 in the blocks of a shell, in order; `...` and comments are left out."""
    found = []
    for language, block in re.findall(
        r'^```(\w*)\n(.*?)^```', file.read_text('utf-8'), re.M | re.S
    ):
        lines = block.replace('\\\n', ' ').splitlines()
        if language != 'bash':
            lines = [line[2:] for line in lines if line.startswith('$ ')]
        for line in lines:
            for column in re.split(r'\s\|\s', line):
                match = re.search(r'\bpython3 (.*?)(; do\b|$)', column)
                if match:
                    words = shlex.split(match.group(1), comments=True)
                    found.append([word for word in words if word != '...'])
    return found


def parsed(words: list[str], monkeypatch) -> None:
    """UserError or SystemExit where one of our commands does not take these words."""
    if words[:2] == LAUNCHER:
        start = next(i for i, word in enumerate(words) if word.endswith('.py'))
        return parsed(words[start:], monkeypatch)
    if words[0] == '-m':
        assert importlib.util.find_spec(words[1]) is not None
        return None
    monkeypatch.setattr(sys, 'argv', words)
    module = importlib.import_module(Path(words[0]).stem)
    args = module.parse_arguments()
    if words[0] in ('train.py', 'eval.py', 'export.py'):
        if args.config is None and getattr(args, 'weights', None):  # with their run's own config
            for text in args.override:
                reading.read_override(text, config.Config)
        else:
            config.load_config(cli.find_config(args.config or cli.DEFAULT_CONFIG), args.override)
    return None


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_command_that_is_shown_can_be_read(page, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    shown = commands(page)
    if page.name.startswith('README'):
        assert len(shown) > 10
    for words in shown:
        if words == SHOWN_TO_BE_REFUSED:
            with pytest.raises(UserError):
                parsed(words, monkeypatch)
        else:
            parsed(words, monkeypatch)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(path)


@pytest.fixture
def empty(tmp_path) -> Path:
    """An empty folder with the commands, as in a fresh checkout, and pictures of the reader's."""
    for name in ('train.py', 'eval.py', 'export.py', 'configs', 'deploy'):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    for name in ('cat.jpg', 'folder/a.png', 'shots/b.png', 'val/3/c.png', 'val/7/d.png'):
        picture(tmp_path / name)
    return tmp_path


def served(process: subprocess.Popen) -> int:
    """Its exit code, when it has said that it serves and is then told to end."""
    assert process.stdout is not None
    for line in process.stdout:
        if 'Ctrl-C ends it' in line:
            process.send_signal(signal.SIGTERM)
    return process.wait(60)


def test_both_languages_show_the_same_commands():
    english, *chinese = (commands(REPOSITORY / page) for page in ('README.md', 'README_cn.md'))
    assert chinese == [english]


@pytest.mark.slow
def test_the_commands_of_the_quick_start_run_in_their_order(empty):
    done: list[list[str]] = []
    for words in commands(REPOSITORY / 'README.md'):
        ours = re.search(r'quickstart|\bserved\b', ' '.join(words))
        if not ours or words in done or words[0] == '-m':
            continue
        done.append(words)
        extra = ['--seconds', '0.1'] if words[0] == 'deploy/benchmark.py' else []
        extra += ['--port', '0'] if words[0] == 'deploy/serve.py' else []
        process = subprocess.Popen(
            [sys.executable, *words, *extra],
            cwd=empty,
            env={**os.environ, 'XDG_CACHE_HOME': str(empty / 'cache'), 'COLUMNS': '80'},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if words[0] == 'deploy/serve.py':
            assert served(process) == 0, words
        else:
            out, _ = process.communicate(timeout=1200)
            assert process.returncode == 0, (words, out)
    names = {words[0] for words in done}
    assert names >= {'train.py', 'eval.py', 'export.py', 'deploy/predict.py', 'deploy/serve.py'}
