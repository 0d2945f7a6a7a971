"""Loggers: what is logged is what is read back, whatever the order, the interruption or the failure."""

import csv
import json
import math
import os
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from lightjax.errors import MetricError
from lightjax.loggers import CSVLogger, Logger, LoggerCollection, TensorBoardLogger
from lightjax.loggers.tensorboard import _WithoutTorch

ROOT = str(Path(__file__).parents[1])


def read_csv(directory, filename="metrics.csv"):
    with open(Path(directory) / filename, newline="") as file:
        return list(csv.DictReader(file))


def read_events(path):
    """The events of a TFRecord file: length, checksum of it, data, checksum of that."""
    from tensorboardX.proto.event_pb2 import Event

    content = path.read_bytes()
    events, offset = [], 0
    while offset < len(content):
        (length,) = struct.unpack_from("<Q", content, offset)
        events.append(Event.FromString(content[offset + 12 : offset + 12 + length]))
        offset += 12 + length + 4
    return events


def read_scalars(directory):
    paths = sorted(Path(directory).glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns)
    return [
        (event.step, value.tag, value.simple_value)
        for path in paths
        for event in read_events(path)
        for value in event.summary.value
        if value.HasField("simple_value")
    ]


class Memory:
    """A logger that keeps what it is told."""

    def __init__(self):
        self.calls = []

    def log_metrics(self, step, metrics):
        self.calls.append(("log", step, dict(metrics)))

    def log_hyperparams(self, params):
        self.calls.append(("params", dict(params)))

    def finish(self):
        self.calls.append(("finish",))


class MemoryOfRun(Memory):
    def start(self, run_dir):
        self.calls.append(("start", run_dir))


# CSV


def test_csv_metrics_of_a_step_share_a_row_whatever_calls_brought_them(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_metrics(1, {"epoch": 0, "train/loss": 1.0})
    logger.log_metrics(2, {"epoch": 0, "train/loss": 0.5})
    logger.log_metrics(2, {"epoch": 0, "val/loss": 0.75})
    logger.log_metrics(1, {"val/loss": 2.0})  # late
    logger.finish()
    assert (tmp_path / "metrics.csv").read_text() == ("step,epoch,train/loss,val/loss\n1,0,1.0,2.0\n2,0,0.5,0.75\n")


def test_csv_late_metrics_join_a_row_that_is_already_on_disk(tmp_path):
    logger = CSVLogger(tmp_path)
    for step in range(1, 6):
        logger.log_metrics(step, {"epoch": 0, "a": float(step), "b": 0.0})
    logger._table.flush()
    assert len(read_csv(tmp_path)) == 5
    logger.log_metrics(3, {"b": 123456.789})  # a longer line than before
    logger.log_metrics(6, {"a": 6.0})
    logger.finish()
    rows = read_csv(tmp_path)
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert [row["b"] for row in rows] == ["0.0", "0.0", "123456.789", "0.0", "0.0", ""]


def test_csv_a_value_that_gets_shorter_leaves_nothing_of_the_longer_one(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_metrics(1, {"a": 1 / 3})
    logger.log_metrics(1, {"a": 0.5})
    logger.finish()
    assert (tmp_path / "metrics.csv").read_text() == "step,epoch,a\n1,,0.5\n"


def test_csv_new_names_widen_the_file_and_keep_every_cell(tmp_path):
    logger = CSVLogger(tmp_path)
    for step in range(200):  # more than stay open
        logger.log_metrics(step, {"epoch": 0, "a": step / 7})
    logger._table.flush()
    logger.log_metrics(200, {"z": 1.0, "b": 2.0})
    logger.finish()
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "step,epoch,a,z,b"
    assert lines[1:201] == [f"{step},0,{step / 7!r},," for step in range(200)]
    assert lines[201:] == ["200,,,1.0,2.0"]
    assert os.listdir(tmp_path) == ["metrics.csv"]  # no temporary file is left


def test_csv_numbers_come_back_bit_by_bit(tmp_path):
    values = [
        0.1,
        1 / 3,
        5e-324,
        1.7976931348623157e308,
        -0.0,
        math.nan,
        math.inf,
        -math.inf,
        np.float32(0.1),
    ]
    logger = CSVLogger(tmp_path)
    for step, value in enumerate(values):
        logger.log_metrics(step, {"value": value, "count": 2**53 + 1})
    logger.finish()
    rows = read_csv(tmp_path)
    for row, value in zip(rows, values, strict=True):
        assert struct.pack("<d", float(row["value"])) == struct.pack("<d", float(value))
        assert int(row["count"]) == 2**53 + 1
    assert [row["value"] for row in rows[5:8]] == ["nan", "inf", "-inf"]


def test_csv_names_with_commas_and_quotes_are_columns_like_others(tmp_path):
    name = 'accuracy, "top 5"'
    logger = CSVLogger(tmp_path)
    logger.log_metrics(1, {name: 0.5})
    logger.finish()
    logger.log_metrics(2, {name: 0.75})
    logger.finish()
    assert [row[name] for row in read_csv(tmp_path)] == ["0.5", "0.75"]


def test_csv_rows_reach_the_disk_within_seconds_without_a_further_call(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_metrics(1, {"a": 1.0})
    logger.log_metrics(2, {"a": 2.0})
    assert len(read_csv(tmp_path)) == 1  # the second waits
    deadline = time.monotonic() + 20
    while len(read_csv(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(read_csv(tmp_path)) == 2
    logger.finish()


def test_csv_does_not_touch_the_disk_for_every_row(tmp_path, monkeypatch):
    logger = CSVLogger(tmp_path)
    logger.log_metrics(0, {"a": 0.0})
    flushes = []
    monkeypatch.setattr(logger._table, "flush", lambda: flushes.append(time.monotonic()))
    begin = time.monotonic()
    for step in range(1, 1000):
        logger.log_metrics(step, {"a": 0.0})
    assert len(flushes) <= 1 + (time.monotonic() - begin)
    monkeypatch.undo()
    logger.finish()
    assert len(read_csv(tmp_path)) == 1000


def test_csv_is_continued_after_finish_and_by_another_logger(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_metrics(1, {"epoch": 0, "train/loss": 1.0})
    logger.finish()
    logger.finish()
    logger.log_metrics(1, {"test/loss": 3.0})
    logger.finish()
    other = CSVLogger(tmp_path)
    other.log_metrics(2, {"epoch": 1, "train/loss": 0.5})
    other.finish()
    assert (tmp_path / "metrics.csv").read_text() == "step,epoch,train/loss,test/loss\n1,0,1.0,3.0\n2,1,0.5,\n"


def test_csv_resumed_run_overwrites_the_steps_it_repeats(tmp_path):
    killed = CSVLogger(tmp_path)
    for step in range(300):
        killed.log_metrics(step, {"epoch": 0, "a": float(step)})
    killed.finish()
    resumed = CSVLogger(tmp_path)
    for step in range(100, 400):
        resumed.log_metrics(step, {"epoch": 0, "a": -float(step)})
        if step % 37 == 0:
            resumed._table.flush()
    resumed.finish()
    rows = read_csv(tmp_path)
    assert [int(row["step"]) for row in rows] == list(range(400))
    assert [float(row["a"]) for row in rows] == [float(s) if s < 100 else -float(s) for s in range(400)]


def test_csv_half_a_line_left_by_a_killed_process_is_cut_off(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,epoch,a\n1,0,0.5\n2,0,0.2")
    logger = CSVLogger(tmp_path)
    logger.log_metrics(3, {"a": 0.125})
    logger.finish()
    assert (tmp_path / "metrics.csv").read_text() == "step,epoch,a\n1,0,0.5\n3,,0.125\n"


def test_csv_survives_a_kill_at_any_time_with_whole_rows(tmp_path):
    program = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from lightjax.loggers import CSVLogger\n"
        "logger = CSVLogger(sys.argv[1])\n"
        "logger.log_metrics(0, {'a': 0.0})\n"
        "print('ready', flush=True)\n"
        "for step in range(10**9):\n"
        "    logger.log_metrics(step, {'epoch': 0, 'a': step / 3, f'name{step // 20000}': 1.0})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), ROOT], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.5)
    process.kill()
    process.communicate()
    logger = CSVLogger(tmp_path)
    logger.log_metrics(10**9, {"a": 1.0})
    logger.finish()
    rows = read_csv(tmp_path)
    assert len(rows) > 1000
    assert [int(row["step"]) for row in rows[:-1]] == list(range(len(rows) - 1))
    assert all(float(row["a"]) == int(row["step"]) / 3 for row in rows[:-1])


def test_csv_full_disk_loses_nothing_once_there_is_room_again(tmp_path, monkeypatch):
    logger = CSVLogger(tmp_path)
    logger.log_metrics(1, {"a": 1.0})
    logger.log_metrics(2, {"a": 2.0, "b": 2.0})

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            logger.finish()
    logger.log_metrics(3, {"a": 3.0})
    logger.finish()
    assert (tmp_path / "metrics.csv").read_text() == "step,epoch,a,b\n1,,1.0,\n2,,2.0,2.0\n3,,3.0,\n"


def test_csv_refuses_a_file_that_is_not_its_own(tmp_path):
    (tmp_path / "metrics.csv").write_text("time,value\n1,2\n")
    with pytest.raises(ValueError, match=r"metrics.csv' is there, but CSVLogger did not write it.*filename="):
        CSVLogger(tmp_path).log_metrics(1, {"a": 1.0})
    assert (tmp_path / "metrics.csv").read_text() == "time,value\n1,2\n"


def test_csv_metric_that_is_no_number_is_named(tmp_path):
    with pytest.raises(MetricError, match=r"train/name='resnet' \(str\), which is not a number.*Log a float"):
        CSVLogger(tmp_path).log_metrics(1, {"train/name": "resnet"})


def test_csv_hyperparameters_are_json_with_repr_for_the_rest(tmp_path):
    logger = CSVLogger(tmp_path)
    logger.log_hyperparams({"lr": 1e-3, "layers": (64, np.int64(10)), "act": math.sin, "nested": {1: None}})
    logger.log_hyperparams({"lr": math.inf, "name": "é", "path": Path("a/b"), "flag": np.True_ and True})
    params = json.loads((tmp_path / "hparams.json").read_text("utf-8"))
    assert params == {
        "lr": "inf",
        "layers": [64, 10],
        "act": "<built-in function sin>",
        "nested": {"1": None},
        "name": "é",
        "path": "a/b",
        "flag": True,
    }


def test_csv_leaves_no_thread_behind(tmp_path):
    before = threading.enumerate()
    logger = CSVLogger(tmp_path)
    for step in range(10):
        logger.log_metrics(step, {"a": 0.0})
    assert logger._timer is not None  # else this test shows nothing
    logger.finish()
    assert not set(threading.enumerate()) - set(before)


# TensorBoard


def test_tensorboard_leaves_out_what_a_resumed_run_logs_anew(tmp_path):
    for life, (first, last) in enumerate([(1, 8), (6, 10)]):
        logger = TensorBoardLogger(tmp_path)
        loggers = LoggerCollection([logger])
        loggers.start(tmp_path, resumed_at=first - 1 if life else None)
        for step in range(first, last):
            loggers.log_metrics(step, {"loss": life})
        loggers.finish()
    events = [
        (event.session_log.status, event.step)
        for path in sorted(tmp_path.glob("events*"), key=lambda path: path.stat().st_mtime_ns)
        for event in read_events(path)
        if event.HasField("session_log")
    ]
    # TensorBoard forgets what came before such an event and is not of an earlier step.
    assert events == [(1, 6)]


def test_tensorboard_events_hold_what_was_logged_in_the_directory_itself(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics(10, {"epoch": 0, "train/loss": 0.5})
    logger.log_metrics(20, {"val/loss": math.nan, "top 5 (%)": 97.5})
    logger.finish()
    assert [path.is_file() for path in tmp_path.iterdir()] == [True]
    scalars = read_scalars(tmp_path)
    assert scalars[:2] == [(10, "epoch", 0.0), (10, "train/loss", 0.5)]
    assert scalars[2][:2] == (20, "val/loss")
    assert math.isnan(scalars[2][2])
    assert scalars[3] == (20, "top 5 (%)", 97.5)


def test_tensorboard_logging_after_finish_makes_a_new_file_and_keeps_the_old(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    for step in range(3):  # within one second, by which tensorboardX names its files
        logger.log_metrics(step, {"a": float(step)})
        logger.finish()
    logger.finish()
    assert len(list(tmp_path.iterdir())) == 3
    assert sorted(read_scalars(tmp_path)) == [(0, "a", 0.0), (1, "a", 1.0), (2, "a", 2.0)]


def test_tensorboard_every_step_of_a_burst_arrives_in_order(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    for step in range(3000):  # more than the queue holds
        logger.log_metrics(step, {"a": step / 2})
    logger.finish()
    assert read_scalars(tmp_path) == [(step, "a", step / 2) for step in range(3000)]


def test_tensorboard_hyperparameters_are_a_table(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.log_hyperparams({"lr": 0.1, "model": {"act": "a|b"}})
    logger.finish()
    [path] = tmp_path.iterdir()
    values = [value for event in read_events(path) for value in event.summary.value]
    [text] = [value for value in values if value.tag.startswith("hyperparameters")]
    lines = text.tensor.string_val[0].decode().splitlines()
    assert lines == ["| name | value |", "| --- | --- |", "| lr | 0.1 |", "| model/act | a\\|b |"]


def test_tensorboard_hyperparameters_and_metrics_are_in_the_hparams_tab(tmp_path):
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    logger = TensorBoardLogger(tmp_path)
    logger.log_hyperparams({"lr": 0.1, "depth": np.int64(3), "model": {"act": "relu", "bias": True}, "none": None})
    logger.log_hyperparams({"layers": (64, 10)})
    logger.log_metrics(1, {"epoch": 0, "val/loss": 0.5})
    logger.finish()
    [path] = tmp_path.iterdir()
    found = {
        value.tag: HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for event in read_events(path)
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "hparams"
    }
    start = found["_hparams_/session_start_info"].session_start_info
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    assert values == {"lr": 0.1, "depth": 3.0, "model/act": "relu", "model/bias": True, "layers": "(64, 10)"}
    experiment = found["_hparams_/experiment"].experiment
    assert [one.name.tag for one in experiment.metric_infos] == ["val/loss"]
    assert {"lr", "depth", "model/act", "layers"} <= {one.name for one in experiment.hparam_infos}
    assert found["_hparams_/session_end_info"].session_end_info.status == 1  # STATUS_SUCCESS


def test_tensorboard_shows_a_program_up_to_a_length(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    logger.log_graph(3, "step", lambda: "x" * 200_005)
    TensorBoardLogger(tmp_path / "other", log_graph=False).log_graph(3, "step", lambda: pytest.fail("not wanted"))
    logger.finish()
    [event] = [event for event in read_events(next(tmp_path.glob("events*"))) if event.summary.value]
    text = event.summary.value[0].tensor.string_val[0].decode()
    assert event.step == 3
    assert text == "```\n" + "x" * 200_000 + "\n... and 5 characters more\n```"


def test_tensorboard_missing_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ModuleNotFoundError, match=r"not installed.*pip install tensorboardX.*CSVLogger"):
        TensorBoardLogger(tmp_path).log_metrics(1, {"a": 1.0})


def test_tensorboard_does_not_import_torch_whatever_other_threads_do():
    program = (
        "import sys, threading; sys.path.insert(0, sys.argv[1])\n"
        "import lightjax.loggers\n"
        "assert 'tensorboardX' not in sys.modules\n"
        "logger = lightjax.loggers.TensorBoardLogger('logs')\n"
        "done = threading.Event()\n"
        "other = threading.Thread(target=done.wait); other.start()\n"
        "logger.log_metrics(1, {'a': 1.0}); logger.finish()\n"
        "done.set(); other.join()\n"
        "assert 'tensorboardX' in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program, ROOT], check=True)


def test_torch_is_hidden_from_the_thread_that_imports_tensorboard_alone():
    hidden, found = _WithoutTorch(), []
    with pytest.raises(ModuleNotFoundError):
        hidden.find_spec("torch")
    other = threading.Thread(target=lambda: found.append(hidden.find_spec("torch")))
    other.start()
    other.join()
    assert found == [None]


# Both, and several together


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
def test_logger_without_a_directory_says_how_to_give_one(kind):
    with pytest.raises(RuntimeError, match=rf"{kind.__name__} was asked to log.*no directory.*Write {kind.__name__}\("):
        kind().log_metrics(1, {"a": 1.0})


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
def test_logger_follows_the_run_unless_it_has_a_directory_of_its_own(kind, tmp_path):
    def files(name):
        return len(list((tmp_path / name).glob("*")))

    following, own = kind(), kind(tmp_path / "own")
    for number, run in enumerate(("first", "second")):
        for logger in (following, own):
            logger.start(tmp_path / run)
            logger.log_metrics(number, {"a": 1.0})
    following.finish()
    own.finish()
    assert (files("first"), files("second"), files("own")) == (1, 1, 1)
    if kind is CSVLogger:
        assert [row["step"] for row in read_csv(tmp_path / "first")] == ["0"]
        assert [row["step"] for row in read_csv(tmp_path / "own")] == ["0", "1"]


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger, LoggerCollection, Memory])
def test_loggers_satisfy_the_protocol(kind):
    assert isinstance(kind(), Logger)


def test_collection_without_loggers_does_nothing(tmp_path):
    loggers = LoggerCollection()
    loggers.start(tmp_path)
    loggers.log_metrics(1, {"a": 1.0})
    loggers.log_hyperparams({"a": 1})
    loggers.finish()
    assert not list(tmp_path.iterdir())


def test_collection_starts_again_what_it_finished(tmp_path):
    plain, of_run = Memory(), MemoryOfRun()
    loggers = LoggerCollection([plain, of_run])
    loggers.start(tmp_path)
    loggers.log_metrics(1, {"a": 1.0})
    loggers.finish()
    loggers.log_metrics(2, {"a": 2.0})
    logs = [("log", 1, {"a": 1.0}), ("finish",), ("log", 2, {"a": 2.0})]
    assert plain.calls == logs
    assert of_run.calls == [("start", tmp_path), *logs[:2], ("start", tmp_path), logs[2]]


def test_collection_finishes_all_when_some_fail():
    class Failing(Memory):
        def finish(self):
            raise OSError(f"disk {len(self.calls)}")

    last = Memory()
    with pytest.raises(OSError, match="disk 0"):
        LoggerCollection([Failing(), last]).finish()
    assert last.calls == [("finish",)]
    with pytest.raises(ExceptionGroup, match="several loggers failed"):
        LoggerCollection([Failing(), Failing()]).finish()
