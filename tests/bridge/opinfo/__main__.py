"""Runs torch's operator database through the bridge and compares it with the ledger; `--write` makes a new one."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Thousands of small programs run once each: compiling them is what takes the time.
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def shard(number: int, shards: int, most: int, only: list[str], into: Path) -> None:
    """Runs every `shards`-th operator and writes a JSON line for each."""
    from tests.bridge.opinfo.modules import modules
    from tests.bridge.opinfo.samples import of_operator, operators

    chosen = [op for op in [*operators(), *modules()] if not only or op.name in only or op.full_name in only]
    with into.open("w") as file:
        for op in chosen[number::shards]:
            json.dump({"name": op.full_name, "dtypes": of_operator(op, most)}, file)
            file.write("\n")
            file.flush()


def main() -> int:
    """Returns 1 where a line is worse than in the ledger."""
    parser = argparse.ArgumentParser(prog="python -m tests.bridge.opinfo", description=__doc__)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--most", type=int, default=0, help="samples an operator and dtype; 0: all float32 ones")
    parser.add_argument("--only", default="", help="operators, separated by commas")
    parser.add_argument("--write", action="store_true", help="write the ledger")
    parser.add_argument("--into", type=Path, help="folder for the outcomes of every sample, with their reasons")
    parser.add_argument("--shard", type=int, nargs=2, help=argparse.SUPPRESS)
    request = parser.parse_args()
    only = [name for name in request.only.split(",") if name]
    if request.shard is not None:
        shard(*request.shard, request.most, only, request.into)
        return 0

    from tests.bridge.opinfo import ledger

    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS, "OMP_NUM_THREADS": "1"}
    shards = 1 if only else 2 * request.processes
    with tempfile.TemporaryDirectory() as temporary:
        folder = request.into or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{number}.jsonl" for number in range(shards)]

        def run(number: int) -> None:
            command = [sys.executable, "-m", "tests.bridge.opinfo", "--shard", str(number), str(shards)]
            command += ["--only", request.only, "--most", str(request.most), "--into", str(paths[number])]
            crashed.extend([number] if subprocess.run(command, env=environment).returncode else [])

        crashed: list[int] = []
        with ThreadPoolExecutor(request.processes) as pool:
            list(pool.map(run, range(shards)))
        for number in crashed:
            print(f"shard {number} of {shards} ended after {paths[number].read_text().count(chr(10))} operators")
        records = [json.loads(line) for path in paths for line in path.read_text().splitlines()]

    lines = {record["name"]: ledger.line(record["name"], record["dtypes"]) for record in records}
    before = ledger.load() if ledger.PATH.exists() else {}
    worse = [text for name, line in lines.items() if name in before for text in line.worse_than(before[name])]
    kept = (before if only else {}) | lines
    if request.write:
        ledger.write(kept.values())
    print(*ledger.totals(lines.values()), *(f"worse: {text}" for text in worse), sep="\n")
    return int(bool(crashed) or (bool(worse) and not request.write))


if __name__ == "__main__":
    raise SystemExit(main())
