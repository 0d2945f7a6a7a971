"""Lightning's own demos, ported: losses and weights of lightning.Trainer; the same bits fused and resumed."""

import copy
from functools import partial

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.bridge.native.reference import QUIET, boring_classes, lightning, quietly  # noqa: E402

from lightning.pytorch.demos import lstm, transformer  # noqa: E402  # isort: skip
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

import lightjax as lj  # noqa: E402
from lightjax_torch import from_torch  # noqa: E402
from tests.bridge.test_port import assert_same_weights, losses_of  # noqa: E402
from tests.models import bits, quiet  # noqa: E402

WORDS = 13


class Data(lightning.LightningDataModule):
    """Batches of 4. The last one of numbers has 2; of text none is short, as a hidden state is as long as its batch."""

    def __init__(self, text):
        super().__init__()
        self.text = text

    def setup(self, stage):
        numbers = torch.Generator().manual_seed(3)
        if self.text:
            words = torch.randint(0, WORDS, (2, 20, 6), generator=numbers)
            self.rows = TensorDataset(*words)
        else:
            self.rows = torch.randn(22, 32, generator=numbers)

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=4)

    def val_dataloader(self):
        return DataLoader(self.rows, batch_size=8)


def small_lstm():
    module = lstm.LightningLSTM(vocab_size=WORDS)
    module.model = lstm.SimpleLSTM(WORDS, ninp=8, nhid=8, nlayers=1, dropout=0.0)
    return module


def small_transformer():
    module = transformer.LightningTransformer(vocab_size=WORDS)
    module.model = transformer.Transformer(WORDS, ninp=8, nhead=2, nhid=8, nlayers=1, dropout=0.0)
    return module


DEMOS = {
    "boring": boring_classes.BoringModel,
    "demo": boring_classes.DemoModel,
    "manual": boring_classes.ManualOptimBoringModel,
    "lstm": small_lstm,
    "transformer": small_transformer,
}


class Losses(lightning.Callback):
    def __init__(self):
        self.all = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.all.append((outputs["loss"] if isinstance(outputs, dict) else outputs).item())


@pytest.fixture
def double_precision():
    torch.set_default_dtype(torch.float64)
    with jax.enable_x64(True):
        yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("demo", DEMOS)
def test_a_demo_trains_as_in_lightning_fused_and_resumed(demo, double_precision, tmp_path, monkeypatch):
    for kind in (lstm.LightningLSTM, transformer.LightningTransformer):
        monkeypatch.delattr(kind, "prepare_data")  # it downloads a text
    torch.manual_seed(0)
    module, data = DEMOS[demo](), partial(Data, demo in ("lstm", "transformer"))
    reference, losses = copy.deepcopy(module), Losses()
    with quietly():
        lightning.Trainer(**QUIET, max_epochs=2, callbacks=losses).fit(reference, datamodule=data())

    task = from_torch(module, backend="jax")

    def fit(**arguments):
        trainer = quiet(max_epochs=2, log_every_n_steps=1, **arguments)
        return trainer.fit(task, datamodule=data())

    result = fit(steps_per_call=1)
    if demo != "manual":
        np.testing.assert_allclose(losses_of(result), losses.all, rtol=1e-9, atol=1e-9)
    keep = dict(enable_checkpointing=True, default_root_dir=tmp_path, steps_per_call=8)
    fused = fit(callbacks=lj.ModelCheckpoint(every_n_train_steps=8, save_top_k=-1), **keep)
    assert bits(fused.state) == bits(result.state)
    (middle,) = tmp_path.rglob("step_8")
    assert bits(fit(resume=middle, **keep).state) == bits(result.state)
    assert_same_weights(task.to_torch(result.state), reference, 1e-9)
