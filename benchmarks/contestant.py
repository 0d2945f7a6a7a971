"""The process of one contestant; started by `overhead.py`, never by hand.

Takes its job as JSON in the first argument and two pipes as file descriptors; trains, stops at the gate for each
round, and ends with its loss, its peak memory, and how many programs it compiled after warm-up.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import traceback
from pathlib import Path

from contestants import CONTESTANTS, NotAvailable, Setup
from gate import Gate, Rounds

WARM_UP_STEPS = 80
COMPILED = "/jax/core/compile/backend_compile_duration"


class Compilations:
    """Counts the programs that XLA compiled in this process."""

    def __init__(self) -> None:
        self.count = 0
        import jax

        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def __call__(self) -> int:
        return self.count

    def _heard(self, event: str, duration_s: float, **about: object) -> None:
        self.count += event == COMPILED


def peak_bytes() -> int:
    """Returns the most memory this process has had resident."""
    try:
        # Unlike ru_maxrss, this one forgets the parent that the process was forked from.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    job = json.loads(sys.argv[1])
    contestant = CONTESTANTS[job["contestant"]]
    # Until then programs are chosen by what steps took, and compiled.
    warm_up = max(Rounds.warm_up, -(-WARM_UP_STEPS // job["steps"]))
    rounds = Rounds(job["rounds"], job["epochs"], warm_up)
    with os.fdopen(job["commands"]) as commands, os.fdopen(job["answers"], "w") as answers:
        gate = Gate(rounds, commands, answers, Compilations() if "jax" in contestant.needs else lambda: 0)
        setup = Setup(
            job["model"], job["steps"], rounds.total_epochs, Path.cwd(), {**contestant.options, **job["options"]}
        )
        try:
            loss = importlib.import_module(f"contestants.{contestant.module}").train(setup, gate)
        except NotAvailable as reason:
            gate.answer(skipped=str(reason))
        except BaseException as error:
            traceback.print_exc()
            gate.answer(failed=f"{type(error).__name__}: {error}".splitlines()[0])
            raise SystemExit(1) from None
        else:
            recompiled = gate.recompiled if "jax" in contestant.needs else None
            gate.answer(loss=loss, peak_bytes=peak_bytes(), recompiled=recompiled)


if __name__ == "__main__":
    main()
