"""Learning-rate schedulers of torch: they run as they are, on the host, and the compiled step reads their numbers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

import lightjax as lj
from lightjax.errors import ConfigurationError
from lightjax_torch.errors import WAY_OUT
from lightjax_torch.optim import CapturedState, momentum_of

if TYPE_CHECKING:
    from lightjax.run import Run

# Learning rates of so many steps are put into the state at once; the loop runs compiled in between.
STEPS_AHEAD = 256


@dataclass(frozen=True)
class Scheduled:
    """A scheduler and when it steps, as `configure_optimizers` says it.

    Attributes:
      scheduler: torch's.
      interval: "epoch" or "step".
      frequency: it steps every so many of them.
      monitor: the metric that a `ReduceLROnPlateau` looks at.
      strict: whether a metric that was not reported is an error.
    """

    scheduler: Any
    interval: str = "epoch"
    frequency: int = 1
    monitor: str | None = None
    strict: bool = True


def configured(module: Any) -> tuple[torch.optim.Optimizer | None, list[Scheduled]]:
    """Reads what `configure_optimizers` returns, in every form that has one optimizer.

    Raises:
      ConfigurationError: there are several optimizers, or the form is unknown.
    """
    returned = module.configure_optimizers() if hasattr(module, "configure_optimizers") else None
    optimizers, schedulers = optimizers_and_schedulers(returned)
    if len(optimizers) > 1 or not all(isinstance(one, torch.optim.Optimizer) for one in optimizers):
        raise ConfigurationError(
            f"configure_optimizers returned {returned!r}; a ported module has one torch optimizer, with schedulers as "
            f"Lightning takes them, or optimizer=optax...; {WAY_OUT}."
        )
    found = [_scheduled(one) for one in schedulers]
    for one in found:
        if isinstance(one.scheduler, ReduceLROnPlateau) and one.monitor is None:
            raise ConfigurationError(
                "configure_optimizers returned a ReduceLROnPlateau without the metric it looks at; return "
                '{"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}.'
            )
    return (optimizers[0] if optimizers else None), found


def optimizers_and_schedulers(returned: Any) -> tuple[list[Any], list[Any]]:
    """Takes apart what `configure_optimizers` returned: optimizers, and schedulers as it gave them."""
    if returned is None:
        return [], []
    if isinstance(returned, Mapping):
        scheduler = returned.get("lr_scheduler")
        config = [scheduler] if scheduler is not None else []
        if config and "monitor" in returned and not isinstance(scheduler, Mapping):
            config = [{"scheduler": scheduler, "monitor": returned["monitor"]}]
        return [returned.get("optimizer")], config
    if isinstance(returned, list | tuple):
        if len(returned) == 2 and all(isinstance(one, list | tuple) for one in returned):
            return list(returned[0]), list(returned[1])
        pairs = [optimizers_and_schedulers(one) for one in returned]
        return [one for first, _ in pairs for one in first], [one for _, second in pairs for one in second]
    return [returned], []


def _scheduled(config: Any) -> Scheduled:
    if isinstance(config, Mapping):
        known = {"scheduler", "interval", "frequency", "monitor", "strict"}
        return Scheduled(**{name: value for name, value in config.items() if name in known and value is not None})
    return Scheduled(config)


class Schedules(lj.Callback):
    """Steps schedulers as the training goes on, and puts the learning rates of the next steps into the state.

    It stops the loop every `STEPS_AHEAD` steps where a scheduler steps with the optimizer, and else only at the ends of
    epochs. What is kept in a checkpoint is what happened: steps, epochs and metrics, which are gone through again.
    """

    every_n_steps = None
    cycles = False

    def __init__(self) -> None:
        self.schedulers: list[Scheduled] = []
        self.events: list[list[Any]] = []
        self._step, self._resumed = 0, False

    def take(self, optimizer: torch.optim.Optimizer, schedulers: Sequence[Scheduled]) -> None:
        """Takes what `configure_optimizers` returned.

        Args:
          optimizer: the one the schedulers change; its parameters are never touched.
          schedulers: of the optimizer.
        """
        self.optimizer, self.schedulers = optimizer, list(schedulers)
        by_step = any(one.interval == "step" for one in self.schedulers)
        self.every_n_steps = STEPS_AHEAD if by_step else None
        # Torch warns of schedulers that step before their optimizer; this one steps on the devices.
        optimizer._opt_called = True  # pyright: ignore[reportAttributeAccessIssue]
        # OneCycleLR and CyclicLR; what else schedulers change is refused when it changes.
        self.cycles = any(getattr(one, "cycle_momentum", False) for one in self._all())
        self._begin = self._snapshot()
        self._others = self._other_numbers()
        self.events, self._step, self._resumed = [], 0, False

    @property
    def rows(self) -> int:
        """How many steps' learning rates the state holds."""
        return self.every_n_steps or 1

    def on_fit_start(self, run: Run) -> None:
        """Begins anew, or goes on where a resumed run was."""
        if self.schedulers:
            self.restart(run.step)
            self._fill(run)

    def restart(self, step: int) -> None:
        """Begins anew at a step, unless what happened before was just loaded."""
        if not self._resumed:
            self._restore(self._begin)
            self.events, self._step = [], step
        self._resumed = False

    def on_train_batch_end(self, run: Run) -> None:
        """Hands over the learning rates of the next steps."""
        self._fill(run)

    def on_train_epoch_end(self, run: Run) -> None:
        """Steps the schedulers of epochs, those that look at a metric included; not where max_steps cuts one short."""
        if not self.schedulers or not run.epoch_ended:
            return
        self.commit(run.step)
        for number, one in enumerate(self.schedulers):
            if one.interval == "epoch" and (run.epoch + 1) % one.frequency == 0:
                if not isinstance(one.scheduler, ReduceLROnPlateau):
                    self.happened(["epoch", number])
                elif one.monitor is not None and (value := metric_of(run.metrics, one.monitor)) is not None:
                    self.happened(["metric", number, float(value)])
                elif one.strict:
                    raise ConfigurationError(
                        f"ReduceLROnPlateau looks at {one.monitor!r}, which was not reported; there are: "
                        f"{', '.join(sorted(run.metrics))}."
                    )
        self._fill(run)

    def state_dict(self) -> dict[str, Any]:
        """Returns what happened so far."""
        return {} if not self.schedulers else {"events": copy.deepcopy(self.events), "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes through it again."""
        if not state:
            return
        self._restore(self._begin)
        self.events = []
        for event in state["events"]:
            self.happened(list(event))
        self._step, self._resumed = state["step"], True

    def ahead(self) -> tuple[list[list[float]], list[list[float]]]:
        """Returns learning rates and momenta of the groups in each of the next steps; the schedulers stay."""
        before, rates, momenta = self._snapshot(), [], []
        for _ in range(self.rows):
            rates.append([float(group["lr"]) for group in self.optimizer.param_groups])
            momenta.append([momentum_of(group) for group in self.optimizer.param_groups] if self.cycles else [])
            try:
                self._happen(["steps", 1], self._step + len(rates))
            except ValueError:
                # OneCycleLR ends here: the run may, too. If it goes on, the scheduler raises when these steps are done.
                rates += [rates[-1]] * (self.rows - len(rates))
                momenta += [momenta[-1]] * (self.rows - len(momenta))
                break
        if any(momentum == 0 for row in momenta for momentum in row):
            raise ConfigurationError("A scheduler cycles the momentum to 0; give it a base_momentum above.")
        self._restore(before)
        return rates, momenta

    def _fill(self, run: Run) -> None:
        self.commit(run.step)
        rates, momenta = self.ahead()

        def filled(node: Any) -> Any:
            if not isinstance(node, CapturedState):
                return node
            numbers = {"rates": jnp.asarray(rates, node.rates.dtype), "momenta": jnp.asarray(momenta, node.rates.dtype)}
            return node._replace(**numbers, first=jnp.copy(node.updates))

        is_leaf = lambda node: isinstance(node, CapturedState)  # noqa: E731
        opt_state = jax.tree.map(filled, run.state.opt_state, is_leaf=is_leaf)
        run.state = run.state.replace(opt_state=opt_state)

    def commit(self, step: int) -> None:
        """Lets the schedulers see the steps that were done since."""
        if step > self._step:
            self.happened(["steps", step - self._step])

    def happened(self, event: list[Any]) -> None:
        """Lets the schedulers see ["steps", how many], ["epoch", which one] or ["metric", which one, value]."""
        self._happen(event, self._step + 1)
        if event[0] == "steps":
            self._step += event[1]
        if self.events and event[0] == "steps" and self.events[-1][0] == "steps":
            self.events[-1][1] += event[1]
        else:
            self.events.append(event)

    def _happen(self, event: list[Any], step: int) -> None:
        kind, number = event[:2]
        if kind == "steps":
            for done in range(step, step + number):
                for one in self.schedulers:
                    if one.interval == "step" and done % one.frequency == 0:
                        one.scheduler.step()
        elif kind == "epoch":
            self.schedulers[number].scheduler.step()
        else:
            self.schedulers[number].scheduler.step(event[2])
        if self._other_numbers() != self._others:
            raise ConfigurationError(
                f"A scheduler changes more than the learning rate ({self._others} became {self._other_numbers()}), and "
                f"a ported step reads only learning rates and momenta; {WAY_OUT}."
            )

    def _other_numbers(self) -> list[dict[str, Any]]:
        left_out = ["params", "lr", "initial_lr", "max_lr", "min_lr", "swa_lr"]
        left_out += ["momentum", "betas", "max_momentum", "base_momentum"] if self.cycles else []
        return [
            {name: value for name, value in group.items() if name not in left_out}
            for group in self.optimizer.param_groups
        ]

    def _snapshot(self) -> tuple[Any, Any]:
        groups = [{name: value for name, value in g.items() if name != "params"} for g in self.optimizer.param_groups]
        held = [(one, {name: _copied(value) for name, value in one.__dict__.items()}) for one in self._all()]
        return groups, held

    def _restore(self, snapshot: tuple[Any, Any]) -> None:
        for group, numbers in zip(self.optimizer.param_groups, snapshot[0], strict=True):
            group.update(numbers)
        for one, attributes in snapshot[1]:
            one.__dict__.update({name: _copied(value) for name, value in attributes.items()})

    def _all(self) -> Iterator[Any]:
        """Yields the schedulers and those inside of them."""
        found = [one.scheduler for one in self.schedulers]
        while found:
            one = found.pop()
            yield one
            for value in one.__dict__.values():
                found += [
                    v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, LRScheduler)
                ]


def metric_of(metrics: Mapping[str, Any], name: str) -> Any:
    """Finds a metric by the name that the module logged it under; None where there is none."""
    for known in (name, f"val/{name}", f"train/{name}_epoch", f"train/{name}"):
        if known in metrics:
            return metrics[known]
    return None


def _copied(value: Any) -> Any:
    return copy.copy(value) if isinstance(value, list | dict | set) else value
