"""Loggers that fail, hang or are slow: training goes on, and what was lost is said."""

import json
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

import lightjax as lj
from lightjax.loggers import Background, JSONLinesLogger, LoggerCollection, TensorBoardLogger
from lightjax.loggers.media import as_image, as_values
from tests.models import bits, linear_data, linear_task, quiet
from tests.test_loggers import read_events


class Kept:
    """A logger that keeps what it is told, and which threads told it."""

    def __init__(self):
        self.calls = []
        self.threads = set()

    def log_metrics(self, step, metrics):
        self.threads.add(threading.current_thread().name)
        self.calls.append((step, metrics))

    def log_hyperparams(self, params):
        self.calls.append(params)

    def log_image(self, step, name, image):
        self.calls.append((step, name, image.shape))

    def finish(self):
        self.calls.append("finish")


class Failing(Kept):
    def log_metrics(self, step, metrics):
        raise ConnectionError("the server is gone")


class Hanging(Kept):
    """Hangs in its first call until the test lets it go."""

    def __init__(self):
        super().__init__()
        self.let_go = threading.Event()

    def log_metrics(self, step, metrics):
        self.let_go.wait(60)


def train(logger, **arguments):
    arguments = dict(max_steps=60, log_every_n_steps=1, steps_per_call=4) | arguments
    return quiet(logger=logger, **arguments).fit(linear_task(), lj.ArrayLoader(linear_data(80), 4))


def test_everything_reaches_the_logger_in_order_from_one_thread(tmp_path):
    kept = Kept()
    result = train(kept)
    steps = [call[0] for call in kept.calls if isinstance(call, tuple) and "train/loss" in call[1]]
    assert steps == list(range(1, 61))
    assert kept.calls[0]["max_steps"] == 60
    assert kept.calls[-1] == "finish"
    assert kept.threads == {"lightjax-logger"}
    losses = [call[1]["train/loss"] for call in kept.calls if isinstance(call, tuple) and "train/loss" in call[1]]
    assert losses == [row["train/loss"] for row in result.history]


def test_a_failing_logger_loses_nothing_but_its_own(tmp_path):
    expected, kept = train(False), Kept()
    with pytest.warns(UserWarning, match="Failing") as caught:
        found = train([Failing(), kept])
    texts = [str(one.message) for one in caught]
    assert [text for text in texts if "training goes on without what it was told: ConnectionError: the serv" in text]
    assert sum("training goes on" in text for text in texts) == 1
    assert [text for text in texts if "Failing lost some of what was logged: " in text and "calls failed" in text]
    assert bits(found.state) == bits(expected.state)
    assert found.history == expected.history
    assert len(kept.calls) > 60


def test_a_hanging_logger_is_dropped_and_counted(monkeypatch):
    expected, hanging = train(False), Hanging()
    monkeypatch.setattr("lightjax.training.in_background", lambda one: Background(one, waiting=20, finish_s=0.2))
    with pytest.warns(UserWarning, match="calls were dropped, since it was too slow; it did not answer for 0.2 s"):
        found = train(hanging)
    (left_alone,) = [thread for thread in threading.enumerate() if thread.name == "lightjax-logger"]
    hanging.let_go.set()
    left_alone.join(10)
    assert not left_alone.is_alive()
    assert bits(found.state) == bits(expected.state)
    assert found.history == expected.history


def test_what_is_dropped_is_counted_exactly():
    hanging = Hanging()
    background = Background(hanging, waiting=5, finish_s=0.0)
    background.log_metrics(0, {})
    while background._queue.qsize():  # the thread has taken the first
        time.sleep(0.001)
    for step in range(1, 100):
        background.log_metrics(step, {})
    assert background.dropped == 94
    hanging.let_go.set()
    background.finish_s = 10.0
    with pytest.warns(UserWarning, match="94 calls were dropped"):
        background.finish()
    assert not [thread for thread in threading.enumerate() if thread.name == "lightjax-logger"]


def test_metrics_may_be_changed_by_the_caller_afterwards():
    kept = Kept()
    background = Background(kept)
    metrics = {"loss": 1.0}
    background.log_metrics(1, metrics)
    metrics["loss"] = 2.0
    background.finish()
    assert kept.calls[0] == (1, {"loss": 1.0})


def test_it_goes_on_after_finish_and_leaves_no_thread():
    kept = Kept()
    background = Background(kept)
    for step in (1, 2):
        background.log_metrics(step, {})
        background.finish()
    background.finish()
    assert kept.calls == [(1, {}), "finish", (2, {}), "finish"]
    assert background._thread is None


def test_rich_calls_reach_those_that_can_and_are_checked_at_once(tmp_path):
    kept = Kept()
    loggers = LoggerCollection([Background(kept), JSONLinesLogger(tmp_path)])
    loggers.log_image(3, "sample", np.zeros((4, 5)))
    loggers.log_table(3, "confusions", ["a"], [[1]])
    loggers.log_histogram(3, "weights", [1.0, float("nan")])
    loggers.finish()
    assert kept.calls == [(3, "sample", (4, 5, 1)), "finish"]
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line == {"step": 3, "table": {"confusions": {"columns": ["a"], "rows": [[1]]}}}


def test_callbacks_log_images(tmp_path):
    class Painter(lj.Callback):
        every_n_steps = 20

        def on_train_batch_end(self, run):
            run.logger.log_image(run.step, "noise", np.full((2, 2, 3), run.step, np.uint8))

    train("tensorboard", callbacks=Painter(), default_root_dir=tmp_path)
    events = [event for path in tmp_path.rglob("events*") for event in read_events(path)]
    images = [(event.step, value) for event in events for value in event.summary.value if value.HasField("image")]
    assert [(step, value.tag, value.image.width) for step, value in images] == [
        (20, "noise", 2),
        (40, "noise", 2),
        (60, "noise", 2),
    ]
    import io

    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(images[1][1].image.encoded_image_string)))
    assert (pixels == 40).all()


def test_tensorboard_has_the_compiled_step_as_text(tmp_path):
    train("tensorboard", max_steps=8, default_root_dir=tmp_path)
    events = [event for path in tmp_path.rglob("events*") for event in read_events(path)]
    values = {value.tag: value for event in events for value in event.summary.value}
    text = values["train_step/text_summary"].tensor.string_val[0].decode()
    assert text.startswith("```\nHloModule ")
    assert "while" in text  # the loop over the steps


def test_tensorboard_keeps_every_kind(tmp_path):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    figure.subplots().plot([1, 2])
    logger = TensorBoardLogger(tmp_path)
    logger.log_text(1, "note", "hello")
    logger.log_histogram(1, "weights", np.arange(10.0))
    logger.log_table(1, "table", ["a", "b"], [[1, 2]])
    logger.log_figure(1, "figure", figure)
    logger.finish()
    events = [event for path in tmp_path.glob("events*") for event in read_events(path)]
    values = {value.tag: value for event in events for value in event.summary.value}
    assert b"hello" in values["note/text_summary"].tensor.string_val[0]
    assert values["weights"].histo.num == 10
    assert b"| 1 | 2 |" in values["table/text_summary"].tensor.string_val[0]
    assert values["figure"].image.width > 100


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (np.zeros((3, 8, 8)), "transpose it, image.transpose(1, 2, 0)"),
        (np.zeros((2, 8, 8, 3)), "log one image at a time"),
        (np.full((4, 4), 200.0), "floats from 200 to 200; they have to lie between 0 and 1"),
        (np.zeros((4, 4), np.int32), "has the dtype int32; give uint8, or floats from 0 to 1"),
    ],
)
def test_images_of_another_rank_or_range_are_refused(image, text):
    with pytest.raises(lj.MetricError) as caught:
        as_image("sample", image)
    assert text in str(caught.value)
    assert "'sample'" in str(caught.value)


def test_histograms_leave_out_what_is_not_finite():
    assert as_values("w", [1.0, np.nan, np.inf, 2.0]).tolist() == [1.0, 2.0]
    with pytest.raises(lj.MetricError, match="'w' has no finite value among 1"):
        as_values("w", [np.nan])
    with pytest.raises(lj.MetricError, match="'w' is not made of numbers: could not convert"):
        as_values("w", ["a"])


def test_json_lines_are_read_back(tmp_path):
    result = train("jsonl", default_root_dir=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "version_0" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["hyperparameters"]["max_steps"] == 60
    assert {row["step"]: row["train/loss"] for row in rows if "train/loss" in row} == {
        row["step"]: row["train/loss"] for row in result.history
    }


def test_json_lines_know_what_json_does_not(tmp_path):
    logger = JSONLinesLogger(tmp_path)
    logger.log_metrics(1, {"a/ü": float("nan"), "b": float("-inf"), "epoch": 3})
    logger.log_hyperparams({"path": Path("x"), "nested": {"function": print}})
    logger.finish()
    first, second = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (first["a/ü"], first["b"], first["epoch"]) == ("NaN", "-Infinity", 3)
    assert second["hyperparameters"]["nested"]["function"] == "<built-in function print>"


def test_json_lines_of_a_resumed_run_hold_every_step_once(tmp_path):
    logger = JSONLinesLogger(tmp_path)
    logger.log_hyperparams({"lr": 0.1})
    for step in range(1, 6):
        logger.log_metrics(step, {"loss": 1 / step})
    logger.finish()
    whole = (tmp_path / "metrics.jsonl").read_text()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "ti')  # killed there
    again = JSONLinesLogger(tmp_path)
    again.resume(3)
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(whole.splitlines(keepends=True)[:4])
    again.log_metrics(4, {"loss": 0.25})
    again.finish()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("step") for row in rows] == [None, 1, 2, 3, 4]


def test_unknown_names_are_refused_with_those_there_are():
    with pytest.raises(
        lj.ConfigurationError, match="'tensorbord', which is no logger's name: write one of 'csv', 'tensorb"
    ):
        quiet(max_steps=1, logger=["csv", "tensorbord"])


def test_a_class_in_the_place_of_a_logger_is_refused():
    with pytest.raises(lj.ConfigurationError, match=r"the class CSVLogger: give one of it, CSVLogger\(\)"):
        quiet(max_steps=1, logger=lj.CSVLogger)


@pytest.mark.parametrize("name", ["CSVLogger", "TensorBoardLogger", "JSONLinesLogger"])
def test_a_directory_that_cannot_be_made_is_named_with_its_logger(name, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=f"{name} could not make its directory '.*file/logs' .*{name}\\(\\), for the dir"):
        train(getattr(lj, name)(tmp_path / "file" / "logs"))


@pytest.mark.parametrize(
    ("metrics", "text"),
    [
        ({3: 1.0}, "run.log got the name 3; a name is text: write '3'"),
        ({"z": 1j}, "run.log got 'z' = .*which is no number"),
        ({"t": "high"}, "run.log got 't' = .*which is no number"),
    ],
)
def test_what_is_no_metric_is_named(metrics, text):
    class Telling(lj.Callback):
        def on_train_batch_end(self, run):
            run.log(metrics)

    with pytest.raises(lj.MetricError, match=text):
        train(False, callbacks=Telling())


def test_a_quick_local_logger_still_ends_the_run_with_its_error(tmp_path):
    class Strict(Failing):
        in_background = False

    with warnings.catch_warnings(), pytest.raises(ConnectionError, match="the server is gone"):
        train(Strict())
