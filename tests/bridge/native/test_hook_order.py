"""Every event hook of a module is called in the order that lightning.Trainer calls it in."""

from typing import Any

import pytest

from tests.bridge.native.reference import boring_classes, lightning, quietly, train_in_both

torch = pytest.importorskip("torch")

import lightjax_torch  # noqa: E402
from tests.bridge.native.reference import QUIET  # noqa: E402

HOOKS = [
    "prepare_data", "setup", "configure_model", "configure_optimizers", "configure_callbacks", "teardown",
    "on_fit_start", "on_fit_end", "on_train_start", "on_train_end", "on_train_epoch_start", "on_train_epoch_end",
    "on_train_batch_start", "on_train_batch_end", "training_step", "on_before_backward", "backward",
    "on_after_backward", "on_before_zero_grad", "optimizer_zero_grad", "optimizer_step", "on_before_optimizer_step",
    "configure_gradient_clipping", "lr_scheduler_step", "on_validation_model_zero_grad", "on_validation_model_eval",
    "on_validation_model_train", "on_validation_start", "on_validation_epoch_start", "on_validation_batch_start",
    "validation_step", "on_validation_batch_end", "on_validation_epoch_end", "on_validation_end", "on_test_model_eval",
    "on_test_model_train", "on_test_start", "on_test_epoch_start", "on_test_batch_start", "test_step",
    "on_test_batch_end", "on_test_epoch_end", "on_test_end", "on_predict_model_eval", 
    "on_predict_start", "on_predict_epoch_start", "on_predict_batch_start", "predict_step", "on_predict_batch_end",
    "on_predict_epoch_end", "on_predict_end", "on_before_batch_transfer", "transfer_batch_to_device",
    "on_after_batch_transfer",
]  # fmt: skip


def recorded(kind: type, calls: list[str]) -> Any:
    """Returns a module of a class whose hooks note their names and what else can be compared."""

    def noting(name: str) -> Any:
        base = getattr(kind, name)

        def hook(self: Any, *arguments: Any, **keywords: Any) -> Any:
            numbers = [
                getattr(one, "value", one) for one in (*arguments, *keywords.values()) if isinstance(one, int | str)
            ]
            calls.append(f"{name}{numbers} grad={torch.is_grad_enabled()} training={self.training}")
            return base(self, *arguments, **keywords)

        return hook

    return type("Recorded", (kind,), {name: noting(name) for name in HOOKS})()


def orders(kind: type, **arguments: Any) -> tuple[list[str], list[str]]:
    """Returns the calls of a training in both trainers."""
    both: list[list[str]] = []

    def make() -> Any:
        both.append([])
        return recorded(kind, both[-1])

    train_in_both(make, max_epochs=2, limit_train_batches=3, limit_val_batches=2, **arguments)
    return both[0], both[1]


@pytest.mark.parametrize("kind", [boring_classes.BoringModel, boring_classes.ManualOptimBoringModel])
def test_hooks_of_a_training(kind):
    lightnings, ours = orders(kind)
    assert ours == lightnings
    assert len(ours) > 100


def test_hooks_of_a_training_that_gathers_gradients_and_evaluates_within_epochs():
    lightnings, ours = orders(boring_classes.BoringModel, accumulate_grad_batches=2, num_sanity_val_steps=0)
    assert ours == lightnings
    lightnings, ours = orders(boring_classes.BoringModel, val_check_interval=1)
    assert ours == lightnings


@pytest.mark.parametrize("method", ["validate", "test", "predict"])
def test_hooks_of_evaluation_and_prediction(method):
    both = []
    for trainer_class in (lightning.Trainer, lightjax_torch.Trainer):
        calls: list[str] = []
        module = recorded(boring_classes.BoringModel, calls)
        with quietly():
            limit = {"validate": "limit_val_batches"}.get(method, f"limit_{method}_batches")
            getattr(trainer_class(**QUIET, **{limit: 2}), method)(module)
        both.append(calls)
    assert both[1] == both[0]
