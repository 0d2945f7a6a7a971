"""Preparation: a module, its data and its optimizers made ready, in Lightning's order."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from lightjax.data.grouped import Accumulation
from lightjax.data.stage import FitData
from lightjax.errors import ConfigurationError
from lightjax.training import steps_of
from lightjax_torch import random_states
from lightjax_torch.attachment import attached
from lightjax_torch.hooks import ModuleHooks, overridden
from lightjax_torch.lightning_callbacks import parted
from lightjax_torch.loader_source import LoaderSource, in_order, sources, train_source
from lightjax_torch.module_calls import is_automatic, overridden_in
from lightjax_torch.optimization import configured, stepped_by_module
from lightjax_torch.replica import Replica
from lightjax_torch.samplers import shared

if TYPE_CHECKING:
    from lightjax_torch.engine import TorchEngine


class Preparation:
    """Makes ready what a training, an evaluation or a prediction needs.

    Args:
      engine: runs the module.
    """

    def __init__(self, engine: TorchEngine) -> None:
        self._engine = engine
        self._module: Any = engine.module
        self._train_source: LoaderSource | None = None
        self._request_train: Callable[[], LoaderSource] | None = None

    def fit_data(
        self,
        train_data: Any,
        val_data: Any,
        datamodule: Any,
        limits: Mapping[str, int | float | None],
        *,
        overfit_batches: int | float,
        reload_every_n_epochs: int,
        accumulation: Accumulation,
        kept: Any,
        given: Any,
    ) -> FitData:
        """Sets the module up for training, in Lightning's order, and returns its data."""
        self._check_module()
        self._attach("fit")
        self._resolve_callbacks()
        if datamodule is not None and (train_data is not None or val_data is not None):
            raise ConfigurationError("fit got both loaders and a datamodule; pass one or the other.")
        self._set_up("fit", datamodule, kept)
        self._engine.hold_live()
        self._engine.steps = self._engine.optimizer_steps = 0
        self._engine.average.begin()
        self._engine.log.newest.clear()
        self._configure_optimizers_later(train_data, limits, overfit_batches, accumulation)
        self.replicate()
        self._engine.calls.call("on_fit_start")
        self._module.zero_grad()

        def validation() -> dict[str, LoaderSource]:
            if limits["val"] == 0 or not overridden(self._module, "validation_step"):
                return {}
            loaders = self._loader("val_dataloader") if val_data is None else val_data
            if overfit_batches:
                loaders = in_order(loaders)
            self._engine.view.loaders["val"] = loaders = self._share(loaders, "val_data", "val")
            found = sources(loaders, "val_data", limits["val"])
            self._engine.log.loaders = list(found)
            return found

        def make() -> tuple[Any, Any]:
            # What the sanity check needs is made and drawn before the training data, in vain; without one, after it.
            if self._engine.trainer.num_sanity_val_steps:
                with random_states.isolated():
                    val = validation()
                train = self._train_data()
            else:
                train = self._train_data()
                train.begin(0) if given is None else None
                val = validation()
            return train, val

        def renew() -> tuple[Any, Any]:
            self._train_source = None
            found = make()
            # Lightning begins a pass over new loaders in vain, which draws.
            found[0].draw()
            return found

        train, val = make()
        return FitData(
            train,
            val,
            make=renew if reload_every_n_epochs else None,
            every_n_epochs=reload_every_n_epochs,
            datamodule=datamodule,
        )

    def stage_data(
        self, stage: Literal["val", "test", "predict"], data: Any, datamodule: Any, limit: int | float | None
    ) -> dict[str, Any]:
        """Sets the module up for an evaluation or prediction, and returns its data."""
        name = {"val": "validation", "test": "test", "predict": "predict"}[stage]
        if not (overridden(self._module, f"{name}_step") or stage == "predict"):
            raise ConfigurationError(
                f"{type(self._module).__name__} has no {name}_step(self, batch, batch_idx), which this runs; define it."
            )
        function = "validate" if stage == "val" else stage
        self._attach(function)
        self._resolve_callbacks()
        if datamodule is not None and data is not None:
            raise ConfigurationError(f"Both {stage} data and a datamodule were given; pass one or the other.")
        self._set_up(function, datamodule)
        self._engine.log.newest.clear()
        loaders = self._loader(f"{stage}_dataloader") if data is None else data
        self._engine.view.loaders[stage] = loaders = self._share(loaders, f"{stage} data", stage)
        found = sources(loaders, f"{stage} data", limit)
        if not found:
            raise ConfigurationError(
                f"No {stage} data was given; pass data or datamodule, or give the module a {stage}_dataloader()."
            )
        self._engine.log.loaders = list(found)
        return found

    def replicate(self) -> None:
        """Averages gradients with those of the other processes, if there are any: of the parameters trained now."""
        if self._engine.processes.alone:
            return
        if self._engine.replica is not None:
            self._engine.replica.close()
        self._engine.replica = Replica(
            self._module,
            lambda *arguments: self._engine.calls.run_step("training_step", *arguments),
            find_unused_parameters=self._engine.task.find_unused_parameters,
        )

    def estimated_steps(self) -> int | float:
        """Returns the optimizer steps of the whole training; what is not known is infinite."""
        found = steps_of(self._engine.trainer, self._train_data().batches)
        return math.inf if found is None else found

    def _check_module(self) -> None:
        for method, why in (
            ("training_step", "(self, batch, batch_idx), which returns the loss"),
            ("configure_optimizers", "(self), which returns an optimizer"),
        ):
            if not overridden(self._module, method):
                raise ConfigurationError(
                    f"{type(self._module).__name__} has no {method}{why}, so it cannot be trained; define it."
                )
        if "dataloader_iter" in inspect.signature(self._module.training_step).parameters:
            raise ConfigurationError(
                f"{type(self._module).__name__}.training_step takes dataloader_iter, which lightjax does not give; "
                "take batch and batch_idx."
            )

    def _attach(self, function: str) -> None:
        engine = self._engine
        engine.run = None
        engine.attached = True
        engine.view.state.function = function
        engine.view.loaders.clear()
        log, log_dict = engine.task.plain(engine.log.log), engine.task.plain(engine.log.log_dict)
        attached(engine.module, engine.view, log, log_dict)
        engine.calls.forget()
        engine.log.forget()

    def _resolve_callbacks(self) -> None:
        found = self._module.configure_callbacks() if overridden(self._module, "configure_callbacks") else []
        found = list(found) if isinstance(found, list | tuple) else [found]
        ours, theirs = parted(found, f"{type(self._module).__name__}.configure_callbacks returned")
        kinds = {type(one) for one in theirs}
        given = [one for one in getattr(self._engine.trainer, "lightning_callbacks", ()) if type(one) not in kinds]
        self._engine.calls.callbacks = [*given, *theirs]
        self._engine.callbacks = (*ours, ModuleHooks(self._engine))

    def _set_up(self, stage: str, datamodule: Any, kept: Any = None) -> None:
        """Runs what prepares data and module, in Lightning's order."""
        self._engine.datamodule = datamodule
        if datamodule is not None:
            datamodule.trainer = self._engine.view
        for owner in (datamodule, self._module):
            if owner is not None and overridden(owner, "prepare_data"):
                owner.prepare_data()
        if datamodule is not None and overridden(datamodule, "setup"):
            datamodule.setup(stage)
        self._engine.calls.call("setup", stage)
        if datamodule is not None and kept and overridden(datamodule, "load_state_dict"):
            datamodule.load_state_dict(kept)
        self._engine.calls.call("configure_model")
        self._engine.numerics.convert_module(self._module)
        self._module.to(self._engine.device)

    def _configure_optimizers_later(self, train_data: Any, limits: Any, overfit: Any, accumulation: Any) -> None:
        """Configures the optimizers; the training data is asked for when they want to know how long it is."""
        self._train_source = None

        def request() -> LoaderSource:
            loader = self._loader("train_dataloader") if train_data is None else train_data
            # Which batches are trained on again and again is decided before they are shared.
            loader = self._share(in_order(loader) if overfit else loader, "train_data", "train")
            self._engine.view.loaders["train"] = loader
            return train_source(loader, limits["train"], overfit, accumulation)

        self._request_train = request
        found = self._module.configure_optimizers()
        automatic = is_automatic(self._module)
        self._engine.optimizers, self._engine.schedulers = configured(found, self._module, automatic=automatic)
        self._engine.wrapped = [
            stepped_by_module(one, self._engine.train_step.step_by_module, self._module)
            for one in self._engine.optimizers
        ]
        self._engine.view.strategy._lightning_optimizers = self._engine.wrapped
        if not automatic and (self._engine.clip_value is not None or accumulation.largest > 1):
            raise ConfigurationError(
                f"{type(self._module).__name__} optimizes by itself (automatic_optimization=False), so that "
                "gradient_clip_val and accumulate_grad_batches have nothing to act on; do both in training_step "
                "(self.clip_gradients), and leave the arguments out."
            )

    def _share(self, loader: Any, name: str, stage: str) -> Any:
        """Returns the part of a loader that this process reads."""
        engine = self._engine
        if engine.processes.alone or loader is None or not engine.task.use_distributed_sampler:
            return loader
        return shared(loader, name, stage, engine.processes)

    def _train_data(self) -> LoaderSource:
        assert self._request_train is not None
        if self._train_source is None:
            self._train_source = self._request_train()
        return self._train_source

    def _loader(self, method: str) -> Any:
        """Asks the data module, or the module, for a loader; None where neither has one."""
        for owner in (self._engine.datamodule, self._module):
            if overridden_in(owner, method):
                return getattr(owner, method)()
            if owner is self._engine.datamodule and owner is not None:
                return None
        return None
