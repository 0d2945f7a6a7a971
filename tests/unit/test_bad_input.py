"""What the user gets wrong is said in one message that names what was written."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lightjax as lj
from tests.models import linear_data, linear_init, linear_loss, linear_task, quiet

DATA = linear_data(16)


def loader(**arguments):
    return lj.ArrayLoader(DATA, 4, **arguments)


def stepping(change):
    """A task whose train step returns `change(state, metrics)`."""

    def train_step(state, batch):
        grads, metrics = lj.grad(linear_loss)(state, batch)
        return change(state.apply_gradients(grads), metrics)

    return lj.Task(linear_init, train_step)


def reporting(metrics):
    return stepping(lambda state, _: (state, metrics))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda state, metrics: state, r"train_step returned a TrainState.*`return state, metrics`"),
        (lambda state, metrics: None, r"train_step returned None"),
        (lambda state, metrics: (state, metrics, 1), r"train_step returned a tuple of 3"),
        (
            lambda state, metrics: (state.replace(params={"w": state.params["w"][:2], "b": state.params["b"]}), {}),
            r"leaf 'params/w' was float32\[5\] and became float32\[2\]",
        ),
        (
            lambda state, metrics: (state.replace(step=state.step.astype(jnp.float32)), {}),
            r"leaf 'step' was int32\[\] and became float32\[\]",
        ),
        (
            lambda state, metrics: (state.replace(model_state={"seen": jnp.zeros(3)}), {}),
            r"leaf 'model_state/seen' was not there and became float32\[3\]",
        ),
    ],
)
def test_a_train_step_that_breaks_its_contract_is_named(change, text):
    with pytest.raises(lj.StepError, match=text):
        quiet(max_epochs=1).fit(stepping(change), loader())


@pytest.mark.parametrize(
    ("metrics", "text"),
    [
        ({"loss": "low"}, r"metric 'loss' as 'low' \(str\), which is neither a number nor a metric"),
        ({"logits": jnp.zeros((4, 2))}, r"metric 'logits' as float32\[4,2\] array"),
        ({"deep": {"er": None}}, r"metric 'er' as None"),
        ([0.5], r"its metrics as \[0.5\] \(list\)"),
    ],
)
def test_a_report_that_is_no_metric_is_named(metrics, text):
    with pytest.raises(lj.MetricError, match=text):
        quiet(max_epochs=1).fit(reporting(metrics), loader())


def test_a_metric_that_grows_when_merged_is_refused():
    import flax.struct

    @flax.struct.dataclass
    class Collected:
        values: jnp.ndarray

        def merge(self, other):
            return Collected(jnp.concatenate([self.values, other.values]))

        def compute(self):
            return self.values.mean()

    with pytest.raises(lj.MetricError, match=r"'all' \(Collected\), which changes when two of it are merged.*'values'"):
        quiet(max_epochs=1).fit(reporting({"all": Collected(jnp.zeros(2))}), loader())


def test_a_bare_number_needs_a_batch_size():
    batches = [{"x": DATA["x"][:4], "y": DATA["y"][:4], "table": np.zeros((7, 2), np.float32)}]
    with pytest.raises(
        lj.MetricError, match=r"'loss' as a bare number.*'table' float32\[7,2\].*lj.Mean\(value, weights"
    ):
        quiet(max_epochs=1).fit(reporting({"loss": 1.0}), batches)


@pytest.mark.parametrize(
    ("second", "text"),
    [
        (
            {"x": np.zeros((4, 6), np.float32), "y": np.zeros(4, np.float32)},
            r"'x' was float32\[4,5\] and became float32\[4,6\]",
        ),
        (
            {"x": np.zeros((4, 5), np.int32), "y": np.zeros(4, np.float32)},
            r"'x' was float32\[4,5\] and became int32\[4,5\]",
        ),
        ({"x": np.zeros((4, 5), np.float32)}, r"'y' was float32\[4\] and is gone"),
    ],
)
def test_a_batch_of_another_shape_is_named_with_its_number(second, text):
    first = {"x": np.zeros((4, 5), np.float32), "y": np.zeros(4, np.float32)}
    with pytest.raises(lj.DataError, match=r"train_data gave batch 1 of epoch 0 in another shape.*" + text):
        quiet(max_epochs=1).fit(linear_task(), [first, second])


def test_a_batch_that_is_no_array_is_named():
    with pytest.raises(lj.DataError, match=r"train_data gave batch 0 of epoch 0 with a str at 'x'"):
        quiet(max_epochs=1).fit(linear_task(), [{"x": "a"}])


def test_a_dataclass_that_jax_does_not_know_is_named():
    @dataclasses.dataclass
    class Pair:
        x: np.ndarray

    with pytest.raises(lj.DataError, match=r"the dataclass Pair, .*put @jax.tree_util.register_dataclass above Pair"):
        quiet(max_epochs=1).fit(linear_task(), [Pair(np.zeros((4, 5), np.float32))])


def test_an_empty_loader_is_named():
    with pytest.raises(lj.DataError, match="train_data is empty"):
        quiet(max_epochs=1).fit(linear_task(), [])
    with pytest.raises(lj.DataError, match="val_data is empty"):
        quiet(max_epochs=1).fit(linear_task(), loader(), [])


def test_an_exhausted_iterator_is_named_with_what_to_pass_instead():
    iterator = iter(list(loader()))
    with pytest.raises(lj.DataError, match=r"train_data is exhausted: it gave no batch in epoch 1.*a function"):
        quiet(max_epochs=2).fit(linear_task(), iterator)


@pytest.mark.parametrize(
    ("data", "text"), [(3, "is an int"), ({"x": 1}, "is a dict"), ("file.npz", "is a str"), (object(), "is an object")]
)
def test_a_loader_that_is_no_iterable_is_named(data, text):
    with pytest.raises(lj.DataError, match=rf"train_data {text}, which is no loader"):
        quiet(max_epochs=1).fit(linear_task(), data)


def test_a_function_that_returns_no_iterable_is_named():
    with pytest.raises(lj.DataError, match="train_data is a function that returned an int"):
        quiet(max_epochs=1).fit(linear_task(), lambda: 3)


def test_a_monitored_name_that_nobody_reports_is_found_before_training():
    for callback in (lj.EarlyStopping("val/los"), lj.ModelCheckpoint("val/los")):
        trainer = quiet(max_epochs=1, callbacks=[callback], enable_checkpointing=True)
        with pytest.raises(lj.MetricError, match=r"monitors 'val/los'.*train/loss, train/loss_epoch, val/loss"):
            trainer.fit(linear_task(), loader(), loader())


def test_a_monitored_name_is_missed_at_its_first_look_when_callbacks_report_names_too():
    class Silent(lj.Callback):
        every_n_steps = None

    trainer = quiet(max_epochs=2, callbacks=[Silent(), lj.EarlyStopping("val/f1")])
    with pytest.raises(lj.MetricError, match=r"EarlyStopping monitors 'val/f1', which nobody reports.*val/loss"):
        trainer.fit(linear_task(), loader(), loader())


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        ({"max_epochs": -1, "max_steps": -5}, ["max_epochs=-1", "max_steps=-5"]),
        ({"max_epochs": 1.5}, ["max_epochs=1.5: give a whole number"]),
        ({"steps_per_call": 0, "log_every_n_steps": 0}, ["steps_per_call=0", "log_every_n_steps=0"]),
        ({"limit_val_batches": 1.5, "limit_train_batches": 0}, ["limit_val_batches=1.5", "limit_train_batches=0"]),
        ({"callbacks": [print]}, ["callbacks holds <built-in function print>"]),
        ({"logger": [3]}, ["logger holds 3"]),
        (
            {
                "callbacks": [
                    lj.DeviceStatsMonitor(-5),
                    lj.LambdaCallback(every_n_steps=0),
                    lj.GradientAccumulationScheduler({0: 2}),
                ],
                "accumulate_grad_batches": 3,
            },
            [
                "DeviceStatsMonitor has every_n_steps=-5: give a whole number from 1 on",
                "LambdaCallback has every_n_steps=0",
                "accumulate_grad_batches is said twice",
            ],
        ),
        (
            {"callbacks": [lj.ModelCheckpoint()], "enable_checkpointing": False},
            ["enable_checkpointing=False, but callbacks holds a ModelCheckpoint"],
        ),
    ],
)
def test_every_conflict_of_a_trainer_is_listed_at_once(arguments, texts):
    with pytest.raises(lj.ConfigurationError) as error:
        lj.Trainer(**arguments)
    for text in texts:
        assert text in str(error.value)


def test_several_best_by_no_name_are_refused():
    trainer = quiet(max_epochs=1, callbacks=lj.ModelCheckpoint(save_top_k=2), enable_checkpointing=True)
    with pytest.raises(
        lj.MetricError, match=r"ModelCheckpoint\(save_top_k=2\) .*nobody reports; reported are: train/loss"
    ):
        trainer.fit(linear_task(), loader())
    with pytest.raises(lj.ConfigurationError, match="every_n_epochs=-1; give a number from 1 on, or 0 for never"):
        lj.ModelCheckpoint(every_n_epochs=-1)


def test_a_run_without_an_end_is_refused():
    with pytest.raises(lj.ConfigurationError, match="neither max_epochs nor max_steps nor max_time"):
        lj.Trainer().fit(linear_task(), loader())


def test_a_state_past_max_steps_is_refused():
    result = quiet(max_steps=4).fit(linear_task(), loader())
    with pytest.raises(lj.ConfigurationError, match="max_steps=3 was asked for, but the given state is at step 4"):
        quiet(max_steps=3).fit(linear_task(), loader(), state=result.state)


def test_what_a_stage_lacks_is_named():
    task = lj.Task(linear_init, stepping(lambda *returned: returned).train_step)
    trainer = quiet(max_epochs=1)
    with pytest.raises(lj.ConfigurationError, match="no eval_step"):
        trainer.fit(task, loader(), loader())
    with pytest.raises(lj.ConfigurationError, match="no training data"):
        trainer.fit(task)
    with pytest.raises(lj.ConfigurationError, match="has not trained one"):
        trainer.test(linear_task(), loader())
    result = trainer.fit(task, loader())
    with pytest.raises(lj.ConfigurationError, match="no predict_step"):
        trainer.predict(task, loader(), state=result.state)
    with pytest.raises(lj.ConfigurationError, match="has no train_step"):
        trainer.fit(object.__new__(type("Half", (), {"init": staticmethod(linear_init)})), loader())


def test_an_init_that_returns_no_arrays_is_named_with_its_leaf():
    with pytest.raises(lj.StepError, match=r"init returned a state with 'adam' \(str\) at 'name'"):
        quiet(max_epochs=1).fit(lj.Task(lambda key, batch: {"name": "adam"}, lambda s, b: (s, {})), loader())


def test_an_error_inside_a_step_says_which_batch_it_got():
    def train_step(state, batch):
        return state, {"loss": (batch["x"] @ jnp.zeros((6, 1))).mean()}

    with pytest.raises(TypeError) as error:
        quiet(max_epochs=1).fit(lj.Task(linear_init, train_step), loader())
    assert any(
        "in train_step, called with the batch: x float32[4,5], y float32[4]" in note for note in error.value.__notes__
    )


def test_an_error_in_a_callback_names_the_callback_and_the_hook():
    class Broken(lj.Callback):
        every_n_steps = 2

        def on_train_batch_end(self, run):
            raise RuntimeError("no disk")

    with pytest.raises(RuntimeError, match="no disk") as error:
        quiet(max_epochs=1, callbacks=Broken()).fit(linear_task(), loader())
    assert "This happened in Broken.on_train_batch_end, at step 2 of epoch 0." in error.value.__notes__


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (lambda losses: losses, r"linear returned a loss of type float32\[4\]"),
        (lambda losses: losses.sum().astype(int), r"a loss of type int32\[\]"),
        (lambda losses: "low", "a loss of type str"),
    ],
)
def test_a_loss_that_is_no_real_scalar_is_named(loss, text):
    def linear(state, batch):
        return loss(batch["x"] @ state.params["w"]), {}

    with pytest.raises(lj.StepError, match=text):
        quiet(max_epochs=1).fit(lj.Task.from_loss(linear_init, linear), loader())


def test_a_loss_function_without_aux_is_named():
    def forgetful(state, batch):
        return (batch["x"] @ state.params["w"]).mean()

    with pytest.raises(lj.StepError, match=r"forgetful returned float32\[\]; a loss function returns \(loss, aux\)"):
        quiet(max_epochs=1).fit(lj.Task.from_loss(linear_init, forgetful), loader())


def test_an_integer_parameter_is_named_with_its_path():
    def init(key, batch):
        return lj.TrainState.create(params={"embed": {"ids": jnp.arange(3)}}, optimizer=optax.sgd(0.1), key=key)

    with pytest.raises(lj.StepError, match=r"parameter 'embed/ids' of type int32\[3\]"):
        quiet(max_epochs=1).fit(lj.Task.from_loss(init, linear_loss), loader())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (({}, 4), "got no arrays"),
        (({"x": np.zeros((3, 2)), "y": np.zeros(4)}, 2), r"different numbers of rows.*'y' float64\[4\]"),
        (({"x": np.zeros(3), "y": np.zeros(())}, 2), "different numbers of rows"),
        (({"x": np.zeros((0, 2))}, 2), "without rows"),
        (({"x": np.zeros(3)}, 0), "batch_size=0 for 3 examples"),
        (({"x": np.zeros(3)}, 4, "drop_last"), "drop_last=True, which leaves no batch"),
    ],
)
def test_an_array_loader_that_cannot_be_is_refused(arguments, text):
    arrays, batch_size, *drop = arguments
    with pytest.raises(lj.DataError, match=text):
        lj.ArrayLoader(arrays, batch_size, drop_last=bool(drop))
