"""`lightjax checkpoint`: what a run's checkpoints hold, and whether they are whole."""

import json

import pytest

import lightjax as lj
from lightjax.cli import main
from tests.models import linear_data, linear_task, quiet


@pytest.fixture
def run(tmp_path):
    trainer = quiet(
        max_epochs=2,
        enable_checkpointing=True,
        default_root_dir=tmp_path,
        callbacks=lj.ModelCheckpoint("train/loss_epoch", save_top_k=-1),
    )
    return trainer.fit(linear_task(), lj.ArrayLoader(linear_data(8), 4)).directory


def test_ls_lists_the_newest_first_with_metrics(run, capsys):
    assert main(["checkpoint", "ls", str(run)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("step_4  ")
    assert "MB  train/loss " in first
    assert second.startswith("step_2  ")


def test_verify_names_the_damaged_file_and_fails(run, capsys):
    assert main(["checkpoint", "verify", str(run)]) == 0
    assert capsys.readouterr().out.splitlines() == ["step_4  whole", "step_2  whole"]
    (run / "checkpoints" / "step_4" / "about" / "metadata").write_bytes(b"{}")
    assert main(["checkpoint", "verify", str(run / "checkpoints")]) == 1
    out = capsys.readouterr().out
    assert "step_4 is no checkpoint of lightjax" in out
    assert "step_2  whole" in out
    kernel = next((run / "checkpoints" / "step_2" / "state" / "d").iterdir())
    kernel.write_bytes(kernel.read_bytes()[:-1])
    assert main(["checkpoint", "verify", str(run / "checkpoints" / "step_2")]) == 1
    assert f"step_2  state/d/{kernel.name} has" in capsys.readouterr().out


def test_show_prints_json_of_the_newest_or_of_the_one_named(run, capsys):
    for directory, step in ((run, 4), (run / "checkpoints" / "step_2", 2)):
        assert main(["checkpoint", "show", str(directory)]) == 0
        about = json.loads(capsys.readouterr().out)
        assert about["step"] == step
        assert about["leaves"]["params/w"] == "float32[5]"
        assert about["position"]["batch"] == 0


def test_a_directory_without_checkpoints_is_named(tmp_path, capsys):
    assert main(["checkpoint", "ls", str(tmp_path)]) == 1
    assert f"{tmp_path} holds no checkpoints" in capsys.readouterr().err
