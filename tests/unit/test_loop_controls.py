"""What each argument that shapes the loop means, exactly."""

import datetime

import numpy as np
import pytest

import lightjax as lj
from tests.models import bits, linear_data, linear_init, linear_task, quiet


def loader(examples=20, batch_size=4, **arguments):
    return lj.ArrayLoader(linear_data(examples), batch_size, **arguments)


def evaluated_at(result, name="val/loss"):
    return [row["step"] for row in result.history if name in row]


class StopAt(lj.Callback):
    """Asks for the end at a step."""

    every_n_steps = 1

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, run):
        if run.step == self.step:
            run.stop("enough")


@pytest.mark.parametrize(
    ("arguments", "ends_at"),
    [
        ({"min_steps": 7}, 7),  # within an epoch
        ({"min_epochs": 2}, 10),
        ({"min_epochs": 2, "min_steps": 13}, 13),  # both have to be reached
        ({"min_epochs": 3, "min_steps": 4}, 15),
        ({"min_steps": 2}, 3),
        ({}, 3),
    ],
)
@pytest.mark.parametrize("steps_per_call", [1, 8])
def test_who_asks_for_the_end_too_early_gets_it_when_the_minimum_is_reached(arguments, ends_at, steps_per_call):
    trainer = quiet(max_epochs=9, callbacks=StopAt(3), steps_per_call=steps_per_call, **arguments)
    result = trainer.fit(linear_task(), loader(), loader(8))
    assert (int(result.state.step), result.stopped_by) == (ends_at, "enough")
    assert evaluated_at(result)[-1] == ends_at


def test_a_minimum_between_two_looks_is_reached_exactly():
    class StopAtEpochEnd(lj.Callback):
        every_n_steps = None

        def on_train_epoch_end(self, run):
            run.stop("enough")

    result = quiet(max_epochs=9, min_steps=8, callbacks=StopAtEpochEnd(), steps_per_call=32).fit(
        linear_task(), loader()
    )
    assert int(result.state.step) == 8


def test_max_time_waits_for_the_minimum_too():
    result = quiet(max_time=0.0, min_steps=7).fit(linear_task(), loader())
    assert (int(result.state.step), result.stopped_by) == (7, "max_time")


def test_the_maximum_holds_whatever_the_minimum_says_of_callbacks():
    assert int(quiet(max_epochs=1, min_steps=99).fit(linear_task(), loader()).state.step) == 5


def test_a_stop_that_waits_for_the_minimum_survives_a_resume(tmp_path):
    def fit(max_steps, resume=None):
        keeper = lj.ModelCheckpoint(every_n_epochs=0)
        arguments = dict(enable_checkpointing=True, default_root_dir=tmp_path, resume=resume)
        stop = [StopAt(3), keeper]
        return quiet(max_steps=max_steps, min_epochs=2, callbacks=stop, **arguments).fit(linear_task(), loader())

    assert fit(4).stopped_by == "max_steps"
    again = fit(20, "auto")
    assert (int(again.state.step), again.stopped_by) == (10, "enough")


@pytest.mark.parametrize(("limit", "batches"), [(None, 5), (3, 3), (99, 5), (1.0, 5), (0.5, 2), (0.01, 1), (1, 1)])
@pytest.mark.parametrize("kind", ["array", "list"])
def test_limits_are_batches_or_a_fraction_rounded_down_but_at_least_one(limit, batches, kind):
    def data():
        return loader() if kind == "array" else list(loader())

    limits = {f"limit_{stage}_batches": limit for stage in ("train", "val", "test", "predict")}
    trainer = quiet(max_epochs=2, **limits)
    task = lj.Task(
        linear_init,
        linear_task().train_step,
        lambda state, batch: {"examples": lj.Sum(batch["y"] * 0 + 1)},
        linear_task().predict_step,
    )
    result = trainer.fit(task, data(), data())
    assert int(result.state.step) == 2 * batches
    assert result.metrics["val/examples"] == 4 * batches
    assert trainer.test(task, data())["test/examples"] == 4 * batches
    assert trainer.validate(task, data())["val/examples"] == 4 * batches
    assert len(trainer.predict(task, data())) == 4 * batches


def test_a_limit_of_no_validation_batches_turns_validation_off():
    for nothing in (0, 0.0):
        result = quiet(max_epochs=1, limit_val_batches=nothing).fit(linear_task(), loader(), loader())
        assert "val/loss" not in result.metrics
    with pytest.raises(lj.ConfigurationError, match="limit_val_batches=0 leaves nothing of the val data"):
        quiet(limit_val_batches=0).validate(linear_task(), loader(), state=result.state)


@pytest.mark.parametrize("kind", ["array", "list", "generator"])
def test_overfit_batches_trains_on_the_same_unshuffled_batches_in_every_epoch(kind):
    shuffled = loader(shuffle=True, seed=3)
    data = {"array": shuffled, "list": list(loader()), "generator": lambda: iter(loader())}[kind]
    overfitted = quiet(max_epochs=3, overfit_batches=2).fit(linear_task(), data, loader(16))
    first = {name: leaf[:8] for name, leaf in linear_data(20).items()}
    expected = quiet(max_epochs=3).fit(linear_task(), lj.ArrayLoader(first, 4), lj.ArrayLoader(linear_data(16), 4))
    assert bits(overfitted.state) == bits(expected.state)
    assert overfitted.metrics["val/loss"] != expected.metrics["val/loss"]  # two batches of four
    assert int(quiet(max_epochs=1, overfit_batches=0.4).fit(linear_task(), list(loader())).state.step) == 2


def test_a_buffer_that_a_loader_fills_again_is_copied_by_overfit_batches():
    def reusing():
        buffer = {name: np.empty((4, *leaf.shape[1:]), leaf.dtype) for name, leaf in linear_data(20).items()}
        for batch in loader():
            for name, leaf in batch.items():
                buffer[name][...] = leaf
            yield buffer

    results = [quiet(max_epochs=2, overfit_batches=3).fit(linear_task(), data) for data in (reusing, loader())]
    assert bits(results[0].state) == bits(results[1].state)


@pytest.mark.parametrize("given", [True, 3])
def test_fast_dev_run_tries_everything_and_writes_nothing(given, tmp_path):
    batches = int(given)
    trainer = lj.Trainer(
        max_epochs=50,
        min_epochs=20,
        fast_dev_run=given,
        callbacks=[lj.EarlyStopping("val/nobody"), lj.ModelCheckpoint("val/nobody")],
        val_check_interval=0.5,
        default_root_dir=tmp_path,
    )
    result = trainer.fit(linear_task(), loader(), loader())
    assert int(result.state.step) == batches
    assert (result.checkpoint.last, result.directory) == (None, None)
    assert evaluated_at(result) == [batches]
    trainer.test(linear_task(), loader())
    assert len(trainer.predict(linear_task(), loader())) == 4 * batches
    assert list(tmp_path.iterdir()) == []


def test_barebones_leaves_out_whatever_is_not_the_loop(tmp_path, capsys):
    result = lj.Trainer(max_epochs=2, barebones=True, default_root_dir=tmp_path).fit(linear_task(), loader(), loader())
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []
    assert bits(result.state) == bits(quiet(max_epochs=2).fit(linear_task(), loader(), loader()).state)
    with pytest.raises(lj.ConfigurationError) as error:
        lj.Trainer(barebones=True, logger=lj.CSVLogger(), callbacks=[lj.ModelCheckpoint()], num_sanity_val_steps=2)
    for name in ("logger", "callbacks", "num_sanity_val_steps"):
        assert f"barebones=True leaves out what {name} asks for" in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [5, 10, 15]),
        ({"val_check_interval": 1.0}, [5, 10, 15]),
        ({"val_check_interval": 2}, [2, 4, 5, 7, 9, 10, 12, 14, 15]),  # the end of an epoch is never one epoch old
        ({"val_check_interval": 0.4}, [2, 4, 5, 7, 9, 10, 12, 14, 15]),
        ({"val_check_interval": 0.01}, list(range(1, 16))),
        ({"check_val_every_n_epoch": 2}, [10]),
        ({"check_val_every_n_epoch": 2, "val_check_interval": 3}, [8, 10]),
        ({"check_val_every_n_epoch": None, "val_check_interval": 4}, [4, 8, 12, 15]),  # through all epochs, and the end
        ({"check_val_every_n_epoch": None, "val_check_interval": 7}, [7, 14, 15]),
        ({"val_check_interval": "00:00:00:00"}, None),  # after every call
        ({"val_check_interval": datetime.timedelta(days=1)}, [15]),
        ({"val_check_interval": {"hours": 5}, "check_val_every_n_epoch": 2}, [15]),
    ],
)
@pytest.mark.parametrize("steps_per_call", [1, 8])
def test_evaluations_come_exactly_when_they_are_asked_for(arguments, expected, steps_per_call):
    trainer = quiet(max_epochs=3, steps_per_call=steps_per_call, **arguments)
    found = evaluated_at(trainer.fit(linear_task(), loader(), loader(8)))
    if expected is None:
        expected = list(range(1, 16)) if steps_per_call == 1 else [5, 10, 15]
    assert found == expected


def test_evaluations_through_all_epochs_go_on_after_a_resume(tmp_path):
    def fit(max_steps, resume=None):
        arguments = dict(enable_checkpointing=True, default_root_dir=tmp_path, resume=resume)
        trainer = quiet(max_steps=max_steps, check_val_every_n_epoch=None, val_check_interval=4, **arguments)
        return trainer.fit(linear_task(), loader(), loader(8))

    fit(6)
    assert evaluated_at(fit(13, "auto")) == [4, 6, 8, 12, 13]


class Counting:
    """A loader that counts the batches it gave."""

    def __init__(self, batches=4):
        self.batches = batches
        self.given = 0

    def __iter__(self):
        for batch in list(loader())[: self.batches]:
            self.given += 1
            yield batch


@pytest.mark.parametrize(("steps", "tried"), [(0, 0), (2, 2), (-1, 4), (99, 4)])
def test_the_sanity_check_tries_batches_before_training_and_leaves_no_trace(steps, tried):
    class Watch(lj.Callback):
        every_n_steps = None

        def __init__(self):
            self.batches = 0

        def on_validation_batch_end(self, run):
            if run.sanity_checking:
                self.batches += run.step == 0

        def on_sanity_check_end(self, run):
            assert not run.metrics

    watch = Watch()
    result = quiet(max_epochs=1, num_sanity_val_steps=steps, callbacks=watch).fit(linear_task(), loader(), Counting())
    assert watch.batches == tried
    plain = quiet(max_epochs=1).fit(linear_task(), loader(), Counting())
    assert result.history == plain.history
    assert bits(result.state) == bits(plain.state)


def test_several_validation_loaders_report_under_their_names():
    clean, noisy = loader(16), loader(18, 6)  # of another shape, with a ragged batch
    data = {"clean": clean, "noisy": noisy}
    trainer = quiet(max_epochs=2, callbacks=lj.EarlyStopping("val/clean/loss", patience=9))
    result = trainer.fit(linear_task(), loader(), data)
    assert {name for name in result.metrics if name.startswith("val")} == {"val/clean/loss", "val/noisy/loss"}
    for name, one in data.items():
        alone = trainer.validate(linear_task(), one, state=result.state)["val/loss"]
        assert result.metrics[f"val/{name}/loss"] == alone
        assert trainer.test(linear_task(), data)[f"test/{name}/loss"] == alone
    assert len(evaluated_at(result, "val/clean/loss")) == 2
    assert len(trainer.predict(linear_task(), data)["noisy"]) == 18
    with pytest.raises(lj.MetricError, match="monitors 'val/loss'.*val/clean/loss, val/noisy/loss"):
        quiet(max_epochs=1, callbacks=lj.EarlyStopping("val/loss")).fit(linear_task(), loader(), data)


def test_a_list_of_loaders_is_evaluated_by_number_and_trained_on_by_none():
    result = quiet(max_epochs=1).fit(linear_task(), loader(), [loader(), loader()])
    assert {name for name in result.metrics if name.startswith("val")} == {"val/0/loss", "val/1/loss"}
    with pytest.raises(lj.DataError, match=r'train_data is a list of 2 loaders.*{"clean": first, "noisy": second}'):
        quiet(max_epochs=1).fit(linear_task(), [loader(), loader()], loader())
    with pytest.raises(lj.DataError, match=r"val_data is a dict, which is no loader"):
        quiet(max_epochs=1).fit(linear_task(), loader(), linear_data(8))


class Renewing:
    """A data module that notes when its loaders were made."""

    def __init__(self, trainer=None):
        self.trainer = trainer
        self.made = []

    def train_dataloader(self):
        epoch = self.trainer.current_epoch
        self.made.append(("train", epoch))
        return loader(8 if epoch < 2 else 16)

    def val_dataloader(self):
        self.made.append(("val", self.trainer.current_epoch))
        return loader(8)


@pytest.mark.parametrize(("every", "epochs", "steps"), [(0, [0], 10), (1, [0, 1, 2, 3, 4], 16), (2, [0, 2, 4], 16)])
def test_a_data_module_makes_its_loaders_anew_every_n_epochs(every, epochs, steps):
    trainer = quiet(max_epochs=5, reload_dataloaders_every_n_epochs=every, val_check_interval=0.5)
    data = Renewing(trainer)
    result = trainer.fit(linear_task(), datamodule=data)
    assert data.made == [(kind, epoch) for epoch in epochs for kind in ("train", "val")]
    assert int(result.state.step) == steps
    assert evaluated_at(result)[-2:] == [steps - (1 if every == 0 else 2), steps]


def test_loaders_that_nobody_can_make_anew_are_refused():
    with pytest.raises(lj.ConfigurationError, match="reload_dataloaders_every_n_epochs=1 was asked for, but fit got"):
        quiet(max_epochs=1, reload_dataloaders_every_n_epochs=1).fit(linear_task(), loader())


def test_a_loader_without_length_trains_and_is_cut_by_numbers():
    def endless():
        while True:
            yield from loader()

    result = quiet(max_epochs=3, limit_train_batches=7, val_check_interval=3, limit_val_batches=2).fit(
        linear_task(), endless, endless
    )
    assert int(result.state.step) == 21
    assert evaluated_at(result) == [3, 6, 7, 10, 13, 14, 17, 20, 21]
    for name in ("limit_train_batches", "overfit_batches"):
        with pytest.raises(lj.DataError, match="has no length to take a fraction of"):
            quiet(max_epochs=1, **{name: 0.5}).fit(linear_task(), endless)
    with pytest.raises(lj.ConfigurationError, match=r"val_check_interval=0\.5 is a fraction"):
        quiet(max_epochs=1, val_check_interval=0.5).fit(linear_task(), endless, loader())


@pytest.mark.parametrize(
    ("arguments", "data", "steps"),
    [
        ({"max_epochs": 3}, "array", 15),
        ({"max_epochs": 3, "max_steps": 7}, "array", 7),
        ({"max_steps": 7}, "generator", 7),
        ({"max_epochs": 3}, "generator", None),
        ({"max_epochs": 3, "limit_train_batches": 2}, "array", 6),
        ({"max_epochs": 3, "overfit_batches": 2}, "array", 6),
        ({"max_epochs": 3, "fast_dev_run": 2}, "array", 2),
    ],
)
def test_the_steps_of_a_run_are_known_to_init_and_before(arguments, data, steps):
    data = loader() if data == "array" else lambda: iter(loader())
    seen = []

    def init(key, batch):
        seen.append(trainer.estimated_steps)
        return linear_init(key, batch)

    class Look(lj.Callback):
        every_n_steps = None

        def on_fit_start(self, run):
            seen.append(run.estimated_steps)

    trainer = quiet(callbacks=Look(), **arguments)
    with pytest.raises(lj.ConfigurationError, match="read before fit knew the data"):
        trainer.estimated_steps  # noqa: B018
    assert trainer.estimate_steps(data) == steps
    if steps is not None:
        result = trainer.fit(lj.Task(init, linear_task().train_step), data)
        assert seen == [steps, steps]
        assert int(result.state.step) == steps


def test_a_resumed_run_has_the_steps_of_the_whole(tmp_path):
    trainers = [
        quiet(max_epochs=3, max_steps=most, enable_checkpointing=True, default_root_dir=tmp_path, resume="auto")
        for most in (4, None)
    ]
    for trainer in trainers:
        trainer.fit(linear_task(), loader())
    assert trainers[1].estimated_steps == 15
