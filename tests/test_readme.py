"""READMEs and docs: commands parse, the quick start runs, both languages agree, links work."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

from engine import config
from engine.config import reading
from engine.config.recipes import DEFAULT_CONFIG, find_config
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
    if words[0] == '-c':
        compile(words[1], 'README', 'exec')
        return None
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
            config.load_config(find_config(args.config or DEFAULT_CONFIG), args.override)
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


PAIRS = [(REPOSITORY / 'README.md', REPOSITORY / 'README_cn.md')] + [
    (page, page.parent / 'zh_cn' / page.name) for page in sorted(REPOSITORY.glob('docs/*.md'))
]
FENCED = re.compile(r'^```(\w*)\n(.*?)^```', re.M | re.S)
# Comments are translated; all else in a block is the same.
COMMENT = {
    'bash': re.compile(r'(^|\s)#.*$', re.M),
    'python': re.compile(r'(^|\s)#.*$', re.M),
    'cpp': re.compile(r'\s//.*$', re.M),
    '': re.compile(r'\s*#.*$', re.M),
}
pair = pytest.mark.parametrize(('english', 'chinese'), PAIRS, ids=lambda page: page.name)


def headings(text: str) -> list[tuple[int, str]]:
    """(level, words) of each heading outside code."""
    return [(len(a), b) for a, b in re.findall(r'^(#+) (.*)', FENCED.sub('', text), re.M)]


def tables(text: str) -> list[list[list[str]]]:
    """Tables of rows of cells, outside code; `\\|` does not part cells."""
    blocks = re.findall(r'(?:^\|.*\|$\n?)+', FENCED.sub('', text), re.M)
    return [[re.split(r'(?<!\\)\|', line)[1:-1] for line in block.splitlines()] for block in blocks]


def code_of(cell: str) -> list[str]:
    """What a cell has in code, in alphabetical order: languages differ in their order of words."""
    return sorted(re.findall(r'`([^`]+)`', cell))


def anchors(page: Path) -> set[str]:
    """The names under which GitHub and Gitee offer the headings of a page."""
    words = [
        re.sub(r'[^\w\- ]', '', title.lower()) for _, title in headings(page.read_text('utf-8'))
    ]
    return {'-'.join(title.split(' ')) for title in words}


def test_every_page_exists_in_both_languages():
    chinese = {page.name for page in REPOSITORY.glob('docs/zh_cn/*.md')}
    assert {page.name for page in REPOSITORY.glob('docs/*.md')} == chinese


@pair
def test_both_languages_have_the_same_code(english, chinese):
    def blocks(page: Path) -> list[tuple[str, list[str]]]:
        found = FENCED.findall(page.read_text('utf-8'))
        without = [(name, COMMENT.get(name, COMMENT['bash']).sub('', code)) for name, code in found]
        return [(name, [line.rstrip() for line in code.splitlines()]) for name, code in without]

    assert blocks(chinese) == blocks(english)
    assert commands(chinese) == commands(english)


@pair
def test_both_languages_have_the_same_headings_and_tables(english, chinese):
    texts = [page.read_text('utf-8') for page in (english, chinese)]
    levels = [[level for level, _ in headings(text)] for text in texts]
    assert levels[0] == levels[1]
    here, there = map(tables, texts)
    assert [[len(row) for row in table] for table in here] == [
        [len(row) for row in table] for table in there
    ]
    for table, other in zip(here, there):
        for row, other_row in zip(table, other):
            assert [code_of(cell) for cell in row] == [code_of(cell) for cell in other_row]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_to_files_and_headings(page):
    text = FENCED.sub('', page.read_text('utf-8'))
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if not target.startswith('http'):
            path, _, anchor = target.partition('#')
            file = page.parent / path if path else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target


def test_pages_are_short_enough_to_read():
    for page in PAGES:
        most = 200 if page.name.startswith('README') else 250
        assert len(page.read_text('utf-8').splitlines()) <= most, page.name


@pytest.fixture
def clone(tmp_path) -> Path:
    """An empty folder with the commands, as in a fresh clone."""
    for name in ('train.py', 'eval.py', 'export.py', 'configs', 'deploy'):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    return tmp_path


def stop_when_it_serves(process: subprocess.Popen) -> int:
    """The exit code of a server that has reported its address and then receives SIGTERM."""
    assert process.stdout is not None
    for line in process.stdout:
        if 'Ctrl-C ends it' in line:
            process.send_signal(signal.SIGTERM)
    return process.wait(60)


@pytest.mark.slow
def test_the_commands_of_the_quick_start_run_in_sequence(clone):
    text = (REPOSITORY / 'README.md').read_text('utf-8')
    block = next(code for _, code in FENCED.findall(text) if 'git clone' in code)
    lines = [line for line in block.splitlines() if line.startswith('python3')]
    assert lines[0].startswith('python3 -m pip install')
    done = []
    for words in [shlex.split(line, comments=True)[1:] for line in lines[1:]]:
        serves = words[0] == 'deploy/serve.py'
        process = subprocess.Popen(
            [sys.executable, *words, *(['--port', '0'] if serves else [])],
            cwd=clone,
            env={**os.environ, 'XDG_CACHE_HOME': str(clone / 'cache'), 'COLUMNS': '80'},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if serves:
            assert stop_when_it_serves(process) == 0, words
        else:
            out, _ = process.communicate(timeout=1200)
            assert process.returncode == 0, (words, out)
        done.append(words[0])
    assert done == [
        'train.py',
        'eval.py',
        'export.py',
        '-c',
        'deploy/predict.py',
        'deploy/serve.py',
    ]
