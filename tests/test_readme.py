"""READMEs and docs: commands parse, the quick start runs, both languages agree, links work."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Iterator

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image

from engine import config
from engine.config import reading
from engine.config.recipes import DEFAULT_CONFIG, find_config
from engine.errors import UserError

PAGES = sorted(
    [
        *REPOSITORY.glob('README*.md'),
        REPOSITORY / 'CONTRIBUTING.md',
        *REPOSITORY.glob('docs/**/*.md'),
    ]
)
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
        module = importlib.util.find_spec(words[1])
        assert module is not None, words
        is_package = module.submodule_search_locations is not None
        assert not is_package or importlib.util.find_spec(f'{words[1]}.__main__'), words
        return None
    monkeypatch.setattr(sys, 'argv', words)
    module = importlib.import_module(Path(words[0]).stem)
    args = module.parse_arguments()
    if words[0] in ('train.py', 'eval.py', 'export.py'):
        if args.config is None and getattr(args, 'weights', None):  # with their run's own config
            for text in args.override:
                reading.read_override(text)
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


def test_files_that_are_named_exist():
    named = r'`((?:engine|deploy|tests|benchmarks|configs|notebooks)/[\w/.-]+)`'
    for page in PAGES:
        for name in re.findall(named, page.read_text('utf-8')):
            if name == 'deploy/python/predict_cls.py':  # of PaddleClas
                continue
            assert (REPOSITORY / name).exists(), (page.name, name)


def test_the_accuracies_of_the_readme_are_those_recorded():
    recorded = json.loads((REPOSITORY / 'benchmarks/results.json').read_text('utf-8'))['runs']
    for page in ('README.md', 'README_cn.md'):
        text = (REPOSITORY / page).read_text('utf-8')
        for name in ('wrn16_2_30min', 'wrn16_2_120min', 'resnext29_4x8d_cifar10_short'):
            assert f'| {100 * recorded[name]["accuracy"]:.2f} % |' in text


@pytest.fixture
def clone(tmp_path) -> Path:
    """An empty folder with the commands, as in a fresh clone, and pictures of the reader's."""
    for name in ('train.py', 'eval.py', 'export.py', 'configs', 'deploy'):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    for name in ('cat.jpg', 'folder/a.png', 'shots/b.png', 'val/3/c.png', 'val/7/d.png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(tmp_path / name)
    return tmp_path


def run(words: list[str], folder: Path) -> str:
    """The output of one of the commands; a server is stopped when it has reported its address."""
    extra = {'deploy/benchmark.py': ['--seconds', '0.1'], 'deploy/serve.py': ['--port', '0']}
    process = subprocess.Popen(
        [sys.executable, *words, *extra.get(words[0], [])],
        cwd=folder,
        env={**os.environ, 'XDG_CACHE_HOME': str(folder / 'cache'), 'COLUMNS': '80'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if words[0] == 'deploy/serve.py':
        assert process.stdout is not None
        for line in process.stdout:
            if 'Ctrl-C ends it' in line:
                process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, (words, out)
    return out


def transcripts(page: Path) -> Iterator[tuple[list[str], list[str]]]:
    """(command, lines of its output) of the blocks that begin with `$ python3`."""
    for _, block in FENCED.findall(page.read_text('utf-8')):
        first, *shown = block.splitlines()
        if first.startswith('$ python3 '):
            yield shlex.split(first)[2:], shown


OF_THE_MACHINE = re.compile('CPU:|device:|memory:|convolutions:|iter:|\\.\\.\\.')


def letters(line: str) -> str:
    """A line without its numbers, which differ from machine to machine."""
    return re.sub(r'[^A-Za-z]+', ' ', line)


@pytest.mark.slow
def test_the_quick_start_runs_in_sequence(clone):
    text = (REPOSITORY / 'README.md').read_text('utf-8')
    block = next(code for _, code in FENCED.findall(text) if 'git clone' in code)
    lines = [line for line in block.splitlines() if line.startswith('python3')]
    words = [shlex.split(line, comments=True)[1:] for line in lines]
    scripts = ['train.py', 'eval.py', 'export.py', '-c', 'deploy/predict.py', 'deploy/serve.py']
    assert [first for first, *_ in words] == ['-m', *scripts]  # after python3 -m pip install
    for line in words[1:]:
        run(line, clone)


@pytest.mark.slow
def test_what_the_docs_do_with_the_quick_start_runs_in_sequence(clone):
    done: list[list[str]] = []
    for page in ('runs', 'evaluation', 'export', 'serving'):
        for words in commands(REPOSITORY / f'docs/{page}.md'):
            of_the_quick_start = re.search(r'quickstart|\bserved\b', ' '.join(words))
            if of_the_quick_start and words not in done:
                done.append(words)
                printed = {letters(line) for line in run(words, clone).splitlines()}
                for command, shown in transcripts(REPOSITORY / f'docs/{page}.md'):
                    if command == words:
                        same = [line for line in shown if not OF_THE_MACHINE.match(line)]
                        assert {letters(line) for line in same} <= printed, words
    names = {words[0] for words in done}
    assert names >= {'train.py', 'eval.py', 'export.py', 'deploy/predict.py', 'deploy/serve.py'}
