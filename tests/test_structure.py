"""The layers of the code: who may import whom. Read from the source, nothing is imported.

A module imports modules of its own layer or of layers below it, also inside functions and under
TYPE_CHECKING, and there is no circle, neither between modules nor between units of a layer.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Iterator, NamedTuple, Optional

import pytest
from conftest import REPOSITORY

# From the bottom to the top. A folder's name stands for all its modules.
LAYERS = [
    ['wide_resnet', 'resnext'],  # the papers: paddle, and each other
    ['predictor', 'server', 'installation', 'serve', 'predict', 'benchmark'],  # deploy/
    [
        'engine.errors',
        'engine.files',
        'engine.locks',
        'engine.console',
        'engine.download',
        'engine.safe_pickle',
    ],
    ['engine.models', 'engine.config'],  # names and values; paddle only inside functions
    ['engine.machine'],
    ['engine.data', 'engine.weights', 'engine.cpu_conv', 'engine.plots'],
    ['engine.training', 'engine.evaluation'],
    ['engine.run', 'engine.export'],
    ['engine.cli'],
    ['COMMANDS'],  # train.py, eval.py, export.py, hubconf.py, every __main__, the notebook's magic
    ['benchmarks'],
]
NOTEBOOK = 'engine.notebook'
PAPERS, DEPLOY = LAYERS[0], LAYERS[1]
FROM_DEPLOY = ('predictor', 'installation')  # all of deploy/ that the engine may import


class Import(NamedTuple):
    module: str
    imported: str
    place: str  # file:line


def module_name(file: Path) -> str:
    """`engine.data` for engine/data/__init__.py, `predictor.answers` for a module of deploy/."""
    folder = REPOSITORY / 'deploy' if 'deploy' in file.parts else REPOSITORY
    parts = file.relative_to(folder).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


FILES = {
    module_name(file): file
    for pattern in ('*.py', 'engine/**/*.py', 'deploy/**/*.py', 'benchmarks/**/*.py')
    for file in REPOSITORY.glob(pattern)
}


def targets(node: ast.AST, module: str) -> Iterator[str]:
    """The full names that an import statement names: `engine.data.cifar` or `engine.data`."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        start = node.module or ''
        if node.level:
            parts = module.split('.')
            if FILES[module].name == '__init__.py':
                parts.append('')
            start = '.'.join([*parts[: -node.level], *filter(None, [node.module])])
        for alias in node.names:
            inside = f'{start}.{alias.name}'
            yield inside if inside in FILES else start


def read_imports() -> list[Import]:
    """The imports of our own modules, wherever they stand in a file."""
    found = []
    for module, file in FILES.items():
        for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
            for name in targets(node, module):
                if name in FILES and name != module:
                    place = f'{file.relative_to(REPOSITORY)}:{node.lineno}'
                    found.append(Import(module, name, place))
    return found


IMPORTS = read_imports()


def unit(module: str) -> str:
    """The name in LAYERS that a module belongs to."""
    if module.endswith('__main__') and not module.startswith('benchmarks'):
        return 'COMMANDS'
    for name in (name for layer in LAYERS for name in layer):
        if module == name or module.startswith(f'{name}.'):
            return name
    assert '.' not in module or module == NOTEBOOK, f'{FILES[module]}: in no layer of {__file__}'
    return 'COMMANDS'


def layer(module: str) -> int:
    return next(number for number, names in enumerate(LAYERS) if unit(module) in names)


def circle(edges: set[tuple[str, str]]) -> Optional[list[str]]:
    """The names along one circle of these edges, if there is one."""
    following: dict[str, list[str]] = {}
    for start, end in sorted(edges):
        following.setdefault(start, []).append(end)
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> Optional[list[str]]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name not in done:
            for other in following.get(name, []):
                if found := walk(other, [*path, name]):
                    return found
            done.add(name)
        return None

    return next((found for name in following if (found := walk(name, []))), None)


def test_no_module_imports_a_higher_layer():
    problems = [
        f'{place}: {module} (layer {layer(module)}, {unit(module)}) imports {imported} '
        f'(layer {layer(imported)}, {unit(imported)})'
        for module, imported, place in IMPORTS
        if layer(imported) > layer(module)
    ]
    assert not problems, '\n'.join(['imports of a higher layer:', *problems])


@pytest.mark.parametrize('by', ['module', 'unit'])
def test_no_circle(by):
    """Inside functions, too: such an import only hides it."""
    name = unit if by == 'unit' else str
    edges = {
        (name(one.module), name(one.imported)): one.place
        for one in IMPORTS
        if name(one.module) != name(one.imported)
    }
    found = circle(set(edges))
    steps = zip(found, found[1:]) if found else ()
    lines = [f'{edges[step]}: {step[0]} imports {step[1]}' for step in steps]
    assert not found, '\n'.join([f'a circle of {by}s:', *lines])


def test_deploy_imports_nothing_of_the_rest():
    """It can be copied alone onto a device."""
    problems = [
        f'{place}: deploy/ imports {imported}'
        for module, imported, place in IMPORTS
        if unit(module) in DEPLOY and unit(imported) not in DEPLOY
    ]
    assert not problems, '\n'.join(problems)


def test_the_engine_imports_the_shared_part_of_deploy_alone():
    problems = [
        f'{place}: {module} imports {imported}; only {" and ".join(FROM_DEPLOY)} are shared'
        for module, imported, place in IMPORTS
        if module.startswith('engine.') and unit(imported) in DEPLOY
        if unit(imported) not in FROM_DEPLOY
    ]
    assert not problems, '\n'.join(problems)


@pytest.mark.parametrize('name', PAPERS)
def test_a_papers_file_imports_paddle_and_the_other_paper_alone(name):
    """So that the two files can be copied and used by themselves."""
    allowed = {'__future__', 'typing', 'functools', 'math', 'paddle', *PAPERS}
    tree = ast.walk(ast.parse(FILES[name].read_text(encoding='utf-8')))
    imported = {target.partition('.')[0] for node in tree for target in targets(node, name)}
    assert imported <= allowed


def test_imports_are_found_in_every_form():
    """Inside functions, by relative names, of packages and of their modules."""
    tree = ast.parse('def f():\n    from . import peers\n    from ..config import Config, keys')
    found = [name for node in ast.walk(tree) for name in targets(node, 'engine.machine.start')]
    assert found[0] == 'engine.machine.peers'
    assert found[1] == 'engine.config'
    assert circle({('a', 'b'), ('b', 'c'), ('c', 'b')}) == ['b', 'c', 'b']
    assert circle({('a', 'b'), ('a', 'c'), ('b', 'c')}) is None
