"""Loggers through somebody else's client: what the real client wrote, offline, is read back.

Clients that are not installed are skipped: `pip install lightjax[wandb,mlflow,comet,polyaxon,clearml,neptune]`.
"""

import json
import math
import struct
import zipfile

import numpy as np
import pytest

import lightjax as lj
from tests.models import linear_data, linear_task, quiet

STEPS = (5, 10, 15, 20)


def with_their_warnings(tests):
    """Lets the clients warn of what they like; what lightjax says of a call that failed is an error."""
    for filters in ("default", "error:.*(training goes on without|lost some of what was logged)"):
        tests = pytest.mark.filterwarnings(filters)(tests)
    return tests


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    for name, value in (
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("DO_NOT_TRACK", "true"),
        ("WANDB_ERROR_REPORTING", "false"),
        ("WANDB_SILENT", "true"),
        ("COMET_OFFLINE_DIRECTORY", "."),
        ("COMET_DISABLE_AUTO_LOGGING", "1"),
        ("CLEARML_CACHE_DIR", "clearml_cache"),
    ):
        monkeypatch.setenv(name, value)


def train(tmp_path, logger):
    """Trains 20 steps that report four times, and returns the losses by step."""
    trainer = quiet(max_steps=20, log_every_n_steps=5, logger=logger, default_root_dir=tmp_path, seed=3)
    result = trainer.fit(linear_task(), lj.ArrayLoader(linear_data(80), 4), lj.ArrayLoader(linear_data(8), 4))
    losses = {row["step"]: row["train/loss"] for row in result.history if "train/loss" in row}
    assert tuple(losses) == STEPS
    return result, losses


def log_all_kinds(logger):
    """Logs one of everything the logger can."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([1, 2])
    logger.log_hyperparams({"rate": 0.5, "model": {"layers": np.int64(3), "bias": True}, "none": None})
    logger.log_metrics(30, {"épreuve/ü ñ": math.nan, "other": math.inf, "train/loss": 1.0})
    for method, arguments in (
        ("log_image", (30, "samples/first", np.linspace(0, 1, 48).reshape(4, 4, 3))),
        ("log_text", (30, "notes", "hello *there*")),
        ("log_histogram", (30, "weights", np.arange(100.0))),
        ("log_table", (30, "table", ["a", "b"], [[1, "x"], [2, "y"]])),
        ("log_figure", (30, "drawn", figure)),
    ):
        if hasattr(logger, method):
            getattr(logger, method)(*arguments)
    logger.finish()


def records_of(content):
    """Reads LevelDB's log format: blocks of 32 KiB; fragments of (checksum, length, type), the last of type 1 or 4."""
    records, part, place = [], b"", 7  # wandb's own header
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        part += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            records.append(part)
            part = b""
    return records


@with_their_warnings
class TestWandb:
    def rows(self, tmp_path):
        """Reads the history out of the transaction log: LevelDB's log format around protobuf records."""
        wandb = pytest.importorskip("wandb")
        # Its service process completes the file after `finish`; this waits for its end, as the end of a program does.
        wandb.teardown()
        from wandb.proto import wandb_internal_pb2 as proto

        rows, config = [], {}
        for path in tmp_path.rglob("*.wandb"):
            for data in records_of(path.read_bytes()):
                record = proto.Record.FromString(data)
                if record.HasField("history"):
                    rows.append(
                        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                    )
                for item in [*record.run.config.update, *record.config.update]:
                    config[item.key or item.nested_key[0]] = item.value_json
        return rows, config

    def test_what_was_logged_is_in_the_offline_run(self, tmp_path):
        pytest.importorskip("wandb", reason="wandb is not installed (lightjax[wandb])")
        _, losses = train(tmp_path, lj.WandbLogger("test", mode="offline"))
        rows, config = self.rows(tmp_path)
        assert {row["step"]: row["train/loss"] for row in rows if "train/loss" in row} == losses
        assert config["max_steps"] == "20"

    def test_all_kinds(self, tmp_path):
        pytest.importorskip("wandb", reason="wandb is not installed (lightjax[wandb])")
        log_all_kinds(lj.WandbLogger("test", mode="offline", directory=tmp_path))
        rows, _ = self.rows(tmp_path)
        names = {name for row in rows for name in row}
        assert {"épreuve/ü ñ", "samples/first", "notes", "weights", "table"} <= names
        assert any(math.isnan(row["épreuve/ü ñ"]) for row in rows if "épreuve/ü ñ" in row)


@with_their_warnings
class TestMLflow:
    def client(self, tmp_path):
        from mlflow.tracking import MlflowClient

        client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("lightjax")
        return client, client.search_runs([experiment.experiment_id])

    def test_what_was_logged_is_in_the_database(self, tmp_path):
        pytest.importorskip("mlflow", reason="mlflow is not installed (lightjax[mlflow])")
        _, losses = train(tmp_path, lj.MLflowLogger(run_name="first"))
        client, runs = self.client(tmp_path)
        assert [run.info.run_name for run in runs] == ["first"]
        assert runs[0].info.status == "FINISHED"
        found = {one.step: one.value for one in client.get_metric_history(runs[0].info.run_id, "train/loss")}
        assert found == losses
        assert runs[0].data.params["max_steps"] == "20"

    def test_all_kinds(self, tmp_path):
        pytest.importorskip("mlflow", reason="mlflow is not installed (lightjax[mlflow])")
        log_all_kinds(lj.MLflowLogger(directory=tmp_path / "run"))
        client, runs = self.client(tmp_path)
        run_id = runs[0].info.run_id
        assert math.isnan(client.get_metric_history(run_id, "épreuve/ü ñ")[0].value)
        assert [one.path for one in client.list_artifacts(run_id, "samples/first")] == ["samples/first/step_30.png"]
        assert [one.path for one in client.list_artifacts(run_id, "table")] == ["table/step_30.md"]

    def test_a_second_fit_is_a_second_run(self, tmp_path):
        pytest.importorskip("mlflow", reason="mlflow is not installed (lightjax[mlflow])")
        logger = lj.MLflowLogger()
        train(tmp_path, logger)
        train(tmp_path, logger)
        assert len(self.client(tmp_path)[1]) == 2


@with_their_warnings
class TestComet:
    def messages(self, tmp_path):
        """The messages, and what the other files of the archive hold."""
        with zipfile.ZipFile(next(tmp_path.rglob("*.zip"))) as archive:
            files = b"".join(archive.read(name) for name in archive.namelist())
            return [json.loads(line) for line in archive.read("messages.json").decode().splitlines()], files

    def test_what_was_logged_is_in_the_archive(self, tmp_path):
        pytest.importorskip("comet_ml", reason="comet_ml is not installed (lightjax[comet])")
        _, losses = train(tmp_path, lj.CometLogger("test", offline=True))
        messages, _ = self.messages(tmp_path)
        metrics = [one["payload"] for one in messages if one["type"] == "metric_msg"]
        losses_found = [one["metric"] for one in metrics if one["metric"]["metricName"] == "train/loss"]
        found = {one["step"]: one["metricValue"] for one in losses_found}
        assert {step: float(value) for step, value in found.items()} == losses
        assert "max_steps" in json.dumps(messages)

    def test_all_kinds(self, tmp_path):
        pytest.importorskip("comet_ml", reason="comet_ml is not installed (lightjax[comet])")
        log_all_kinds(lj.CometLogger("test", offline=True, directory=tmp_path))
        messages, files = self.messages(tmp_path)
        text = json.dumps(messages, ensure_ascii=False)
        assert b"hello *there*" in files
        for part in ("épreuve/ü ñ", "samples/first", "weights"):
            assert part in text


@with_their_warnings
class TestNeptune:
    def operations(self, tmp_path):
        return "\n".join(path.read_text() for path in tmp_path.rglob("data-*.log"))

    def test_what_was_logged_is_in_the_offline_log(self, tmp_path):
        pytest.importorskip("neptune", reason="neptune is not installed (lightjax[neptune])")
        _, losses = train(tmp_path, lj.NeptuneLogger())
        lines = self.operations(tmp_path)
        found = {}
        decoder, place = json.JSONDecoder(), 0
        while place < len(lines):
            if lines[place] != "{":
                place += 1
                continue
            value, place = decoder.raw_decode(lines, place)
            operation = value.get("obj", value)
            if operation.get("path") == ["metrics", "train", "loss"]:
                found |= {int(point["step"]): point["value"] for point in operation["values"]}
        assert found == losses
        assert "max_steps" in lines

    def test_all_kinds(self, tmp_path):
        pytest.importorskip("neptune", reason="neptune is not installed (lightjax[neptune])")
        log_all_kinds(lj.NeptuneLogger(directory=tmp_path))
        lines = self.operations(tmp_path)
        for path in (
            '["images", "samples", "first"]',
            '["images", "drawn"]',
            '["texts", "notes"]',
            '["texts", "table"]',
        ):
            assert path in lines
        assert '["metrics", "train", "loss"]' in lines
        assert "other" not in lines  # Neptune takes no infinity
        assert "hello *there*" in lines
        assert '["parameters", "model", "layers"]' in lines


@with_their_warnings
class TestPolyaxon:
    def test_what_was_logged_is_in_the_event_files(self, tmp_path):
        pytest.importorskip("traceml", reason="traceml is not installed (lightjax[polyaxon])")
        _, losses = train(tmp_path, lj.PolyaxonLogger("test", offline=True))
        lines = next(tmp_path.rglob("train-loss.plx")).read_text().splitlines()[1:]
        assert {int(line.split("|")[0]): float(line.split("|")[2]) for line in lines} == losses

    def test_all_kinds(self, tmp_path):
        pytest.importorskip("traceml", reason="traceml is not installed (lightjax[polyaxon])")
        log_all_kinds(lj.PolyaxonLogger("test", offline=True, directory=tmp_path))
        names = {path.name for path in tmp_path.rglob("*.plx")}
        assert {"train-loss.plx", "samples-first.plx", "notes.plx", "weights.plx", "drawn.plx", "table.plx"} <= names
        (line,) = next(tmp_path.rglob("other.plx")).read_text().splitlines()[1:]
        assert float(line.split("|")[2]) == math.inf


@with_their_warnings
class TestClearML:
    def events(self, tmp_path):
        text = "".join(path.read_text() for path in tmp_path.rglob("metrics.jsonl"))
        for path in tmp_path.rglob("*.zip"):
            with zipfile.ZipFile(path) as archive:
                text += "".join(archive.read(name).decode() for name in archive.namelist() if name == "metrics.jsonl")
        return [event for line in text.splitlines() for event in json.loads(line)]

    def test_all_kinds(self, tmp_path, monkeypatch):
        pytest.importorskip("clearml", reason="clearml is not installed (lightjax[clearml])")
        monkeypatch.setenv("HOME", str(tmp_path))
        logger = lj.ClearMLLogger("test", name="kinds", offline=True)
        logger.start(tmp_path / "run")
        log_all_kinds(logger)
        events = self.events(tmp_path)
        found = {(event["type"], event["metric"], event["variant"]) for event in events if "metric" in event}
        assert {
            ("training_stats_scalar", "loss", "train"),
            ("training_debug_image", "samples/first", "samples/first"),
            ("training_debug_image", "drawn", "drawn"),
            ("plot", "weights", "weights"),
            ("plot", "table", "table"),
        } <= found
        assert not [event for event in events if event.get("metric") in ("other", "ü ñ")]  # no zeros instead of NaN

    def test_what_was_logged_is_in_the_session(self, tmp_path, monkeypatch):
        pytest.importorskip("clearml", reason="clearml is not installed (lightjax[clearml])")
        monkeypatch.setenv("HOME", str(tmp_path))
        _, losses = train(tmp_path, lj.ClearMLLogger("test", offline=True))
        events = self.events(tmp_path)
        found = {
            event["iter"]: event["value"]
            for event in events
            if (event.get("metric"), event.get("variant")) == ("loss", "train")
        }
        assert found == losses


@pytest.mark.parametrize("name", ["wandb", "mlflow", "comet", "neptune", "polyaxon", "clearml"])
def test_a_missing_client_is_said_before_training(name, tmp_path, monkeypatch):
    monkeypatch.setattr("lightjax.loggers.client.find_spec", lambda package: None)
    with pytest.raises(ModuleNotFoundError, match=f"not installed here. Run `pip install lightjax\\[{name}\\]`"):
        quiet(max_steps=1, logger=name, default_root_dir=tmp_path).fit(linear_task(), lj.ArrayLoader(linear_data(8), 4))
