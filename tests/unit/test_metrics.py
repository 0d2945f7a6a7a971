"""Metrics: merging parts gives what the whole gives, exactly enough for long epochs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lightjax as lj
from lightjax.metrics import as_metrics, computed, numbers

VALUES = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).uniform(size=(7, 5)).astype(np.float32)


@pytest.mark.parametrize(
    ("make", "reference"),
    [
        (lj.Mean, np.mean),
        (lj.Sum, np.sum),
        (lj.Max, np.max),
        (lj.Min, np.min),
        (lambda values: lj.Last(values.ravel()[-1]), lambda values: values.ravel()[-1]),
    ],
)
def test_merged_parts_of_unequal_size_equal_the_whole(make, reference):
    merged = make(VALUES[:1]).merge(make(VALUES[1:3])).merge(make(VALUES[3:]))
    assert float(merged.compute()) == pytest.approx(float(reference(VALUES)), rel=1e-6)


def test_a_weighted_mean_equals_numpys_average_over_any_split():
    whole = np.average(VALUES, weights=WEIGHTS)
    merged = lj.Mean(VALUES[:2], WEIGHTS[:2]).merge(lj.Mean(VALUES[2:], WEIGHTS[2:]))
    assert float(merged.compute()) == pytest.approx(whole, rel=1e-5)


def test_values_of_weight_zero_do_not_count_even_when_they_are_nan():
    mean = lj.Mean(jnp.array([1.0, jnp.nan]), jnp.array([2.0, 0.0]))
    assert float(mean.compute()) == 1.0


def test_a_mean_of_nothing_is_nan_on_host_and_device():
    empty = lj.Mean(jnp.zeros(2), jnp.zeros(2))
    assert np.isnan(float(empty.compute()))
    assert np.isnan(computed({"empty": jax.device_get(empty)})["empty"])


def test_a_million_merges_lose_no_digit():
    """A float32 sum of a million tenths is off by one percent; the compensated one is not."""
    tenth = lj.Mean(jnp.float32(0.1))
    total = jax.jit(lambda one: jax.lax.fori_loop(0, 1_000_000, lambda _, acc: acc.merge(one), one))(tenth)
    naive = jax.jit(lambda: jax.lax.fori_loop(0, 1_000_000, lambda _, acc: acc + jnp.float32(0.1), 0.0))()
    # The sum of a million equal values rounds to the value times the count: exact to one unit in the last place.
    assert abs(float(total.compute()) - np.float32(0.1)) <= 2 * np.spacing(np.float32(0.1))
    assert abs(float(naive) / 1e6 - 0.1) > 1e-4


def test_half_precision_values_are_gathered_in_float32():
    assert lj.Mean(jnp.ones(3, jnp.bfloat16)).total.total.dtype == jnp.float32
    assert float(lj.Sum(jnp.full(4096, 1.0, jnp.float16)).compute()) == 4096


def test_accuracy_counts_and_leaves_out():
    logits = np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0], [0.0, 9.0]])
    labels = np.array([0, 1, 1, 0])
    assert float(lj.Accuracy(logits, labels).compute()) == 0.5
    assert float(lj.Accuracy(logits, labels, weights=np.array([1.0, 1.0, 0.0, 0.0])).compute()) == 1.0
    assert isinstance(jax.jit(lambda a: a)(lj.Accuracy(logits, labels)), lj.Accuracy)
    with pytest.raises(lj.MetricError, match=r"logits float.*\[4,2\] and labels .*\[4,2\].*argmax"):
        lj.Accuracy(logits, np.eye(2)[labels])


def test_weights_of_another_shape_are_refused():
    with pytest.raises(lj.MetricError, match=r"values of shape \(4, 3\) and weights of shape \(4,\)"):
        lj.Mean(jnp.zeros((4, 3)), jnp.zeros(4))


def test_bare_numbers_are_means_weighted_by_the_batch_size():
    def report(size, value):
        batch = {"x": np.zeros((size, 2))}
        return as_metrics({"loss": value, "parts": {"kl": jnp.float32(value)}}, batch, "train_step")

    small, large = report(1, 4.0), report(3, 8)
    merged = {name: metric.merge(large[name]) for name, metric in small.items()}
    assert computed(merged, "train/") == {"train/loss": 7.0, "train/parts/kl": 7.0}


def test_metrics_of_clu_and_metrax_are_taken_as_they_are():
    import metrax
    from clu import metrics as clu_metrics

    logits, labels = jnp.array([[0.1, 0.9], [0.8, 0.2]]), jnp.array([1, 1])
    reported = {
        "clu": clu_metrics.Accuracy.from_model_output(logits=logits, labels=labels),
        "metrax": metrax.MSE.from_model_output(predictions=jnp.array([1.0, 2.0]), labels=jnp.array([1.0, 4.0])),
    }
    metrics = as_metrics(reported, {"x": logits}, "train_step")
    merged = {name: metric.merge(metric) for name, metric in metrics.items()}
    assert computed(jax.device_get(merged)) == {"clu": 0.5, "metrax": 2.0}


def test_a_metric_that_computes_to_a_dict_reports_each_entry():
    class Both(lj.Mean):
        def compute(self):
            return {"mean": super().compute(), "doubled": 2 * super().compute()}

    assert computed({"both": Both(jnp.float32(3.0))}) == {"both/mean": 3.0, "both/doubled": 6.0}


def test_metrics_of_every_kind_survive_packing():
    """Own metrics are computed side by side, a subclass that computes otherwise and foreign ones one by one."""
    from clu import metrics as clu_metrics

    from lightjax.engine.packing import Packing

    class Root(lj.Mean):
        def compute(self):
            return {"root": super().compute() ** 0.5}

    def report(values):
        return {
            "mean": lj.Mean(values),
            "foreign": clu_metrics.Average.from_model_output(values),
            "weighted": lj.Mean(values, jnp.abs(values)),
            "root": Root(values**2),
            "top": lj.Max(values),
            "last": lj.Last(values[-1]),
            "steps": lj.Last(jnp.int32(7)),
        }

    parts = [report(jnp.asarray(part)) for part in (VALUES[0], VALUES[1])]
    packing = Packing.of(parts[0])
    merged = jax.jit(packing.merge)(*(packing.pack(part) for part in parts))
    found = computed({name: metric.merge(parts[1][name]) for name, metric in parts[0].items()})
    packed = numbers(packing.compute(jax.device_get(merged)))
    assert list(packed) == list(found) == ["mean", "foreign", "weighted", "root/root", "top", "last", "steps"]
    assert packed == pytest.approx(found, rel=1e-6)
