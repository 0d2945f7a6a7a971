"""Metric objects of torchmetrics in ported modules: the numbers that lightning.Trainer reports."""

import copy
import warnings

import jax
import jax.numpy as jnp
import pytest

torch = pytest.importorskip("torch")

from tests.bridge.native.reference import QUIET, lightning, quietly  # noqa: E402

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torchmetrics

import torch.nn.functional as F  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from lightjax_torch import CaptureError, port_task  # noqa: E402
from tests.models import quiet  # noqa: E402

CLASSES = {"task": "multiclass", "num_classes": 4}


class Correct(torchmetrics.Metric):
    """A metric as users write it: nothing says that its states are joined from those of batches."""

    def __init__(self):
        super().__init__()
        self.add_state("correct", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits, labels):
        self.correct += (logits.argmax(-1) == labels).sum()
        self.total = self.total + labels.numel()

    def compute(self):
        return self.correct / self.total


class Measured(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(5, 4)
        self.accuracy = torchmetrics.Accuracy(**CLASSES)
        self.mean, self.largest = torchmetrics.MeanMetric(), torchmetrics.MaxMetric()
        scores = {"f1": torchmetrics.F1Score(**CLASSES, average="macro"), "own": Correct()}
        self.scores = torchmetrics.MetricCollection(scores, prefix="score_")
        self.curve = torchmetrics.AUROC(**CLASSES, thresholds=20)
        self.confusion, self.in_test = torchmetrics.ConfusionMatrix(**CLASSES), Correct()

    def training_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        self.log("batch_accuracy", self.accuracy(logits, batch[1]), on_step=False, on_epoch=True)
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        # A value that is no number is left out, as MeanMetric does.
        self.mean.update(torch.where(batch[0][:, 0] > 1, torch.nan, logits[:, 0]))
        self.log("mean", self.mean, on_step=False, on_epoch=True)
        self.largest(logits)
        self.log("largest", self.largest, on_step=False, on_epoch=True)
        return F.cross_entropy(logits, batch[1])

    def validation_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        self.scores.update(logits, batch[1])
        self.log_dict(self.scores)
        self.curve.update(logits, batch[1])
        self.log("curve", self.curve)
        self.confusion.update(logits, batch[1])

    def on_validation_epoch_end(self):
        self.log("right", self.confusion.compute().trace())
        self.confusion.reset()

    def test_step(self, batch, batch_idx):
        self.in_test(self.net(batch[0]), batch[1])
        self.log("own", self.in_test)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


@pytest.fixture(scope="module")
def reference():
    """A module, rows, and what Lightning reports of two epochs and of a test."""
    torch.manual_seed(0)
    module, rows = Measured(), TensorDataset(torch.randn(24, 5), torch.randint(0, 4, (24,)))
    theirs, batches = copy.deepcopy(module), DataLoader(rows, batch_size=8)
    with quietly():
        trainer = lightning.Trainer(**QUIET, max_epochs=2)
        trainer.fit(theirs, batches, batches)
        fitted = {name: value.item() for name, value in trainer.callback_metrics.items()}
        tested = trainer.test(theirs, batches, verbose=False)[0]
    return module, batches, fitted, tested


@pytest.mark.parametrize(("strategy", "devices"), [("jit", 1), ("pmap", 2)])
def test_metric_objects_report_what_lightning_reports(reference, strategy, devices):
    module, batches, fitted, tested = reference
    task = port_task(copy.deepcopy(module))
    trainer = quiet(max_epochs=2, strategy=strategy, devices=devices)
    metrics = trainer.fit(task, batches, batches).metrics
    names = {f"train/{name}_epoch" for name in ("batch_accuracy", "accuracy", "mean", "largest")}
    names |= {f"val/{name}" for name in ("score_f1", "score_own", "curve", "right")}
    found = {name: metrics[name] for name in names}
    expected = {name: fitted[name.partition("/")[2].removesuffix("_epoch")] for name in names}
    assert found == pytest.approx(expected, rel=1e-5)
    assert trainer.test(task, batches) == pytest.approx({"test/own": tested["own"]})
    # The objects are as they were given.
    assert task.module.accuracy.update_count == 0
    assert int(task.module.confusion.confmat.sum()) == 0


class Slow(Correct):
    def update(self, logits, labels):
        self.correct = 0.9 * self.correct + (logits.argmax(-1) == labels).sum()
        self.total += 1


def computing(self, logits, labels):
    self.metric.update(logits, labels)
    self.log("x", self.metric.compute())


def forgetting(self, logits, labels):
    self.log("x", self.metric)


def reporting(self, logits, labels):
    self.metric(logits, labels)
    self.log("x", self.metric)


@pytest.mark.parametrize(
    ("make", "step", "text"),
    [
        (Correct, computing, r"test_port_metrics\.py:\d+: metric\.compute\(\) is called in a step.*self\.log"),
        (Correct, forgetting, "the metric object 'metric' was not updated there"),
        (
            Slow,
            reporting,
            r"test_port_metrics\.py:\d+: Slow \(metric\) updates its state 'correct' in another way",
        ),
        (lambda: torchmetrics.AUROC(**CLASSES), reporting, "its state 'preds' keeps a list.*thresholds=100"),
        (lambda: torchmetrics.MinMaxMetric(Correct()), reporting, "is a MinMaxMetric, which remembers"),
    ],
)
def test_what_cannot_be_gathered_is_refused(make, step, text):
    module = Measured()
    module.metric = make()
    module.validation_step = lambda batch, batch_idx: step(module, module.net(batch[0]), batch[1])
    task, batch = port_task(module), (jnp.ones((4, 5)), jnp.zeros(4, jnp.int32))
    with pytest.raises(CaptureError, match=text):
        task.eval_step(task.init(jax.random.key(0), batch), batch)


def test_an_object_that_nobody_resets_is_refused(reference):
    module, batches, *_ = reference
    module = copy.deepcopy(module)
    kind = type("Kept", (lightning.LightningModule,), {n: v for n, v in vars(Measured).items() if n != "__module__"})
    kind.on_validation_epoch_end = lambda self: self.confusion.compute()
    module.__class__ = kind
    with pytest.raises(CaptureError, match="computes the metric object MulticlassConfusionMatrix and nobody resets it"):
        quiet(max_epochs=1, num_sanity_val_steps=0).fit(port_task(module), batches, batches)
