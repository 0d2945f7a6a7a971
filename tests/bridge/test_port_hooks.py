"""What a ported module does besides its step: hooks, and branches on the numbers of batch, epoch and step."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from lightjax.errors import ConfigurationError  # noqa: E402
from lightjax_torch import CaptureError, port_task  # noqa: E402
from tests.bridge.test_port import Module, Regression, assert_same_weights, sequences  # noqa: E402
from tests.bridge.test_port_manual import Gan  # noqa: E402
from tests.bridge.test_port_manual import data as gan_data  # noqa: E402
from tests.models import quiet  # noqa: E402


def arrays(batch):
    return jax.tree.map(lambda t: t.numpy(), batch)


class Busy(Module):
    """Uses about everything that Lightning offers around a step."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher = nn.Linear(3, 1), nn.Linear(3, 1).requires_grad_(False)
        self.register_buffer("strength", torch.zeros(()))
        self.seen = []

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return [one * 2 for one in batch]

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.mse_loss(self.student(x), y)
        if batch_idx % 2 == 1:
            loss = loss + self.strength * (self.student(x) - self.teacher(x)).square().mean()
            self.log("odd", loss)
        if self.current_epoch >= 1:
            loss = loss * min(1.0, self.global_step / 4) / self.trainer.num_training_batches
        return loss

    def on_before_optimizer_step(self, optimizer):
        nn.utils.clip_grad_norm_(self.student.parameters(), 0.5)
        self.log("steepest", self.student.weight.grad.abs().max())

    def on_train_batch_end(self, outputs, batch, batch_idx):
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                slow.mul_(0.9).add_(fast, alpha=0.1)

    def on_train_epoch_start(self):
        self.strength.fill_(1.0 + self.current_epoch)

    def on_train_epoch_end(self):
        self.log("largest", self.student.weight.abs().max())
        self.seen.append(self.trainer.callback_metrics["largest"].item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.student.parameters(), lr=1.0 / self.trainer.estimated_stepping_batches)


class Trainer:
    """As much of a trainer as the loop below needs."""

    num_training_batches, estimated_stepping_batches = 3, 6
    callback_metrics: dict

    def __init__(self):
        self.callback_metrics = {}


def by_hand(module, batches, epochs):
    module.trainer, module.global_step = Trainer(), 0
    module.log = lambda name, value, **_: module.trainer.callback_metrics.__setitem__(name, value.detach())
    optimizer = module.configure_optimizers()
    for module.current_epoch in range(epochs):
        module.on_train_epoch_start()
        for index, batch in enumerate(batches):
            batch = module.on_before_batch_transfer(batch, 0)
            loss = module.training_step(batch, index)
            optimizer.zero_grad()
            loss.backward()
            module.on_before_optimizer_step(optimizer)
            optimizer.step()
            module.global_step += 1
            module.on_train_batch_end(loss, batch, index)
        module.on_train_epoch_end()


def test_hooks_counters_and_trainer_mean_what_they_mean_in_lightning(double_precision):
    torch.manual_seed(0)
    module, batches = Busy(), sequences(3)
    reference = copy.deepcopy(module)
    by_hand(reference, batches, 2)
    task = port_task(module)
    before = copy.deepcopy(module.state_dict())
    result = quiet(max_epochs=2, log_every_n_steps=1).fit(task, batches)
    np.testing.assert_allclose(module.seen, reference.seen, rtol=1e-9)
    assert all((tensor == before[name]).all() for name, tensor in module.state_dict().items())
    odd = [row["train/odd"] for row in result.history if not np.isnan(row.get("train/odd", np.nan))]
    assert len(odd) == 2
    assert result.metrics["train/steepest"] > 0
    assert_same_weights(task.to_torch(result.state), reference, 1e-9)


class Alternating(Gan):
    """Steps the critic in every step and the generator in every third one."""

    def training_step(self, batch, batch_idx):
        noise, real = batch
        of_generator, of_critic = self.optimizers()
        loss = F.softplus(self.critic(self.generator(noise).detach())).mean() + F.softplus(-self.critic(real)).mean()
        of_critic.zero_grad()
        self.manual_backward(loss)
        of_critic.step()
        self.log("critic", loss * 1.0)
        if (batch_idx + 1) % 3 == 0:
            loss = F.softplus(-self.critic(self.generator(noise))).mean()
            of_generator.zero_grad()
            self.manual_backward(loss)
            of_generator.step()


def test_a_generator_steps_in_every_third_step_only(double_precision):
    torch.manual_seed(0)
    module, batches = Alternating(), gan_data(4)
    reference = copy.deepcopy(module)
    (optimizers, _), reference.log = reference.configure_optimizers(), lambda *_, **__: None
    reference.optimizers, reference.manual_backward = lambda: optimizers, lambda loss: loss.backward()
    for index, batch in enumerate(batches):
        reference.training_step(batch, index)
    task = port_task(module)
    state, step = task.init(jax.random.key(0), arrays(batches[0])), jax.jit(task.train_step)
    for batch in batches:
        state, _ = step(state, arrays(batch))
    assert_same_weights(task.to_torch(state), reference, 1e-8)


class Rebinding(Regression):
    """Its hook puts another tensor in the place of a buffer, and of one on an attribute."""

    def __init__(self):
        super().__init__()
        self.register_buffer("rate", torch.zeros(()))
        self.plain = torch.zeros(())

    def on_train_epoch_start(self):
        self.rate, self.plain = torch.tensor(2.0), torch.tensor(3.0)

    def training_step(self, batch, batch_idx):
        self.log("seen", self.rate + self.plain)
        return super().training_step(batch, batch_idx)


def test_a_tensor_that_a_hook_replaces_is_seen_and_the_module_keeps_its_own():
    module = Rebinding()
    result = quiet(max_epochs=1, log_every_n_steps=1).fit(port_task(module), sequences(1))
    assert result.metrics["train/seen"] == 5.0
    assert module.rate == 0
    assert module.plain == 0


class Hooked(Regression):
    scale = 1.0

    def __init__(self):
        super().__init__()
        self.began = 0

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * self.scale


def counting(self):
    self.began += 1


def annealing(self):
    self.scale = 2.0


def freezing(self):
    self.net[0].requires_grad_(False)


def switching(self):
    self.net.eval()


def replacing(self):
    self.net[0].weight = nn.Parameter(torch.zeros(5, 3))


def fitted(hook):
    kind = type("Hooked", (Hooked,), {"on_train_epoch_start": hook})
    return quiet(max_epochs=1).fit(port_task(kind()), sequences(1))


def test_a_hook_may_change_what_no_step_reads():
    assert int(fitted(counting).state.step) == 1


@pytest.mark.parametrize(
    ("hook", "text"),
    [
        (annealing, "on_train_epoch_start changes scale, a Python value that the compiled steps read"),
        (freezing, r"changes requires_grad of net\.0\.weight, net\.0\.bias"),
        (replacing, r"puts something else in the place of net\.0\.weight"),
        (switching, r"changes the mode, training or evaluation, of net, net\.0"),
    ],
)
def test_a_hook_that_would_change_the_compiled_step_is_refused(hook, text):
    with pytest.raises(CaptureError, match=text):
        fitted(hook)


def test_methods_that_a_compiled_step_cannot_call_are_listed():
    kind = type("Own", (Regression,), {"optimizer_step": None, "training_epoch_end": None})
    with pytest.raises(ConfigurationError, match=r"optimizer_step \(use a .*; training_epoch_end \(self\.log"):
        port_task(kind())


def collecting_numbers(self, batch, batch_idx):
    self.numbers.append(batch[0].mean().item())
    return self.net(batch[0]).mean()


def looking_at_math(self, batch, batch_idx):
    return self.net(batch[0]).mean() * __import__("math").cos(self.global_step)


def freezing_at_times(self, batch, batch_idx):
    hidden = self.net[0](batch[0])
    return self.net[2](hidden.detach() if self.current_epoch < 1 else hidden).mean()


def writing_images(self, batch, batch_idx):
    if batch_idx % 100 == 0:
        self.trainer.logger.experiment.add_image("x", batch[0])
    return self.net(batch[0]).mean()


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (collecting_numbers, "changes numbers in Python, with a value that only exists while the step runs"),
        (looking_at_math, r"test_port_hooks\.py:\d+: Python asks for the value of global_step.*torch\.cos"),
        (freezing_at_times, r"net\.0\.bias, net\.0\.weight get a gradient in some steps and none in others"),
        (writing_images, r"test_port_hooks\.py:\d+: the step uses its logger"),
    ],
)
def test_what_python_cannot_do_in_a_compiled_step_names_the_way_out(step, text):
    module = type("Bad", (Regression,), {"training_step": step})()
    module.numbers = []
    with pytest.raises(CaptureError, match=text):
        port_task(module).init(jax.random.key(0), (jnp.ones((2, 5, 3)), jnp.ones((2, 5, 1))))


class Caching(Regression):
    def training_step(self, batch, batch_idx):
        if not hasattr(self, "length"):
            self.length = batch[0].shape[1]
        return self.net(batch[0]).mean() / self.length


def test_a_python_value_that_stays_is_a_cache():
    task = port_task(Caching())
    batch = (np.ones((2, 5, 3), np.float32), np.ones((2, 5, 1), np.float32))
    _, metrics = task.train_step(task.init(jax.random.key(0), batch), batch)
    expected = task.module.net(torch.from_numpy(batch[0])).mean().item() / 5
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)


def test_hooks_of_single_batches_and_accumulation_exclude_each_other():
    with pytest.raises(ConfigurationError, match="uses batch_idx, and a step of several batches has none"):
        quiet(max_epochs=1, accumulate_grad_batches=2).fit(port_task(Busy()), sequences(2))
