"""Runs the program, kills it at random moments, resumes it until it ends.

`python -m tests.resume.killing --kills 200` prints how many kills the run survived.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("array", "device", "list", "grain", "torch", "torchdata")


def start(directory, steps_per_call, kind):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.resume.program", str(directory), str(steps_per_call), kind],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def finish(process):
    """Waits for the end of the program and returns what it found."""
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1]), err


def run_to_the_end(directory, steps_per_call, kind):
    return finish(start(directory, steps_per_call, kind))[0]


def hit(directory, steps_per_call, kind, delay_s):
    """Starts the program and kills it a while after it began; says whether it was still running."""
    process = start(directory, steps_per_call, kind)
    while (line := process.stdout.readline()) != "ready\n":
        assert line, process.stderr.read()
    time.sleep(delay_s)
    running = process.poll() is None
    process.kill()
    process.communicate(timeout=200)
    return running


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill and resume a training, and compare with the undisturbed one.")
    parser.add_argument("--kills", type=int, default=200, help="kills in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    survived = lost = kills = 0
    while kills < arguments.kills:
        kind = moments.choice(KINDS)
        with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryDirectory() as undisturbed:
            expected = run_to_the_end(undisturbed, moments.choice([1, 8]), kind)
            for _ in range(min(5, arguments.kills - kills)):
                kills += hit(directory, moments.choice([1, 8]), kind, moments.uniform(0.2, 4.0))
            same = run_to_the_end(directory, moments.choice([1, 8]), kind) == expected
            survived, lost = survived + same, lost + (not same)
        print(f"{kills} kills, {survived} runs ended as the undisturbed one, {lost} did not", flush=True)
    sys.exit(lost > 0)


if __name__ == "__main__":
    main()
