"""Gauges: speed and memory reach the loggers beside the metrics, and nothing else."""

import time

import pytest

import lightjax as lj
from lightjax import gauges
from lightjax.gauges import Gauges
from lightjax.history import Report
from tests.models import linear_data, linear_task, quiet


class Memory:
    def __init__(self):
        self.rows = []

    def log_metrics(self, step, metrics):
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, params):
        pass

    def finish(self):
        pass


def test_loggers_get_speed_and_memory_and_the_history_does_not(monkeypatch):
    monkeypatch.setattr(gauges, "LEAST_S", 0.0)
    memory = Memory()
    result = quiet(max_steps=40, log_every_n_steps=5, logger=memory).fit(
        linear_task(), lj.ArrayLoader(linear_data(80), 4)
    )
    found = [metrics for _, metrics in memory.rows if "steps_per_s" in metrics]
    assert found
    for metrics in found:
        assert metrics["examples_per_s"] == pytest.approx(4 * metrics["steps_per_s"])
        assert metrics["host_memory_bytes"] > 1e7
        assert metrics["learning_rate"] == pytest.approx(1e-2)
        assert "train/loss" in metrics
    assert not any("steps_per_s" in row for row in result.history)
    assert set(result.metrics) == {"train/loss", "train/loss_epoch"}


def test_speed_is_that_of_the_steps_without_what_is_excluded(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    measured = Gauges(examples=10)

    def look(step):
        (report,) = measured.beside(lambda: [Report(step, 0, {})], step, 2, {})()
        return {name: value for name, value in report.gauges.items() if name.endswith("_s")}

    now[0] = 1.0
    assert look(10) == {}  # the first steps took who knows how long to compile
    now[0] = 2.0
    assert look(30) == {"steps_per_s": 20.0, "examples_per_s": 400.0}
    now[0] = 2.1
    assert look(40) == {}  # too soon
    with measured.clock.excluded():
        now[0] = 5.0
    now[0] = 5.9
    assert look(40) == pytest.approx({"steps_per_s": 10.0, "examples_per_s": 200.0})
