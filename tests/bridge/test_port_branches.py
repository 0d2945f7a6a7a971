"""Python that branches on values of tensors: every way is compiled, and the values choose, as in torch."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from lightjax_torch import CaptureError, LightningModule, from_torch  # noqa: E402
from lightjax_torch.port_check import check  # noqa: E402


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 3)
        self.register_buffer("begun", torch.tensor(False))
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("seen", torch.tensor(0))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.3)


class ByItsState(Net):
    """Takes the mean of the first batch, as an activation normalization that initializes itself does."""

    def training_step(self, batch, batch_idx):
        y = self.layer(batch)
        if not self.begun:
            with torch.no_grad():
                self.mean.copy_(y.mean(0))
                self.begun.fill_(True)
        return ((y - self.mean) ** 2).mean()


class ByACount(Net):
    def training_step(self, batch, batch_idx):
        y = self.layer(batch)
        self.seen += 1
        if self.seen % 2:  # a number, whose truth is asked for
            y = 2 * y
        if self.seen > 2:
            y = y + 1
        return (y**2).mean()


class ByItsLoss(Net):
    def training_step(self, batch, batch_idx):
        loss = (self.layer(batch) ** 2).mean()
        return loss if loss > 0.1 else 2 * loss


class ByHand(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        loss = (self.layer(batch) ** 2).mean()
        optimizer.zero_grad()
        self.manual_backward(loss if loss > 0.1 else 2 * loss)
        optimizer.step()
        self.log("loss", loss)


class Checking(Net):
    """Looks at its data, as libraries do."""

    def training_step(self, batch, batch_idx):
        if batch.max() > 100:
            raise ValueError("too large")
        assert not torch.isnan(batch).any()
        if not torch.equal(batch, batch.abs()):
            batch = batch.abs() + 1
        return (self.layer(batch) ** 2).mean()


@pytest.mark.filterwarnings("ignore:.*this check is left out")
@pytest.mark.parametrize("module", [ByItsState, ByACount, ByItsLoss, ByHand, Checking])
def test_a_step_goes_the_ways_that_torch_goes(module):
    report = check(module(), torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), steps=6, float64=True)
    assert not report.error
    assert report.weight is not None
    assert report.weight.share < 1e-12
    assert report.buffer is None or report.buffer.share < 1e-12


def test_a_check_that_cannot_stop_a_compiled_step_is_told():
    batch = np.ones((4, 3), np.float32)
    with pytest.warns(UserWarning, match="this check is left out") as caught:
        from_torch(Checking(), backend="jax").init(jax.random.key(0), batch)
    texts = [str(one.message) for one in caught]
    assert any("test_port_branches.py" in text and "ValueError (too large)" in text for text in texts)
    assert any("AssertionError" in text for text in texts)


class Drawing(Net):
    def training_step(self, batch, batch_idx):
        y = self.layer(batch)
        if torch.rand(()) < 0.5:
            y = 3 * y
        return (y**2).mean()


def test_a_drawn_number_chooses():
    task, batch = from_torch(Drawing(), backend="jax"), np.ones((4, 3), np.float32)
    state = task.init(jax.random.key(0), batch)
    step = jax.jit(task.train_step)
    losses = {round(float(step(state.replace(key=jax.random.key(n)), batch)[1]["loss"]), 4) for n in range(12)}
    small, large = sorted(losses)
    assert large == pytest.approx(9 * small, rel=1e-3)


class Evaluating(ByItsLoss):
    def validation_step(self, batch, batch_idx):
        self.log("positive", torch.tensor(1.0) if batch.mean() > 0 else torch.tensor(0.0))


def test_an_evaluation_branches_too():
    task = from_torch(Evaluating(), backend="jax")
    batch = np.ones((4, 3), np.float32)
    state = task.init(jax.random.key(0), batch)
    step = jax.jit(task.eval_step)
    assert [float(step(state, sign * batch)["positive"]) for sign in (1, -1)] == [1.0, 0.0]


class Searching(Net):
    def training_step(self, batch, batch_idx):
        while (batch > 1).any():
            batch = batch / 2
        return (self.layer(batch) ** 2).mean()


class Many(Net):
    def training_step(self, batch, batch_idx):
        y = self.layer(batch)
        for row in batch:
            y = y * (2 if row.sum() > 0 else 3)
        return (y**2).mean()


class Sometimes(Net):
    def __init__(self):
        super().__init__()
        self.other = nn.Linear(3, 3)

    def training_step(self, batch, batch_idx):
        return ((self.layer if batch.mean() > 0 else self.other)(batch) ** 2).mean()


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (Searching, r"test_port_branches.py:\d+: Python asks for values of tensors more than \d+ times: a loop"),
        (Many, "in more than 16 ways"),
        (Sometimes, "get a gradient in some steps and none in others"),
    ],
)
def test_what_no_compiled_step_can_do_is_refused(module, text):
    task, batch = from_torch(module(), backend="jax"), np.ones((6, 3), np.float32)
    with pytest.raises(CaptureError, match=text):
        task.init(jax.random.key(0), batch)
