"""Times `import lightjax` against the imports it cannot do without: fresh processes, in turns, medians.

python benchmarks/import_time.py --rounds 7 --json import_time.json
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path

BASELINE = "import jax, optax, orbax.checkpoint"
MEASURED = "import lightjax"
LIMIT = 1.15


def seconds(statement: str) -> float:
    """Runs `statement` in a fresh interpreter and returns how long it alone took."""
    code = f"import time; start = time.perf_counter()\n{statement}\nprint(time.perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="timed runs of each statement (at least 7)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the numbers to this file")
    arguments = parser.parse_args()
    if arguments.rounds < 7:
        parser.error(f"--rounds is {arguments.rounds}; a median of fewer than 7 says little")

    for statement in (BASELINE, MEASURED):
        seconds(statement)  # fills the page cache and writes the .pyc files
    times: dict[str, list[float]] = {BASELINE: [], MEASURED: []}
    for turn in range(arguments.rounds):
        # The order turns around, so that a machine slowly growing busier favours neither.
        for statement in (BASELINE, MEASURED)[:: 1 if turn % 2 else -1]:
            times[statement].append(seconds(statement))

    medians = {statement: statistics.median(taken) for statement, taken in times.items()}
    ratio = medians[MEASURED] / medians[BASELINE]
    print(f"{'statement':<40} {'median s':>9} {'min s':>9} {'max s':>9}")
    for statement, taken in times.items():
        print(f"{statement:<40} {medians[statement]:>9.3f} {min(taken):>9.3f} {max(taken):>9.3f}")
    print(f"ratio {ratio:.3f} (limit {LIMIT}), {arguments.rounds} rounds")
    if arguments.json:
        report = {
            "python": platform.python_version(),
            "rounds": arguments.rounds,
            "seconds": times,
            "medians_s": medians,
            "ratio": ratio,
            "limit": LIMIT,
        }
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
