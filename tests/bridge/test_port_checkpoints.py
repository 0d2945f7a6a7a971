"""Ported trainings that begin with a Lightning checkpoint, and that are killed and resumed."""

import copy
import random

import pytest

torch = pytest.importorskip("torch")

from lightjax.errors import CheckpointError  # noqa: E402
from lightjax_torch import port_task  # noqa: E402
from tests.bridge.native.reference import QUIET, lightning, quietly  # noqa: E402
from tests.bridge.test_port import assert_same_weights  # noqa: E402
from tests.models import quiet  # noqa: E402
from tests.resume.killing import killed, run_to_the_end  # noqa: E402

BATCHES = 4


class Decaying(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        return (self.net(batch) - 1).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]


class DecayingByItself(Decaying):
    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()
        self.lr_schedulers().step()


def rows():
    return torch.randn(4 * BATCHES, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", [Decaying, DecayingByItself])
def test_a_training_of_lightnings_goes_on_ported(kind, double_precision, tmp_path):
    torch.manual_seed(0)
    module, loader = kind(), torch.utils.data.DataLoader(rows(), batch_size=4)
    reference = copy.deepcopy(module)
    with quietly():
        trainer = lightning.Trainer(**QUIET, max_epochs=1)
        trainer.fit(reference, loader)
        trainer.save_checkpoint(tmp_path / "one.ckpt")
        lightning.Trainer(**QUIET, max_epochs=2).fit(reference, loader, ckpt_path=tmp_path / "one.ckpt")
    task = port_task(module)
    task.load_checkpoint(tmp_path / "one.ckpt", optimizers=True)
    result = quiet(max_epochs=1).fit(task, loader)
    assert_same_weights(task.to_torch(result.state), reference, 1e-9)


def test_a_checkpoint_without_optimizers_is_refused(tmp_path):
    torch.save({"state_dict": Decaying().state_dict()}, tmp_path / "weights.ckpt")
    with pytest.raises(CheckpointError, match="has no optimizer_states, and configure_optimizers returned 1"):
        port_task(Decaying()).load_checkpoint(tmp_path / "weights.ckpt", optimizers=True)


@pytest.mark.xdist_group("resume")
def test_a_ported_run_that_is_killed_and_resumed_ends_as_the_undisturbed_one(tmp_path):
    expected = run_to_the_end(tmp_path / "undisturbed", 8, "ported")
    outcome, interrupted = killed(tmp_path / "killed", "ported", 1, random.Random(3))
    assert outcome == expected
    assert interrupted.total() == 1
