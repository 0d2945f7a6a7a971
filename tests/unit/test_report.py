"""Reports: what was logged is what the curves show, also in a real browser."""

import json
import math
import re
import shutil
import subprocess
from importlib.util import find_spec

import numpy as np
import pytest

import lightjax as lj
from lightjax.cli import main
from lightjax.history import HISTORY_FILE
from lightjax.profiler import Times
from lightjax.report import Record, read_record
from lightjax.report.charts import charts_of, thin, ticks
from lightjax.report.page import write_page
from lightjax.report.record import Life, add_life, read_lives, rows_of_history
from tests.models import digit_like_data, linear_data, linear_task, mlp_task, quiet

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TIMES = Times(2.0, (), (), 10, 10, 0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs with everything: logs, evaluation, checkpoints."""
    root = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        trainer = lj.Trainer(
            max_epochs=5,
            seed=seed,
            log_every_n_steps=3,
            default_root_dir=root,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        result = trainer.fit(
            mlp_task(), lj.ArrayLoader(digit_like_data(256), 32), lj.ArrayLoader(digit_like_data(64, seed=1), 32)
        )
    return root, result


def test_a_record_holds_what_the_run_reported(trained):
    root, result = trained
    record = read_record(root / "version_1")
    for name in ("train/loss", "train/loss_epoch", "val/accuracy"):
        assert record.series[name] == [(row["step"], row[name]) for row in result.history if name in row]
    assert record.hyperparameters["max_epochs"] == "5"
    assert [step for step, _, _ in record.checkpoints][-1] == 40
    assert [(life.stopped_by, life.step) for life in record.lives] == [("max_epochs", 40)]
    assert record.lives[0].times == result.times
    assert result.times.steps == 40


def test_a_run_without_csv_is_read_from_its_history(trained, tmp_path):
    root, result = trained
    shutil.copytree(root / "version_1", tmp_path / "run")
    (tmp_path / "run" / "metrics.csv").unlink()
    found = read_record(tmp_path / "run").series["train/loss"]
    assert found == [(row["step"], row["train/loss"]) for row in result.history if "train/loss" in row]
    with open(tmp_path / "run" / HISTORY_FILE, "a") as file:
        file.write('[41, 5, {"train/lo')  # a process that was killed
    assert len(rows_of_history(tmp_path / "run" / HISTORY_FILE)) >= len(found)


def test_stages_and_epochs_of_a_quantity_share_a_chart():
    points = [(1, 2.0), (2, 1.0)]
    names = (
        "train/loss",
        "train/loss_epoch",
        "val/loss",
        "val/clean/loss",
        "test/loss",
        "train/lr",
        "mine",
        "steps_per_s",
    )
    charts = charts_of([Record("run", {name: points for name in names})])
    assert {chart.title: [curve.label for curve in chart.curves] for chart in charts} == {
        "loss": ["train", "train epoch", "val", "val/clean", "test"],
        "lr": ["train"],
        "mine": ["mine"],
        "steps a second": ["steps_per_s"],
    }
    assert charts[-1].is_gauge
    two = charts_of([Record("a", {"val/loss": points}), Record("b", {"val/loss": points})], ["loss"])
    assert [(curve.label, curve.color) for curve in two[0].curves] == [("val a", "#2563eb"), ("val b", "#ea580c")]


def test_not_finite_values_are_counted_and_break_nothing(tmp_path):
    series = {"train/loss": [(1, 1.0), (2, math.nan), (3, math.inf)], "val/loss": [(3, math.nan)]}
    page = write_page([Record("run", series)], tmp_path / "run.html").read_text()
    assert "2 not finite" in page
    assert "1 not finite" in page
    assert "NaN" not in page
    only = write_page([Record("run", {"val/loss": [(3, math.nan)]})], tmp_path / "run.html").read_text()
    assert "No finite values" in only


def test_names_are_escaped(tmp_path):
    page = write_page([Record("<b>é", {"train/<script>": [(1, 1.0), (2, 2.0)]})], tmp_path / "r.html").read_text()
    assert '<script>"' not in page.replace("<script>\nconst", "")
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;é" in page


def test_long_curves_keep_their_spikes_and_ends():
    points = [(i, math.sin(i / 500)) for i in range(20_000)]
    points[12_345] = (12_345, 9.0)
    kept = thin(points)
    assert len(kept) <= 801
    assert (12_345, 9.0) in kept
    assert kept[-1] == points[-1]
    assert kept == sorted(kept)


def test_ticks_lie_between_the_ends():
    for low, high in ((0.0, 1.0), (-3.2, 7.9), (1e-9, 3e-9), (5e6, 5.1e6)):
        found = ticks(low, high)
        assert 2 <= len(found) <= 7
        assert low <= found[0] + 1e-12 <= found[-1] <= high + 1e-12


def test_lives_of_a_resumed_run_are_kept_and_a_broken_file_is_passed_over(tmp_path):
    assert read_lives(tmp_path) == []
    for step in (5, 10):
        add_life(tmp_path, Life("interrupt", step, TIMES))
    assert [life.step for life in read_lives(tmp_path)] == [5, 10]
    (tmp_path / "run.json").write_text("{")
    assert read_lives(tmp_path) == []


def test_the_command_writes_beside_the_run_or_overlays_several(trained, tmp_path, capsys):
    root, _ = trained
    assert main(["report", str(root / "version_0")]) == 0
    assert capsys.readouterr().out.strip() == str(root / "version_0" / "report.html")
    out = tmp_path / "both.html"
    assert main(["report", str(root / "version_0"), str(root / "version_1"), "-o", str(out), "--metrics", "loss"]) == 0
    page = out.read_text()
    assert "val version_0" in page
    assert "val version_1" in page
    assert "accuracy</figcaption>" not in page


def test_bad_input_is_said_in_words(trained, tmp_path, capsys):
    _, result = trained
    assert main(["report", str(tmp_path)]) == 1
    assert "holds no metrics (metrics.csv or history.jsonl); give the directory of a run" in capsys.readouterr().err
    with pytest.raises(lj.ConfigurationError, match="cannot be written as 'run.gif'; write .html, .png"):
        result.plot("run.gif")


def test_a_result_without_files_is_drawn_too(tmp_path):
    result = quiet(max_epochs=2).fit(
        linear_task(), lj.ArrayLoader(linear_data(64), 8), lj.ArrayLoader(linear_data(8), 8)
    )
    page = result.plot(tmp_path / "deep" / "run.html").read_text()
    assert "<figcaption>loss</figcaption>" in page
    assert "http" not in page.replace("http://www.w3.org", "")  # nothing is fetched


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_draws_the_curves_where_the_numbers_are(trained, tmp_path):
    _, result = trained
    page = result.plot(tmp_path / "run.html")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    # The page itself is asked where the browser drew its curves.
    probe = """<script>
      const out = {};
      for (const svg of document.querySelectorAll("svg")) {
        out[svg.getAttribute("aria-label")] = [...svg.querySelectorAll("path.curve")].map(path => {
          const box = path.getBoundingClientRect(), end = path.getPointAtLength(path.getTotalLength());
          return {name: path.textContent, width: box.width, height: box.height, end: [end.x, end.y],
                  stroke: getComputedStyle(path).stroke};
        });
      }
      const found = document.createElement("pre");
      found.id = "found"; found.textContent = JSON.stringify(out); document.body.append(found);
    </script></body>"""
    page.write_text(page.read_text().replace("</body>", probe))
    done = subprocess.run(
        [*command, "--window-size=1360,1500", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    text = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    assert text is not None, done.stdout[-500:]
    curves = {one["name"]: one for one in json.loads(text[1])["loss"]}
    assert set(curves) == {"train", "val"}
    for curve in curves.values():
        assert curve["width"] > 150
        assert curve["height"] > 20
    assert (curves["train"]["stroke"], curves["val"]["stroke"]) == ("rgb(37, 99, 235)", "rgb(234, 88, 12)")
    # Both end at the last step; the lower number is drawn lower, which is a larger y.
    assert curves["train"]["end"][0] == pytest.approx(curves["val"]["end"][0], abs=1)
    train, val = result.metrics["train/loss"], result.metrics["val/loss"]
    assert (curves["train"]["end"][1] > curves["val"]["end"][1]) == (train < val)


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed (lightjax[plot])")
def test_matplotlib_draws_the_same_numbers(trained, tmp_path):
    _, result = trained
    axes = result.plot(names=["loss"]).axes
    assert [one.get_title(loc="left") for one in axes] == ["loss"]
    lines = {line.get_label(): line for line in axes[0].get_lines()}
    expected = [row["val/loss"] for row in result.history if "val/loss" in row]
    np.testing.assert_array_equal(lines["val"].get_ydata(), expected)
    written = result.plot(tmp_path / "run.png")
    assert written.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(lj.ConfigurationError, match="Nothing to plot of \\['speed'\\]: reported are train/accuracy"):
        result.plot(names=["speed"])


def test_without_matplotlib_the_extra_is_named(trained, monkeypatch):
    _, result = trained
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match="pip install lightjax\\[plot\\]"):
        result.plot()
