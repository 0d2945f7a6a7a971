"""Run directories: numbered, never shared, and clear about what is in the way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightjax.run_directory import create_run_directory


def test_default_root_is_lightjax_logs_in_the_working_directory():
    directory = create_run_directory(None)
    assert directory == Path("lightjax_logs/version_0")
    assert directory.is_dir()


def test_number_follows_the_highest_there_is_and_never_fills_a_gap(tmp_path):
    for name in ("version_2", "version_10", "version_x", "version_11_old", "other"):
        (tmp_path / name).mkdir()
    assert create_run_directory(tmp_path).name == "version_11"


def test_a_file_named_like_a_version_is_not_overwritten(tmp_path):
    (tmp_path / "version_0").write_text("mine")
    assert create_run_directory(str(tmp_path)).name == "version_1"
    assert (tmp_path / "version_0").read_text() == "mine"


def test_missing_parents_are_made(tmp_path):
    assert create_run_directory(tmp_path / "a" / "b").is_dir()


def test_a_directory_made_between_looking_and_making_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "version_0").mkdir()
    monkeypatch.setattr(os, "listdir", lambda path: [])  # the others had not been there yet
    assert create_run_directory(tmp_path).name == "version_1"


def test_racing_processes_get_directories_of_their_own(tmp_path):
    program = (
        "import runpy, sys\n"
        "create_run_directory = runpy.run_path(sys.argv[2])['create_run_directory']\n"
        "sys.stdin.read()\n"  # all start together, when their inputs are closed
        "for _ in range(20): print(create_run_directory(sys.argv[1]).name)\n"
    )
    module = Path(__file__).parents[1] / "lightjax" / "run_directory.py"
    command = [sys.executable, "-c", program, str(tmp_path / "runs"), str(module)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
    names = [name for process in processes for name in process.communicate()[0].split()]
    assert sorted(names) == sorted(f"version_{number}" for number in range(60))


@pytest.mark.parametrize("inside", ["", "deeper/still"])
def test_a_file_in_the_way_is_named(tmp_path, inside):
    (tmp_path / "taken").write_text("")
    with pytest.raises(NotADirectoryError, match=r"'.*/taken' is a file.*default_root_dir") as caught:
        create_run_directory(tmp_path / "taken" / inside)
    assert "version_N" in str(caught.value)


def test_a_root_that_cannot_be_written_says_what_to_do(tmp_path, monkeypatch):
    def refuse(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)  # the tests may run as root, who may write anywhere
    with pytest.raises(PermissionError, match=r"could not be made under .*denied.*written there.*logger=False"):
        create_run_directory(tmp_path)


def test_a_url_is_refused_instead_of_becoming_a_local_directory():
    with pytest.raises(ValueError, match=r"gs://bucket/runs.*local.*Pass a local path"):
        create_run_directory("gs://bucket/runs")
    assert not Path("gs:").exists()
