"""The display of a run: what people see, what it costs, and that it never stops a training."""

import io
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightjax.progress import NoProgress, PlainProgress, Progress, RichProgress, make_progress
from lightjax.progress.clock import StepClock

ROOT = str(Path(__file__).parents[1])

# A run of 3 epochs of 20 steps with evaluations, as a program of its own.
PROGRAM = """
import sys, time
sys.path.insert(0, sys.argv[1])
from lightjax.progress import make_progress
progress = make_progress(True)
progress.start(step=0, max_steps=None, max_epochs=3)
step = 0
for epoch in range(3):
    progress.start_epoch(epoch, 20)
    for i in range(20):
        time.sleep(0.01)
        step += 1
        progress.update(step, i + 1, {"train/loss": 1 / step})
    print(f"user line {epoch}")
    progress.start_evaluation("val", 5)
    for batch in range(5):
        time.sleep(0.03)
        progress.update_evaluation(batch + 1)
    progress.end_evaluation({"val/loss": 0.5})
    progress.end_epoch(epoch, step, {"train/loss": 1 / step})
progress.print("[own] line")
progress.close()
print("after the run")
"""


class Time:
    """A clock that moves when told."""

    def __init__(self):
        self.seconds = 1000.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def now():
    return Time()


@pytest.fixture
def file():
    return io.StringIO()


def screen(text: str) -> list[str]:
    """What a terminal shows after `text`: the few control codes that rich uses, and no others."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[\??[\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if token == "\r":
            column = 0
        elif token == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif token == "\x1b[2K":
            lines[row] = ""
        elif re.fullmatch(r"\x1b\[\d*A", token):
            row -= int(token[2:-1] or 1)
        elif token.startswith("\x1b"):
            assert token.endswith("m") or token in ("\x1b[?25l", "\x1b[?25h"), token
        else:
            lines[row] = lines[row][:column].ljust(column) + token + lines[row][column + len(token) :]
            column += len(token)
    return [line.rstrip() for line in lines]


def run_in_terminal(program: str, width: int = 100, **environment: str) -> str:
    """Runs a program with a pseudo-terminal as its standard output; returns what it wrote there."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(width), **environment}
    process = subprocess.Popen(
        [sys.executable, "-c", program, ROOT], stdout=slave, stderr=slave, stdin=slave, env=environment
    )
    os.close(slave)
    chunks = []
    while True:
        try:
            chunk = os.read(master, 1 << 16)
        except OSError:  # how Linux says that the other end is closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(master)
    output = b"".join(chunks).decode()
    assert process.wait() == 0, output
    return output


# In the real world


def test_terminal_shows_a_bar_whose_last_line_stays():
    output = run_in_terminal(PROGRAM, width=80)
    assert re.search(r"Epoch 2/3 .*━.* \d+/20", output)
    assert re.search(r"val .*━.* \d/5 batches", output)
    assert re.search(r"steps/s  eta 0:00:0\d", output)
    lines = [line for line in screen(output) if line]
    assert lines[:4] == ["user line 0", "user line 1", "user line 2", "[own] line"]
    assert re.fullmatch(r"Epoch 3/3 ━+ 20/20  [\d.]+ steps/s  in 0:00:0\d", lines[4])
    assert lines[5:] == ["  train/loss 0.01667  val/loss 0.5", "after the run"]
    assert output.count("\x1b[?25l") == output.count("\x1b[?25h") == 1  # the cursor comes back


def test_terminal_narrower_than_the_bar_is_not_torn():
    lines = [line for line in screen(run_in_terminal(PROGRAM, width=30)) if line]
    assert all(len(line) <= 30 for line in lines)
    assert [line for line in lines if "Epoch" in line] == [lines[4]]


def test_terminal_is_given_back_when_the_program_dies_without_closing():
    program = PROGRAM.replace("progress.close()", "sys.exit(0)")
    assert run_in_terminal(program).rstrip().endswith("\x1b[?25h")


def test_standard_error_that_goes_to_a_file_stays_out_of_the_terminal(tmp_path):
    program = PROGRAM.replace("import sys, time", "import sys, time; sys.stderr = open('errors', 'w')")
    program = program.replace('user line {epoch}"', 'error {epoch}", file=sys.stderr, flush=True')
    assert "error" not in run_in_terminal(program)
    assert (tmp_path / "errors").read_text().split("\n")[:3] == ["error 0", "error 1", "error 2"]


@pytest.mark.parametrize("term", ["dumb", "xterm"])
def test_without_a_terminal_that_draws_there_are_only_plain_lines(term):
    if term == "dumb":
        output = run_in_terminal(PROGRAM, TERM="dumb").replace("\r\n", "\n")
    else:
        command = [sys.executable, "-c", PROGRAM, ROOT]
        environment = {**os.environ, "FORCE_COLOR": "1"}  # as some CI sets it
        output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert "\x1b" not in output
    assert "\r" not in output
    lines = output.splitlines()
    expected = [
        r"user line 0",
        r"epoch 1/3  step 20  [\d.]+ steps/s  train/loss 0.05  val/loss 0.5  eta 0:00:0\d",
        r"user line 1",
        r"epoch 2/3  step 40  [\d.]+ steps/s  train/loss 0.025  val/loss 0.5  eta 0:00:0\d",
        r"user line 2",
        r"epoch 3/3  step 60  [\d.]+ steps/s  train/loss 0.01667  val/loss 0.5",
        r"\[own\] line",
        r"after the run",
    ]
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), line


@pytest.mark.parametrize("kind", ["RichProgress", "PlainProgress"])
def test_training_goes_on_when_the_pipe_breaks(kind):
    program = PROGRAM.replace("make_progress(True)", f"{kind}()").replace("make_progress", kind)
    program = program.replace('print(f"user line {epoch}")', "").replace('print("after the run")', "")
    program += "print('trained', file=sys.stderr, flush=True)\nimport os\nos._exit(0)\n"
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(
        [sys.executable, "-c", program, ROOT], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (process.returncode, process.stderr) == (0, "trained\n")


# All displays


def small_run(progress: Progress, *, steps: int | None, max_steps: int | None, max_epochs: int | None) -> None:
    progress.start(step=0, max_steps=max_steps, max_epochs=max_epochs)
    step = 0
    for epoch in range(2):
        progress.start_epoch(epoch, steps)
        for i in range(3):
            with progress.excluded():
                pass
            step += 1
            progress.update(step, i + 1, {"train/loss": 0.25})
        progress.start_evaluation("val", steps)
        progress.update_evaluation(1)
        progress.end_evaluation({"val/loss": 0.5})
        progress.end_epoch(epoch, step, {"train/loss": 0.125})
    progress.close()
    progress.close()


@pytest.mark.parametrize("kind", [RichProgress, PlainProgress, NoProgress])
@pytest.mark.parametrize("steps", [None, 0, 3])
@pytest.mark.parametrize("max_steps", [None, 6])
@pytest.mark.parametrize("max_epochs", [None, 2])
def test_any_total_may_be_unknown(kind, steps, max_steps, max_epochs, file):
    options = {} if kind is NoProgress else {"interval_s": 0.0}
    small_run(kind(file, **options), steps=steps, max_steps=max_steps, max_epochs=max_epochs)
    assert ("val/loss 0.5" in file.getvalue()) == (kind is not NoProgress)
    assert "None" not in file.getvalue()


@pytest.mark.parametrize("kind", [RichProgress, PlainProgress, NoProgress])
def test_closed_output_does_not_stop_a_run(kind, file):
    progress = kind(file)
    progress.start(step=0, max_steps=None, max_epochs=2)
    file.close()
    progress.print("nobody reads this")
    small_run(progress, steps=3, max_steps=None, max_epochs=2)


@pytest.mark.parametrize("kind", [RichProgress, PlainProgress])
def test_letters_that_the_output_cannot_encode_are_replaced(kind):
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding="ascii") as file:
        progress = kind(file)
        small_run(progress, steps=3, max_steps=None, max_epochs=2)
        progress.print("naïve")
        progress.print("plain")
        file.flush()
        assert raw.getvalue().endswith(b"na?ve\nplain\n")


@pytest.mark.parametrize("kind", [RichProgress, PlainProgress])
def test_update_costs_no_more_than_two_microseconds_when_nothing_is_due(kind, file):
    progress = kind(file, interval_s=1000.0)
    progress.start(step=0, max_steps=None, max_epochs=2)
    progress.start_epoch(0, 10**6)
    progress.update(1, 1, {"loss": 1.0})
    metrics = {"loss": 1.0}
    times = []
    for _ in range(20):  # the least of many: the machine has other work
        begin = time.perf_counter()
        for step in range(2, 1002):
            progress.update(step, step, metrics)
        times.append((time.perf_counter() - begin) / 1000)
    progress.close()
    assert min(times) < 2e-6


@pytest.mark.parametrize("kind", [RichProgress, PlainProgress])
def test_due_says_whether_update_draws(kind, file, now):
    progress = kind(file, interval_s=10.0, now=now)
    progress.start(step=0, max_steps=None, max_epochs=None)
    progress.start_epoch(0, None)
    drawn = []
    for step in range(1, 60):
        now.seconds += 1.0
        due, before = progress.due(), file.getvalue()
        progress.update(step, step, {"loss": float(step)})
        assert due or file.getvalue() == before
        drawn += [step] * (file.getvalue() != before)
    progress.close()
    assert drawn[-5:] == [11, 21, 31, 41, 51]


@pytest.mark.parametrize("kind", [RichProgress, PlainProgress])
def test_evaluation_outside_a_run_shows_its_results(kind, file):
    progress = kind(file)
    progress.start_evaluation("test", 3)
    progress.update_evaluation(1)
    progress.end_evaluation({"test/loss": 0.25})
    progress.close()
    assert screen(file.getvalue())[-2:] == ["test  test/loss 0.25", ""]


@pytest.mark.parametrize("kind", [RichProgress, PlainProgress])
def test_display_can_be_used_for_a_second_run(kind, file):
    progress = kind(file)
    small_run(progress, steps=3, max_steps=None, max_epochs=2)
    file.truncate(0)
    progress.start(step=90, max_steps=None, max_epochs=5)
    progress.start_epoch(4, 3)
    progress.update(91, 1, {})
    progress.end_epoch(4, 91, {})
    progress.close()
    assert "5/5" in file.getvalue()
    assert "loss" not in file.getvalue()


# One display


def test_plain_long_epochs_have_a_line_each_half_minute_and_short_ones_none(file, now):
    progress = PlainProgress(file, now=now)
    progress.start(step=0, max_steps=None, max_epochs=2)
    for epoch, seconds in enumerate((100, 20)):
        progress.start_epoch(epoch, seconds)
        for step in range(1, seconds + 1):
            now.seconds += 1.0
            progress.update(epoch * 100 + step, step, {"train/loss": float(step)})
        progress.end_epoch(epoch, epoch * 100 + step, {"train/loss": 0.5})
    progress.close()
    assert file.getvalue().splitlines() == [
        "epoch 1/2 (31/100)  step 31  1 steps/s  train/loss 31  eta 0:02:49",
        "epoch 1/2 (61/100)  step 61  1 steps/s  train/loss 61  eta 0:02:19",
        "epoch 1/2 (91/100)  step 91  1 steps/s  train/loss 91  eta 0:01:49",
        "epoch 1/2  step 100  1 steps/s  train/loss 0.5  eta 0:01:40",
        "epoch 2/2  step 120  1 steps/s  train/loss 0.5",
    ]


def test_plain_line_shows_no_metrics_of_another_epoch(file):
    progress = PlainProgress(file)
    progress.start(step=0, max_steps=None, max_epochs=2)
    progress.start_epoch(0, 1)
    progress.end_evaluation({"val/loss": 0.5})
    progress.end_epoch(0, 1, {"epoch": 0, "train/loss": 0.25})
    progress.start_epoch(1, 1)
    progress.end_epoch(1, 2, {"epoch": 1, "train/loss": 0.125})
    assert file.getvalue().splitlines() == [
        "epoch 1/2  step 1  train/loss 0.25  val/loss 0.5",
        "epoch 2/2  step 2  train/loss 0.125",
    ]


def test_bar_draws_no_more_often_than_its_interval(file, now):
    progress = RichProgress(file, now=now)
    progress.start(step=0, max_steps=None, max_epochs=100)
    draws = []
    console = progress._live.console
    original = console.print
    console.print = lambda *args, **kwargs: (draws.append(now.seconds), original(*args, **kwargs))
    for epoch in range(100):  # tiny epochs: 10 ms each
        progress.start_epoch(epoch, 2)
        for step in range(2):
            now.seconds += 0.004
            progress.update(2 * epoch + step + 1, step + 1, {})
        progress.start_evaluation("val", 1)
        progress.update_evaluation(1)
        now.seconds += 0.002
        progress.end_evaluation({})
        progress.end_epoch(epoch, 2 * epoch + 2, {})
    total = len(draws)
    progress.close()
    assert 5 <= total <= 12  # one second


def test_bar_never_writes_more_than_a_few_lines_of_metrics(file, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    progress = RichProgress(file)
    progress.start(step=0, max_steps=None, max_epochs=1)
    progress.start_epoch(0, 1)
    progress.update(1, 1, {f"a/rather/long/name/{number}": 0.5 for number in range(100)})
    progress.close()
    lines = [line for line in screen(file.getvalue()) if line]
    assert len(lines) == 5
    assert lines[-1] == "  ..."
    assert all(len(line) <= 60 for line in lines)


def test_bar_is_drawn_a_last_time_in_notebooks_where_rich_does_not(file):
    progress, calls = RichProgress(file), []
    progress.start(step=0, max_steps=None, max_epochs=1)
    assert progress._live is not None
    progress._live.stop()
    in_notebook = SimpleNamespace(is_jupyter=True)
    progress._live = SimpleNamespace(  # pyright: ignore[reportAttributeAccessIssue]
        console=in_notebook, refresh=lambda: calls.append(progress._closing), stop=lambda: calls.append("stop")
    )
    progress.close()
    assert calls == [True, "stop"]


def test_bar_does_not_capture_what_is_printed_elsewhere(file, capsys):
    progress = RichProgress(file)
    progress.start(step=0, max_steps=None, max_epochs=1)
    print("to standard output")
    progress.close()
    assert capsys.readouterr().out == "to standard output\n"
    assert "standard" not in file.getvalue()


def test_bar_without_the_length_of_an_epoch_runs_to_the_last_step(file):
    progress = RichProgress(file)
    progress.start(step=40, max_steps=100, max_epochs=None)
    progress.start_epoch(1, None)
    progress.update(50, 10, {})
    progress.close()
    assert re.search(r"Epoch 2 .* step 50/100", "".join(screen(file.getvalue())))


# The clock


def run_clock(now, seconds_per_step: float, steps: int, clock: StepClock, begin: int = 0) -> None:
    for step in range(begin + 1, begin + steps + 1):
        now.seconds += seconds_per_step
        clock.tick(step)


def test_rate_excludes_the_first_step_and_what_is_excluded(now):
    clock = StepClock(now)
    with clock.excluded():  # compiling
        now.seconds += 60
        clock.tick(1)
        now.seconds += 7
    for step in range(2, 11):
        now.seconds += 0.5
        with clock.excluded():
            now.seconds += 3
            with clock.excluded():
                now.seconds += 100
        clock.tick(step)
    assert clock.rate() == pytest.approx(2.0)


def test_rate_follows_a_change(now):
    clock = StepClock(now)
    run_clock(now, 1.0, 50, clock)
    run_clock(now, 0.1, 200, clock, begin=50)
    assert clock.rate() == pytest.approx(10.0)


def test_rate_of_steps_slower_than_the_window_is_known_from_the_second(now):
    clock = StepClock(now)
    run_clock(now, 90.0, 1, clock)
    assert clock.rate() is None
    run_clock(now, 90.0, 2, clock, begin=1)
    assert clock.rate() == pytest.approx(1 / 90)


def test_remaining_time_counts_evaluations_but_not_their_compilation(now):
    clock = StepClock(now)
    now.seconds += 30
    clock.start_evaluation()  # the check before training counts for nothing
    now.seconds += 30
    clock.end_evaluation()
    clock.tick(0)
    run_clock(now, 1.0, 10, clock)
    with clock.excluded():
        clock.start_evaluation()
        with clock.excluded():
            now.seconds += 50
        now.seconds += 5.0
        clock.end_evaluation()
        now.seconds += 20  # saving
    assert clock.rate() == pytest.approx(1.0)
    assert clock.remaining_s(20) == pytest.approx(20 * 1.5)
    assert clock.remaining_s(None) is None


def test_remaining_time_spans_the_whole_run_and_stops_at_the_nearest_end(file, now):
    def last_eta(**limits: Any) -> str:
        file.truncate(0)
        progress = PlainProgress(file, now=now)
        progress.start(step=0, **limits)
        progress.start_epoch(0, 10)
        progress.update(1, 1, {})
        now.seconds += 9
        progress.end_epoch(0, 10, {})
        return file.getvalue().split()[-1]

    assert last_eta(max_steps=None, max_epochs=5) == "0:00:40"
    assert last_eta(max_steps=25, max_epochs=5) == "0:00:15"
    assert last_eta(max_steps=None, max_epochs=None) == "steps/s"


def test_remaining_time_without_the_length_of_an_epoch_is_known_from_the_second(file, now):
    progress = PlainProgress(file, now=now)
    progress.start(step=0, max_steps=None, max_epochs=3)
    for epoch in range(2):
        progress.start_epoch(epoch, None)
        for step in range(10):
            now.seconds += 2
            progress.update(10 * epoch + step + 1, step + 1, {})
        progress.end_epoch(epoch, 10 * epoch + 10, {})
    assert [line.split("  ")[-1] for line in file.getvalue().splitlines()] == ["eta 0:00:40", "eta 0:00:20"]


# The choice


def test_choice_of_display_follows_the_output(file, monkeypatch):
    terminal: Any = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(make_progress(True, terminal), RichProgress)
    assert isinstance(make_progress(True, file), PlainProgress)
    assert isinstance(make_progress(False, terminal), NoProgress)
    file.close()
    assert isinstance(make_progress(True, file), PlainProgress)


def test_no_display_writes_messages_unless_silent(file):
    NoProgress(file).print("a message")
    NoProgress(file, silent=True).print("another")
    assert file.getvalue() == "a message\n"


def test_rich_is_imported_by_the_first_bar_only():
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import lightjax.progress\n"
        "lightjax.progress.PlainProgress().start(step=0, max_steps=1, max_epochs=None)\n"
        "already = {name for name in sys.modules if name.startswith('rich')}\n"
        "source = open(lightjax.progress.bar.__file__).read()\n"
        "exec(compile(source, 'bar', 'exec'), {'__name__': 'bar'})\n"
        "assert {name for name in sys.modules if name.startswith('rich')} == already\n"
    )
    subprocess.run([sys.executable, "-c", program, ROOT], check=True)
