"""Callbacks that people wrote for Lightning are called as Lightning calls them."""

from typing import Any

import pytest

from tests.bridge.native.reference import QUIET, boring_classes, lightning, quietly, same_weights, train_in_both

torch = pytest.importorskip("torch")

import lightjax as lj  # noqa: E402
import lightjax_torch  # noqa: E402
from lightjax.errors import ConfigurationError  # noqa: E402

Callback = lightning.Callback
HOOKS = [
    name
    for name in dir(Callback)
    if name in ("setup", "teardown")
    or (name.startswith("on_") and "checkpoint" not in name and "exception" not in name)
]


class Model(boring_classes.BoringModel):
    def __init__(self, calls: list[str]) -> None:
        super().__init__()
        self.calls = calls

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.calls.append("the module's own")

    def configure_callbacks(self) -> Any:
        return [recorder(self.calls, "second")]


def recorder(calls: list[str], name: str) -> Any:
    """Returns a callback that notes every hook with what it can see."""

    def noting(hook: str) -> Any:
        def note(self: Any, trainer: Any, module: Any, *arguments: Any, **keywords: Any) -> None:
            numbers = [
                getattr(one, "value", one) for one in (*arguments, *keywords.values()) if isinstance(one, int | str)
            ]
            calls.append(f"{name} {hook}{numbers} {trainer.global_step} {module.training} {trainer.current_epoch}")
            if hook == "on_train_epoch_end":
                module.log(f"by {name}", float(trainer.current_epoch))
            if hook == "on_before_optimizer_step":
                arguments[0].param_groups[0]["lr"] *= 0.9

        return note

    kind = type(f"Recorder{name.title()}", (Callback,), {hook: noting(hook) for hook in HOOKS})
    return kind()


def test_every_hook_in_lightnings_order_and_what_they_change():
    both: list[list[str]] = []

    def make() -> Any:
        both.append([])
        return Model(both[-1])

    calls: list[str] = []
    first, second = train_in_both(
        make, max_epochs=2, limit_train_batches=3, limit_val_batches=2, callbacks=[recorder(calls, "first")]
    )
    assert both[0] == both[1]
    assert calls[: len(calls) // 2] == calls[len(calls) // 2 :]
    assert first.losses == second.losses
    assert first.metrics == second.metrics
    assert {"by first", "by second"} <= second.metrics.keys()


class Counter(Callback):
    def __init__(self) -> None:
        self.count = 0

    def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
        self.count += 1
        if trainer.global_step == 4:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict["count"]


def test_what_they_keep_is_in_the_checkpoint():
    first, arguments = Counter(), QUIET | {"enable_checkpointing": True, "limit_train_batches": 3}
    lightjax_torch.Trainer(max_epochs=2, callbacks=first, **arguments).fit(boring_classes.BoringModel())
    assert first.count == 4
    second = Counter()
    trainer = lightjax_torch.Trainer(max_epochs=2, callbacks=[second, lj.LambdaCallback()], **arguments)
    trainer.fit(boring_classes.BoringModel(), ckpt_path="last")
    assert second.count >= 4


class Judged(boring_classes.BoringModel):
    """Its validation loss is best in the epochs 1 and 2, and its rates differ."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", [3.0, 1.0, 1.5, 2.0, 2.5, 4.0][self.current_epoch])

    def configure_optimizers(self) -> Any:
        groups = [{"params": [self.layer.weight], "lr": 0.02}, {"params": [self.layer.bias], "name": "bias"}]
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.5)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


def test_those_that_come_with_lightning_mean_the_same_and_show_what_they_found(tmp_path):
    both = []
    for trainer_class in (lightning.Trainer, lightjax_torch.Trainer):
        stopper = lightning.callbacks.EarlyStopping("val_loss", min_delta=0.1, patience=2, mode="min")
        keeper = lightning.callbacks.ModelCheckpoint(
            tmp_path / trainer_class.__module__, "{epoch}-{val_loss:.1f}", "val_loss", save_top_k=2, mode="min"
        )
        rates = lightning.callbacks.LearningRateMonitor(log_momentum=True)
        timer = lightning.callbacks.Timer("00:01:00:00")
        doubling = lightning.callbacks.GradientAccumulationScheduler({1: 2})
        arguments = QUIET | {"enable_checkpointing": True, "logger": True, "default_root_dir": tmp_path / "logs"}
        with quietly():
            trainer = trainer_class(
                max_epochs=6,
                limit_train_batches=3,
                limit_val_batches=1,
                log_every_n_steps=1,
                callbacks=[stopper, rates, keeper, timer, doubling],
                **arguments,
            )
            trainer.fit(Judged())
        assert 0.0 < timer.time_elapsed() < 3600.0
        both.append(
            {
                "stopped": (stopper.stopped_epoch, stopper.wait_count, stopper.best_score.item()),
                "scores": [score.item() for score in keeper.best_k_models.values()],
                "best": (keeper.best_model_score.item(), keeper.kth_value.item(), keeper.current_score.item()),
                "rates": rates.lrs,
                "momentum": trainer.callback_metrics["lr-SGD/bias-momentum"].item(),
                "steps": trainer.global_step,
            }
        )
    assert sorted(both[0].pop("scores")) == sorted(both[1].pop("scores")) == [1.0, 1.5]
    assert both[0] == both[1]
    assert both[1]["stopped"] == (3, 2, 1.0)
    loaded = lightjax_torch.read_checkpoint(keeper.best_model_path)
    assert (loaded["epoch"], loaded["global_step"]) == (2, 5)
    assert loaded["state_dict"].keys() == Judged().state_dict().keys()


def test_fine_tuning_callbacks_of_lightning_run_as_they_are():
    class Unfreezing(lightning.callbacks.BaseFinetuning):
        def freeze_before_training(self, pl_module: Any) -> None:
            self.freeze(pl_module.layer)

        def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
            if epoch == 1:
                self.unfreeze_and_add_param_group(pl_module.layer, optimizer, lr=0.01)

    class Two(boring_classes.BoringModel):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(2, 2)

        def forward(self, x: Any) -> Any:
            return self.head(self.layer(x))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(filter(lambda one: one.requires_grad, self.parameters()), lr=0.1)

    first, second = train_in_both(
        Two, max_epochs=2, limit_train_batches=3, limit_val_batches=1, callbacks=lambda: [Unfreezing()]
    )
    assert first.losses == second.losses
    assert same_weights(first.module, second.module)


def test_the_progress_bar_and_the_summary_are_lightjaxs_own(capsys):
    bars = [lightning.callbacks.TQDMProgressBar(), lightning.callbacks.RichModelSummary()]
    arguments: dict[str, Any] = QUIET | {"enable_checkpointing": True}
    trainer = lightjax_torch.Trainer(max_epochs=1, callbacks=bars, **arguments)
    assert len(trainer.callbacks) == 1
    said = capsys.readouterr().out
    assert "in the place of TQDMProgressBar there is lightjax's own progress bar" in said
    assert "in the place of RichModelSummary there is lightjax's own summary" in said


def test_those_without_an_exact_counterpart_are_refused_with_what_to_write():
    class Stopping(lightning.callbacks.EarlyStopping):
        pass

    for callback, text in (
        (Stopping("a"), "got Stopping of .*give lightjax_torch.callbacks.EarlyStopping, the same arguments"),
        (
            lightning.callbacks.EMAWeightAveraging(),
            r"own trainer; give lj.EMA\(decay, update_every_n_steps=",
        ),
        (lightning.callbacks.ModelPruning("l1_unstructured"), r"give lj.Pruning\(amount, parameters="),
        (3, "got int of builtins, which is no callback; give a subclass of lj.Callback"),
    ):
        with pytest.raises(ConfigurationError, match=text):
            lightjax_torch.Trainer(max_epochs=1, callbacks=[callback])
