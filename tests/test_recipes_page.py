"""docs/recipes.md says what the configs do, and migrating.md what there is, in both languages."""

from __future__ import annotations

import re

import pytest
from conftest import REPOSITORY

from engine.config import Config, all_keys, load_config, reading, to_dict

PAGES = ('docs/recipes.md', 'docs/zh_cn/recipes.md')
OURS = {'quickstart', 'finetune_folder', 'wrn16_2_cifar10_short', 'resnext29_4x8d_cifar10_short'}


def sections(page: str) -> dict[str, dict[str, str]]:
    """Config -> key -> value, as a page has them: of several configs, one value or each its own."""
    found: dict[str, dict[str, str]] = {}
    for part in re.split(r'^## ', (REPOSITORY / page).read_text(encoding='utf-8'), flags=re.M)[1:]:
        names = re.findall(r'`(\w+)`', part.splitlines()[0])
        if not names:  # a section about all of them
            continue
        rows = re.findall(r'^\| `([\w.]+)` \| ((?:`[^`]+`(?: / )?)+) \|', part, flags=re.M)
        assert len({key for key, _ in rows}) == len(rows) > 5, names
        for i, name in enumerate(names):
            values = {key: re.findall(r'`([^`]+)`', cell) for key, cell in rows}
            assert all(len(value) in (1, len(names)) for value in values.values()), names
            found[name] = {key: value[i % len(value)] for key, value in values.items()}
    return found


def rows_with_sources(page: str) -> list[str]:
    """The rows of the recipes' sections: what comes before them is the overview."""
    lines = (REPOSITORY / page).read_text(encoding='utf-8').partition('\n## ')[2].splitlines()
    return [line for line in lines if line.startswith('| `')]


def at(config: dict, key: str):
    for part in key.split('.'):
        config = config[part]
    return config


@pytest.mark.parametrize('page', PAGES)
def test_the_page_has_every_key_of_every_recipe(page):
    said = sections(page)
    recipes = {path.stem: path for path in (REPOSITORY / 'configs').glob('*.yaml')}
    assert {*said, *OURS} == {*recipes}
    assert all(f'`{name}`' in (REPOSITORY / page).read_text(encoding='utf-8') for name in OURS)
    for name, rows in said.items():
        given = reading.read_yaml(recipes[name])
        assert not {*given} - {*rows}, f'{name}: keys that the page lacks'
        config = to_dict(load_config(recipes[name]))
        for key, text in rows.items():
            value = reading.read_override(f'{key}={text}')[1].value
            assert at(config, key) == value, f'{name}: {key}'


def test_both_languages_have_the_same_rows_and_sources():
    def cells(page: str) -> list[list[str]]:
        rows = [line.split(' | ')[:3] for line in rows_with_sources(page)]
        return [[cell.replace('自定', 'ours') for cell in row] for row in rows]

    english, chinese = map(cells, PAGES)
    assert len(english) > 100
    assert english == chinese


def test_sources_name_a_line():
    for row in rows_with_sources(PAGES[0]):
        source = row.split(' | ')[2]
        assert source == 'ours' or re.fullmatch(r'([\w./-]+:\d+(, | / )?)+', source), row


def test_what_the_migrating_page_names_is_there():
    pages = [REPOSITORY / folder / 'migrating.md' for folder in ('docs', 'docs/zh_cn')]
    english, chinese = (page.read_text(encoding='utf-8') for page in pages)
    for prefix in ('| ', '## '):
        counts = [sum(x.startswith(prefix) for x in t.splitlines()) for t in (english, chinese)]
        assert counts[0] == counts[1] > 4
    sections = '|'.join(known for known in to_dict(Config()) if known not in ('seed', 'device'))
    keys = {*re.findall(rf'\b(?:{sections})\.(?!py\b|log\b|pdparams\b)\w+', english)}
    assert keys <= {*all_keys()}
    assert all(key in chinese for key in keys)
    for name in re.findall(r'configs/\w+\.yaml', english):
        assert (REPOSITORY / name).is_file()
