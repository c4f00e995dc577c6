"""metrics.jsonl: what was written is read, a resume repeats nothing, a kill costs half a line."""

import math
import struct

from tensorboardX.proto import event_pb2

from nspo_jax import metrics


def write(directory, steps, *, start=0):
    writer = metrics.MetricsWriter(directory, step=start)
    for step in steps:
        writer.write(step, {"train/loss": step / 2})
    writer.close()


def scalars(directory):
    """(step, tag, value) of the TensorBoard events: records of length, crc, event, crc."""
    (path,) = (directory / "tensorboard").iterdir()
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    return found


def steps(directory):
    return [row["step"] for row in metrics.read_metrics(directory)]


def test_rows_are_read_as_they_were_written(tmp_path):
    write(tmp_path, [1, 2])
    assert metrics.read_metrics(tmp_path) == [
        {"step": 1, "train/loss": 0.5}, {"step": 2, "train/loss": 1.0}
    ]  # fmt: skip


def test_lines_are_on_disk_before_the_writer_closes(tmp_path):
    writer = metrics.MetricsWriter(tmp_path)
    writer.write(1, {"train/loss": 0.5})
    assert steps(tmp_path) == [1]
    writer.close()


def test_a_run_without_metrics_has_none(tmp_path):
    assert metrics.read_metrics(tmp_path) == []


def test_a_resumed_run_repeats_its_later_lines(tmp_path):
    write(tmp_path, [1, 2, 3, 4])
    write(tmp_path, [3, 4, 5], start=2)
    assert steps(tmp_path) == [1, 2, 3, 4, 5]


def test_a_run_that_starts_over_drops_all(tmp_path):
    write(tmp_path, [1, 2])
    write(tmp_path, [1])
    assert steps(tmp_path) == [1]


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path):
    write(tmp_path, [1, 2])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "train/lo')
    assert steps(tmp_path) == [1, 2]
    write(tmp_path, [3], start=2)
    assert steps(tmp_path) == [1, 2, 3]


def test_values_that_are_not_finite_survive_in_the_lines_and_skip_tensorboard(tmp_path):
    writer = metrics.MetricsWriter(tmp_path)
    writer.write(1, {"a": math.nan, "b": 2.0})
    writer.close()
    (row,) = metrics.read_metrics(tmp_path)
    assert math.isnan(row["a"]) and row["b"] == 2.0
    assert scalars(tmp_path) == [(1, "b", 2.0)]


def test_steps_that_never_came_are_told_and_not_traced(tmp_path, caplog):
    profiler = metrics.Profiler(tmp_path, (1, 3))
    profiler.at(3)  # a run that resumes behind them
    with caplog.at_level("WARNING"):
        profiler.close()
    assert "no step from 1 to 3 has run here: nothing is traced" in caplog.text
    assert not list(tmp_path.iterdir())
    caplog.clear()
    metrics.Profiler(tmp_path, None).close()
    assert not caplog.text
