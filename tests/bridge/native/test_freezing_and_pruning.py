"""`lj.Finetuning` and `lj.Pruning` beside a torch module: the bits of a loop written by hand."""

from typing import Any

import pytest

import lightjax as lj
from lightjax.errors import ConfigurationError

torch = pytest.importorskip("torch")

from lightjax_torch import LightningModule, from_torch  # noqa: E402
from tests.models import StopAt  # noqa: E402

QUIET: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
generator = torch.Generator().manual_seed(0)
BATCHES = [(x := torch.randn(6, 4, generator=generator), (x.sum(1) > 0).long()) for _ in range(4)]


class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.backbone = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh())
        self.head = torch.nn.Linear(8, 2)
        self.fixed = torch.nn.Parameter(torch.ones(1), requires_grad=False)

    def loss(self, batch: Any) -> Any:
        return torch.nn.functional.cross_entropy(self.head(self.backbone(batch[0])) * self.fixed, batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.1)


def fit(tmp_path: Any, *callbacks: Any, resume: Any = None, epochs: int = 3) -> tuple[Model, Any]:
    module = Model()
    trainer = lj.Trainer(max_epochs=epochs, callbacks=list(callbacks), default_root_dir=tmp_path, **QUIET)
    return module, trainer.fit(from_torch(module, device="cpu"), BATCHES, resume=resume)


def by_hand(epochs: int, epoch_starts: Any = None, epoch_ends: Any = None, step_ends: Any = None) -> Model:
    module = Model()
    optimizer = module.configure_optimizers()
    for epoch in range(epochs):
        if epoch_starts is not None:
            epoch_starts(module, epoch)
        for batch in BATCHES:
            optimizer.zero_grad()
            module.loss(batch).backward()
            optimizer.step()
            if step_ends is not None:
                step_ends(module)
        if epoch_ends is not None:
            epoch_ends(module, epoch)
    return module


def same(one: Any, other: Any) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(mine, yours) for mine, yours in pairs)


def test_frozen_parameters_keep_their_bits_until_their_epoch(tmp_path):
    seen = []

    class Look(lj.Callback):
        every_n_steps = None

        def on_train_epoch_end(self, run: lj.Run) -> None:
            seen.append(module.backbone[0].weight.detach().clone())

    module = Model()
    bias = module.head.bias.detach().clone()
    callbacks = [lj.Finetuning({"^backbone": 1, r"\.bias$": None}), Look()]
    trainer = lj.Trainer(max_epochs=3, callbacks=callbacks, default_root_dir=tmp_path, **QUIET)
    trainer.fit(from_torch(module, device="cpu"), BATCHES)
    assert torch.equal(seen[0], Model().backbone[0].weight)
    assert not torch.equal(seen[1], seen[0])
    assert torch.equal(module.head.bias, bias)

    def epoch_starts(module: Model, epoch: int) -> None:
        module.head.bias.requires_grad_(False)
        module.backbone.requires_grad_(epoch >= 1)

    assert same(module, by_hand(3, epoch_starts))
    # What was trained before may be trained again; what was not, may not.
    assert [name for name, one in module.named_parameters() if not one.requires_grad] == ["fixed"]


@pytest.mark.parametrize(
    "callback", [lambda: lj.Finetuning({"^backbone": 1}), lambda: lj.Pruning(0.5)], ids=["finetuning", "pruning"]
)
@pytest.mark.parametrize("cut", [3, 6])
def test_a_resumed_run_ends_as_the_uninterrupted_one(callback, cut, tmp_path):
    whole, _ = fit(tmp_path / "whole", callback())
    fit(tmp_path / "cut", callback(), StopAt(cut))
    resumed, _ = fit(tmp_path / "cut", callback(), resume="auto")
    assert same(whole, resumed)


class Growing(Model):
    """Adds a group to its optimizer on the way, and freezes another."""

    def configure_optimizers(self) -> Any:
        self.backbone.requires_grad_(False)
        return torch.optim.Adam(self.head.parameters(), lr=0.1)

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.backbone.requires_grad_(True)
            self.optimizers().add_param_group({"params": list(self.backbone.parameters()), "lr": 0.01})
            self.head.bias.requires_grad_(False)


def test_groups_that_were_added_on_the_way_are_resumed(tmp_path):
    found = []
    for name, callbacks, resume in (("whole", [], None), ("cut", [StopAt(6)], None), ("cut", [], "auto")):
        module = Growing()
        arguments: dict[str, Any] = {"max_epochs": 3, "default_root_dir": tmp_path / name, **QUIET}
        lj.Trainer(callbacks=callbacks, **arguments).fit(from_torch(module, device="cpu"), BATCHES, resume=resume)
        found.append(module)
    assert not torch.equal(found[0].backbone[0].weight, Model().backbone[0].weight)
    assert same(found[0], found[2])
    assert not found[2].head.bias.requires_grad


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_smallest_entries_are_zero_and_stay_it(scope, tmp_path):
    amounts = [0.25, 0.5, 0.75]
    module, result = fit(tmp_path, lj.Pruning(lambda epoch: amounts[epoch], scope=scope))
    assert [row["sparsity"] for row in result.history if "sparsity" in row] == amounts
    masks: dict[str, Any] = {}

    def weights(module: Model) -> dict[str, Any]:
        return {"backbone": module.backbone[0].weight.data, "head": module.head.weight.data}

    def step_ends(module: Model) -> None:
        for name, mask in masks.items():
            weights(module)[name][~mask] = 0

    def epoch_ends(module: Model, epoch: int) -> None:
        found = weights(module)
        everything = torch.cat([one.abs().flatten() for one in found.values()])
        for name, one in found.items():
            ranked = (everything if scope == "global" else one.abs().flatten()).sort().values
            masks[name] = one.abs() >= ranked[round(amounts[epoch] * len(ranked))]
        step_ends(module)

    expected = by_hand(3, epoch_ends=epoch_ends, step_ends=step_ends)
    assert same(module, expected)
    assert (module.head.bias != 0).all()


def test_names_that_nothing_has_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"freezes '\^trunk', which is found in no parameter's name"):
        fit(tmp_path, lj.Finetuning({"^trunk": 1}))
    with pytest.raises(ConfigurationError, match=r"Pruning finds nothing to prune with parameters=\['\^trunk'\]"):
        fit(tmp_path, lj.Pruning(0.5, parameters="^trunk"))
    with pytest.raises(ConfigurationError, match=r"Pruning's amount\(0\) is 2; return a share"):
        fit(tmp_path, lj.Pruning(lambda epoch: 2))


def test_an_error_leaves_every_parameter_to_be_trained(tmp_path):
    class Failing(Model):
        def on_train_batch_end(self, *_: Any) -> None:
            raise ValueError("no")

    module = Failing()
    arguments: dict[str, Any] = {"max_epochs": 1, "enable_checkpointing": False, **QUIET}
    trainer = lj.Trainer(callbacks=[lj.Finetuning({"backbone": None})], **arguments)
    with pytest.raises(ValueError, match="no"):
        trainer.fit(from_torch(module, device="cpu"), BATCHES)
    assert module.backbone[0].weight.requires_grad
