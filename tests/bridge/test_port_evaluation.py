"""Evaluations of ported modules that ask which batch and which loader they see, against lightning.Trainer."""

import copy

import jax
import jax.numpy as jnp
import pytest

torch = pytest.importorskip("torch")

from tests.bridge.native.reference import QUIET, lightning, quietly  # noqa: E402

from torch.utils.data import DataLoader  # noqa: E402  # isort: skip

from lightjax_torch import port_task  # noqa: E402
from tests.models import quiet  # noqa: E402


class Looking(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(3, 1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_validation_batch_start(self, batch, batch_idx, dataloader_idx=0):
        self.log(f"of_hook_{dataloader_idx}", batch_idx * 1.0)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        value = self.net(batch).mean() + batch_idx
        if batch_idx % 2 == 1:
            value = 2 * value
        self.log(f"loader_{dataloader_idx}", value)

    def test_step(self, batch, batch_idx):
        self.log("weighted", self.net(batch).mean() * (1 + batch_idx))


def loaders(*sizes):
    rows = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    return [DataLoader(rows, batch_size=size) for size in sizes]


def test_batches_and_loaders_have_lightnings_numbers():
    torch.manual_seed(0)
    module = Looking()
    with quietly():
        theirs = lightning.Trainer(**QUIET)
        lists = theirs.validate(copy.deepcopy(module), loaders(2, 4), verbose=False)
        tested = theirs.test(copy.deepcopy(module), loaders(3), verbose=False)[0]
    expected = {name.partition("/")[0]: value for one in lists for name, value in one.items()}
    module.training_step = lambda batch: module.net(batch).mean()
    task, trainer = port_task(module), quiet(max_epochs=1)
    state = task.init(jax.random.key(0), jnp.zeros((2, 3)))
    found = trainer.validate(task, loaders(2, 4), state=state)
    assert set(found) == {"val/0/loader_0", "val/0/of_hook_0", "val/1/loader_1", "val/1/of_hook_1"}
    assert {name.rpartition("/")[2]: value for name, value in found.items()} == pytest.approx(expected, rel=1e-5)
    assert trainer.test(task, loaders(3)[0], state=state)["test/weighted"] == pytest.approx(
        tested["weighted"], rel=1e-5
    )
