"""Checkpoints that cannot be written: the run ends or goes on as asked, and what was complete stays."""

import resource
import shutil
import subprocess
import time
import warnings
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lightjax as lj
from lightjax.checkpoint import checkpointer as checkpointing
from tests.models import bits, digit_like_data, mlp_task, quiet


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(checkpointing, "WRITE_EVERY_S", 0.0)


@contextmanager
def small_files(directory):
    """No file may become larger than 2 kB, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def taken_place(directory):
    """The directory is a file: nothing can be made in it, whoever asks."""
    aside = directory.with_name("aside")
    directory.rename(aside)
    directory.write_text("")
    try:
        yield
    finally:
        directory.unlink()
        aside.rename(directory)


FAULTS = {"full disk": small_files, "no directory": taken_place}


def state(value):
    return {"w": jax.random.normal(jax.random.key(value), (4000,))}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_last_good_checkpoint_outlives_failed_ones(tmp_path, fault):
    checkpointer = lj.Checkpointer(tmp_path / "steps", on_error="warn")
    good = checkpointer.save(1, state(1), metrics={})
    checkpointer.wait()

    def save():
        failed = checkpointer.save(2, state(2), metrics={})
        checkpointer.delete(good)
        checkpointer.wait()
        return failed

    with FAULTS[fault](tmp_path / "steps"), pytest.warns(UserWarning, match="step_2 could not be written"):
        failed = save()
    assert checkpointer.lost == {2}
    assert checkpointer.open(2) is None
    assert bits(good.restore()) == bits(state(1))
    newer = checkpointer.save(3, state(3), metrics={})
    checkpointer.delete(failed)
    checkpointer.close()
    assert bits(newer.restore()) == bits(state(3))
    # Only now the old one is gone, and nothing of the failed one is left.
    assert [path.name for path in (tmp_path / "steps").iterdir()] == ["step_3"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_write_is_raised_with_its_path(tmp_path, fault):
    checkpointer = lj.Checkpointer(tmp_path / "steps")
    checkpointer.save(1, state(1), metrics={})
    checkpointer.wait()

    def save():
        checkpointer.save(2, state(2), metrics={})
        checkpointer.wait()

    with FAULTS[fault](tmp_path / "steps"), pytest.raises(lj.CheckpointError, match="step_2 could not be written"):
        save()
    checkpointer.close()
    assert checkpointer.open(1).damage() is None


def test_a_failed_write_is_raised_at_the_next_look_not_at_the_next_save(tmp_path):
    checkpointer = lj.Checkpointer(tmp_path / "steps")
    checkpointer.save(1, state(1), metrics={})
    checkpointer.wait()

    def look():
        ends_s = time.monotonic() + 60
        while time.monotonic() < ends_s:  # as the loop does after every call
            checkpointer.write_due()

    with small_files(tmp_path):
        checkpointer.save(2, state(2), metrics={})
        with pytest.raises(lj.CheckpointError, match="step_2 could not be written"):
            look()
    assert checkpointer.lost == {2}
    checkpointer.close()  # has nothing more to say
    assert checkpointer.open(1).damage() is None


@pytest.mark.parametrize(
    ("leaves", "names"),
    [
        ({"a": {"b": 1.0}, "a/b": 2.0}, r"\['a'\]\['b'\] and \['a/b'\] would both be called 'a/b'"),
        ({"a": {"b": 1.0}, "a.b": 2.0}, r"\['a'\]\['b'\] and \['a.b'\] would both be called 'a.b'"),
    ],
)
def test_leaves_that_would_overwrite_each_other_are_refused(tmp_path, leaves, names):
    checkpointer = lj.Checkpointer(tmp_path / "steps")
    checkpointer.save(1, leaves, metrics={})
    with pytest.raises(lj.CheckpointError, match=f"step_1 could not be written: the leaves {names} on disk: rename"):
        checkpointer.close()


def test_keys_with_slashes_and_without_letters_come_back(tmp_path):
    leaves = {"mlp/~/linear_0": {"w.x": jnp.arange(3.0)}, "": jnp.ones(2), "..": jnp.zeros(1), "é": [jnp.ones(())]}
    checkpointer = lj.Checkpointer(tmp_path / "steps")
    saved = checkpointer.save(1, leaves, metrics={})
    checkpointer.close()
    assert bits(saved.restore()) == bits(leaves)
    assert bits(lj.restore(tmp_path / "steps" / "step_1", leaves)) == bits(leaves)


def test_what_changes_after_a_save_changes_nothing_on_disk(tmp_path):
    add_one = jax.jit(lambda w: w + 1, donate_argnums=0)
    on_device, on_host = jnp.arange(1e6), np.arange(1e6)
    checkpointer = lj.Checkpointer(tmp_path / "steps")
    saved = checkpointer.save(1, {"device": on_device, "host": on_host}, metrics={})
    for _ in range(10):
        on_device = add_one(on_device)
        on_host += 1
    checkpointer.close()
    assert bits(saved.restore()) == bits({"device": jnp.arange(1e6), "host": np.arange(1e6)})


def test_a_directory_taken_away_under_a_write_is_noticed(tmp_path, monkeypatch):
    checkpointer = lj.Checkpointer(tmp_path / "steps")
    written = checkpointing.Storage.wait

    def take_away_and_wait(self):
        if self._writing is not None:
            self._writing.result()
        shutil.rmtree(tmp_path / "steps", ignore_errors=True)
        written(self)

    checkpointer.save(1, state(1), metrics={})
    monkeypatch.setattr(checkpointing.Storage, "wait", take_away_and_wait)
    with pytest.raises(lj.CheckpointError, match="step_1 could not be written: its directory is gone"):
        checkpointer.wait()
    checkpointer.close()


def test_a_really_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mounting needs privileges: {mounted.stderr.decode()}")
    try:
        checkpointer = lj.Checkpointer(disk / "steps", on_error="warn")
        good = checkpointer.save(1, state(1), metrics={})
        checkpointer.save(2, {"w": jax.random.normal(jax.random.key(0), (200_000,))}, metrics={})
        with pytest.warns(UserWarning, match="step_2 could not be written"):
            checkpointer.wait()
        assert bits(good.restore()) == bits(state(1))
        # What the failed write left is gone: there is room again.
        checkpointer.save(3, state(3), metrics={})
        checkpointer.close()
        assert checkpointer.open(3) is not None
    finally:
        subprocess.run(["umount", str(disk)], check=True)


class Faulty(lj.Callback):
    """Lets no checkpoint be written during the second epoch."""

    every_n_steps = None

    def on_train_epoch_start(self, run):
        if run.epoch == 1:
            run._checkpointer.wait()
            self.fault = taken_place(run.directory / "checkpoints")
            self.fault.__enter__()
        if run.epoch == 2:
            self.fault.__exit__(None, None, None)


def fit(directory, on_save_error, callbacks):
    trainer = quiet(
        max_epochs=4,
        enable_checkpointing=True,
        default_root_dir=directory,
        on_save_error=on_save_error,
        callbacks=callbacks,
    )
    loader = lj.ArrayLoader(digit_like_data(70), 16, shuffle=True, seed=1)
    return trainer.fit(mlp_task(), loader, lj.ArrayLoader(digit_like_data(37, seed=2), 8))


def test_a_run_goes_on_without_a_checkpoint_where_it_is_asked_to(tmp_path):
    whole = fit(tmp_path / "whole", "raise", [])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = fit(tmp_path / "faulty", "warn", [Faulty(), lj.ModelCheckpoint("val/loss", save_top_k=-1)])
    assert any("The run goes on without it, as on_save_error='warn' says" in str(one.message) for one in caught)
    assert bits(result.state) == bits(whole.state)
    assert result.history == whole.history
    assert bits(result.checkpoint.last.restore()) == bits(result.state)
    kept = sorted(path.name for path in (result.directory / "checkpoints").iterdir())
    assert kept == ["step_15", "step_20", "step_5"]
    assert result.checkpoint.best.damage() is None


def test_a_run_ends_with_the_error_where_it_is_not(tmp_path):
    faulty = Faulty()
    with pytest.raises(lj.CheckpointError, match="step_10 could not be written"):
        fit(tmp_path, "raise", [faulty])
    faulty.fault.__exit__(None, None, None)
    assert [path.name for path in (tmp_path / "version_0" / "checkpoints").iterdir()] == ["step_5"]


def test_other_answers_to_errors_are_refused():
    with pytest.raises(lj.ConfigurationError, match="on_save_error='ignore': write 'raise' or 'warn'"):
        lj.Trainer(on_save_error="ignore")


def test_checkpoints_a_kill_left_unranked_are_deleted_and_others_left_alone(tmp_path):
    def run(max_epochs, resume=None):
        trainer = quiet(max_epochs=max_epochs, enable_checkpointing=True, default_root_dir=tmp_path, resume=resume)
        return trainer.fit(mlp_task(), lj.ArrayLoader(digit_like_data(70), 16))

    checkpoints = tmp_path / "version_0" / "checkpoints"
    run(2)
    shutil.copytree(checkpoints / "step_10", tmp_path / "copy")
    about = lj.Checkpoint.open(checkpoints / "step_10").about()
    kept = {"ranked": [], "last": 10, "for_good": [], "let_go": [5]}
    assert about["callbacks"] == [["ModelCheckpoint", kept]]
    # As if the process had been killed before it deleted step 5; step 3 and the unfinished write are not its own.
    for step in (5, 3):
        shutil.copytree(tmp_path / "copy", checkpoints / f"step_{step}")
    (checkpoints / "step_15.orbax-checkpoint-tmp").mkdir()
    result = run(3, "auto")
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step_15", "step_3"]
    assert result.checkpoint.last.step == 15


def test_a_run_that_goes_on_from_an_older_checkpoint_branches_off(tmp_path):
    def run(max_epochs, resume=None):
        keeper = lj.ModelCheckpoint(save_top_k=-1, monitor="val/loss")
        trainer = quiet(
            max_epochs=max_epochs, enable_checkpointing=True, default_root_dir=tmp_path, callbacks=keeper, resume=resume
        )
        loader = lj.ArrayLoader(digit_like_data(70), 16, shuffle=True)
        return trainer.fit(mlp_task(), loader, lj.ArrayLoader(digit_like_data(37, seed=2), 8))

    whole = run(3)
    before = sorted((path, path.stat().st_mtime_ns) for path in whole.directory.rglob("*"))
    branch = run(3, whole.directory / "checkpoints" / "step_5")
    assert branch.directory != whole.directory
    assert bits(branch.state) == bits(whole.state)
    assert branch.history == whole.history
    assert sorted((path, path.stat().st_mtime_ns) for path in whole.directory.rglob("*")) == before
    assert (branch.directory / "history.jsonl").read_text() == (whole.directory / "history.jsonl").read_text()
