"""Several processes: what they compute, and what becomes of a job that loses one of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterable

import distributed_driver
import numpy as np
import pytest
from conftest import REPOSITORY, TINY
from launching import Job, Launcher, free_port, launcher, node, only_line
from picture_files import write_set

from engine.run import checkpoint

pytestmark = pytest.mark.skipif(not Path('/proc/self/environ').exists(), reason='Linux only')

TRAIN, EVAL = str(REPOSITORY / 'train.py'), str(REPOSITORY / 'eval.py')
DRIVER = str(Path(distributed_driver.__file__).resolve())
QUICK = ('-c', str(REPOSITORY / 'configs' / 'quickstart.yaml'), '-o', *TINY)
# Batches of 16, which two processes share: twenty an epoch.
HALVES = (*QUICK, 'data.batch_size=8', 'data.num_images=320', 'train.epochs=2')
RUN = Path('output', 'quickstart')

DIED = (
    'train.py: process {} has died (killed, out of memory, or crashed); the same command '
    'with --resume continues from the last checkpoint; process {} ends, too'
)


@pytest.fixture(scope='module')
def launch():
    with launcher() as starts:
        yield starts


@pytest.fixture(scope='module')
def alone():
    """What one process computes: course -> losses, rows and weights."""
    kept = {}

    def compute(name: str) -> dict[str, np.ndarray]:
        if name not in kept:
            kept[name] = distributed_driver.COURSES[name]()
        return kept[name]

    return compute


def courses(launch: Launcher, folder: Path, *names: str, processes: int = 2) -> dict:
    """What several processes compute: (course, rank) -> losses, rows and weights."""
    launch.run(folder, DRIVER, 'compare', str(folder), *names, processes=processes)
    return {
        (name, rank): dict(np.load(folder / f'{name}.{rank}.npz'))
        for name in names
        for rank in range(processes)
    }


@pytest.fixture(scope='module')
def pair(launch, tmp_path_factory):
    return courses(
        launch,
        tmp_path_factory.mktemp('pair'),
        *('frozen', 'frozen Summing', 'frozen Sharing', 'frozen Lonely'),
        *('live', 'live Sharing', 'in two', 'in two Sharing'),
    )


@pytest.fixture(scope='module')
def large_pair(launch, tmp_path_factory):
    folder = tmp_path_factory.mktemp('large')
    return courses(launch, folder, 'large', 'large Summing', 'large Lonely', 'large Doubling')


@pytest.fixture(scope='module')
def three(launch, tmp_path_factory):
    folder = tmp_path_factory.mktemp('three')
    return courses(launch, folder, 'frozen in three', 'live in three', processes=3)


def difference(ours: dict, theirs: dict, *, statistics: bool = True) -> float:
    """The largest of losses and weights, on request without the batch norms' statistics."""
    keys = [key for key in ours if key.startswith('weights ')]
    if not statistics:
        keys = [key for key in keys if not key.endswith(('._mean', '._variance'))]
    assert len(keys) > 20
    return max(np.abs(ours[key] - theirs[key]).max() for key in ('losses', *keys))


@pytest.mark.slow
def test_a_job_connects_its_processes_once(pair):
    """A second group of Paddle's gloo mistakes, at times, the first one's addresses for its own."""
    assert [int(course['group']) for course in pair.values()] == [0] * len(pair)


def test_two_processes_equal_one_when_batch_norms_are_frozen(pair, alone):
    one = alone('frozen')
    assert len(one['losses']) == 20
    assert np.ptp(one['losses']) > 0.05
    for rank in range(2):
        assert difference(pair['frozen', rank], one) < 1e-5


@pytest.mark.slow
def test_three_processes_equal_one_when_batch_norms_are_frozen(three, alone):
    """The last batch of an epoch is of four images: two, one and one."""
    for rank in range(3):
        assert difference(three['frozen in three', rank], alone('frozen in three')) < 1e-5


@pytest.mark.parametrize('fault', ['Summing', 'Sharing', 'Lonely'])
def test_the_comparison_notices(pair, alone, fault):
    """Sharing, the subtlest, counts the halves of the last batch, 8 and 7 images, alike."""
    assert difference(pair[f'frozen {fault}', 0], alone('frozen')) > 1e-3


def test_each_process_normalises_by_its_own_half_and_nothing_else_differs(pair, alone):
    """One process that computes the halves of each batch apart, batch norms live."""
    one = alone('live in halves')
    assert len(one['losses']) == 20
    assert difference(pair['live', 0], one, statistics=False) < 1e-5
    assert difference(pair['live Sharing', 0], one, statistics=False) > 1e-3
    assert difference(alone('live'), one, statistics=False) > 1e-2  # together is another matter


def test_all_processes_save_the_same_statistics(pair):
    assert difference(pair['live', 0], pair['live', 1]) == 0.0
    assert difference(pair['frozen Lonely', 0], pair['frozen Lonely', 1]) > 1e-3  # or it can't fail


@pytest.mark.slow
def test_live_batch_norms_of_two_processes_cost_little(large_pair, alone):
    """Two processes of 128 images each against one of 256, live batch norms, twenty steps.

    Each process normalises by the mean and variance of its own half, so that the losses differ, by
    3.7e-3 at most as measured. Summed gradients change them by 0.078, no averaging by 0.018, and
    the same images for both by 0.037. What a forgotten share of a short batch does (2e-3) is below
    this noise, and is seen with frozen batch norms and against halves computed apart.
    """

    def distance(name: str) -> float:
        return np.abs(large_pair[name, 0]['losses'] - alone('large')['losses']).max()

    assert len(alone('large')['losses']) == 20
    assert distance('large') < 8e-3
    for fault in ('Summing', 'Lonely', 'Doubling'):
        assert distance(f'large {fault}') > 12e-3, fault


def test_four_times_16_accumulated_equal_64_at_once(alone):
    assert len(alone('at once')['losses']) == 10
    assert difference(alone('in four'), alone('at once')) < 1e-5


def test_two_processes_with_two_times_16_accumulated_equal_64_at_once(pair, alone):
    """The last batch is of 35: the first process computes 16 and 2, the second 16 and 1."""
    for rank in range(2):
        assert difference(pair['in two', rank], alone('at once')) < 1e-5
    assert difference(pair['in two Sharing', 0], alone('at once')) > 1e-3


def flat(parts: Iterable[list]) -> list:
    return [row for part in parts for row in part]


def require_every_image_once(seen: dict, name: str, alone: dict) -> None:
    """In each epoch, in the order in which one process takes them."""
    ranks = sorted(rank for other, rank in seen if other == name)
    epochs = len(alone['images'])
    steps = [json.loads(str(seen[name, rank]['rows'])) for rank in ranks]
    together = [flat(parts) for parts in zip(*steps)]
    assert together == json.loads(str(alone['rows']))
    for epoch in np.array_split(np.array(together, dtype=object), epochs):
        assert sorted(flat(epoch)) == list(range(79))
    assert seen[name, 0]['images'].tolist() == [79] * epochs  # what train_accuracy divides by


def test_two_processes_take_every_image_once_an_epoch(pair, alone):
    require_every_image_once(pair, 'frozen', alone('frozen'))


@pytest.mark.slow
def test_three_processes_take_every_image_once_an_epoch(three, alone):
    require_every_image_once(three, 'live in three', alone('live in three'))


@pytest.fixture(scope='module')
def undisturbed(launch, tmp_path_factory):
    """A run of two processes: its folder and what the launcher printed."""
    folder = tmp_path_factory.mktemp('undisturbed')
    job = launch.run(folder, TRAIN, *HALVES)
    return folder / RUN, job.console


def run_alone(folder: Path, *command: str) -> str:
    """What one process prints that ends well."""
    result = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def records(run: Path) -> list[dict]:
    kept = ('epoch', 'step', 'lr', 'train_loss', 'train_accuracy', 'eval_loss', 'eval_accuracy')
    lines = (run / 'metrics.jsonl').read_text().splitlines()
    return [{key: json.loads(line)[key] for key in kept} for line in lines]


def require_equal_runs(run: Path, other: Path) -> None:
    ours, theirs = records(run), records(other)
    assert [record['epoch'] for record in ours] == [0, 1]
    for record, expected in zip(ours, theirs):
        assert record == pytest.approx(expected, abs=1e-5)
    saved, expected = (
        checkpoint.load(folder / 'checkpoints' / 'epoch_0002') for folder in (run, other)
    )
    for arrays, others in ((saved.model, expected.model), (saved.ema, expected.ema)):
        assert max(np.abs(arrays[name] - others[name]).max() for name in others) < 1e-5


def test_two_processes_train_and_the_console_is_that_of_one(undisturbed):
    run, console = undisturbed
    assert 'step: 16 images (8 x 2 processes)' in console
    assert re.search(r'^Epoch 0: CosineAnnealingDecay set learning rate to 0\.1\.$', console, re.M)
    assert len(re.findall(r'^iter:\d+  loss:', console, re.M)) == 40
    assert len(re.findall(r'^acc:\d+ total:320 ratio:', console, re.M)) == 2
    assert [record['step'] for record in records(run)] == [20, 40]
    assert 'Traceback' not in console


def evaluated(run: Path, text: str) -> tuple:
    """What eval.py says and writes, less its speed."""
    accuracy = re.search(r'^acc:\d+ total:1003 ratio:\S+$', text, re.M)
    rest = re.search(r'^(top-5 [\d.]+ %, loss [\d.]+), \d+ images/s$', text, re.M)
    assert accuracy, text
    assert rest, text
    folder = run / 'eval' / 'epoch_0002'
    matrix = (folder / 'confusion.csv').read_text()
    loss = json.loads((folder / 'eval.json').read_text())['loss']
    shutil.rmtree(folder)
    return accuracy[0], rest[1], matrix, pytest.approx(loss, abs=1e-6)


@pytest.fixture(scope='module')
def measured_alone(undisturbed):
    run, _ = undisturbed
    return evaluated(run, run_alone(run, EVAL, '-w', str(run), '-o', 'data.num_images=1003'))


@pytest.mark.parametrize(
    ('processes', 'batch'),
    [
        (2, 37),
        pytest.param(2, 167, marks=pytest.mark.slow),  # one image is left for two processes
        pytest.param(3, 41, marks=pytest.mark.slow),
        pytest.param(3, 167, marks=pytest.mark.slow),  # one image for three
    ],
)
def test_eval_counts_every_image_once(
    launch, undisturbed, measured_alone, tmp_path, processes, batch
):
    run, _ = undisturbed
    settings = ('data.num_images=1003', f'eval.batch_size={batch}')
    job = launch.run(tmp_path, EVAL, '-w', str(run), '-o', *settings, processes=processes)
    assert evaluated(run, job.log(0)) == measured_alone


def rows_of(file: Path) -> list[list[list[int]]]:
    """What the processes of a job trained on: for each step, the rows of each process."""
    ranks = []
    while file.with_name(f'{file.name}.{len(ranks)}').exists():
        lines = file.with_name(f'{file.name}.{len(ranks)}').read_text().splitlines()
        ranks.append([json.loads(line)[2] for line in lines])
    assert ranks
    return [list(step) for step in zip(*ranks)]


@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 3])
def test_another_number_of_processes_resumes_inside_the_epoch(launch, tmp_path, processes):
    """67 images: 14 pairs of halves and a rest for two processes; three take 8 each, one 8.

    Seven steps of two processes are 112 images with an epoch of five steps: one epoch and 32
    images of the next, which lie inside the second batch of 24.
    """
    settings = (*QUICK, 'data.batch_size=8', 'data.num_images=67', 'train.epochs=2')
    arguments = ('train', 'record_rows', *settings)
    first, second = tmp_path / 'first', tmp_path / 'second'
    launch.run(tmp_path, DRIVER, *arguments, 'train.max_steps=7', ROWS=str(first))
    saved = tmp_path / RUN / 'checkpoints' / 'epoch_0001_batch_00002'
    assert json.loads((saved / 'state.json').read_text())['progress']['images'] == 32
    job = launch.run(
        tmp_path, DRIVER, *arguments, '--resume', processes=processes, ROWS=str(second)
    )
    log = job.log(0)
    now = 8 * processes
    made_of = f' (8 x {processes} processes)' if processes > 1 else ''
    assert f'\nstep: {now} images{made_of}' in log
    assert f'resume: {now} images a step now, not 16; the order of the images stays' in log
    assert re.search(r'continuing from \S+/epoch_0001_batch_00002, step \d+$', log, re.M)

    before, after = rows_of(first), rows_of(second)
    assert [len(step) for step in after] == [processes] * len(after)
    order = [flat(step) for step in before + after]
    for epoch in range(2):
        expected = np.random.default_rng([0, epoch]).permutation(67).tolist()
        assert flat(order)[67 * epoch : 67 * (epoch + 1)] == expected
    assert len(flat(order)) == 2 * 67
    assert [len(step) for step in order[7:]][-1] == {1: 3, 3: 19}[processes]
    assert 'total:67' in run_alone(tmp_path, EVAL, '-w', str(RUN))


@pytest.mark.parametrize('killed', [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_process_ends_the_job_which_can_be_resumed(launch, tmp_path, killed):
    arguments = (*HALVES, 'train.save_every_steps=2')
    job = launch.start(tmp_path, DRIVER, 'train', 'slowly', *arguments)
    job.wait_for_line(r'^iter:5 ')
    os.kill(job.workers()[killed], signal.SIGKILL)
    start = time.monotonic()
    assert job.wait(60) != 0
    job.wait_until_all_have_ended(60 - (time.monotonic() - start))
    other = 1 - killed
    message = DIED.format(killed, other)
    assert only_line(job.log(other), r'train\.py: ') == message
    assert 'Traceback' not in job.everything()
    if killed == 1:  # of the other processes' logs, the launcher shows nothing
        assert job.console.count(message) >= 1
    resumed = run_alone(tmp_path, TRAIN, *arguments, '--resume')
    assert re.search(r'^resume: continuing from \S+epoch_0000_batch_\d+', resumed, re.M)
    assert 'resume: 8 images a step now, not 16' in resumed
    assert 'finished after epoch 2' in resumed


def test_sigterm_saves_and_the_resumed_run_is_bit_identical(launch, undisturbed, tmp_path):
    """The launcher sends it up to three times, the first process first."""
    job = launch.start(tmp_path, DRIVER, 'train', 'slowly', *HALVES)
    job.wait_for_line(r'^iter:3 ')
    job.launcher.terminate()
    job.wait(90)
    job.wait_until_all_have_ended()
    log = job.log(0)
    assert only_line(log, ': saved in') == (
        f'train.py: SIGTERM: saved in {RUN}; the same command with --resume continues'
    )
    assert 'Traceback' not in job.everything()
    (saved,) = (tmp_path / RUN / 'checkpoints').glob('epoch_*')
    assert re.fullmatch(r'epoch_0000_batch_000\d\d', saved.name)
    resumed = launch.run(tmp_path, TRAIN, *HALVES, '--resume')
    assert f'continuing from {RUN / "checkpoints" / saved.name}' in resumed.console
    require_equal_runs(tmp_path / RUN, undisturbed[0])


def folder_settings(root: str) -> tuple[str, ...]:
    config = ('-c', str(REPOSITORY / 'configs' / 'finetune_folder.yaml'))
    settings = ('data.image_size=8', 'data.batch_size=2', 'model.name=wide_resnet10_1')
    return (*config, '-o', *settings, 'model.pretrained=null', f'data.root={root}')


@pytest.mark.slow
def test_a_bad_path_of_all_processes_is_one_line_of_each(launch, tmp_path):
    job = launch.start(tmp_path, TRAIN, *folder_settings('nowhere'))
    assert job.wait(120) != 0
    job.wait_until_all_have_ended()
    for rank in range(2):
        line = only_line(job.log(rank))
        assert line.startswith('train.py: ')
        assert 'nowhere' in line
    assert 'nowhere' in job.console
    assert not (tmp_path / 'output').exists()


@pytest.mark.slow
@pytest.mark.parametrize('hook', ['other_root', 'other_root_seen_late'])
def test_a_bad_path_of_one_process_ends_the_others_with_its_reason(launch, tmp_path, hook):
    root = str(write_set(tmp_path / 'pictures'))
    job = launch.start(tmp_path, DRIVER, 'train', hook, *folder_settings(root))
    assert job.wait(120) == 2
    job.wait_until_all_have_ended()
    own = only_line(job.log(1))
    assert own.startswith('train.py: ')
    assert 'nowhere' in own
    assert f'\n{own}\n' in job.console  # the launcher shows the end of the log of who failed
    assert 'Traceback' not in job.console
    assert f'train.py: process 1: {own}; process 0 ends, too\n' in job.log(0)
    assert not (tmp_path / 'output').exists()


@pytest.mark.slow
def test_a_bug_in_one_process_ends_the_others_with_its_reason(launch, tmp_path):
    job = launch.start(tmp_path, DRIVER, 'train', 'bug', *HALVES)
    assert job.wait(120) != 0
    job.wait_until_all_have_ended()
    assert 'RuntimeError: a bug of ours' in job.log(1)
    message = 'train.py: process 1: train.py failed: RuntimeError, see its log; process 0 ends, too'
    assert only_line(job.log(0), 'process 1') == message
    assert 'Traceback' not in job.log(0)


def start_nodes(
    launch: Launcher, folder: Path, *arguments: str, second: tuple[str, ...] = ()
) -> list[Job]:
    """Two machines, a process each: 127.0.0.1 and 127.0.0.2.

    They have half of the cores each, so that a process has as many threads as one of two has on
    one machine: otherwise, sums are rounded in another order.
    """
    port, cores = free_port(), sorted(os.sched_getaffinity(0))
    half = max(1, len(cores) // 2)
    names = ('one', 'two')
    return [
        launch.start(
            folder / names[rank],
            *arguments,
            *(second if rank == 1 else ()),
            processes=1,
            options=node(rank, port),
            PORT_RANGE=f'{20000 + 5000 * rank}:{24000 + 5000 * rank}',
            cores=set(cores[-half:] if rank else cores[:half]),
        )
        for rank in range(2)
    ]


@pytest.mark.slow
def test_two_machines_train_as_two_processes_of_one_do(launch, undisturbed, tmp_path):
    jobs = start_nodes(launch, tmp_path, TRAIN, *HALVES)
    for job in jobs:
        assert job.wait() == 0, job.everything()
        job.wait_until_all_have_ended()
    run, console = undisturbed
    require_equal_runs(tmp_path / 'one' / RUN, run)
    assert re.findall('^acc:.*', jobs[0].console, re.M) == re.findall('^acc:.*', console, re.M)
    assert not (tmp_path / 'two' / 'output').exists()


@pytest.mark.slow
def test_a_process_that_is_killed_on_another_machine_ends_this_one(launch, tmp_path):
    jobs = start_nodes(launch, tmp_path, DRIVER, 'train', 'slowly', *HALVES)
    jobs[0].wait_for_line(r'^iter:5 ')
    os.kill(jobs[1].workers()[1], signal.SIGKILL)
    start = time.monotonic()
    for job in jobs:
        assert job.wait(60) != 0
        job.wait_until_all_have_ended(60 - (time.monotonic() - start))
    assert only_line(jobs[0].log(0), r'train\.py: ') == DIED.format(1, 0)
    assert DIED.format(1, 0) in jobs[0].console


@pytest.mark.slow
def test_a_bad_path_on_another_machine_ends_this_one_with_the_reason(launch, tmp_path):
    root = str(write_set(tmp_path / 'pictures'))
    arguments = folder_settings(root)
    jobs = start_nodes(launch, tmp_path, TRAIN, *arguments, second=('data.root=elsewhere',))
    for job in jobs:
        assert job.wait(120) != 0
        job.wait_until_all_have_ended()
    own = only_line(jobs[1].log(0))
    assert 'elsewhere' in own
    message = f'train.py: process 1: {own}; process 0 ends, too'
    assert only_line(jobs[0].log(0), 'elsewhere') == message
    assert message in jobs[0].console
    assert not (tmp_path / 'one' / 'output').exists()


@pytest.mark.slow
@pytest.mark.parametrize('what', ['config', 'data set', 'checkpoint'])
def test_machines_that_start_from_different_inputs_refuse_to_train(
    launch, undisturbed, tmp_path, what
):
    different = {'config': ('optimizer.lr=0.5',), 'data set': ('data.root=other',)}
    arguments: tuple[str, ...] = HALVES
    if what == 'checkpoint':  # only the first one has it
        shutil.copytree(undisturbed[0], tmp_path / 'one' / RUN)
        arguments = ('--resume', *HALVES, 'train.epochs=9')
    if what == 'data set':
        for folder, count in (('one', 6), ('two', 5)):
            write_set(tmp_path / folder / 'pictures', train=count)
        arguments, different = folder_settings('pictures'), {}
    jobs = start_nodes(launch, tmp_path, TRAIN, *arguments, second=different.get(what, ()))
    for job in jobs:
        assert job.wait(120) == 2, job.everything()
        job.wait_until_all_have_ended()
        assert f'the {what} is not the same in all processes' in job.log(0)
        assert 'Epoch' not in job.console
    if what == 'config':
        says = ['lr=0.5' in job.log(0) for job in jobs]
        assert says == [False, True]


LATE = ['late_at_start', 'late_data', 'late_save', 'late_step', 'late_snapshot', 'late_evaluation']


@pytest.fixture(scope='module')
def late_jobs(launch, undisturbed, tmp_path_factory):
    """All at once, as they do little but sleep."""
    folder = tmp_path_factory.mktemp('late')
    settings = (*QUICK, 'data.batch_size=8', 'train.epochs=2')
    jobs = {hook: launch.start(folder / hook, DRIVER, 'train', hook, *settings) for hook in LATE}
    weights = str(shutil.copytree(undisturbed[0], folder / 'run'))
    jobs['eval'] = launch.start(folder / 'eval', DRIVER, 'eval', 'late_data', '-w', weights)
    return jobs


@pytest.mark.slow
@pytest.mark.parametrize('hook', [*LATE, 'eval'])
def test_a_process_later_than_gloos_timeout_does_not_end_the_job(late_jobs, hook):
    job = late_jobs[hook]
    assert job.wait() == 0, job.everything()
    job.wait_until_all_have_ended()
    assert 'held up: ' in job.log(0) + job.log(1)
    assert re.search('total:320' if hook == 'eval' else 'finished after epoch 2', job.log(0))
