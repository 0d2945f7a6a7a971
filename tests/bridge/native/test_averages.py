"""Averages of weights beside a torch module: the bits of torch.optim.swa_utils in a loop written by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lightjax as lj
from lightjax.errors import CheckpointError, ConfigurationError

torch = pytest.importorskip("torch")

from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn  # noqa: E402

from lightjax_torch import LightningModule, from_torch  # noqa: E402
from tests.models import StopAt  # noqa: E402

QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
generator = torch.Generator().manual_seed(0)
BATCHES = [(x := torch.randn(6, 4, generator=generator), (x.sum(1) > 0).long()) for _ in range(4)]
VALIDATION = BATCHES[:2]
EPOCHS = 4


class Model(LightningModule):
    def __init__(self, manual: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.automatic_optimization = not manual
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))

    def loss(self, batch: Any) -> Any:
        return torch.nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layers(batch[0])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


def by_hand(averaged: Any, *, every: int = 1, start: int = 0, swa: Any = None) -> tuple[Any, Any, list[float]]:
    """Trains as a torch program does; returns the module, its average and the validation losses of the average."""
    module = Model()
    [optimizer], [scheduler] = module.configure_optimizers()
    average, rates, step, losses = averaged(module), None, 0, []
    for epoch in range(EPOCHS):
        if swa is not None and epoch >= swa[0]:
            if rates is None:
                rates = SWALR(optimizer, swa_lr=swa[1], anneal_epochs=swa[2])
            else:
                rates.step()
        for batch in BATCHES:
            optimizer.zero_grad()
            module.loss(batch).backward()
            optimizer.step()
            step += 1
            if swa is None and step > start and (step - start) % every == 0:
                average.update_parameters(module)
        if rates is None:
            scheduler.step()
        # The statistics of BatchNorm are the last ones in lightjax, those of the last update in AveragedModel.
        seen = average.module if average.n_averaged else module
        for one, other in zip(seen.buffers(), module.buffers(), strict=True):
            one.copy_(other)
        seen.eval()
        with torch.no_grad():
            found = [seen.loss(batch).item() * len(batch[1]) for batch in VALIDATION]
        losses.append(sum(found) / 12)
        module.train()
        if rates is not None:
            average.update_parameters(module)
    return module, average.module, losses


def ema(decay: float) -> Any:
    return lambda module: AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "EMA": (lambda: lj.EMA(0.9), {"averaged": ema(0.9)}),
    "EMA, every third from the fifth": (
        lambda: lj.EMA(0.5, update_every_n_steps=3, update_starting_at_step=5),
        {"averaged": ema(0.5), "every": 3, "start": 5},
    ),
    "equal weights": (lambda: lj.WeightAveraging(), {"averaged": AveragedModel}),
    "the ends of epochs": (
        lambda: lj.StochasticWeightAveraging(0.03, swa_epoch_start=1, annealing_epochs=2),
        {"averaged": AveragedModel, "swa": (1, 0.03, 2)},
    ),
}


def fit(directory: Path | None, *callbacks: Any, resume: str | None = None) -> tuple[Any, Any, Any]:
    """Trains; writes checkpoints where there is a directory for them."""
    task = from_torch(Model(), device="cpu")
    files: dict[str, Any] = {"enable_checkpointing": False} if directory is None else {"default_root_dir": directory}
    saving = [] if directory is None else [lj.ModelCheckpoint("val_loss")]
    trainer = lj.Trainer(max_epochs=EPOCHS, callbacks=[*saving, *callbacks], **QUIET, **files)
    return trainer, task, trainer.fit(task, BATCHES, VALIDATION, resume=resume)


def same(state: Any, module: Any) -> bool:
    return all(np.array_equal(state.params[name], one.detach().numpy()) for name, one in module.named_parameters())


@pytest.mark.parametrize("case", CASES)
def test_the_average_has_the_bits_of_a_loop_written_by_hand_and_is_what_is_evaluated(case):
    make, how = CASES[case]
    module, average, losses = by_hand(**how)
    trainer, task, result = fit(None, make())
    assert same(result.state, module)
    assert same(lj.averaged(result.state), average)
    found = [row["val_loss"] for row in result.history if "val_loss" in row]
    assert found == pytest.approx(losses, rel=1e-6)
    assert len(found) == EPOCHS
    # The module is as the training left it, and the average in its place gives what the trainer predicts.
    assert same(result.state, task.module)
    predicted = trainer.predict(task, VALIDATION)
    plain = task.to_torch(lj.averaged(result.state)).eval()
    with torch.no_grad():
        assert all(torch.equal(one, plain.layers(batch[0])) for one, batch in zip(predicted, VALIDATION, strict=True))


@pytest.mark.parametrize("case", ["EMA, every third from the fifth", "the ends of epochs"])
def test_a_resumed_average_ends_bit_for_bit_as_the_uninterrupted_one(tmp_path, case):
    make, _ = CASES[case]
    _, _, whole = fit(None, make())
    fit(tmp_path / "cut", make(), StopAt(10))
    _, _, resumed = fit(tmp_path / "cut", make(), resume="auto")
    expected, found = whole.state.arrays, resumed.state.arrays
    assert found["step"] == 16
    for kind in ("params", "buffers"):
        assert all(np.array_equal(one, found[kind][name]) for name, one in expected[kind].items())
    for name, one in expected["average"]["params"].items():
        assert np.array_equal(one, found["average"]["params"][name])
    assert found["average"]["averaged"] == expected["average"]["averaged"] > 1
    assert resumed.metrics == whole.metrics


def test_the_best_checkpoint_and_a_path_bring_their_average(tmp_path):
    trainer, task, result = fit(tmp_path, lj.EMA(0.9))
    best = result.checkpoint.best
    expected = {row["step"]: row["val_loss"] for row in result.history if "val_loss" in row}[best.step]
    assert trainer.validate(task, VALIDATION, state="best")["val_loss"] == expected
    asking = lj.Trainer(callbacks=[lj.EMA(0.9)], enable_checkpointing=False, **QUIET)
    other = from_torch(Model(), device="cpu")
    assert asking.validate(other, VALIDATION, state=best.path)["val_loss"] == expected
    # Who asks for no average evaluates the last weights, as for states of JAX.
    assert lj.Trainer(barebones=True).validate(other, VALIDATION, state=best.path)["val_loss"] != expected
    assert best.about()["leaves"]["average/params/layers.0.weight"] == "float32[8,4]"
    restored = lj.averaged(best.restore(result.state))
    assert lj.Trainer(barebones=True).validate(other, VALIDATION, state=restored)["val_loss"] == expected


def test_an_average_begins_at_a_given_state_or_goes_on_from_its_own():
    _, _, plain = fit(None)
    task = from_torch(Model(), device="cpu")
    trainer = lj.Trainer(max_steps=18, callbacks=[lj.EMA(0.9)], enable_checkpointing=False, **QUIET)
    begun = trainer.fit(task, BATCHES, state=plain.state)
    assert begun.state.arrays["average"]["steps"] == 2
    trainer = lj.Trainer(max_steps=20, callbacks=[lj.EMA(0.9)], enable_checkpointing=False, **QUIET)
    assert trainer.fit(task, BATCHES, state=begun.state).state.arrays["average"]["steps"] == 4


def test_weights_of_few_bits_are_averaged_in_float32():
    task = from_torch(Model().to(torch.bfloat16), device="cpu")
    trainer = lj.Trainer(max_epochs=1, callbacks=[lj.EMA(0.99)], enable_checkpointing=False, **QUIET)
    result = trainer.fit(task, [(x.bfloat16(), y) for x, y in BATCHES])
    assert result.state.arrays["average"]["params"]["layers.0.weight"].dtype == np.float32
    assert lj.averaged(result.state).params["layers.0.weight"].dtype == result.state.params["layers.0.weight"].dtype


def test_an_error_within_an_evaluation_leaves_the_last_weights_in_the_module():
    class Failing(Model):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            if self.current_epoch == 1:
                raise ValueError("no")

    module = Failing()
    trainer = lj.Trainer(max_epochs=2, callbacks=[lj.EMA(0.5)], enable_checkpointing=False, **QUIET)
    with pytest.raises(ValueError, match="no"):
        trainer.fit(from_torch(module, device="cpu"), BATCHES, VALIDATION)
    plain = Model()
    lj.Trainer(max_epochs=2, barebones=True).fit(from_torch(plain, device="cpu"), BATCHES)
    assert all(torch.equal(one, other) for one, other in zip(module.parameters(), plain.parameters(), strict=True))


def test_what_cannot_be_averaged_says_so(tmp_path):
    arguments = {"max_epochs": 1, "enable_checkpointing": False} | QUIET
    with pytest.raises(ConfigurationError, match="EMA is a second average of the same parameters"):
        lj.Trainer(callbacks=[lj.WeightAveraging(), lj.EMA()], **arguments).fit(from_torch(Model()), BATCHES)
    trainer = lj.Trainer(callbacks=[lj.StochasticWeightAveraging(0.1)], **arguments)
    with pytest.raises(ConfigurationError, match="leads the learning rate, and Model leads it itself"):
        trainer.fit(from_torch(Model(manual=True), device="cpu"), BATCHES)
    with pytest.raises(ConfigurationError, match="averaged was called on a state without an average"):
        lj.averaged(fit(tmp_path)[2].state)
    with pytest.raises(CheckpointError, match="has no average of the weights and the trainer's callbacks ask for one"):
        fit(tmp_path, lj.EMA(), resume="auto")
