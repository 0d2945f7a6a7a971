"""Clock: the time by which a run ends, evaluates or saves, the same in every process."""

from __future__ import annotations

import time

from lightjax import distributed

# Of several processes; each agreement takes some milliseconds.
AGREE_EVERY_S = 1.0
# Calls may become faster, but not all at once: so many times as many until the next agreement.
GROWTH = 8


class Clock:
    """Tells the time; of several processes, that of process 0, about a second old at most.

    The clocks of processes differ, and they read them at different moments: one that stops or saves by its own would
    wait for the others forever. They agree on a time once in some calls; in how many follows from the times they agreed
    on, so that each agrees at the same call. A clock that nobody reads costs nothing.

    Every process has to call each method equally often.

    Example:
      >>> clock = Clock()
      >>> clock.tick()
      >>> 0.0 <= clock.now_s() < 60.0
      True
    """

    def __init__(self) -> None:
        self._alone = distributed.is_alone()
        self._begun_s = time.monotonic()
        self._agreed: tuple[float, float] | None = None
        self._calls = 0
        self._until = 1

    def tick(self) -> None:
        """Counts a call, and agrees with the other processes where it is time; waits for them then."""
        if self._agreed is None:
            return
        self._calls += 1
        if self._calls < self._until:
            return
        before_s, _ = self._agreed
        self._agreed = self._time_of_main()
        passed_s, most = self._agreed[0] - before_s, GROWTH * self._calls
        fitting = most if passed_s <= 0.0 else int(self._calls * AGREE_EVERY_S / passed_s)
        self._until, self._calls = max(1, min(fitting, most)), 0

    def now_s(self) -> float:
        """Returns the seconds since the clock was made; never goes back."""
        return time.monotonic() - self._begun_s if self._alone else self._read()[0]

    def date_s(self) -> float:
        """Returns the seconds since 1970, for what outlives the process."""
        return time.time() if self._alone else self._read()[1]

    def _read(self) -> tuple[float, float]:
        if self._agreed is None:
            self._agreed = self._time_of_main()
        return self._agreed

    def _time_of_main(self) -> tuple[float, float]:
        mine = f"{time.monotonic() - self._begun_s!r} {time.time()!r}"
        now_s, date_s = map(float, distributed.from_main(mine).split())
        return now_s, date_s
