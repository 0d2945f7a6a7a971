"""Learning-rate schedulers of ported modules against torch's own loop, and what a run that is resumed knows of them."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.optim import lr_scheduler  # noqa: E402

from lightjax.errors import ConfigurationError  # noqa: E402
from lightjax_torch import schedule  # noqa: E402
from lightjax_torch.port import port_task  # noqa: E402
from tests.bridge.test_port import Regression, assert_same_weights, sequences  # noqa: E402
from tests.models import quiet  # noqa: E402

EPOCHS, BATCHES = 3, 4

SCHEDULERS = {
    "steps of epochs": lambda o: {"scheduler": lr_scheduler.StepLR(o, 1, 0.5)},
    "every other epoch": lambda o: {"scheduler": lr_scheduler.ExponentialLR(o, 0.5), "frequency": 2},
    "a warmup and a cosine of steps": lambda o: {
        "scheduler": lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 3), lr_scheduler.CosineAnnealingLR(o, 9)], [3]
        ),
        "interval": "step",
    },
    "milestones of steps": lambda o: {
        "scheduler": lr_scheduler.MultiStepLR(o, [2, 3], 0.3),
        "interval": "step",
        "frequency": 2,
    },
    "one cycle": lambda o: {
        "scheduler": lr_scheduler.OneCycleLR(o, 0.2, EPOCHS * BATCHES, cycle_momentum=False),
        "interval": "step",
    },
    "a plateau": lambda o: {
        "scheduler": lr_scheduler.ReduceLROnPlateau(o, factor=0.1, patience=0, threshold=10.0),
        "monitor": "train/loss_epoch",
    },
}


def with_scheduler(module, make):
    def configure():
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        return {"optimizer": optimizer, "lr_scheduler": make(optimizer)}

    module.configure_optimizers = configure
    return module


def by_hand(module, make, batches):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    config = {"interval": "epoch", "frequency": 1} | make(optimizer)
    steps = 0
    for epoch in range(EPOCHS):
        losses = []
        for batch in batches:
            loss = module.training_step(batch, 0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            steps += 1
            if config["interval"] == "step" and steps % config["frequency"] == 0:
                config["scheduler"].step()
        if config["interval"] == "epoch" and (epoch + 1) % config["frequency"] == 0:
            config["scheduler"].step(*([np.mean(losses)] if "monitor" in config else []))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_changes_the_rate_when_torchs_does(name, double_precision, monkeypatch):
    monkeypatch.setattr(schedule, "STEPS_AHEAD", 5)  # several hand-overs in 12 steps
    torch.manual_seed(0)
    module, batches = Regression(), sequences(BATCHES)
    reference = copy.deepcopy(module)
    by_hand(reference, SCHEDULERS[name], batches)
    task = port_task(with_scheduler(module, SCHEDULERS[name]))
    result = quiet(max_epochs=EPOCHS).fit(task, batches)
    assert_same_weights(task.to_torch(result.state), reference, 1e-9)


def test_a_run_goes_on_with_the_rate_it_had(double_precision, monkeypatch, tmp_path):
    monkeypatch.setattr(schedule, "STEPS_AHEAD", 5)
    make = SCHEDULERS["a warmup and a cosine of steps"]
    torch.manual_seed(0)
    module, batches = Regression(), sequences(BATCHES)
    reference = copy.deepcopy(module)
    by_hand(reference, make, batches)
    first = quiet(max_epochs=1, default_root_dir=tmp_path, enable_checkpointing=True)
    first.fit(port_task(with_scheduler(copy.deepcopy(module), make)), batches)
    task = port_task(with_scheduler(module, make))
    second = quiet(max_epochs=EPOCHS, default_root_dir=tmp_path, enable_checkpointing=True)
    result = second.fit(task, batches, resume="auto")
    assert int(result.state.step) == EPOCHS * BATCHES
    assert_same_weights(task.to_torch(result.state), reference, 1e-9)


@pytest.mark.parametrize(
    ("configure", "text"),
    [
        (lambda o: [o, o], "has one torch optimizer"),
        (lambda o: ([o], [lr_scheduler.ReduceLROnPlateau(o)]), "without the metric it looks at"),
    ],
)
def test_forms_that_are_not_ported_are_refused(configure, text):
    module = Regression()
    module.configure_optimizers = lambda: configure(torch.optim.SGD(module.parameters(), lr=0.1))
    with pytest.raises(ConfigurationError, match=text):
        port_task(module)


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_a_momentum_is_cycled(kind, double_precision, monkeypatch):
    monkeypatch.setattr(schedule, "STEPS_AHEAD", 3)
    torch.manual_seed(0)
    module, batches = Regression(), sequences(5)
    options = {"momentum": 0.9, "nesterov": True} if kind == "SGD" else {}
    make = lambda module: getattr(torch.optim, kind)(module.parameters(), lr=0.01, **options)  # noqa: E731
    reference = copy.deepcopy(module)
    optimizer = make(reference)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.05, 6)
    for batch in batches:
        optimizer.zero_grad()
        reference.training_step(batch, 0).backward()
        optimizer.step()
        scheduler.step()

    def configure():
        ours = make(module)
        return [ours], [{"scheduler": lr_scheduler.OneCycleLR(ours, 0.05, 6), "interval": "step"}]

    module.configure_optimizers = configure
    task = port_task(module)
    result = quiet(max_epochs=1).fit(task, batches)
    assert_same_weights(task.to_torch(result.state), reference, 1e-9)


class Odd(lr_scheduler.LRScheduler):
    def get_lr(self):
        for group in self.optimizer.param_groups:
            group["weight_decay"] = 0.1
        return self.base_lrs


def test_a_scheduler_of_something_else_is_refused():
    def configure():
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        scheduler = Odd(optimizer)
        optimizer.param_groups[0]["weight_decay"] = 0.0
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    module = Regression()
    module.configure_optimizers = configure
    with pytest.raises(ConfigurationError, match="changes more than the learning rate"):
        quiet(max_epochs=1).fit(port_task(module), sequences(BATCHES))


def test_every_form_of_configure_optimizers_is_read():
    module = Regression()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    scheduler = lr_scheduler.StepLR(optimizer, 1)
    for form in (
        optimizer,
        [optimizer],
        ([optimizer], [scheduler]),
        ([optimizer], [{"scheduler": scheduler, "interval": "step"}]),
        {"optimizer": optimizer, "lr_scheduler": scheduler},
        [{"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "frequency": 2}}],
        ({"optimizer": optimizer},),
    ):
        module.configure_optimizers = lambda form=form: form
        found, schedulers = schedule.configured(module)
        assert found is optimizer
        assert [one.scheduler for one in schedulers] in ([], [scheduler])
    module.configure_optimizers = lambda: None
    assert schedule.configured(module) == (None, [])
