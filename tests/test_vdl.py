"""engine/run/vdl.py: VisualDL, which reads the newest file of a folder, shows a whole run."""

from __future__ import annotations

from pathlib import Path

import pytest
from visualdl import LogWriter
from visualdl.reader.record_reader import RecordReader

from engine.run import vdl

EVERY = 3  # steps an epoch


def record(writer: LogWriter, steps: range, value: float = 0.0) -> None:
    for step in steps:
        writer.add_scalar('train/loss', value + step, step)
        if step % EVERY == EVERY - 1:
            writer.add_scalar('epoch/eval_loss', value + step, step // EVERY)
    writer.close()


def shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What VisualDL shows of the folder: tag -> step and value, in the order of the file."""
    newest = max(path for path in folder.iterdir() if 'vdlrecords' in path.name)
    found: dict[str, list[tuple[int, float]]] = {}
    for scalar in vdl._scalars(newest):
        found.setdefault(scalar.tag, []).append((scalar.step, scalar.value))
    return found


def expected(values: list[float]) -> dict[str, list[tuple[int, float]]]:
    steps = list(enumerate(values))
    ends = steps[EVERY - 1 :: EVERY]
    return {'train/loss': steps, 'epoch/eval_loss': [(s // EVERY, value) for s, value in ends]}


@pytest.mark.parametrize('at', [1, 2, 3, 5, 6, 8])
def test_after_a_resume_each_step_is_recorded_once(tmp_path, at):
    record(vdl.writer(tmp_path, step=0, epoch=0), range(8))
    resumed = vdl.writer(tmp_path, step=at, epoch=at // EVERY)
    record(resumed, range(at, 9), 0.5)
    assert shown(tmp_path) == expected([*range(at), *(step + 0.5 for step in range(at, 9))])
    assert len(list(tmp_path.iterdir())) == 1


def test_a_resume_keeps_the_times_of_the_records(tmp_path):
    first = LogWriter(logdir=str(tmp_path))
    first.add_scalar('train/loss', 1.0, 0, walltime=1234567890123)
    first.close()
    vdl.writer(tmp_path, step=1, epoch=0).close()
    (file,) = tmp_path.iterdir()
    assert [scalar.walltime for scalar in vdl._scalars(file)] == [1234567890123]


def test_several_files_of_an_older_version_become_one(tmp_path):
    """In which a step that has run twice is there twice."""
    for name, steps, value in (('1', range(6), 0.0), ('2', range(4, 8), 0.5)):
        record(LogWriter(logdir=str(tmp_path), file_name=f'vdlrecords.{name}.log'), steps, value)
    record(vdl.writer(tmp_path, step=7, epoch=2), range(7, 9), 0.25)
    assert shown(tmp_path) == expected([0, 1, 2, 3, 4.5, 5.5, 6.5, 7.25, 8.25])


def test_what_a_kill_has_cut_off_is_read_up_to_there(tmp_path):
    record(LogWriter(logdir=str(tmp_path), file_name='vdlrecords.1.log'), range(3))
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    before = 0
    for size in range(0, len(content), 7):
        file.write_bytes(content[:size])
        found = [scalar.step for scalar in vdl._scalars(file) if scalar.tag == 'train/loss']
        assert found == list(range(len(found)))
        assert len(found) >= before
        before = len(found)
    assert before >= 2


def test_of_a_damaged_file_the_records_before_the_damage_are_read(tmp_path):
    record(LogWriter(logdir=str(tmp_path), file_name='vdlrecords.1.log'), range(2))
    (file,) = tmp_path.iterdir()
    whole, content = list(vdl._scalars(file)), file.read_bytes()
    for damage in (b'\xff' * 50, b'\0' * 50, (2**62).to_bytes(8, 'little') + b'x'):
        file.write_bytes(content + damage)
        assert list(vdl._scalars(file)) == whole


def test_a_missing_folder_and_files_that_are_not_ours(tmp_path):
    record(vdl.writer(tmp_path / 'vdl', step=0, epoch=0), range(2))
    (tmp_path / 'vdl' / 'notes.txt').write_text('mine')
    (tmp_path / 'vdl' / 'vdlrecords.0.log').write_bytes(b'\x05\0\0\0\0\0\0\0nonsense')
    record(vdl.writer(tmp_path / 'vdl', step=2, epoch=0), range(2, 3))
    assert shown(tmp_path / 'vdl')['train/loss'] == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert (tmp_path / 'vdl' / 'notes.txt').read_text() == 'mine'
    assert RecordReader(str(max((tmp_path / 'vdl').glob('vdl*')))).get_all()
