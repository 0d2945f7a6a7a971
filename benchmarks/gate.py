"""The gate at the start of every epoch: where a contestant waits for its turn and where its clock is read.

A contestant trains once, for as many epochs as all rounds need. A round is one lead-in epoch, which is not timed, and
a window of epochs, which is. The clock runs from the start of an epoch to the start of a later one, so that whatever
comes back every epoch (steps, logging, bar, evaluation, checkpoint) is inside, and nothing that happens once
(imports, compilation, the end of training) is. Work that an epoch leaves to the background falls into the next one:
the lead-in epoch makes it enter the window as often as it leaves it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO


@dataclass(frozen=True)
class Rounds:
    """How often a contestant is timed.

    Attributes:
      count: timed windows.
      epochs: epochs of a window.
      warm_up: epochs before the first round; compilation happens here, and what is measured to choose from.
    """

    count: int
    epochs: int
    warm_up: int = 4

    @property
    def total_epochs(self) -> int:
        """Epochs to train: the last one only closes the last window."""
        return self.warm_up + self.count * (1 + self.epochs) + 1


class Gate:
    """Counts epochs, reads the clock, waits.

    Args:
      rounds: how often to time.
      commands: gives one line for each round.
      answers: takes one line of JSON for each round.
      compilations: returns how many programs were compiled so far.
    """

    def __init__(self, rounds: Rounds, commands: IO[str], answers: IO[str], compilations: Callable[[], int]) -> None:
        self.rounds = rounds
        self.recompiled = 0
        self._commands, self._answers, self._compilations = commands, answers, compilations
        self._epoch = 0
        self._began = 0.0
        self._compiled = 0

    def epoch_starts(self, wait: Callable[[], object]) -> None:
        """Is called by a contestant before the first step of every epoch.

        Args:
          wait: waits for the device to finish the steps before; called at the edges of windows only.
        """
        since_warm_up = self._epoch - self.rounds.warm_up
        self._epoch += 1
        if since_warm_up < 0:
            return
        done, place = divmod(since_warm_up, 1 + self.rounds.epochs)
        if place == 1:
            wait()
            self._began = time.perf_counter()
        elif place == 0:
            wait()
            elapsed = time.perf_counter() - self._began
            compiled = self._compilations()
            if done:
                self.recompiled = compiled - self._compiled
                self.answer(seconds=elapsed)
            else:
                self._compiled = compiled
                self.answer(ready=True)
            if done < self.rounds.count:
                self._commands.readline()

    def answer(self, **about: object) -> None:
        """Sends a line to whoever started the contestant."""
        self._answers.write(json.dumps(about) + "\n")
        self._answers.flush()
