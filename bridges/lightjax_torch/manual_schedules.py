"""Learning-rate schedulers of a module that optimizes manually: they step where it says so, `self.lr_schedulers()`.

The compiled step counts how often it stepped each, and looks the learning rate up in a table of the next counts, which
the scheduler itself fills on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

import lightjax as lj
from lightjax.errors import ConfigurationError
from lightjax_torch import schedule
from lightjax_torch.errors import WAY_OUT, CaptureError
from lightjax_torch.schedule import Scheduled, Schedules
from lightjax_torch.source_lines import current_line

if TYPE_CHECKING:
    from lightjax.run import Run


class ScheduledRates(NamedTuple):
    """Learning rates of an optimizer by how often its scheduler stepped.

    Attributes:
      rates: float [rows, groups].
      first: int32 scalar, the count that row 0 belongs to.
      steps: int32 scalar, how often it stepped.
    """

    rates: jax.Array
    first: jax.Array
    steps: jax.Array


class ManualSchedules(lj.Callback):
    """Fills the tables as the training goes on.

    Args:
      optimizers: of the module.
      schedulers: as `configure_optimizers` returned them.

    Attributes:
      every_n_steps: how often it fills them; as often as they may run out.
      rows: of a table.
      numbers: of the optimizers that have a scheduler, in the order of the schedulers.

    Raises:
      ConfigurationError: an optimizer has several schedulers, or none of them, or its momentum is cycled.
    """

    every_n_steps = None

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], schedulers: Sequence[Any]) -> None:
        plain = [one["scheduler"] if isinstance(one, Mapping) else one for one in schedulers]
        places = {id(optimizer): number for number, optimizer in enumerate(optimizers)}
        self.numbers = [places.get(id(one.optimizer), -1) for one in plain]
        self._tables: list[Schedules] = []
        self._stepped = False
        self.rows = schedule.STEPS_AHEAD
        if -1 in self.numbers or len(set(self.numbers)) < len(self.numbers):
            raise ConfigurationError(
                "configure_optimizers of a module that optimizes manually returned several schedulers of an optimizer, "
                "or one of an optimizer that it did not return; chain them, torch.optim.lr_scheduler.ChainedScheduler "
                f"or SequentialLR, or {WAY_OUT}."
            )
        for scheduler, number in zip(plain, self.numbers, strict=True):
            table = Schedules()
            at_metrics = isinstance(scheduler, ReduceLROnPlateau)
            table.take(optimizers[number], [Scheduled(scheduler, interval="epoch" if at_metrics else "step")])
            table.every_n_steps = self.rows
            if table.cycles:
                raise ConfigurationError(
                    f"{type(scheduler).__name__} cycles the momentum, which a ported step that optimizes manually "
                    f"does not read; give it cycle_momentum=False, or {WAY_OUT}."
                )
            self._tables.append(table)
        self.every_n_steps = self.rows - 1 if plain else None

    def allow(self, calls: int) -> None:
        """Notes how often a step steps a scheduler at most.

        Raises:
          CaptureError: more often than a table has rows.
        """
        if calls >= self.rows:
            raise CaptureError(f"training_step steps a scheduler {calls} times; {WAY_OUT}.")
        if calls > 1 and self.every_n_steps is not None:
            self.every_n_steps = min(self.every_n_steps, (self.rows - 1) // calls)

    def begin(self, dtype: Any) -> dict[str, ScheduledRates]:
        """Returns the tables of step 0, by the number of the optimizer."""
        zero = jnp.zeros((), jnp.int32)
        return {
            str(number): ScheduledRates(jnp.asarray(table.ahead()[0], dtype), zero, zero)
            for number, table in zip(self.numbers, self._tables, strict=True)
        }

    def lent(self, run: Run) -> Callable[[], Any]:
        """Returns what `self.lr_schedulers` is in a hook on the host."""

        def lr_schedulers() -> Any:
            self._commit(run)
            return one_or_all([_OnHost(table, self._note) for table in self._tables])

        return lr_schedulers

    def on_fit_start(self, run: Run) -> None:
        """Begins anew, or goes on where a resumed run was."""
        if self._tables:
            for number, table in zip(self.numbers, self._tables, strict=True):
                table.restart(int(run.state.opt_state.schedules[str(number)].steps))
            self.fill(run)

    def on_train_batch_end(self, run: Run) -> None:
        """Fills the tables for the next steps."""
        self.fill(run)

    def fill(self, run: Run) -> None:
        """Puts the rates of the next counts into the state; waits for the device."""
        if not self._tables:
            return
        self._commit(run)
        held, found = run.state.opt_state, {}
        for number, table in zip(map(str, self.numbers), self._tables, strict=True):
            old = held.schedules[number]
            found[number] = old._replace(
                rates=jnp.asarray(table.ahead()[0], old.rates.dtype), first=jnp.copy(old.steps)
            )
        run.state = run.state.replace(opt_state=held._replace(schedules=found))
        self._stepped = False

    def fill_if_stepped(self, run: Run) -> None:
        """Fills the tables if a hook on the host stepped a scheduler."""
        if self._stepped:
            self.fill(run)

    def state_dict(self) -> dict[str, Any]:
        """Returns what happened so far."""
        return {"tables": [table.state_dict() for table in self._tables]} if self._tables else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes through it again."""
        for table, kept in zip(self._tables, state.get("tables", ()), strict=True):
            table.load_state_dict(kept)

    def _note(self) -> None:
        self._stepped = True

    def _commit(self, run: Run) -> None:
        schedules = run.state.opt_state.schedules
        for number, table in zip(map(str, self.numbers), self._tables, strict=True):
            table.commit(int(schedules[number].steps))


class _OnHost:
    """A scheduler in a hook on the host."""

    def __init__(self, table: Schedules, note: Callable[[], None]) -> None:
        self._table, self._note = table, note

    def step(self, *metric: Any) -> None:
        """Steps it."""
        self._note()
        self._table.happened(["metric", 0, float(metric[0])] if metric else ["epoch", 0])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table.schedulers[0].scheduler, name)


class InStep:
    """A scheduler in a step that is captured.

    Args:
      take: steps it.
    """

    def __init__(self, take: Callable[[], None]) -> None:
        self._take = take

    def step(self, *metric: Any) -> None:
        """Steps it."""
        if metric:
            raise CaptureError(
                f"{current_line()}: a scheduler steps by a metric in a step, which has no value there; step it in "
                f"on_train_epoch_end, with self.trainer.callback_metrics, or {WAY_OUT}."
            )
        self._take()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise CaptureError(
            f"{current_line()}: .{name} of a scheduler is read in a step, where its optimizer has the numbers: "
            f'self.optimizers().param_groups[0]["lr"]; or {WAY_OUT}.'
        )


def one_or_all(found: Sequence[Any]) -> Any:
    """Returns schedulers as Lightning does: None, one, or a list."""
    return None if not found else found[0] if len(found) == 1 else list(found)
