"""Ported modules against the loop that a torch user would write: losses, parameters and buffers after 20 steps."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from lightjax.errors import ConfigurationError  # noqa: E402
from lightjax_torch import CaptureError, from_torch  # noqa: E402
from lightjax_torch.port import PortedTask, port_task  # noqa: E402
from tests.models import quiet  # noqa: E402


class Module(nn.Module):
    """The least that a LightningModule is."""

    def log(self, name, value, **options):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class ConvNet(Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout), nn.Flatten()
        )
        self.frozen = nn.Linear(144, 8).requires_grad_(False)
        self.head, self.spare = nn.Linear(8, 10), nn.Linear(2, 2)

    def forward(self, x):
        return self.head(self.frozen(self.net(x)).tanh())

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss, prog_bar=True)
        self.log_dict({"largest": x.max()}, reduce_fx="max")
        return {"loss": loss}

    def log_dict(self, values, **options):
        pass

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("accuracy", (self(x).argmax(1) == y).to(x.dtype).mean())

    def test_step(self, batch, batch_idx):
        self.log("wrong", (self(batch[0]).argmax(1) != batch[1]).to(batch[0].dtype).mean())

    def predict_step(self, batch, batch_idx):
        return self(batch[0]).argmax(1)


class Carrying(Module):
    """Keeps its hidden state on an attribute, from step to step."""

    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 1)
        self.hidden = None

    def training_step(self, batch, batch_idx):
        x, y = batch
        out, hidden = self.rnn(x, self.hidden)
        self.hidden = tuple(state.detach() for state in hidden)
        return F.mse_loss(self.out(out), y)


class CachedMask(Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.embed, self.encoder = nn.Embedding(11, 8), nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.mask = None

    def training_step(self, batch, batch_idx):
        x, y = batch
        if self.mask is None:
            self.mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        hidden = self.encoder(self.embed(x), mask=self.mask, is_causal=True)
        return F.cross_entropy((hidden @ self.embed.weight.t()).flatten(0, 1), y.flatten())

    def configure_optimizers(self):
        decayed = [p for p in self.parameters() if p.ndim > 1]
        others = [p for p in self.parameters() if p.ndim <= 1]
        return torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": others, "lr": 3e-3}], lr=1e-3)


class Regression(Module):
    """Every gradient is far from zero: optimizers that divide by gradients would blow rounding up elsewhere."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.net(batch[0]), batch[1])


def images(count=20, size=8):
    return [(torch.randn(size, 1, 8, 8), torch.randint(0, 10, (size,))) for _ in range(count)]


def sequences(count=20):
    return [(torch.randn(2, 5, 3), torch.randn(2, 5, 1)) for _ in range(count)]


def tokens(count=20):
    return [(torch.randint(0, 11, (3, 6)), torch.randint(0, 11, (3, 6))) for _ in range(count)]


def by_hand(module, batches, optimizer=None):
    """Trains as a torch user would; returns the losses."""
    optimizer = optimizer or module.configure_optimizers()
    losses = []
    for index, batch in enumerate(batches):
        output = module.training_step(batch, index)
        loss = output["loss"] if isinstance(output, dict) else output
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def assert_same_weights(ours, theirs, tolerance):
    for name, tensor in theirs.state_dict().items():
        np.testing.assert_allclose(
            ours.state_dict()[name].numpy(), tensor.numpy(), rtol=tolerance, atol=tolerance, err_msg=name
        )


def losses_of(result):
    return [row["train/loss"] for row in result.history if "train/loss" in row]


CASES = [(ConvNet, images), (Carrying, sequences), (CachedMask, tokens)]


@pytest.mark.parametrize(("kind", "data"), CASES)
def test_twenty_steps_equal_torchs_in_float64(kind, data, double_precision):
    torch.manual_seed(0)
    module, batches = kind(), data()
    reference = copy.deepcopy(module)
    expected = by_hand(reference, batches)
    task = port_task(module)
    result = quiet(max_epochs=1, log_every_n_steps=1).fit(task, batches)
    np.testing.assert_allclose(losses_of(result), expected, rtol=1e-9, atol=1e-9)
    assert_same_weights(task.to_torch(result.state), reference, 1e-9)


def test_twenty_steps_equal_torchs_in_float32():
    torch.manual_seed(0)
    module, batches = ConvNet(), images()
    reference = copy.deepcopy(module)
    expected = by_hand(reference, batches)
    task = port_task(module)
    result = quiet(max_epochs=1, log_every_n_steps=1).fit(task, batches)
    # Both round to 24 bits, in another order: 20 steps of momentum carry 1e-7 to 1e-5.
    np.testing.assert_allclose(losses_of(result), expected, rtol=1e-4, atol=1e-5)
    assert_same_weights(task.to_torch(result.state), reference, 1e-4)


OPTIMIZERS = {
    "SGD": dict(lr=0.05),
    "SGD nesterov": dict(lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "SGD dampened": dict(lr=0.05, momentum=0.9, dampening=0.5),
    "Adam": dict(lr=0.05),
    "Adam amsgrad": dict(lr=0.05, amsgrad=True, weight_decay=0.1),
    "AdamW maximizing": dict(lr=0.05, maximize=True),
    "RMSprop": dict(lr=0.05, centered=True, momentum=0.9),
    "Adagrad": dict(lr=0.05, lr_decay=0.1, initial_accumulator_value=0.2),
    "Adadelta": dict(lr=1.0, weight_decay=0.1),
    "NAdam": dict(lr=0.05, decoupled_weight_decay=True, weight_decay=0.1),
    "RAdam": dict(lr=0.05),
    "Adamax": dict(lr=0.05),
    "Rprop": dict(lr=0.05),
    "ASGD": dict(lr=0.05),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_steps_as_torchs_does(name, double_precision):
    torch.manual_seed(0)
    module = Regression()
    kind = getattr(torch.optim, name.split()[0])
    module.configure_optimizers = lambda: kind(module.parameters(), **OPTIMIZERS[name])
    reference, batches = copy.deepcopy(module), sequences(6)
    by_hand(reference, batches, kind(reference.parameters(), **OPTIMIZERS[name]))
    task = port_task(module)
    arrays = [jax.tree.map(lambda t: t.numpy(), batch) for batch in batches]
    state, step = task.init(jax.random.key(0), arrays[0]), jax.jit(task.train_step)
    for batch in arrays:
        state, _ = step(state, batch)
    assert_same_weights(task.to_torch(state), reference, 1e-9)


def test_adam_keeps_the_digits_of_its_corrections_in_float32():
    torch.manual_seed(0)
    module, batches = Regression(), sequences(10)
    module.configure_optimizers = lambda: torch.optim.Adam(module.parameters(), lr=0.05)
    reference = copy.deepcopy(module)
    by_hand(reference, batches, torch.optim.Adam(reference.parameters(), lr=0.05))
    task = port_task(module)
    result = quiet(max_epochs=1).fit(task, batches)
    assert_same_weights(task.to_torch(result.state), reference, 1e-6)


def test_from_torch_makes_the_same_task():
    task = from_torch(Regression(), backend="jax", optimizer=optax.sgd(0.1))
    assert isinstance(task, PortedTask)
    assert int(quiet(max_epochs=1).fit(task, sequences(2)).state.step) == 2


def test_an_optax_optimizer_replaces_the_modules():
    module = CachedMask()
    task = port_task(module, optimizer=optax.sgd(0.0))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    result = quiet(max_epochs=1).fit(task, tokens(3))
    assert all((task.state_dict(result.state)[name] == p).all() for name, p in before.items())


def test_state_is_named_as_in_the_state_dict_and_comes_back():
    module = ConvNet()
    task = port_task(module)
    batch = jax.tree.map(lambda t: t.numpy(), images(1)[0])
    state = task.init(jax.random.key(0), batch)
    assert {*state.params, *state.model_state} == {*module.state_dict()}
    assert all(not name.startswith("frozen") for name in state.params)
    other = ConvNet()
    loaded = task.load_state_dict(state, other.state_dict())
    assert_same_weights(task.to_torch(loaded), other, 0)
    with pytest.raises(ConfigurationError, match=r"head\.weight is missing"):
        task.load_state_dict(state, {k: v for k, v in other.state_dict().items() if k != "head.weight"})


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.NAdam, torch.optim.Adagrad])
def test_training_goes_on_in_torch_where_jax_stopped(kind, double_precision):
    torch.manual_seed(0)
    module, batches = Regression(), sequences(6)
    module.configure_optimizers = lambda: kind(module.parameters(), lr=0.05)
    reference = copy.deepcopy(module)
    by_hand(reference, batches, kind(reference.parameters(), lr=0.05))
    task = port_task(module)
    result = quiet(max_epochs=1).fit(task, batches[:3])
    by_hand(task.to_torch(result.state), batches[3:], task.optimizer_to_torch(result.state))
    assert_same_weights(module, reference, 1e-9)


def test_evaluation_and_prediction_use_the_modules_own_steps():
    torch.manual_seed(0)
    module, batches = ConvNet(dropout=0.5), images(4)
    task, trainer = port_task(module), quiet(max_epochs=1)
    result = trainer.fit(task, batches)
    trained = copy.deepcopy(task.to_torch(result.state)).eval()
    with torch.no_grad():
        logits = [trained(x) for x, _ in batches]
    accuracy = torch.cat([one.argmax(1) == y for one, (_, y) in zip(logits, batches, strict=True)]).double().mean()
    assert trainer.validate(task, batches)["val/accuracy"] == pytest.approx(accuracy.item())
    assert trainer.test(task, batches)["test/wrong"] == pytest.approx(1 - accuracy.item())
    predicted = trainer.predict(task, batches)
    np.testing.assert_array_equal(np.asarray(predicted), torch.cat([one.argmax(1) for one in logits]).numpy())


def test_dropout_differs_from_step_to_step_and_repeats_with_the_seed():
    module, batch = ConvNet(dropout=0.5), images(1)[0]
    task = port_task(module, optimizer=optax.sgd(0.0))
    runs = [quiet(max_steps=3, max_epochs=3, log_every_n_steps=1).fit(task, [batch]) for _ in range(2)]
    first, again = (losses_of(run) for run in runs)
    assert len(set(first)) == 3
    assert first == again


def test_a_module_put_into_evaluation_mode_in_between_still_trains():
    task = port_task(ConvNet(dropout=0.5), optimizer=optax.sgd(0.0))
    result = quiet(max_epochs=1).fit(task, images(1))
    task.to_torch(result.state).eval()
    # Batches of another size are captured anew: with dropout, so that two steps on one batch differ.
    [batch] = images(1, size=5)
    again = quiet(max_epochs=2, log_every_n_steps=1).fit(task, [batch], state=result.state)
    assert len(set(losses_of(again))) == 2


def test_logged_values_are_reduced_as_they_ask():
    torch.manual_seed(0)
    batches = images(4)
    result = quiet(max_epochs=1, log_every_n_steps=4).fit(port_task(ConvNet()), batches)
    assert result.metrics["train/largest_epoch"] == pytest.approx(max(x.max().item() for x, _ in batches))


class Leveled(Regression):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("of_steps", loss, on_epoch=False)
        self.log("of_epochs", loss, on_step=False, on_epoch=True)
        self.log("both", loss, on_step=True, on_epoch=True)
        self.log("none", loss, on_step=False, on_epoch=False)
        return loss


def test_logged_values_are_reported_for_steps_and_epochs_as_they_ask():
    result = quiet(max_epochs=1, log_every_n_steps=2).fit(port_task(Leveled()), sequences(4))
    names = {name.removeprefix("train/") for name in result.metrics}
    assert names == {"loss", "loss_epoch", "of_steps", "of_epochs_epoch", "both", "both_epoch"}
    assert result.metrics["train/of_epochs_epoch"] == result.metrics["train/both_epoch"]
    assert result.metrics["train/of_steps"] == result.metrics["train/both"]


class Bad(Module):
    def __init__(self, step):
        super().__init__()
        self.layer, self.step, self.count = nn.Linear(3, 1), step, 0
        self.register_buffer("places", torch.zeros(1))

    def training_step(self, batch, batch_idx):
        return self.step(self, batch, batch_idx)

    def loss(self, batch):
        return (self.layer(batch[0]) ** 2).mean()


def by_an_index(self, batch, batch_idx):
    return self.loss(batch) * [1, 2, 3][batch_idx]


def counting(self, batch, batch_idx):
    self.count += 1
    return self.loss(batch)


def asking_the_trainer(self, batch, batch_idx):
    return self.loss(batch) * self.trainer.num_training_batches


def writing(self, batch, batch_idx):
    with torch.no_grad():
        self.layer.weight.clamp_(-1, 1)
    return self.loss(batch)


def collecting(self, batch, batch_idx):
    loss = self.loss(batch)
    self.__dict__["seen"] = [*self.__dict__.get("seen", []), loss.detach()]
    return loss


def resizing(self, batch, batch_idx):
    if self.places.shape[0] != len(batch[0]):
        self.places = torch.arange(float(len(batch[0])))
    return self.loss(batch) + self.places.mean()


def building(self, batch, batch_idx):
    if not hasattr(self, "head"):
        self.head = nn.Linear(3, 1)
    return self.head(batch[0]).mean()


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (building, r"training_step makes submodules with weights or buffers: head\..*call the module once on a batch"),
        (by_an_index, r"test_port\.py:\d+: Python asks for the value of batch_idx"),
        (counting, r"training_step changes count in Python"),
        (asking_the_trainer, r"test_port\.py:\d+: trainer\.num_training_batches is read, and this task has no trainer"),
        (writing, r"writes into trained parameters in place: layer\.weight"),
        (collecting, r"leaves tensors on attributes that change"),
        (resizing, r"changes the shape of places from \[1\] to \[4\], .* one call before porting"),
        (lambda self, batch, batch_idx: None, "returned None as its loss"),
        (lambda self, batch, batch_idx: self.layer(batch[0]), r"a tensor of shape \(4, 1\) as its loss"),
        (lambda self, batch, batch_idx: self.log("x", batch[0]), r"self\.log\('x', \.\.\.\) got a tensor of shape"),
    ],
)
def test_what_a_step_must_not_do_is_told_before_the_first_one(step, text):
    task = port_task(Bad(step))
    with pytest.raises(CaptureError, match=text):
        task.init(jax.random.key(0), (jnp.ones((4, 3)), jnp.ones(4)))


def test_a_step_may_make_a_loss_of_its_own():
    def step(self, batch, batch_idx):
        self.criterion = nn.HuberLoss(delta=0.5)
        return self.criterion(self.layer(batch[0]), batch[1][:, None])

    batch = jnp.ones((4, 3)), jnp.zeros(4)
    module = Bad(step)
    task = port_task(module)
    _, metrics = task.train_step(task.init(jax.random.key(0), batch), batch)
    expected = module.training_step((torch.ones(4, 3), torch.zeros(4)), 0)
    np.testing.assert_allclose(metrics["loss"], expected.detach(), rtol=1e-6)


class Frozen(dict):
    def update(self, *_):
        raise TypeError("frozen")

    clear = copy = update


def test_a_library_may_keep_a_dict_that_refuses_changes():
    module = Bad(lambda self, batch, batch_idx: self.loss(batch) * self.config["scale"])
    module.config = Frozen(scale=2.0)
    batch = jnp.ones((4, 3)), jnp.zeros(4)
    task = port_task(module)
    _, metrics = task.train_step(task.init(jax.random.key(0), batch), batch)
    np.testing.assert_allclose(metrics["loss"], 2 * module.loss((torch.ones(4, 3),)).detach(), rtol=1e-6)


class OverAGraph(Module):
    """Its batch is nodes, edges and labels: their leading dimensions have nothing to do with each other."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def scores(self, nodes, edges):
        messages = self.layer(nodes)
        return messages.index_add(0, edges[1], messages[edges[0]])

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.scores(*batch[:2]), batch[2])
        self.log("seen", loss, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def graphs(sizes):
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(n, 3, generator=generator),
            torch.randint(0, n, (2, 7), generator=generator),
            torch.randint(0, 2, (n,), generator=generator),
        )
        for n in sizes
    ]


def test_values_of_a_batch_without_one_size_count_with_its_first_tensor():
    torch.manual_seed(0)
    module, batches = OverAGraph(), graphs([4, 12])
    with torch.no_grad():
        small, large = (float(nn.functional.cross_entropy(module.scores(*one[:2]), one[2])) for one in batches)
    result = quiet(max_epochs=1).fit(port_task(module), batches)
    assert result.metrics["train/loss_epoch"] == pytest.approx((4 * small + 12 * large) / 16, rel=1e-5)
    assert result.metrics["train/seen_epoch"] == result.metrics["train/loss_epoch"]


class StatefulEvaluation(Carrying):
    def validation_step(self, batch, batch_idx):
        self.log("loss", self.training_step(batch, batch_idx))


def test_evaluation_that_leaves_a_trace_is_refused():
    task = port_task(StatefulEvaluation())
    batch = jax.tree.map(lambda t: t.numpy(), sequences(1)[0])
    state = task.init(jax.random.key(0), batch)
    with pytest.raises(CaptureError, match="validation_step changes tensors that later batches see"):
        task.eval_step(state, batch)


def test_a_checkpoint_gives_the_first_weights(tmp_path):
    module, trained = Regression(), Regression()
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "old.ckpt")
    task = port_task(module)
    task.load_checkpoint(tmp_path / "old.ckpt")
    state = task.init(jax.random.key(0), jax.tree.map(lambda t: t.numpy(), sequences(1)[0]))
    assert_same_weights(task.to_torch(state), trained, 0)


def test_modules_that_cannot_be_tasks_are_refused():
    with pytest.raises(ConfigurationError, match="has no training_step"):
        port_task(nn.Linear(1, 1))
    module = ConvNet()
    module.configure_optimizers = lambda: torch.optim.SGD([nn.Parameter(torch.ones(3))], lr=0.1)
    with pytest.raises(ConfigurationError, match="no parameter of the module"):
        port_task(module).init(jax.random.key(0), jax.tree.map(lambda t: t.numpy(), images(1)[0]))


def test_a_step_over_eight_devices_is_the_same_step(double_precision):
    torch.manual_seed(0)
    module, batches = ConvNet(), images(2)
    task = port_task(module)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, everywhere = (jax.NamedSharding(mesh, jax.P(*axes)) for axes in (("data",), ()))
    arrays = [jax.tree.map(lambda t: t.numpy(), batch) for batch in batches]
    state = task.init(jax.random.key(0), arrays[0])
    alone, spread, step = state, jax.device_put(state, everywhere), jax.jit(task.train_step)
    for batch in arrays:
        alone, metrics = step(alone, batch)
        spread, spread_metrics = step(spread, jax.device_put(batch, rows))
        np.testing.assert_allclose(spread_metrics["loss"], metrics["loss"], rtol=1e-12)
    np.testing.assert_allclose(spread.params["head.weight"], alone.params["head.weight"], rtol=1e-9)
    # BatchNorm sees the whole batch, as torch's SyncBatchNorm does.
    np.testing.assert_allclose(spread.model_state["net.1.running_var"], alone.model_state["net.1.running_var"])


def test_accumulated_gradients_equal_those_of_the_whole_batch(double_precision):
    torch.manual_seed(0)
    batches = tokens(3)
    whole, parts = (port_task(copy.deepcopy(module)) for module in [CachedMask()] * 2)
    expected = quiet(max_epochs=1).fit(whole, batches)
    found = quiet(max_epochs=1, microbatches=3).fit(parts, batches)
    assert_same_weights(parts.to_torch(found.state), whole.to_torch(expected.state), 1e-9)
