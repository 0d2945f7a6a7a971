"""Trains tiny models of transformers and timm in torch and in JAX and compares them with the ledger."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Every model is compiled for three steps: compiling is what takes the time.
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
LIBRARIES = {"transformers": "tests.bridge.zoo.architectures", "timm": "tests.bridge.zoo.families"}


def names(only: list[str]) -> list[str]:
    """Returns `library/model` of the models whose name, or library, is among `only`; of all where that is empty."""
    found = []
    for library, module in LIBRARIES.items():
        for name in __import__(module, fromlist=["NAMES"]).NAMES:
            if not only or library in only or name in only or f"{library}/{name}" in only:
                found.append(f"{library}/{name}")
    return found


def work(chosen: list[str], narrow: bool, into: Path) -> None:
    """Compares models one after another and appends a JSON line for each."""
    import jax
    import torch

    from tests.bridge.zoo.comparison import Outcome, compare, short

    torch.set_num_threads(1)
    for name in chosen:
        library, _, model = name.partition("/")
        started = time.perf_counter()
        torch.manual_seed(0)
        try:
            built = __import__(LIBRARIES[library], fromlist=["build"]).build(model)
        except Exception as error:
            outcome = Outcome("not applicable", f"torch itself: {short(error)}")
        else:
            outcome = compare(built, narrow=narrow)
        jax.clear_caches()
        record = {"name": name, "seconds": time.perf_counter() - started, **dataclasses.asdict(outcome)}
        with into.open("a") as file:
            file.write(json.dumps(record) + "\n")


def done(into: Path) -> dict[str, dict]:
    """Reads what was compared."""
    lines = into.read_text().splitlines() if into.exists() else []
    return {record["name"]: record for record in map(json.loads, lines)}


def watched(chosen: list[str], request: argparse.Namespace, into: Path, lock: threading.Lock) -> None:
    """Runs models in a process of their own, and in a new one after a model that hangs or crashes."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS, "OMP_NUM_THREADS": "1"}
    left = list(chosen)
    while left:
        command = [sys.executable, "-m", "tests.bridge.zoo", "--work", ",".join(left), "--into", str(into)]
        command += ["--float64"] if request.float64 else []
        with subprocess.Popen(command, env=environment) as process:
            since = time.monotonic()
            while process.poll() is None:
                time.sleep(0.5)
                compared = done(into)
                if not left:
                    continue  # it only has to end
                if left[0] in compared:
                    left = [name for name in left if name not in compared]
                    since = time.monotonic()
                elif time.monotonic() - since > request.limit:
                    process.kill()
            compared = done(into)
            left = [name for name in left if name not in compared]
            if left:
                late = time.monotonic() - since > request.limit
                reason = f"takes more than {request.limit:.0f} s" if late else f"ends Python with {process.returncode}"
                with lock, into.open("a") as file:
                    file.write(json.dumps({"name": left[0], "kind": "fails", "reason": reason}) + "\n")
                left = left[1:]


def main() -> int:
    """Returns 1 where a model passed before and no longer does."""
    parser = argparse.ArgumentParser(prog="python -m tests.bridge.zoo", description=__doc__)
    parser.add_argument("--only", default="", help="models or libraries, separated by commas")
    parser.add_argument("--write", action="store_true", help="write the ledger")
    parser.add_argument("--into", type=Path, help="file of results; models that it has already are not compared again")
    parser.add_argument("--limit", type=float, default=300, help="seconds a model may take: %(default)s")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--group", type=int, default=12, help="models a process: %(default)s")
    parser.add_argument("--float64", action="store_true", help="leave out float32")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    request = parser.parse_args()
    if request.work is not None:
        work(request.work.split(","), not request.float64, request.into)
        return 0

    from tests.bridge.zoo import ledger

    only = [name for name in request.only.split(",") if name]
    with tempfile.TemporaryDirectory() as temporary:
        into = request.into or Path(temporary) / "results.jsonl"
        wanted = names(only)
        if not wanted:
            raise SystemExit(f"none of the models is called {request.only!r}")
        left = [name for name in wanted if name not in done(into)]
        # Every group gets models from all over the list: their times differ by family.
        count = -(-len(left) // request.group)
        groups = [left[number::count] for number in range(count)]
        lock = threading.Lock()
        with ThreadPoolExecutor(request.processes) as pool:
            list(pool.map(lambda group: watched(group, request, into, lock), groups))
        records = [record for name, record in done(into).items() if name in wanted]
    shares = ("name", "kind", "wide", "narrow", "reason")
    lines = {one["name"]: ledger.Line(**{key: one[key] for key in shares if key in one}) for one in records}
    before = ledger.load()
    worse = [f"worse: {line}" for name, line in lines.items() if name in before and line.worse_than(before[name])]
    if request.write:
        known = set(names([]))
        ledger.write(line for name, line in (before | lines).items() if name in known)
    failing = [str(line) for line in lines.values() if line.kind != "passes"]
    print(*failing, *ledger.totals(lines.values()), *worse, sep="\n")
    return int(bool(worse) and not request.write)


if __name__ == "__main__":
    raise SystemExit(main())
