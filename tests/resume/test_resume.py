"""A run that is killed at any moment and resumed ends bit for bit where the undisturbed run ends."""

import random
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

import lightjax as lj
from lightjax.checkpoint import newest_whole
from lightjax.checkpoint.checksums import UNCHECKED
from tests.models import bits, digit_like_data, linear_data, linear_task, mlp_task, quiet
from tests.resume.killing import KINDS, hit, killed, run_to_the_end


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """How the run of each kind ends when nothing happens to it; beside it is what it compiled."""
    root, found = tmp_path_factory.mktemp("runs"), {}

    def outcome(kind):
        if kind not in found:
            found[kind] = run_to_the_end(root / kind / "undisturbed", 8, kind)
        return root / kind, found[kind]

    return outcome


@pytest.mark.parametrize("kinds", [KINDS[:2], KINDS[2:4], KINDS[4:]], ids=" ".join)
def test_killed_and_resumed_runs_end_as_the_undisturbed_one(undisturbed, kinds):
    def both(kind):
        directory, expected = undisturbed(kind)
        return expected, *killed(directory / "killed", kind, 5, random.Random(kind))

    with ThreadPoolExecutor(2) as pool:
        for expected, outcome, interrupted in pool.map(both, kinds):
            assert outcome == expected
            assert interrupted.total() >= 4


@pytest.mark.parametrize(("kind", "lives"), [("array", (8, 1)), ("torchdata", (8,))])
def test_a_preempted_run_says_so_and_resumes(undisturbed, kind, lives):
    directory, expected = undisturbed(kind)
    for steps_per_call in lives:
        _, outcome = hit(directory / "preempted", steps_per_call, kind, 12, 0.0, lambda process: process.terminate())
        assert outcome["stopped_by"] == "preempted"
    assert run_to_the_end(directory / "preempted", 8, kind) == expected


def fit(directory, *, max_epochs=4, resume=None, callbacks=(), **arguments):
    trainer = quiet(
        max_epochs=max_epochs,
        enable_checkpointing=True,
        default_root_dir=directory,
        callbacks=list(callbacks),
        **arguments,
    )
    loader = lj.ArrayLoader(digit_like_data(70), 16, shuffle=True, seed=1)
    return trainer.fit(mlp_task(), loader, lj.ArrayLoader(digit_like_data(37, seed=2), 8), resume=resume)


def test_a_finished_run_goes_on_to_more_epochs_in_its_own_directory(tmp_path, capsys):
    whole = fit(tmp_path / "whole")
    half = fit(tmp_path / "halves", max_epochs=2)
    again = fit(tmp_path / "halves", resume="auto")
    assert again.directory == half.directory
    assert bits(again.state) == bits(whole.state)
    assert again.history == whole.history
    assert f"resumed from {half.checkpoint.last.path} at step 10, batch 0 of epoch 2" in capsys.readouterr().out


@pytest.mark.parametrize("data", ["array", "generator"])
def test_a_run_cut_short_inside_an_epoch_goes_on_with_the_batch_after(tmp_path, data):
    def run(directory, max_steps, resume=None, every_n_epochs=1):
        trainer = quiet(
            max_steps=max_steps,
            enable_checkpointing=True,
            default_root_dir=directory,
            callbacks=lj.ModelCheckpoint(every_n_epochs=every_n_epochs),
        )
        loader = lj.ArrayLoader(digit_like_data(70), 16, shuffle=True, seed=1)
        return trainer.fit(mlp_task(), loader if data == "array" else lambda: loader.epoch(0), resume=resume)

    whole = run(tmp_path / "whole", 13)
    for every_n_epochs in (1, 2):
        parts = tmp_path / f"parts{every_n_epochs}"
        for max_steps in (3, 5, 7, 13):
            result = run(parts, max_steps, "auto", every_n_epochs)
            assert int(result.state.step) == max_steps
            assert result.stopped_by == "max_steps"
        assert bits(result.state) == bits(whole.state)


class Scripted(lj.Callback):
    """Reports a scripted score after each evaluation."""

    every_n_steps = None
    scores = (0.5, 0.1, 0.9, 0.8)

    def on_validation_end(self, run):
        run.log({"val/score": self.scores[run.epoch]})


def test_the_best_checkpoint_stays_the_best_when_it_is_the_one_resumed_from(tmp_path):
    def callbacks():
        return [Scripted(), lj.ModelCheckpoint("val/score")]

    half = fit(tmp_path, max_epochs=2, callbacks=callbacks())
    whole = fit(tmp_path, resume="auto", callbacks=callbacks())
    assert half.checkpoint.best.step == whole.checkpoint.best.step == 10
    assert bits(whole.checkpoint.best.restore()) == bits(half.state)
    assert sorted(path.name for path in (whole.directory / "checkpoints").iterdir()) == ["step_10", "step_20"]


def test_auto_without_a_checkpoint_begins_anew_and_says_so(tmp_path, capsys):
    result = fit(tmp_path, max_epochs=1, resume="auto")
    assert "no run to resume under" in capsys.readouterr().out
    assert int(result.state.step) == 5


@pytest.mark.parametrize("given", ["checkpoint", "run", "checkpoints"])
def test_a_directory_is_resumed_from(tmp_path, given):
    half = fit(tmp_path, max_epochs=2)
    path = {
        "checkpoint": half.checkpoint.last.path,
        "run": half.directory,
        "checkpoints": half.directory / "checkpoints",
    }[given]
    assert int(fit(tmp_path, resume=path).state.step) == 20


def test_what_cannot_be_resumed_is_refused(tmp_path):
    half = fit(tmp_path, max_epochs=1)
    with pytest.raises(lj.CheckpointError, match="holds no whole checkpoint"):
        fit(tmp_path, resume=tmp_path / "nowhere")
    other = lj.ArrayLoader(linear_data(8), 4)
    with pytest.raises(lj.CheckpointError, match="params/layer_0/kernel"):
        quiet(max_epochs=1).fit(linear_task(), other, resume=half.directory)
    with pytest.raises(lj.ConfigurationError, match="both state and resume"):
        quiet(max_epochs=1, resume="auto").fit(linear_task(), other, state=half.state)


def test_a_checkpoint_without_a_position_is_refused(tmp_path):
    checkpointer = lj.Checkpointer(tmp_path / "alone")
    path = checkpointer.save(3, {"w": 1.0 * lj.Sum(2.0).total}, metrics={}).path
    checkpointer.close()
    with pytest.raises(lj.CheckpointError, match="holds a state but no position in a run"):
        fit(tmp_path, resume=path)


def test_a_run_that_a_callback_ended_stays_ended(tmp_path):
    stopping = dict(patience=1, min_delta=100.0)
    ended = fit(tmp_path, callbacks=[lj.EarlyStopping("val/loss", **stopping)])
    again = fit(tmp_path, callbacks=[lj.EarlyStopping("val/loss", **stopping)], resume="auto")
    assert again.stopped_by == ended.stopped_by
    assert int(again.state.step) == int(ended.state.step)


def damaged(path, how):
    content = path.read_bytes()
    if how == "deleted":
        path.unlink()
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "halved":
        path.write_bytes(content[: len(content) // 2])
    elif content:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


@pytest.mark.parametrize("how", ["deleted", "emptied", "halved", "one bit flipped"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(tmp_path, how):
    keep_all = lj.ModelCheckpoint("val/loss", save_top_k=-1)
    fit(tmp_path / "run", max_epochs=2, callbacks=[keep_all])
    checkpoints = tmp_path / "run" / "version_0" / "checkpoints"
    names = [path.relative_to(checkpoints) for path in (checkpoints / "step_10").rglob("*") if path.is_file()]
    assert len(names) > 5
    for name in names:
        if name.name in UNCHECKED[1:] or (how != "deleted" and not (checkpoints / name).stat().st_size):
            continue  # nothing depends on it; or an empty file, which cannot be emptied, halved or flipped
        copy = tmp_path / "copy"
        shutil.copytree(checkpoints, copy)
        damaged(copy / name, how)
        found = lj.Checkpoint(copy / "step_10", 10, {}, like=None)
        assert found.damage() is not None, name
        with pytest.warns(UserWarning, match="step_10 is passed over"):
            taken = newest_whole(copy)
        assert taken.step == 5
        shutil.rmtree(copy)
