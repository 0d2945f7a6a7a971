"""Runs the program in processes of its own, kills it at random moments, resumes it until it ends.

`python -m tests.resume.killing --kills 200` prints how many runs ended as the undisturbed ones.
"""

import argparse
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

KINDS = ("array", "device", "list", "grain", "torch", "torchdata")
WAIT_S = 500

# Every life is a process of its own, forked from one that has imported what they need and done nothing else.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.resume.program", "orbax.checkpoint", "grain", "torchdata.stateful_dataloader"])


def live(connection, directory, steps_per_call, kind):
    """The whole life of a process."""
    import jax

    from tests.resume.program import train

    # Programs for eight devices, which other tests have, take three times as long to compile.
    jax.config.update("jax_num_cpu_devices", 1)

    outcome = train(directory, steps_per_call, kind, connection.send)
    connection.send(outcome)


def start(directory, steps_per_call, kind):
    """Starts a life; returns its process, and the connection on which it says what it does and what came of it."""
    ours, theirs = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=live, args=(theirs, directory, steps_per_call, kind))
    process.start()
    theirs.close()
    return process, ours


def said(connection):
    """Returns the next thing a life says; raises `EOFError` after the last one."""
    if not connection.poll(WAIT_S):
        raise TimeoutError(f"a run said nothing for {WAIT_S} s")
    return connection.recv()


def outcome_of(process, connection):
    """Waits for the end of a life and returns what came of it."""
    while not isinstance(told := said(connection), dict):
        pass
    process.join()
    assert process.exitcode == 0
    return told


def run_to_the_end(directory, steps_per_call, kind):
    return outcome_of(*start(directory, steps_per_call, kind))


def hit(directory, steps_per_call, kind, after, delay_s, stop=lambda process: process.kill()):
    """Stops a life so many looks after it began, and a moment later.

    Returns:
      What it did at the time, None if it had ended; and what came of it, None if it was killed.
    """
    process, connection = start(directory, steps_per_call, kind)
    told = None
    try:
        for _ in range(after):
            if isinstance(told := said(connection), dict):
                process.join()
                return None, told
        time.sleep(delay_s)
        stop(process)
        while not isinstance(told := said(connection), dict):
            doing = told
        process.join()
        return doing, told
    except EOFError:
        process.join()
        return told, None


def killed(directory, kind, kills, moments):
    """Kills and resumes a run so often; how many steps a call runs changes from life to life: it changes no bit.

    Returns:
      How the run ended, and what the kills interrupted.
    """
    interrupted = Counter()
    for number in range(kills):
        doing, outcome = hit(directory, 8 if number % 3 else 1, kind, moments.randint(1, 9), moments.uniform(0.0, 0.05))
        interrupted[doing] += outcome is None
    return run_to_the_end(directory, moments.choice([1, 8]), kind), interrupted


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill and resume trainings, and compare with undisturbed ones.")
    parser.add_argument("--kills", type=int, default=200, help="kills in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    arguments = parser.parse_args()
    moments, interrupted = random.Random(arguments.seed), Counter()
    survived = lost = 0
    with tempfile.TemporaryDirectory() as root:
        expected = {kind: run_to_the_end(Path(root, kind, "undisturbed"), 8, kind) for kind in KINDS}
        for number in range(10**9):
            if (left := arguments.kills - interrupted.total()) <= 0:
                break
            kind = KINDS[number % len(KINDS)]
            outcome, hits = killed(Path(root, kind, str(number)), kind, min(5, left), moments)
            interrupted += hits
            survived, lost = survived + (outcome == expected[kind]), lost + (outcome != expected[kind])
            print(f"{interrupted.total()} kills: {survived} runs survived, {lost} lost", flush=True)
    print("the kills came during:", ", ".join(f"{what} {count}" for what, count in interrupted.most_common()))
    sys.exit(lost > 0)


if __name__ == "__main__":
    main()
