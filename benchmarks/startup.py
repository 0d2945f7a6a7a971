"""Times the start of a training program: from the start of the process to the end of its first step.

python benchmarks/startup.py --rounds 5 --json startup.json

Each round starts every program twice in a directory that is new at first: the second start finds what the first one
left there, such as compiled programs. lightjax keeps what it wants to; for the hand-written loop and for Keras jax's
persistent compilation cache is switched on, and the hand-written loop also runs without. Every contestant has its
defaults: bars, loggers and checkpoints where it has them. The programs are in first_step.py.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from models import MODELS
from process import BENCHMARKS, environment
from report import machine, machine_line, table, write_json

BASELINE = "handwritten"
WHICH = ("first", "second")


class Contestant(NamedTuple):
    """A row of the table: its name there, its program in first_step.py, whether jax's own cache is set, its needs."""

    title: str
    program: str
    cache: bool
    needs: tuple[str, ...]


CONTESTANTS = {
    "handwritten": Contestant("hand-written jax.jit loop", "handwritten", True, ("jax", "optax")),
    "handwritten-uncached": Contestant("the same without a cache", "handwritten", False, ("jax", "optax")),
    "lightjax": Contestant("lightjax", "lightjax", False, ("jax", "optax")),
    "lightning": Contestant("Lightning", "lightning", False, ("torch", "lightning")),
    "keras": Contestant("Keras on JAX", "keras", True, ("keras", "jax")),
}


def seconds(contestant: Contestant, model_name: str, directory: str, timeout_s: float) -> float:
    """Starts a program and returns how long it took to the end of its first step.

    Raises:
      RuntimeError: the program failed; the message is the last line it wrote.
    """
    answer = Path(directory, "answer")
    answer.unlink(missing_ok=True)
    surroundings = environment(directory)
    if contestant.cache:
        surroundings |= {
            "JAX_COMPILATION_CACHE_DIR": os.path.join(directory, "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    command = [sys.executable, BENCHMARKS / "first_step.py", contestant.program, model_name, answer]
    began = time.clock_gettime(time.CLOCK_MONOTONIC)
    done = subprocess.run(
        command, cwd=directory, env=surroundings, capture_output=True, text=True, errors="replace", timeout=timeout_s
    )
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    return float(answer.read_text()) - began


def measure(model_name: str, names: list[str], rounds: int, timeout_s: float) -> dict[str, dict[str, Any]]:
    """Times first and second starts, in turns.

    Returns:
      For each contestant `first` and `second` (lists of seconds), or `skipped` or `failed` with a reason.
    """
    rows: dict[str, dict[str, Any]] = {name: {which: [] for which in WHICH} for name in names}
    for name, row in rows.items():
        if missing := [package for package in CONTESTANTS[name].needs if find_spec(package) is None]:
            row["skipped"] = f"{', '.join(missing)} not installed"
    for turn in range(-1, rounds):  # round -1 is not counted: it fills the page cache and writes the .pyc files
        for name in names[:: 1 if turn % 2 == 0 else -1]:
            row = rows[name]
            if "skipped" in row or "failed" in row:
                continue
            with tempfile.TemporaryDirectory(prefix="lightjax_benchmark_", ignore_cleanup_errors=True) as directory:
                try:
                    taken = [
                        seconds(CONTESTANTS[name], model_name, directory, timeout_s)
                        for _ in WHICH[: 2 if turn >= 0 else 1]
                    ]
                except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
                    row["failed"] = str(error)
                    continue
            if turn >= 0:
                for which, one in zip(WHICH, taken, strict=True):
                    row[which].append(one)
        print(f"  round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
    for row in rows.values():
        if row["second"]:
            row["median_s"] = {which: statistics.median(row[which]) for which in WHICH}
    return rows


def describe(model_name: str, rows: dict[str, dict[str, Any]]) -> str:
    """Returns the table of a model."""
    base = rows.get(BASELINE, {}).get("median_s")
    lines = []
    for name, row in rows.items():
        title = CONTESTANTS[name].title
        if out := next((word for word in ("skipped", "failed") if word in row), None):
            lines.append([f"{title} ({out}: {row[out]})".replace("|", "/")[:100], *["-"] * 6])
            continue
        cells = []
        for which in WHICH:
            cells += [f"{row['median_s'][which]:.2f}", f"{min(row[which]):.2f}-{max(row[which]):.2f}"]
            cells.append(f"{row['median_s'][which] / base[which]:.2f}" if base else "-")
        lines.append([title, *cells])
    head = ["contestant"] + [f"{which} {what}" for which in WHICH for what in ("start, s", "range", "of hand-written")]
    return f"### {MODELS[model_name].title}\n\n{table(head, lines)}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=f"contestants: {', '.join(CONTESTANTS)}; models: {', '.join(MODELS)}",
    )
    parser.add_argument("--rounds", type=int, default=5, help="starts of each kind (default: %(default)s)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["mlp", "gpt"], metavar="MODEL")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), metavar="NAME")
    parser.add_argument("--timeout-s", type=float, default=300, help="for one start")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers to this file")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds is 1 at least")

    about: dict[str, Any] = {"machine": machine(), "rounds": arguments.rounds, "results": {}}
    print(f"{machine_line(about['machine'])} Medians of {arguments.rounds} rounds.\n")
    for model_name in arguments.models:
        print(f"{MODELS[model_name].title}:", file=sys.stderr)
        rows = measure(model_name, arguments.contestants, arguments.rounds, arguments.timeout_s)
        about["results"][model_name] = rows
        print(describe(model_name, rows) + "\n", flush=True)
        if arguments.json:
            write_json(arguments.json, about)


if __name__ == "__main__":
    main()
