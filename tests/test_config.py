"""The config: what wins over what, and each mistake answered in one line that says where."""

import dataclasses
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml

import eval as evaluation_command
import train
from engine import cli
from engine.config import (
    Config,
    Data,
    describe_keys,
    differences,
    foreign_keys,
    load_config,
    to_dict,
    to_yaml,
)
from engine.config.recipes import DEFAULT_CONFIG, find_config
from engine.data.policies import POLICY_NAMES
from engine.errors import UserError
from engine.models import MODELS

REPOSITORY = Path(__file__).resolve().parent.parent
RECIPES = sorted((REPOSITORY / 'configs').glob('*.yaml'))


@pytest.fixture
def written(tmp_path):
    """Write a config file; returns its path."""

    def write(text, name='recipe.yaml'):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def refusal(path, *overrides):
    """The line with which a config is refused."""
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    text = str(caught.value)
    assert '\n' not in text
    return text


def flatten(nested, prefix=''):
    """{'a': {'b': 1}} -> {'a.b': 1}"""
    flat = {}
    for name, value in nested.items():
        inner = isinstance(value, dict)
        flat.update(flatten(value, f'{prefix}{name}.') if inner else {prefix + name: value})
    return flat


DEFAULTS = flatten(to_dict(Config()))


def changed(config):
    """The keys, other than output.dir, that are not at their default."""
    now = flatten(to_dict(config))
    return {
        key: value for key, value in now.items() if value != DEFAULTS[key] and key != 'output.dir'
    }


# ------------------------------------------------------------------ what wins


def test_the_file_wins_over_the_default_and_the_override_over_both(written):
    path = written('optimizer:\n  lr: 0.3\n  momentum: 0.8\n')
    config = load_config(path, ['optimizer.lr=0.7'])
    assert config.optimizer.lr == 0.7
    assert config.optimizer.momentum == 0.8
    assert config.optimizer.weight_decay == Config().optimizer.weight_decay
    assert changed(config) == {'optimizer.lr': 0.7, 'optimizer.momentum': 0.8}


def test_the_last_override_wins(written):
    config = load_config(written(''), ['seed=1', 'seed=2'])
    assert config.seed == 2


@pytest.mark.parametrize(
    'text', ['', '\n\n', '# nothing but a comment\n', '---\n', '{}\n', 'train:\n  # epochs: 3\n']
)
def test_an_empty_file_gives_the_defaults(written, text):
    assert changed(load_config(written(text))) == {}


def test_output_dir_defaults_to_the_name_of_the_file(written):
    path = written('', name='my_recipe.yaml')
    assert load_config(path).output.dir == str(Path('output') / 'my_recipe')
    assert load_config(path, ['output.dir=elsewhere']).output.dir == 'elsewhere'


@pytest.mark.parametrize(
    'text',
    [
        'optimizer:\n  lr: 0.3\nseed: 4\n',
        'optimizer.lr: 0.3\nseed: 4\n',
        'optimizer: {lr: 0.3}\nseed: 4\n',
        'seed: 4\r\noptimizer:\r\n  lr: 0.3\r\n',
        '\ufeffseed: 4\noptimizer:\n  lr: 0.3\n',
        '{"seed": 4, "optimizer": {"lr": 0.3}}',
    ],
    ids=['nested', 'dotted', 'flow', 'CRLF', 'byte order mark', 'JSON'],
)
def test_equal_values_in_different_yaml(written, text):
    assert changed(load_config(written(text))) == {'seed': 4, 'optimizer.lr': 0.3}


def test_a_section_may_also_be_written_dotted(written):
    path = written('optimizer.lr: 0.3\noptimizer:\n  momentum: 0.8\n')
    assert changed(load_config(path)) == {'optimizer.lr': 0.3, 'optimizer.momentum': 0.8}


# ------------------------------------------------------------------ values


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('5e-4', 5e-4),
        ('5E-4', 5e-4),
        ('1e0', 1.0),
        ('+2.5e-1', 0.25),
        ('.5e-3', 5e-4),
        ('5.e-4', 5e-4),
        ('1', 1.0),
        ('0.25', 0.25),
        ('0', 0.0),
    ],
)
def test_floats_in_files_and_in_overrides(written, text, value):
    in_file = load_config(written(f'optimizer:\n  lr: {text}\n')).optimizer.lr
    on_line = load_config(written(''), [f'optimizer.lr={text}']).optimizer.lr
    assert in_file == on_line == value
    assert type(in_file) is type(on_line) is float


def test_floats_in_lists(written):
    values = load_config(
        written(''), ['schedule.values=[0.1, 4e-4, 1]', 'schedule.boundaries=[1, 2.5]']
    ).schedule
    assert values.values == (0.1, 4e-4, 1.0)
    assert values.boundaries == (1.0, 2.5)
    assert {type(value) for value in (*values.values, *values.boundaries)} == {float}


@pytest.mark.parametrize(
    ('override', 'value'),
    [
        ('output.dir=runs/a', 'runs/a'),
        ('output.dir=a=b', 'a=b'),
        ('output.dir=1e3', '1e3'),
        ('output.dir=20240512', '20240512'),
        ('output.dir=PICS #2', 'PICS #2'),
        ('output.dir="a"', '"a"'),
        ('output.dir=[a]: *b', '[a]: *b'),
        ('output.dir=图片：一', '图片：一'),
        ('output.dir=true', 'true'),
        ('output.dir=2024-12-05', '2024-12-05'),  # YAML's own dates are of no use here
        ('output.dir=2024-13-45', '2024-13-45'),
        ('output.dir=1:30', '1:30'),
    ],
)
def test_texts(written, override, value):
    assert load_config(written(''), [override]).output.dir == value


@pytest.mark.parametrize('text', ['null', '~', ''])
def test_null_is_a_value_of_optional_keys(written, text):
    path = written('model:\n  num_classes: 7\noptimizer:\n  clip_norm: 1\n')
    config = load_config(path, [f'model.num_classes={text}', f'optimizer.clip_norm={text}'])
    assert config.model.num_classes is None
    assert config.optimizer.clip_norm is None


def test_null_alone_is_none_of_a_text(written):
    path = written('data:\n  name: folder\n  test_folder: there\n')
    assert load_config(path, ['data.test_folder=null']).data.test_folder is None
    assert load_config(path, ['data.test_folder=~']).data.test_folder == '~'
    assert load_config(path, ['data.test_folder=Null']).data.test_folder == 'Null'


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('train.epochs', '1.5'),
        ('train.epochs', '"3"'),
        ('train.epochs', 'true'),
        ('train.epochs', 'null'),
        ('train.epochs', '[3]'),
        ('train.epochs', '1e3'),
        ('optimizer.lr', 'fast'),
        ('optimizer.lr', '"0.1"'),
        ('optimizer.lr', 'true'),
        ('optimizer.lr', 'null'),
        ('optimizer.lr', '.nan'),
        ('optimizer.lr', '.inf'),
        ('optimizer.lr', '1e400'),
        ('optimizer.lr', '{a: 1}'),
        ('optimizer.nesterov', '1'),
        ('optimizer.nesterov', '"true"'),
        ('optimizer.nesterov', 'null'),
        ('optimizer.clip_norm', 'big'),
        ('model.num_classes', '10.0'),
        ('model.pretrained', '7'),
        ('data.root', '7'),
        ('data.root', '[a]'),
        ('data.name', 'null'),
        ('data.name', '[cifar10]'),
        ('schedule.values', '0.1'),
        ('schedule.values', '[0.1, x]'),
        ('schedule.values', '[0.1, true]'),
        ('schedule.values', '[.nan]'),
        ('schedule.values', '[[0.1]]'),
        ('schedule.values', '"0.1, 0.2"'),
        ('data.mean', '125'),
        ('data.scale', '0.5'),
        ('data.scale', '[a, b]'),
        ('data.ratio', 'null'),
        ('data.color_jitter', '0.4'),
        ('data.color_jitter', 'true'),
        ('data.color_jitter', 'null'),
        ('data.holdout', 'some'),
        ('data.test_folder', '7'),
        ('data.workers', '2.5'),
        ('data.randaugment_operations', '1.5'),
        ('data.randaugment_magnitude', 'null'),
        ('data.mixup', 'true'),
        ('data.cutmix', '.nan'),
        ('data.progressive', '[16.5, 32]'),
        ('data.progressive', '32'),
        ('data.random_erasing', 'null'),
        ('eval.resize', '256.0'),
        ('model.zero_init_last_bn', '1'),
        ('optimizer.reference_batch', '256.0'),
        ('train.accumulate', '2.5'),
        ('train.accumulate', 'null'),
        ('train.amp_dtype', 'null'),
        ('train.loss_scale', 'dynamic'),
        ('train.sync_bn', '1'),
        ('train.to_static', 'null'),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_its_place(written, key, value):
    section, name = key.split('.')
    path = written(f'# a comment\n{section}:\n  {name}: {value}\n')
    in_file = refusal(path)
    assert f'{path}:3: {key} must be ' in in_file
    if 'must be a text' in in_file and value != 'null':  # on the command line, it is one
        return
    on_line = refusal(written('', 'empty.yaml'), f'{key}={value}')
    assert f'-o {key}={value}: {key} must be ' in on_line


@pytest.mark.parametrize(
    ('key', 'bad', 'good'),
    [
        ('seed', '-1', '0'),
        ('seed', str(2**64), str(2**64 - 1)),  # Paddle's generators take no more
        ('model.num_classes', '0', '1'),
        ('model.dropout', '1', '0.99'),
        ('model.dropout', '-0.1', '0'),
        ('data.batch_size', '0', '1'),
        ('data.crop_padding', '-1', '0'),
        ('data.cutout', '-1', '0'),
        ('data.random_erasing', '-0.1', '0'),
        ('data.random_erasing', '1.01', '1'),
        ('data.mixup', '-0.2', '0.2'),
        ('data.cutmix', '-1', '1'),
        ('data.randaugment_operations', '-1', '0'),
        ('data.randaugment_magnitude', '-0.5', '0'),
        ('data.workers', '-1', '0'),
        ('data.num_images', '0', '1'),
        ('data.image_size', '0', '1'),
        ('optimizer.lr', '-0.1', '0.1'),
        ('optimizer.momentum', '1', '0'),
        ('optimizer.weight_decay', '-5e-4', '0'),
        ('optimizer.clip_norm', '-1', '1'),
        ('optimizer.reference_batch', '0', '1'),
        ('schedule.phase_pct', '1.0', '0.5'),
        ('schedule.divide_factor', '0.5', '1'),
        ('schedule.warmup_epochs', '-1', '0'),
        ('train.epochs', '0', '1'),
        ('train.max_steps', '0', '1'),
        ('train.accumulate', '0', '1'),
        ('train.loss_scale', '0.5', '1'),
        ('train.label_smoothing', '1', '0.1'),
        ('train.ema', '1', '0.999'),
        ('train.log_every', '0', '1'),
        ('train.save_every', '0', '1'),
        ('train.save_every_steps', '0', '1'),
        ('train.keep', '0', '1'),
        ('eval.every', '0', '1'),
        ('eval.start', '-1', '0'),
        ('eval.batch_size', '0', '1'),
        ('eval.resize', '0', '1'),
    ],
)
def test_bounds(written, key, bad, good):
    path = written('')
    text = refusal(path, f'{key}={bad}')
    assert f'-o {key}={bad}: {key} must be ' in text
    assert any(bound in text for bound in ('or more', 'less than', 'or less'))
    sets = {'data.num_images': 'synthetic', 'data.image_size': 'folder', 'eval.resize': 'folder'}
    needs = {
        'optimizer.reference_batch': ['optimizer.lr_scaling=linear'],
        'train.loss_scale': ['train.amp=O1'],
    }
    data = f'data.name={sets.get(key, "cifar10")}'
    load_config(path, [f'{key}={good}', data, *needs.get(key, [])])


def test_clipping_to_nothing_is_refused(written):
    text = refusal(written(''), 'optimizer.clip_norm=0')
    assert 'optimizer.clip_norm must be above 0; null does not clip' in text


@pytest.mark.parametrize(
    ('override', 'name'),
    [
        ('data.image_size=64', 'cifar10'),
        ('data.num_images=10', 'folder'),
        ('data.on_bad_file=skip', 'digits'),
        ('eval.resize=40', 'cifar100'),
    ],
)
def test_a_key_without_effect_is_refused(written, override, name):
    key = override.partition('=')[0]
    text = refusal(written(''), override, f'data.name={name}')
    assert f'-o {override}: {key} has no effect with data.name: {name}; leave it out' in text


@pytest.mark.parametrize(
    ('key', 'wrong', 'right'),
    [
        ('data.name', 'cifar-10', 'cifar10'),
        ('data.name', 'digit', 'digits'),
        ('schedule.name', 'onecycle', 'one_cycle'),
        ('device', 'cuda', 'gpu'),
        ('data.padding_mode', 'reflection', 'reflect'),
        ('data.name', 'imagefolder', 'folder'),
        ('data.auto_augment', 'rand_augment', 'randaugment'),
        ('data.auto_augment', 'true', 'none'),
        ('data.on_bad_file', 'ignore', 'skip'),
        ('eval.views', 'tencrop', 'ten_crop'),
        ('eval.views', '10', 'one'),
        ('model.init', 'kaiming', 'he'),
        ('model.pretrained_head', 'dropped', 'drop'),
        ('model.data_format', 'channels_last', 'NHWC'),
        ('optimizer.lr_scaling', 'sqrt', 'linear'),
        ('train.amp', 'o1', 'O1'),
        ('train.amp', 'true', 'none'),
        ('train.amp_dtype', 'fp16', 'float16'),
    ],
)
def test_a_wrong_choice_lists_the_right_ones(written, key, wrong, right):
    text = refusal(written(''), f'{key}={wrong}')
    assert f'{key} must be one of ' in text
    assert right in text
    assert repr(wrong) in text


# ------------------------------------------------------------------ keys


@pytest.mark.parametrize(
    ('key', 'meant'),
    [
        ('optimizer.lrr', 'optimizer.lr'),
        ('optimiser.lr', 'optimizer.lr'),
        ('Optimizer.LR', 'optimizer.lr'),
        ('eval.batchsize', 'eval.batch_size'),
        ('train.epoch', 'train.epochs'),
        ('data.batch-size', 'data.batch_size'),
        ('train.lr', 'optimizer.lr'),  # the right name in the wrong section
        ('lr', 'optimizer.lr'),
        ('epochs', 'train.epochs'),
        ('optimizer.epochs', 'train.epochs'),
        ('schedul.name', 'schedule.name'),  # and the right name in a misspelt one
        ('evaluation.batch_size', 'eval.batch_size'),
        ('eval.batch_sise', 'eval.batch_size'),
        ('dat.name', 'data.name'),
    ],
)
def test_an_unknown_key_hints_at_the_nearest(written, key, meant):
    path = written(f'seed: 1\n{key}: 1\n')
    expected = f'unknown key {key}; did you mean {meant}?'
    assert refusal(path) == f'{path}:2: {expected}'
    assert refusal(written('', 'empty.yaml'), f'{key}=1') == f'-o {key}=1: {expected}'


def test_an_unknown_key_in_a_section_has_its_line(written):
    path = written('train:\n  epochs: 3\n\n  # how often\n  log_evry: 7\n')
    text = refusal(path)
    assert text == f'{path}:5: unknown key train.log_evry; did you mean train.log_every?'


@pytest.mark.parametrize(
    ('section', 'meant'), [('optimiser', 'optimizer'), ('schedul', 'schedule'), ('date', 'data')]
)
def test_an_unknown_section_hints_at_the_nearest(written, section, meant):
    path = written(f'{section}:\n  name: step\n')
    assert refusal(path) == f'{path}:1: unknown key {section}; did you mean {meant}?'


def test_an_unknown_key_without_a_near_name_points_to_the_help(written):
    assert '--help lists the keys' in refusal(written('zzzzzzzz: 1\n'))


@pytest.mark.parametrize(
    ('text', 'line', 'key'),
    [
        ('seed: 1\nseed: 1\n', 2, 'seed'),
        ('train:\n  epochs: 1\n  ema: 0\n  epochs: 2\n', 4, 'train.epochs'),
        ('train:\n  epochs: 1\nseed: 1\ntrain:\n  ema: 0.5\n', 4, 'train'),
        ('train:\n  epochs: 1\ntrain.epochs: 2\n', 3, 'train.epochs'),
        ('train.epochs: 2\ntrain:\n  epochs: 1\n', 3, 'train.epochs'),
    ],
)
def test_a_duplicate_key_is_refused(written, text, line, key):
    path = written(text)
    refused = refusal(path)
    assert refused.startswith(f'{path}:{line}: duplicate key ')
    assert key.split('.')[0] in refused


@pytest.mark.parametrize('override', ['seed', 'optimizer.lr 0.1', '', 'seed:1'])
def test_an_override_without_a_value_shows_how_to_write_one(written, override):
    assert 'KEY=VALUE' in refusal(written(''), override)


@pytest.mark.parametrize('value', ['[1', '{', '"a', '!tag 1', '&a [*a]', '1\n2: 3', 'a\0b'])
def test_an_override_with_invalid_yaml_is_refused(written, value):
    with pytest.raises(UserError, match=r'^-o seed='):
        load_config(written(''), [f'seed={value}'])


@pytest.mark.parametrize('override', ['optimizer={lr: 1}', 'optimizer=1', 'train='])
def test_a_section_cannot_be_overridden_as_a_whole(written, override):
    assert f'-o {override}: ' in refusal(written(''), override)


@pytest.mark.parametrize(
    ('override', 'meant'),
    [
        ('Arch.name=ResNeXt50_32x4d', 'model.name'),
        ('Global.pretrained_model=x', 'model.pretrained'),
        ('class_num=3', 'model.num_classes'),
        ('Global.use_gpu=True', 'device'),
        ('lr0=0.1', 'optimizer.lr'),
        ('imgsz=224', 'data.image_size'),
        ('batch=16', 'data.batch_size'),
        ('batch_size=2', 'data.batch_size'),
        ('DataLoader.Eval.sampler.batch_size=2', 'eval.batch_size'),
        ('Optimizer.lr.learning_rate=0.1', 'optimizer.lr'),
        ('train.save_interval=3', 'train.save_every'),
        ('model-ema-decay=0.9', 'train.ema'),
    ],
)
def test_keys_of_other_suites_are_answered_with_ours(written, override, meant):
    assert f'; did you mean {meant}?' in refusal(written(''), override)


def test_unsupported_features_of_other_suites_are_answered(written):
    for override in ('optimizer.name=adam', 'Optimizer.name=AdamW', 'opt=adam'):
        assert 'there is only SGD with momentum' in refusal(written(''), override)


def test_every_answer_for_another_suites_key_is_a_key_or_a_sentence():
    for meant in (*foreign_keys.WHOLE.values(), *foreign_keys.LAST.values()):
        assert meant in DEFAULTS or ' ' in meant, meant


def test_a_config_of_another_suite_is_refused_at_its_first_key(written):
    path = written('Arch:\n  name: ResNeXt50_32x4d\n  class_num: 3\n')
    assert refusal(path) == f'{path}:2: unknown key Arch.name; did you mean model.name?'
    assert ':3: unknown key Optimizer.lr.learning_rate; did you mean optimizer.lr?' in refusal(
        written('Optimizer:\n  lr:\n    learning_rate: 0.1\n')
    )


@pytest.mark.parametrize(
    ('text', 'sign'),
    [
        ('seed：3\n', '：, write :'),
        ('optimizer：\n  lr: 3\n', '：, write :'),
        ('schedule:\n  values: [0.1，0.2]\n', '，, write ,'),
        ('schedule:\n  values: 【0.1, 0.2】\n', '【, write ['),
        ('optimizer:\n  lr: ０.1\n', '０, write 0'),
        ('seed:\u30003\n', 'blank U+3000'),
        ('optimizer:\n\u3000lr: 3\n', 'blank U+3000'),
        ('optimizer:\n\u00a0\u00a0lr: 3\n', 'blank U+00A0'),
    ],
)
def test_a_full_width_sign_is_named(written, text, sign):
    assert sign in refusal(written(text))


@pytest.mark.parametrize('override', ['seed＝3', 'optimizer。lr=3', 'seed=３', 'train.ema=0。5'])
def test_a_full_width_sign_in_an_override_is_named(written, override):
    assert ', write ' in refusal(written(''), override)


def test_full_width_signs_in_comments_and_texts_are_allowed(written):
    path = written('# 注：一\noutput:\n  dir: 图片：二\n')
    assert load_config(path).output.dir == '图片：二'


# ------------------------------------------------------------------ combinations


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('wide_resnet29_10', ['29', '6n + 4', '28 or 34']),
        ('wide_resnet27_10', ['22 or 28']),
        ('wide_resnet4_10', ['10 or 16']),
        ('wide_resnet0_1', ['10 or 16']),
        ('wide_resnet28_0', ['widen factor']),
        ('wide_resnet28', ['wide_resnet28_10']),
        ('wrn28_10', ['wide_resnet28_10']),
        ('wide_resnet-28_10', ['wide_resnet28_10']),
        ('wide_resnet28_10x', ['wide_resnet28_10']),
        ('""', ['wide_resnet28_10']),
    ],
)
def test_invalid_wide_resnet_names_are_refused(written, name, words):
    path = written(f'model:\n  name: {name}\n')
    text = refusal(path)
    assert text.startswith(f'{path}:2: model.name ')
    assert all(word in text for word in words)


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('resnext28_8x64d', ['28', '9n + 2', '20 or 29', '50, 101, 152']),
        ('resnext30_8x64d', ['29 or 38']),
        ('resnext2_8x64d', ['11 or 20']),
        ('resnext34_32x4d', ['29 or 38']),
        ('resnext50_32x0d', ['cardinality or width 0']),
        ('resnext29_0x64d', ['cardinality or width 0']),
        ('resnext50', ['resnext50_32x4d']),
        ('resnext50_32x4', ['resnext50_32x4d']),
        ('resnext50_32', ['resnext50_32x4d']),
        ('ResNeXt50_32x4d', ['resnext50_32x4d']),
        ('resnet50', ['resnext50_32x4d']),
        ('wide_resnet152_2', ['152', '6n + 4', '148 or 154', '50, 101']),
        ('wide_resnet50_0', ['widen factor 0']),
        ('wide_resnet50_2x4d', ['wide_resnet28_10']),
    ],
)
def test_invalid_resnext_names_are_refused(written, name, words):
    path = written(f'model:\n  name: {name}\n')
    text = refusal(path)
    assert text.startswith(f'{path}:2: model.name ')
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    'name',
    [
        *[f'wide_resnet{depth}_4' for depth in (10, 16, 22, 28, 34, 40)],
        *['wide_resnet50_2', 'wide_resnet101_2', 'wide_resnet50_1'],
        *[f'resnext{depth}_4x8d' for depth in (11, 20, 29, 38)],
        *['resnext50_32x4d', 'resnext101_64x4d', 'resnext152_64x4d', 'resnext50_1x64d'],
        *MODELS,
    ],
)
def test_valid_network_names_are_accepted(written, name):
    assert load_config(written(''), [f'model.name={name}']).model.name == name


def test_the_networks_of_all_papers_are_known():
    assert {'wide_resnet28_10', 'wide_resnet50_2', 'resnext29_8x64d', 'resnext50_32x4d'} <= set(
        MODELS
    )


PIECEWISE = 'schedule.name=piecewise'
FOLDER, RESNEXT = 'data.name=folder', 'model.name=resnext50_32x4d'


@pytest.mark.parametrize(
    ('overrides', 'words'),
    [
        (
            [PIECEWISE, 'schedule.boundaries=[1, 2]', 'schedule.values=[0.1, 0.2]'],
            ['schedule.values', '2 boundaries need 3 values, not 2'],
        ),
        ([PIECEWISE, 'schedule.values=[0.1, 0.2]'], ['schedule.values', '0 boundaries need 1']),
        (
            [PIECEWISE, 'schedule.boundaries=[60, 30]', 'schedule.values=[1, 1, 1]'],
            ['schedule.boundaries', 'increasing'],
        ),
        ([PIECEWISE, 'schedule.boundaries=[30, 30]'], ['schedule.boundaries', 'increasing']),
        ([PIECEWISE, 'schedule.boundaries=[0, 30]'], ['schedule.boundaries', 'above 0']),
        (
            [PIECEWISE, 'schedule.boundaries=[1]', 'schedule.values=[0.1, 0]'],
            ['schedule.values', 'above 0'],
        ),
        (['schedule.name=step', 'schedule.step_size=0'], ['schedule.step_size', 'above 0']),
        (['data.mean=[1, 2, 3]'], ['-o data.mean', 'std']),
        (
            ['data.mean=[0.485, 0.456, 0.406]', 'data.std=[0.229, 0.224, 0.225]'],
            ["'data.mean=[123.675, 116.28, 103.53]' 'data.std=[58.395, 57.12, 57.375]'"],
        ),
        (['data.mean=[0, 0, 0]', 'data.std=[1, 1, 1]'], ["'data.std=[255.0, 255.0, 255.0]'"]),
        (
            ['data.mean=[0.5, 0.5, 0.5]', 'data.std=[60, 60, 60]'],
            ["[127.5, 127.5, 127.5]' 'data.std=[60"],
        ),
        (['data.std=[1, 2, 3]'], ['-o data.std', 'mean']),
        (['data.mean=[1, 2]', 'data.std=[1, 2]'], ['data.mean', 'three']),
        (['data.mean=[1, 2, 3]', 'data.std=[1, 2]'], ['three']),
        (['data.mean=[1, 2, 3]', 'data.std=[1, 0, 3]'], ['data.std', 'above 0']),
        (['schedule.warmup_epochs=5', 'train.epochs=5'], ['schedule.warmup_epochs', 'epochs (5)']),
        (['schedule.warmup_epochs=200.5'], ['schedule.warmup_epochs', '(200)']),
        (['data.name=folder', 'data.crop_padding=2'], ['data.crop_padding', 'folder']),
        (['data.name=folder', 'data.crop_padding=0'], ['data.crop_padding', 'folder']),
        (['data.name=folder', 'data.padding_mode=reflect'], ['data.padding_mode', 'folder']),
        (['data.test_folder=x'], ['data.test_folder', 'cifar10']),
        (['data.name=digits', 'data.on_bad_file=skip'], ['data.on_bad_file', 'digits']),
        (['data.name=synthetic', 'data.test_folder=x'], ['data.test_folder', 'synthetic']),
        (['data.scale=[0.5, 1]'], ['data.scale', 'cifar10']),
        (['data.progressive=[7, 32]'], ['data.progressive', '8 pixels']),
        ([FOLDER, 'data.progressive=[16, 32]'], ['data.progressive', 'folder']),
        (['data.progressive=[32, 16]'], ['data.progressive', 'growing']),
        (['data.progressive=[16, 32]', 'train.epochs=1'], ['data.progressive', 'train.epochs (1)']),
        (['data.name=cifar100', 'data.ratio=[0.5, 2]'], ['data.ratio', 'cifar100']),
        (['eval.views=ten_crop'], ['eval.views', 'folder', 'flip']),
        (['data.name=synthetic', 'eval.views=ten_crop'], ['eval.views', 'folder', 'flip']),
        ([RESNEXT, 'model.dropout=0.3'], ['model.dropout', 'resnext50_32x4d', '6n + 4']),
        (['model.name=resnext29_8x64d', 'model.dropout=0.3'], ['model.dropout', 'has none']),
        (['model.name=wide_resnet50_2', 'model.dropout=0.3'], ['model.dropout', 'has none']),
        (['model.zero_init_last_bn=true'], ['model.zero_init_last_bn', 'wide_resnet28_10']),
        (['data.color_jitter=[0.4]'], ['data.color_jitter', 'three or four']),
        (['data.color_jitter=[0.4, 0.4]'], ['data.color_jitter', 'three or four']),
        (['data.color_jitter=[1, 1, 1, 0.1, 1]'], ['data.color_jitter', 'three or four']),
        (['data.color_jitter=[0.4, -0.1, 0.4]'], ['data.color_jitter', 'three or four']),
        (['data.color_jitter=[0.4, 0.4, 0.4, -0.1]'], ['data.color_jitter']),
        (['data.color_jitter=[0.4, 0.4, 0.4, 0.6]'], ['data.color_jitter', 'hue', '0.5']),
        ([FOLDER, 'data.scale=[0.5]'], ['data.scale', 'two numbers', '<= 1']),
        ([FOLDER, 'data.scale=[]'], ['data.scale', 'two numbers']),
        ([FOLDER, 'data.scale=[0.1, 0.5, 1]'], ['data.scale', 'two numbers']),
        ([FOLDER, 'data.scale=[0, 1]'], ['data.scale', '0 < low']),
        ([FOLDER, 'data.scale=[0.5, 0.4]'], ['data.scale', 'low <= high']),
        ([FOLDER, 'data.scale=[0.5, 1.1]'], ['data.scale', 'high <= 1']),
        ([FOLDER, 'data.ratio=[0.75]'], ['data.ratio', 'two numbers']),
        ([FOLDER, 'data.ratio=[-1, 1]'], ['data.ratio', '0 < low']),
        ([FOLDER, 'data.ratio=[2, 1]'], ['data.ratio', 'low <= high']),
        ([FOLDER, 'data.holdout=1'], ['data.holdout', 'less than 1']),
        ([FOLDER, 'data.holdout=-0.1'], ['data.holdout', '0 or more']),
        (['optimizer.lr_scaling=linear'], ['optimizer.lr_scaling', 'optimizer.reference_batch']),
        (
            ['train.to_static=true', 'train.accumulate=2'],
            ['train.to_static', 'train.accumulate', 'gradients'],
        ),
        (
            [PIECEWISE, 'schedule.boundaries=[1]', 'schedule.values=[0.1, 0.01]', 'optimizer.lr=0'],
            ['optimizer.lr', 'above 0'],
        ),
    ],
)
def test_invalid_combinations_are_refused(written, overrides, words):
    text = refusal(written(''), *overrides)
    assert all(word in text for word in words), text
    assert text.startswith('-o ')


def test_an_invalid_combination_names_its_line(written):
    path = written('train:\n  epochs: 3\nschedule:\n  warmup_epochs: 4\n')
    assert refusal(path).startswith(f'{path}:4: schedule.warmup_epochs ')
    path = written('schedule:\n  name: piecewise\n  boundaries: [1]\n  values: [1]\n')
    assert refusal(path).startswith(f'{path}:4: schedule.values ')
    load_config(path, ['schedule.name=constant'])  # which does not use the values
    path = written('data:\n  name: digits\n  test_folder: x\n')
    assert refusal(path).startswith(f'{path}:3: data.test_folder ')
    path = written('data:\n  color_jitter: [1]\nmodel:\n  dropout: 0.1\n')
    assert refusal(path, RESNEXT).startswith(f'{path}:4: model.dropout ')
    assert refusal(path).startswith(f'{path}:2: data.color_jitter ')


@pytest.mark.parametrize(
    'overrides',
    [
        [PIECEWISE],
        [PIECEWISE, 'schedule.boundaries=[1, 2]'],
        [PIECEWISE, 'schedule.boundaries=[1, 2]', 'schedule.values=[0.1, 0.01, 0.001]'],
        [PIECEWISE, 'schedule.values=[0.1]'],
        ['data.mean=[1, 2, 3]', 'data.std=[1, 2, 3]'],
        ['data.mean=[0, 0, 0]', 'data.std=[255, 255, 255]', 'data.workers=0'],
        ['schedule.warmup_epochs=4.5', 'train.epochs=5'],
        [FOLDER],
        [FOLDER, 'data.crop_padding=4', 'data.padding_mode=zero'],  # the defaults say nothing
        ['data.holdout=0', 'data.scale=[0.08, 1]', 'data.test_folder=null'],
        [FOLDER, 'data.holdout=0.2', 'data.scale=[1, 1]', 'data.ratio=[1, 1]'],
        [FOLDER, 'data.test_folder=held', 'eval.views=ten_crop', 'eval.resize=256'],
        ['eval.views=flip'],
        ['model.dropout=0.3'],
        [RESNEXT, 'model.zero_init_last_bn=true', 'model.dropout=0'],
        ['model.name=wide_resnet50_2', 'model.zero_init_last_bn=true'],
        ['data.color_jitter=[]'],
        ['data.color_jitter=[0, 0, 0]'],
        ['data.color_jitter=[0.4, 1.5, 0.4, 0.5]'],
        ['data.auto_augment=randaugment', 'data.mixup=0.2', 'data.cutmix=1', 'data.cutout=8'],
        ['optimizer.lr_scaling=linear', 'optimizer.reference_batch=256'],
        ['optimizer.lr_scaling=none', 'optimizer.reference_batch=256'],
        ['train.amp=none', 'train.loss_scale=32', 'train.amp_dtype=bfloat16'],
        ['train.amp_dtype=float16', 'train.loss_scale=null'],
        ['train.amp=O1', 'train.loss_scale=1024'],
        ['train.amp=O2', 'train.amp_dtype=bfloat16'],
        ['model.data_format=NHWC', 'train.sync_bn=true', 'train.to_static=true'],
    ],
)
def test_valid_combinations_are_accepted(written, overrides):
    load_config(written(''), overrides)


# ------------------------------------------------------------------ files


def test_a_missing_file_suggests_the_nearest_name(written, tmp_path):
    neighbour = written('', 'quickstart.yaml')
    written('', 'another.yaml')
    text = refusal(tmp_path / 'quikstart.yaml')
    assert str(tmp_path / 'quikstart.yaml') in text
    assert f'did you mean {neighbour}?' in text


def test_a_file_in_a_missing_folder_is_refused(tmp_path):
    text = refusal(tmp_path / 'nowhere' / 'recipe.yaml')
    assert 'nowhere' in text
    assert 'No such file' in text


@pytest.mark.parametrize(
    'name',
    ['quickstart', 'quickstart.yaml', 'configs/quickstart', 'config/quickstart.yaml'],
)
def test_a_recipe_of_the_repository_is_found_by_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(Path(name)) == REPOSITORY / 'configs' / 'quickstart.yaml'


def test_an_existing_file_comes_before_a_recipe(written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written('', 'quickstart.yaml')
    assert find_config(Path('quickstart')) == Path('quickstart.yaml')
    assert find_config(tmp_path / 'quickstart') == tmp_path / 'quickstart.yaml'


@pytest.mark.parametrize(
    ('name', 'hint'),
    [
        ('quikstart', 'did you mean quickstart?'),
        ('configs/quikstart.yaml', 'did you mean quickstart?'),
        ('elsewhere/quickstart.yaml', 'did you mean quickstart?'),
        ('zzz', 'configs/ has finetune_folder, quickstart, '),
        ('run', 'did you mean run/config.yaml?'),
        ('mine.yml', 'did you mean mine.yaml?'),
    ],
)
def test_a_missing_config_suggests_the_nearest_name(written, tmp_path, monkeypatch, name, hint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'run').mkdir()
    written('', 'run/config.yaml')
    written('', 'mine.yaml')
    written('', 'other.yaml')
    with pytest.raises(UserError) as caught:
        find_config(Path(name))
    assert str(caught.value).startswith(f'-c {name}')
    assert hint in str(caught.value)


def test_a_folder_is_not_a_config(tmp_path):
    assert str(tmp_path) in refusal(tmp_path)


@pytest.mark.parametrize(
    ('text', 'line'),
    [
        ('seed: 1\ntrain: [1\nmodel: 2\n', 3),
        ('seed: 1\n\ttrain: 1\n', 2),
        ('seed: "1\n', 2),
        ('seed: 1\ndevice: *x\n', 2),
        ('seed: 1\n---\nseed: 2\n', 2),
        ('seed: 1\n device: cpu\n', 2),
        ('seed: !!python/object/apply:os.system [ls]\n', 1),
        ('device: cpu\nseed: !shout 1\n', 2),
        ('schedule:\n  values: &a [*a]\n', 2),
        ('seed: 1\ntrain:\n  ema: 0.5\n  epochs: 2024-13-45\n', 4),
    ],
    ids=[
        'bracket',
        'tab',
        'quote',
        'alias',
        'documents',
        'indent',
        'python tag',
        'tag',
        'recursion',
        'no such date',
    ],
)
def test_a_syntax_error_is_named_by_its_line(written, text, line):
    path = written(text)
    assert refusal(path).startswith(f'{path}:{line}: ')


@pytest.mark.parametrize(
    'text', ['- 1\n- 2\n', 'seed\n', '7\n', 'train:\n- epochs\n', 'train: 3\n']
)
def test_a_file_or_section_must_be_a_mapping(written, text):
    path = written(text)
    refused = refusal(path)
    assert refused.startswith(f'{path}:')
    assert 'must be a mapping' in refused


@pytest.mark.parametrize(
    'content',
    [
        b'\x89PNG\r\n\x1a\n\xff\xfe',
        bytes(range(256)),
        'größe: 1\n'.encode('latin-1'),
        b'seed: 1\0\n',
        '# 数据\nseed: 1\n'.encode('gbk'),
        'seed: 1\n'.encode('utf-16'),
        'seed: 1\n'.encode('utf-16-be'),
    ],
    ids=['PNG', 'all bytes', 'latin-1', 'NUL', 'GBK', 'UTF-16', 'UTF-16 without a mark'],
)
def test_a_binary_file_is_refused(written, content):
    path = written(content)
    refused = refusal(path)
    assert str(path) in refused
    assert 'did you mean' not in refused
    if content.strip(b'\xff\xfe\0').startswith((b'# ', b's\0')):
        assert 'save it as UTF-8' in refused


# ------------------------------------------------------------------ the recipes


def independent_values(path):
    """What a recipe says, read without the engine; PyYAML alone takes 5e-4 for a text."""

    def number(value):
        if isinstance(value, list):
            return [number(item) for item in value]
        if isinstance(value, str) and 'e-' in value:
            return float(value)
        return value

    return {key: number(value) for key, value in flatten(yaml.safe_load(path.read_text())).items()}


def test_there_are_recipes():
    recipes = {'quickstart', 'wrn28_10_cifar10', 'resnext29_4x8d_cifar10_short', 'finetune_folder'}
    assert recipes <= {path.stem for path in RECIPES}


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_a_recipe_changes_only_the_keys_that_it_has(path):
    loaded = flatten(to_dict(load_config(path)))
    says = independent_values(path)
    assert loaded == {**DEFAULTS, **says, 'output.dir': str(Path('output') / path.stem)}
    assert changed(load_config(path)), 'it says nothing that the defaults do not'


def test_the_default_recipe_is_contribs():
    config = load_config(DEFAULT_CONFIG)
    assert config.model.name == 'wide_resnet28_10'
    assert config.model.dropout == 0.3
    assert config.data.batch_size == 128
    assert config.train.epochs == 400
    assert config.optimizer.lr == config.schedule.values[0] == 0.05
    assert config.optimizer.weight_decay == 5e-4
    assert config.schedule.boundaries == (60, 120, 160, 200, 240, 260)
    assert config.schedule.values == (0.05, 0.01, 0.002, 4e-4, 2e-4, 1e-4, 5e-5)


# ------------------------------------------------------------------ writing and comparing


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_a_recipe_survives_writing_and_reading(path, written):
    for overrides in ([], ['optimizer.lr=1e-7', 'optimizer.clip_norm=3']):
        config = load_config(path, overrides)
        assert load_config(written(to_yaml(config))) == config


@pytest.mark.parametrize('lr', ['0.916', '0.185', '0.486', '1e-5', '0.3', '7'])
def test_a_recipe_whose_rates_were_scaled_survives_writing_and_reading(written, lr):
    """lr * value / value is not always lr, and the first of the values has to be."""
    for first in ('0.05', '0.1', '0.2', '0.3'):
        recipe = written(
            f'optimizer: {{lr: {first}}}\n'
            f'schedule: {{name: piecewise, boundaries: [1], values: [{first}, 0.01]}}\n'
        )
        config = load_config(recipe, [f'optimizer.lr={lr}', 'output.dir=x'])
        assert config.schedule.values[1] == pytest.approx(float(lr) * 0.01 / float(first))
        assert load_config(written(to_yaml(config))) == config


NEW_VALUES = [
    *[FOLDER, RESNEXT, 'model.zero_init_last_bn=true', 'model.init=xavier'],
    *['model.pretrained=resnext50_32x4d', 'model.pretrained_head=drop'],
    *['data.test_folder=a b', 'data.on_bad_file=skip', 'data.workers=3', 'data.image_size=96'],
    *['data.scale=[0.25, 0.75]', 'data.ratio=[0.5, 2]', 'data.auto_augment=randaugment'],
    *['data.randaugment_operations=3', 'data.randaugment_magnitude=7.5'],
    *['data.color_jitter=[0.4, 0.4, 0.4, 0.1]', 'data.cutout=16', 'data.random_erasing=0.25'],
    *['data.mixup=0.2', 'data.cutmix=1', 'eval.resize=128', 'eval.views=ten_crop'],
    *['model.data_format=NHWC', 'optimizer.lr_scaling=linear', 'optimizer.reference_batch=256'],
    *['train.accumulate=4', 'train.amp=O2', 'train.sync_bn=true'],
]
OF_FLOAT16 = ['train.amp=O1', 'train.loss_scale=1024', 'train.to_static=true']
OF_BFLOAT16 = ['train.amp=O1', 'train.amp_dtype=bfloat16']


@pytest.mark.parametrize('values', [NEW_VALUES, OF_FLOAT16, OF_BFLOAT16], ids=len)
def test_keys_other_than_the_defaults_survive_writing_and_reading(written, values):
    config = load_config(written(''), values)
    assert load_config(written(to_yaml(config))) == config
    assert sorted(changed(config)) == sorted(text.partition('=')[0] for text in values)


def test_the_choices_of_auto_augment_are_the_policies():
    choices = get_args(get_type_hints(Data)['auto_augment'])
    assert choices[0] == 'none' == Config().data.auto_augment
    assert sorted(choices[1:]) == sorted(POLICY_NAMES)


@pytest.mark.parametrize(
    'text',
    [
        *['plain', '5e-4', '1e3', '.5e3', '1.5', '7', 'true', 'no', 'null', '~', '2024-12-01'],
        *['1:30', 'a: b', '# a', ' a ', 'größe', "it's", '"', 'a\nb', 'C:\\x', '[1]', '*a', '!a'],
    ],
)
def test_every_text_survives_writing_and_reading(written, text):
    data = dataclasses.replace(Config().data, root=text)
    output = dataclasses.replace(Config().output, dir='x')
    config = dataclasses.replace(Config(), data=data, output=output)
    assert load_config(written(to_yaml(config))) == config


def test_chinese_text_is_written_unescaped(written):
    config = load_config(written(''), ['data.root=图片'])
    assert 'root: 图片\n' in to_yaml(config)
    odd = load_config(written(''), ['data.root=\udcb0猫'])  # a name in another encoding
    assert load_config(written(to_yaml(odd))).data.root == '\udcb0猫'


def test_a_config_cannot_be_changed(written):
    config = load_config(written(''))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.optimizer.lr = 1.0
    hash(config)  # and nothing in it can be, such as a list


def test_differences_name_the_key_and_both_values(written):
    path = written('')
    old = to_dict(load_config(path))
    new = to_dict(load_config(path, ['optimizer.lr=0.05', 'schedule.values=[1]', 'seed=3']))
    assert differences(old, old) == []
    assert sorted(differences(old, new)) == [
        'optimizer.lr: 0.1 -> 0.05',
        'schedule.values: [] -> [1.0]',
        'seed: 0 -> 3',
    ]


def test_a_key_that_an_old_config_lacks_is_a_difference():
    new = to_dict(Config())
    old = {**new, 'optimizer': {'lr': 0.1}}
    assert 'optimizer.momentum: None -> 0.9' in differences(old, new)


def test_the_table_of_keys_has_every_key_with_its_default():
    table = ' '.join(describe_keys(training=True).split())
    for key, value in DEFAULTS.items():
        shown = {'None': 'null', 'True': 'true', 'False': 'false'}.get(str(value), value)
        assert f' {key} ({shown})' in table
    assert 'cifar10 | cifar100 | folder | digits | synthetic' in table


# ------------------------------------------------------------------ the command line


# Runs a command in this very process and says on the last line which of these were imported, each
# of which takes a tenth of a second or much more.
HEAVY = ('paddle', 'cv2', 'PIL', 'simplejpeg', 'matplotlib', 'sklearn', 'visualdl')
NAMING_IMPORTS = f"""
import runpy, sys
del sys.argv[0]
try:
    runpy.run_path(sys.argv[0], run_name='__main__')
finally:
    print([name for name in {HEAVY} if name in sys.modules])
"""


def run(folder, script, *arguments):
    """(exit code, stdout without the last line, which of HEAVY were imported, stderr)"""
    done = subprocess.run(
        [sys.executable, '-c', NAMING_IMPORTS, str(REPOSITORY / script), *arguments],
        cwd=folder,
        env={**os.environ, 'PYTHONPATH': str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert list(Path(folder).iterdir()) == []
    *out, imported = done.stdout.splitlines()
    return done.returncode, out, imported, done.stderr


@pytest.mark.parametrize('script', ['train.py', 'eval.py', 'export.py'])
def test_help_lists_the_keys_without_importing_anything_slow(tmp_path, script):
    code, out, imported, err = run(tmp_path, script, '--help')
    assert (code, imported, err) == (0, '[]', '')
    text = '\n'.join(out)
    assert describe_keys(training=script == 'train.py') in text
    assert ('optimizer.lr ' in text) == (script == 'train.py')
    assert '--override' in text
    assert out[0].startswith(f'example: python3 {script} ')
    assert max(map(len, out)) <= 80


@pytest.mark.parametrize(
    'command',
    ['deploy/predict.py', 'deploy/serve.py', 'deploy/benchmark.py', 'engine/weights/__main__.py'],
)
def test_help_of_the_other_commands_is_as_narrow_and_begins_with_an_example(
    command, monkeypatch, capsys
):
    module = command[: -len('.py')].replace('/', '.').replace('deploy.', '')
    monkeypatch.setattr(sys, 'argv', [command, '--help'])
    monkeypatch.setenv('COLUMNS', '200')
    with pytest.raises(SystemExit, match='0'):
        importlib.import_module(module).parse_arguments()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('example: python3 ')
    assert max(map(len, lines)) <= 80
    monkeypatch.setattr(sys, 'argv', [command, '--frobnicate'])
    with pytest.raises(Exception, match='--help shows how to write it') as refused:
        importlib.import_module(module).parse_arguments()
    assert type(refused.value).__name__ == 'UserError'


@pytest.mark.parametrize('script', ['train.py', 'eval.py', 'export.py'])
def test_help_takes_less_than_half_a_second(script, tmp_path):
    """Of this process's own time, as others may keep the cores busy; the quickest of five. The
    first compiles the sources, as for a user, also where the tests' own environment forbids it."""
    seconds = []
    caching = {**os.environ, 'PYTHONDONTWRITEBYTECODE': '', 'PYTHONPYCACHEPREFIX': str(tmp_path)}
    for _ in range(5):
        before = os.times()
        subprocess.run(
            [sys.executable, str(REPOSITORY / script), '--help'],
            check=True,
            capture_output=True,
            env=caching,
        )
        after = os.times()
        seconds.append(
            after.children_user
            - before.children_user
            + after.children_system
            - before.children_system
        )
    assert min(seconds) < 0.5


@pytest.mark.parametrize('script', ['train.py', 'eval.py', 'export.py'])
@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['-o', 'optimizer.lrr=1'], ['-o optimizer.lrr=1', 'optimizer.lr?']),
        (['-o', 'seed=1', 'train.epochs=x'], ['train.epochs', 'whole number']),
        (['-c', 'nowhere.yaml'], ['nowhere.yaml']),
        (['-o', 'seed=!tag'], ['seed=!tag']),
        (['--lr', '0.1'], ['--lr', 'write -o optimizer.lr=0.1']),
    ],
    ids=['key', 'type', 'file', 'tag', 'option'],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, script, arguments, words):
    code, out, imported, err = run(tmp_path, script, *arguments)
    assert (code, imported, out) == (2, '[]', [])
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith(f'{script}: ')
    assert all(word in lines[0] for word in words)


MEANT = [
    (['--lr', '0.1'], 'write -o optimizer.lr=0.1'),
    (['--epochs=5'], 'write -o train.epochs=5'),
    (['--batch-size', '4'], 'write -o data.batch_size=4'),
    (['--device', 'gpu'], 'write -o device=gpu'),
    (['--use_gpu', 'True'], 'write -o device=...'),
    (['--data-dir', 'my pictures'], "write -o data.root='my pictures'"),
    (['--gpus', '0,1'], 'python3 -m paddle.distributed.launch --gpus 0,1 '),
    (['--opt', 'adam'], 'there is only SGD with momentum'),
    (['quickstart'], 'write -c quickstart'),
    (['configs/quickstart.yaml', 'seed=1'], 'write -c configs/quickstart.yaml'),
    (['seed=1'], 'write -o seed=1'),
    (['lr=0.1'], 'unknown key lr: write -o optimizer.lr=0.1'),
    (['--output.dir', 'a b'], "write -o 'output.dir=a b'"),
    (['-c', 'quickstart', 'output.dir=a b'], "write -o 'output.dir=a b'"),
    (['--resume', 'seed=1'], 'write --resume -o seed=1'),
    (['--resum'], 'did you mean --resume?'),
    (['--cfg', 'quickstart.yaml'], 'did you mean --config?'),
    (['a run'], "write --resume 'a run'"),
    (['--frobnicate'], 'unknown option --frobnicate'),
    (['-o'], '-o/--override: expected at least one argument'),
    (['nonsense'], 'neither an option nor a config'),
]


@pytest.mark.parametrize(('arguments', 'words'), MEANT, ids=lambda value: str(value)[:30])
def test_an_option_of_other_suites_is_answered_with_ours(arguments, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['train.py', *arguments])
    (tmp_path / 'a run').mkdir()
    (tmp_path / 'a run' / 'config.yaml').touch()
    with pytest.raises(UserError) as caught:
        train.parse_arguments()
    assert words in str(caught.value)
    assert '\n' not in str(caught.value)


def test_a_run_without_w_is_answered_with_w(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a run').mkdir()
    monkeypatch.setattr(sys, 'argv', ['eval.py', 'a run'])
    with pytest.raises(UserError, match="write -w 'a run'"):
        evaluation_command.parse_arguments()


def test_the_recipe_of_the_user_is_what_is_read(tmp_path):
    recipe = tmp_path / 'mine.yaml'
    recipe.write_text('train:\n  epochz: 3\n')
    work = tmp_path / 'work'
    work.mkdir()
    code, _, _, err = run(work, 'train.py', '-c', '../mine.yaml', '-o', 'seed=1')
    assert code == 2
    assert '../mine.yaml:2: unknown key train.epochz; did you mean train.epochs?' in err


def test_overrides_may_follow_one_o_or_many():
    parser = cli.ConfigParser('x', example='x', training=True)
    args = parser.parse_args(['-o', 'a=1', 'b=2', '-c', 'x.yaml', '-o', 'c=3'])
    assert args.override == ['a=1', 'b=2', 'c=3']
    assert args.config == Path('x.yaml')
    assert parser.parse_args([]).override == []
    assert parser.parse_args([]).config is None


def test_values_are_scaled_to_an_overridden_rate_and_saved():
    recipe = REPOSITORY / 'configs' / 'wrn28_10_cifar10.yaml'
    values = load_config(recipe, ['optimizer.lr=0.1']).schedule.values
    assert values[:3] == pytest.approx((0.1, 0.02, 0.004))


def test_values_that_contradict_the_rate_are_refused():
    recipe = REPOSITORY / 'configs' / 'wrn28_10_cifar10.yaml'
    with pytest.raises(
        UserError, match=r'schedule\.values starts at 0\.1, but optimizer\.lr is 0\.05'
    ):
        load_config(recipe, ['schedule.values=[0.1, 0.05, 0.04, 0.03, 0.02, 0.01, 0.001]'])


def test_a_section_given_a_value_lists_its_keys():
    with pytest.raises(UserError, match=r'model is a section; its keys are model\.name'):
        load_config(REPOSITORY / 'configs' / 'quickstart.yaml', ['model=wide_resnet16_2'])


@pytest.mark.parametrize('kind', ['*.md', 'configs/*.yaml'])
def test_no_placeholder_is_left_in_a_recipe(kind):
    for path in REPOSITORY.glob(kind):
        assert '@@' not in path.read_text(encoding='utf-8'), path
