"""Times a training step in many frameworks: microseconds a step, in one run, in turns, medians.

python benchmarks/overhead.py --rounds 7 --json overhead.json

Each contestant trains in a process of its own, once, and is timed in windows of whole epochs; between its windows it
is stopped and the others have their turn (see gate.py). All train the same model from the same weights on the same
batches with Adam; the last loss is printed so that nobody wins by not training.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from contestants import CONTESTANTS
from models import MODELS
from process import ContestantProcess, Failed
from report import machine, machine_line, table, write_json

BASELINE = "handwritten"
MIB = 1 << 20
CHOSEN = re.compile(r"steps_per_call=\d+ \([^)]*\)")  # what lightjax says about a choice of its own
COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
Row = dict[str, Any]


def measure(model_name: str, names: list[str], arguments: argparse.Namespace) -> dict[str, Row]:
    """Times the contestants on one model.

    Returns:
      For each contestant its `us_per_step` (a list, one number a round), `loss`, `peak_bytes` and `recompiled`; or
      `skipped` or `failed` with a reason.
    """
    model = MODELS[model_name]
    steps = max(2, round(model.steps * arguments.steps_scale))
    epochs = arguments.epochs or model.epochs
    rows: dict[str, Row] = {}
    running: dict[str, ContestantProcess] = {}

    def hear(name: str, *, turn: bool) -> Row:
        try:
            answer = running[name].turn() if turn else running[name].answer()
        except (Failed, OSError) as error:
            answer = {"failed": str(error)}
        if "failed" in answer or "skipped" in answer:
            rows[name] |= answer
            process = running.pop(name)
            process.end()
            if "failed" in answer:
                say(f"  {name} failed: {answer['failed']}\n{process.output[-3000:]}")
        return answer

    try:
        for name in names:
            rows[name] = {"us_per_step": []}
            if missing := [package for package in CONTESTANTS[name].needs if find_spec(package) is None]:
                rows[name]["skipped"] = f"{', '.join(missing)} not installed"
                continue
            job = {"contestant": name, "model": model_name, "steps": steps, "epochs": epochs}
            job |= {"rounds": arguments.rounds, "options": options_of(arguments)}
            running[name] = ContestantProcess(job, arguments.timeout_s, arguments.platform)
            hear(name, turn=False)
            say(f"  {name} is ready" if name in running else f"  {name} is out")
        for turn in range(arguments.rounds):
            # The order turns around, so that a machine slowly growing busier favours nobody.
            for name in list(running)[:: 1 if turn % 2 == 0 else -1]:
                if "seconds" in (answer := hear(name, turn=True)):
                    rows[name]["us_per_step"].append(answer["seconds"] / (epochs * steps) * 1e6)
            say(f"  round {turn + 1} of {arguments.rounds}")
        for name in list(running):
            # The last window has been timed; the closing epoch and the end of training remain.
            rows[name] |= hear(name, turn=True)
            if name in running and (chosen := CHOSEN.search(COLOURS.sub("", running[name].output))):
                rows[name]["chosen"] = " ".join(chosen[0].split())
    finally:
        for process in running.values():
            process.end()
    for row in rows.values():
        if row["us_per_step"]:
            row["median_us"] = statistics.median(row["us_per_step"])
    return rows


def options_of(arguments: argparse.Namespace) -> Row:
    """Returns what contestants are told beyond their own options."""
    options: Row = {"collate": arguments.dataloader}
    if arguments.steps_per_call is not None:
        value = arguments.steps_per_call
        options["steps_per_call"] = int(value) if value.isdecimal() else value
    return options


def describe(model_name: str, rows: dict[str, Row]) -> str:
    """Returns the table of a model."""
    base = rows.get(BASELINE, {})
    lines = []
    for name, row in rows.items():
        title = CONTESTANTS[name].title
        if out := next((word for word in ("skipped", "failed") if word in row), None):
            reason = f"{out}: {row[out]}".replace("|", "/")[:80]
            lines.append([f"{title} ({reason})", *["-"] * 7])
            continue
        lines.append(
            [
                title,
                f"{row['median_us']:.1f}",
                f"{min(row['us_per_step']):.1f}-{max(row['us_per_step']):.1f}",
                ratio(row, base, "median_us"),
                "-" if row["recompiled"] is None else str(row["recompiled"]),
                f"{row['peak_bytes'] / MIB:.0f}",
                ratio(row, base, "peak_bytes"),
                f"{row['loss']:.4f}",
            ]
        )
    head = ["contestant", "µs a step", "range", "of hand-written", "recompiled", "peak MiB", "of hand-written", "loss"]
    notes = [f"{CONTESTANTS[name].title}: {row['chosen']}." for name, row in rows.items() if "chosen" in row]
    return "\n\n".join([f"### {MODELS[model_name].title}", table(head, lines), *notes])


def ratio(row: Row, base: Row, key: str) -> str:
    return f"{row[key] / base[key]:.2f}" if key in row and key in base else "-"


def goals(model_name: str, rows: dict[str, Row]) -> list[str]:
    """Compares lightjax with what it is meant to reach; contestants that did not finish are left out."""
    time = {name: row["median_us"] for name, row in rows.items() if "loss" in row}
    limit = 1.0 if model_name in ("linear", "mlp") else 1.02
    wanted = [
        ("defaults / hand-written", "lightjax", BASELINE, limit),
        ("10 scalars / defaults", "lightjax-10", "lightjax", 1.03),
        ("defaults / Keras", "lightjax", "keras-1", 1.0),
        ("defaults / Keras, 32 steps", "lightjax", "keras-32", 1.0),
    ]
    if model_name == "mlp":
        wanted.append(("defaults / Lightning's", "lightjax", "lightning", 0.1))
    wanted += [
        ("everything on / hand-written", "lightjax-everything", BASELINE, limit),
        ('profiler="simple" / nothing is timed', "lightjax-simple", "lightjax-unprofiled", 1.01),
        ("a logger that hangs / defaults", "lightjax-hung", "lightjax", 1.01),
        ("a logger that fails / defaults", "lightjax-failing", "lightjax", 1.01),
    ]
    found = []
    for title, one, other, most in wanted:
        if one in time and other in time:
            reached = "reached" if time[one] <= time[other] * most else "missed"
            found.append(f"{title} {time[one] / time[other]:.3f}, goal {most:.2f}: {reached}")
    for name in (name for name in time if name.startswith("lightjax")):
        if recompiled := rows[name]["recompiled"]:
            found.append(f"{name} compiled {recompiled} programs after warm-up, goal 0: missed")
        if BASELINE in time and (more := rows[name]["peak_bytes"] / rows[BASELINE]["peak_bytes"]) > 1.1:
            found.append(f"{name} peak memory / hand-written {more:.2f}, goal 1.10 and the stacked batches: see there")
    return found


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    usual = [name for name, one in CONTESTANTS.items() if one.by_default]
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=f"contestants: {', '.join(CONTESTANTS)}; models: {', '.join(MODELS)}",
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed windows of each contestant (default: %(default)s)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=usual, metavar="NAME")
    parser.add_argument("--steps-scale", type=float, default=1.0, help="multiplies the steps of an epoch")
    parser.add_argument("--epochs", type=int, help="epochs of a window (default: of the model)")
    parser.add_argument("--steps-per-call", metavar="K", help="of lightjax: a number or auto (default: lightjax's own)")
    parser.add_argument("--dataloader", action="store_true", help="torch reads a DataLoader instead of ready slices")
    parser.add_argument(
        "--platform", choices=("cpu", "cuda", "tpu"), default="cpu", help="of JAX; torch stays on the CPU"
    )
    parser.add_argument("--timeout-s", type=float, default=900, help="for one answer of a contestant")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers to this file")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or (arguments.epochs is not None and arguments.epochs < 1):
        parser.error("--rounds and --epochs are 1 at least")

    about = {"machine": machine(), "arguments": vars(arguments) | {"json": None}, "results": {}}
    print(f"{machine_line(about['machine'])} Medians of {arguments.rounds} rounds.\n")
    for model_name in arguments.models:
        say(f"{MODELS[model_name].title}:")
        rows = about["results"][model_name] = measure(model_name, arguments.contestants, arguments)
        print(describe(model_name, rows) + "\n")
        print("".join(f"- {line}\n" for line in goals(model_name, rows)), flush=True)
        if arguments.json:
            write_json(arguments.json, about)


if __name__ == "__main__":
    main()
