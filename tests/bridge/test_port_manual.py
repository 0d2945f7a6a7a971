"""Manual optimization, ported: a GAN with two optimizers against the same loop in torch."""

import copy

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from lightjax.errors import ConfigurationError  # noqa: E402
from lightjax_torch import CaptureError, port_task, schedule  # noqa: E402
from tests.bridge.native.reference import QUIET, lightning, quietly  # noqa: E402
from tests.models import quiet  # noqa: E402


class Gan(nn.Module):
    """The names are Lightning's; the methods that the trainer gives are stood in for by `Alone`."""

    automatic_optimization = False
    clears = True

    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
        self.critic = nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))

    def configure_optimizers(self):
        return [
            torch.optim.Adam(self.generator.parameters(), lr=1e-2, betas=(0.5, 0.9)),
            torch.optim.RMSprop(self.critic.parameters(), lr=1e-3),
        ], []

    def training_step(self, batch, batch_idx):
        noise, real = batch
        of_generator, of_critic = self.optimizers()
        self.toggle_optimizer(of_generator)
        fake = self.generator(noise)
        loss = F.softplus(-self.critic(fake)).mean()
        self.log("generator", loss)
        self.manual_backward(loss)
        of_generator.step()
        if self.clears:
            of_generator.zero_grad()
        self.untoggle_optimizer(of_generator)
        self.toggle_optimizer(of_critic)
        loss = F.softplus(self.critic(fake.detach())).mean() + F.softplus(-self.critic(real)).mean()
        self.log("critic", loss)
        self.manual_backward(loss)
        self.clip_gradients(of_critic, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
        of_critic.step()
        of_critic.zero_grad()
        self.untoggle_optimizer(of_critic)


def by_hand(module, batches):
    """Gives the module in torch what a trainer would, and trains it."""
    (optimizers, _), logged = module.configure_optimizers(), []
    everything = list(module.parameters())

    def toggle(optimizer):
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for p in everything:
            p.requires_grad_(id(p) in own)

    module.optimizers = lambda: optimizers
    module.toggle_optimizer = toggle
    module.untoggle_optimizer = lambda optimizer: [p.requires_grad_(True) for p in everything]
    module.manual_backward = lambda loss: loss.backward()
    module.clip_gradients = lambda optimizer, gradient_clip_val, gradient_clip_algorithm: (
        torch.nn.utils.clip_grad_norm_(
            [p for group in optimizer.param_groups for p in group["params"]], gradient_clip_val
        )
    )
    module.log = lambda name, value: logged.append((name, value.item()))
    for index, batch in enumerate(batches):
        module.training_step(batch, index)
    return [value for name, value in logged if name == "critic"]


def data(count=6):
    return [(torch.randn(8, 3), torch.randn(8, 4) + 1) for _ in range(count)]


def test_a_gan_trains_as_in_torch(double_precision):
    torch.manual_seed(0)
    module, batches = Gan(), data()
    reference = copy.deepcopy(module)
    expected = by_hand(reference, batches)
    task = port_task(module)
    result = quiet(max_epochs=1, log_every_n_steps=1).fit(task, batches)
    found = [row["train/critic"] for row in result.history if "train/critic" in row]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    ours = task.to_torch(result.state).state_dict()
    for name, tensor in reference.state_dict().items():
        np.testing.assert_allclose(ours[name].numpy(), tensor.numpy(), rtol=1e-8, atol=1e-8, err_msg=name)


def test_gradients_left_for_the_next_step_are_refused():
    module = Gan()
    module.clears = False
    with pytest.raises(CaptureError, match=r"adds to gradients that the step before left.*zero_grad"):
        port_task(module).init(jax.random.key(0), jax.tree.map(lambda t: t.numpy(), data(1)[0]))


class Scheduled(lightning.LightningModule):
    """Steps a scheduler in every other step, and another one when an epoch ends, by a metric."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.one, self.two = nn.Linear(3, 1), nn.Linear(3, 1)

    def configure_optimizers(self):
        one = torch.optim.Adam(self.one.parameters(), lr=0.1)
        two = torch.optim.SGD(self.two.parameters(), lr=0.1, momentum=0.9)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(two, factor=0.1, patience=0, threshold=10.0)
        return [one, two], [torch.optim.lr_scheduler.StepLR(one, 1, 0.5), plateau]

    def training_step(self, batch, batch_idx):
        for layer, optimizer in zip((self.one, self.two), self.optimizers(), strict=True):
            loss = layer(batch).square().mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        if batch_idx % 2 == 1:
            self.lr_schedulers()[0].step()
        self.log("loss", loss, on_epoch=True)

    def on_train_epoch_end(self):
        self.lr_schedulers()[1].step(self.trainer.callback_metrics["loss"])


def test_schedulers_step_where_the_module_says_so_and_go_on_when_resumed(double_precision, monkeypatch, tmp_path):
    monkeypatch.setattr(schedule, "STEPS_AHEAD", 4)  # tables of the learning rates run out
    torch.manual_seed(0)
    module, batches = Scheduled(), [torch.randn(4, 3) for _ in range(5)]
    reference = copy.deepcopy(module)
    with quietly():
        loader = torch.utils.data.DataLoader(torch.cat(batches), batch_size=4)
        lightning.Trainer(**QUIET, max_epochs=3).fit(reference, loader)

    keep = dict(enable_checkpointing=True, default_root_dir=tmp_path)
    quiet(max_epochs=1, **keep).fit(port_task(copy.deepcopy(module)), batches)
    for resume in ("auto", None):
        task = port_task(copy.deepcopy(module))
        result = quiet(max_epochs=3, **keep).fit(task, batches, resume=resume)
        ours = task.to_torch(result.state).state_dict()
        for name, tensor in reference.state_dict().items():
            np.testing.assert_allclose(ours[name].numpy(), tensor.numpy(), rtol=1e-9, atol=1e-12, err_msg=name)


def test_precision_of_the_trainer_is_refused():
    with pytest.raises(ConfigurationError, match="optimizes manually: precision"):
        quiet(max_epochs=1, gradient_clip_val=1.0).fit(port_task(Gan()), data(1))


def test_a_warm_up_from_zero_leaves_what_had_no_gradient_as_it_is(double_precision):
    class Tokens(nn.Module):
        automatic_optimization = False

        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(6, 3)

        def training_step(self, batch, batch_idx):
            optimizer, scheduler = self.optimizers(), self.lr_schedulers()
            optimizer.zero_grad()
            loss = self.table(batch).square().mean()
            self.manual_backward(loss)
            optimizer.step()
            scheduler.step()
            self.log("loss", loss)

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 4)]

    torch.manual_seed(0)
    module = Tokens()
    before = module.table.weight.detach().clone()
    task = port_task(module)
    batches = [torch.tensor([0, 1, 2, 0])] * 3
    result = quiet(max_epochs=1, log_every_n_steps=1).fit(task, batches)
    after = task.to_torch(result.state).table.weight.detach()
    # Rows that no batch has only decay, by the rates 0, 0.025 and 0.05 and a weight decay of 0.01.
    torch.testing.assert_close(after[3:], before[3:] * (1 - 0.025 * 0.01) * (1 - 0.05 * 0.01), rtol=1e-12, atol=0)
    assert (after[:3] != before[:3]).all()
