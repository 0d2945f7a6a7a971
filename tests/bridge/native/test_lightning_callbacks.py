"""Callbacks that people wrote for Lightning are called as Lightning calls them."""

from typing import Any

import pytest

from tests.bridge.native.reference import QUIET, boring_classes, lightning, train_in_both

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


def test_callbacks_that_come_with_lightning_are_refused():
    with pytest.raises(ConfigurationError, match=r"got EarlyStopping of lightning.*give lj.EarlyStopping"):
        lightjax_torch.Trainer(max_epochs=1, callbacks=[lightning.callbacks.EarlyStopping("a")])
    with pytest.raises(
        ConfigurationError, match="got TQDMProgressBar of lightning.*belongs to Lightning's own trainer"
    ):
        lightjax_torch.Trainer(max_epochs=1, callbacks=lightning.callbacks.TQDMProgressBar())
    with pytest.raises(ConfigurationError, match="got int of builtins, which is no callback"):
        lightjax_torch.Trainer(max_epochs=1, callbacks=[3])
