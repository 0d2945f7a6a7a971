"""Scores of classifiers agree with scikit-learn's, however the examples are cut into batches."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as reference

import lightjax as lj
from tests.models import digit_like_data, linear_data, linear_init, linear_task, mlp_task, quiet

CLASSES = 5
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, CLASSES, 101)
LOGITS = RNG.normal(size=(101, CLASSES)).astype(np.float32) + np.eye(CLASSES, dtype=np.float32)[LABELS]
PREDICTIONS = LOGITS.argmax(-1)


def gathered(make, parts=7):
    """The metric of all examples, merged from batches of different sizes inside of compiled code."""
    cuts = np.array_split(np.arange(len(LABELS)), parts)
    found = None
    for rows in cuts:
        one = jax.jit(make)(LOGITS[rows], LABELS[rows])
        found = one if found is None else jax.jit(lambda a, b: a.merge(b))(found, one)
    return jax.device_get(found).compute()


SCORES = {
    lj.PrecisionScore: reference.precision_score,
    lj.RecallScore: reference.recall_score,
    lj.F1Score: reference.f1_score,
}


@pytest.mark.parametrize("average", ["macro", "micro", "weighted", None])
@pytest.mark.parametrize("score", SCORES)
def test_scores_are_those_of_scikit_learn(score, average):
    found = gathered(lambda logits, labels: score(logits, labels, average=average))
    expected = SCORES[score](LABELS, PREDICTIONS, average=average)
    if average is None:
        assert list(found) == [str(i) for i in range(CLASSES)]
        found = list(found.values())
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_class_that_never_comes_is_left_out_of_the_mean():
    found = lj.F1Score(np.array([0, 1, 1]), np.array([0, 0, 1]), num_classes=9)
    assert float(jax.device_get(found).compute()) == pytest.approx(
        reference.f1_score([0, 0, 1], [0, 1, 1], average="macro")
    )


def test_the_confusion_matrix_and_the_top_k_are_those_of_scikit_learn():
    np.testing.assert_array_equal(gathered(lj.ConfusionMatrix), reference.confusion_matrix(LABELS, PREDICTIONS))
    for k in (1, 2, CLASSES - 1):
        expected = reference.top_k_accuracy_score(LABELS, LOGITS, k=k)
        assert gathered(lambda logits, labels, k=k: lj.TopKAccuracy(logits, labels, k=k)) == pytest.approx(expected)


def test_examples_of_weight_zero_are_left_out():
    weights = (np.arange(len(LABELS)) % 3 > 0).astype(np.float32)
    kept = weights > 0
    found = jax.device_get(lj.F1Score(LOGITS, LABELS, weights=weights)).compute()
    assert found == pytest.approx(reference.f1_score(LABELS[kept], PREDICTIONS[kept], average="macro"))


def test_perplexity_is_the_exponential_of_the_mean_of_all_tokens():
    losses = RNG.random((4, 6)).astype(np.float32)
    weights = (RNG.random((4, 6)) > 0.3).astype(np.float32)
    parts = [lj.Perplexity(losses[i], weights[i]) for i in range(4)]
    found = parts[0].merge(parts[1]).merge(parts[2]).merge(parts[3])
    assert jax.device_get(found).compute() == pytest.approx(np.exp(np.average(losses, weights=weights)), rel=1e-6)


def test_they_are_gathered_by_a_training_and_its_evaluation():
    plain = mlp_task()

    def eval_step(state, batch):
        hidden = batch["x"]
        for i in range(3):
            layer = state.params[f"layer_{i}"]
            hidden = hidden @ layer["kernel"] + layer["bias"]
            hidden = jax.nn.relu(hidden) if i < 2 else hidden
        labels = batch["y"]
        return {
            "f1": lj.F1Score(hidden, labels),
            "f1_micro": lj.F1Score(hidden, labels, average="micro"),
            "recall": lj.RecallScore(hidden, labels, average=None),
            "top3": lj.TopKAccuracy(hidden, labels, k=3),
            "confusion": lj.ConfusionMatrix(hidden, labels),
        }

    task = lj.Task(plain.init, plain.train_step, eval_step)
    result = quiet(max_epochs=2).fit(
        task, lj.ArrayLoader(digit_like_data(64), 16), lj.ArrayLoader(digit_like_data(37), 8)
    )
    matrix = result.metrics["val/confusion"]
    assert matrix.shape == (10, 10)
    assert matrix.sum() == 37
    hits = matrix.diagonal()
    assert result.metrics["val/f1_micro"] == pytest.approx(hits.sum() / 37)
    for i in range(10):
        assert result.metrics[f"val/recall/{i}"] == pytest.approx(hits[i] / max(1, matrix[i].sum()))
    assert result.metrics["val/top3"] >= result.metrics["val/f1_micro"]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: lj.TopKAccuracy(LOGITS, LABELS, k=9), "k=9 for 5 classes"),
        (lambda: lj.ConfusionMatrix(PREDICTIONS, LABELS), "num_classes"),
        (lambda: lj.F1Score(LOGITS, LABELS[:3]), r"predictions int32\[101\] and labels int32\[3\]"),
        (lambda: lj.F1Score(LOGITS, LABELS, average="mean"), "average='mean'; write 'macro'"),
        (lambda: lj.RecallScore(LOGITS, np.eye(CLASSES)[LABELS]), r"one-hot labels become labels.argmax"),
    ],
)
def test_what_does_not_belong_together_is_refused(make, text):
    with pytest.raises(lj.MetricError, match=text):
        make()


def test_the_docs_name_metrics_that_there_are(request):
    metrax = pytest.importorskip("metrax")
    text = (request.config.rootpath / "docs" / "metrics.md").read_text()
    named = set(re.findall(r"\b(lj|metrax)\.([A-Z]\w+)", text))
    assert len(named) > 25
    assert not [name for where, name in named if not hasattr({"lj": lj, "metrax": metrax}[where], name)]
    example: dict = {"dataclasses": dataclasses, "jax": jax, "jnp": jnp, "np": np}
    exec(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[1], example)
    x, y = LOGITS[:, 0], LOGITS[:, 1]
    parts = [example["Correlation"].of(x[rows], y[rows]) for rows in (slice(0, 40), slice(40, None))]
    found = jax.device_get(parts[0].merge(parts[1])).compute()
    assert found == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-4)


def test_metrics_of_several_labels_an_example_are_those_of_scikit_learn():
    metrax = pytest.importorskip("metrax")
    labels = RNG.integers(0, 2, (101, 3))
    probabilities = (0.6 * RNG.random((101, 3)) + 0.4 * labels).astype(np.float32)
    kinds = {"precision": metrax.Precision, "recall": metrax.Recall, "auroc": metrax.AUCROC}

    def eval_step(state, batch):
        found = {name: kind.from_model_output(batch["p"].ravel(), batch["y"].ravel()) for name, kind in kinds.items()}
        taken = (batch["p"] > 0.5).astype(jnp.int32)
        found["f1"] = lj.F1Score(taken, batch["y"], num_classes=2, average=None)
        return found | {
            f"auroc_{i}": metrax.AUCROC.from_model_output(batch["p"][:, i], batch["y"][:, i], num_thresholds=1000)
            for i in range(3)
        }

    task = lj.Task(lambda key, batch: {"w": jnp.zeros(())}, linear_task().train_step, eval_step)
    data = lj.ArrayLoader({"p": probabilities, "y": labels.astype(np.int32)}, 8)
    with jax.numpy_rank_promotion("allow"):
        metrics = quiet().validate(task, data, state={"w": jnp.zeros(())})
    taken = probabilities.ravel() > 0.5
    for name, score in (
        ("precision", reference.precision_score),
        ("recall", reference.recall_score),
        ("f1/1", reference.f1_score),
    ):
        assert metrics[f"val/{name}"] == pytest.approx(score(labels.ravel(), taken), rel=1e-5), name
    for i in range(3):
        expected = reference.roc_auc_score(labels[:, i], probabilities[:, i])
        assert metrics[f"val/auroc_{i}"] == pytest.approx(expected, abs=2e-3)


def test_metrax_has_the_others_and_they_work_as_they_are():
    metrax = pytest.importorskip("metrax")
    data = linear_data(60)
    data["above"] = (data["y"] > 0).astype(np.int32)

    def eval_step(state, batch):
        found = batch["x"] @ state.params["w"] + state.params["b"]
        above = jax.nn.sigmoid(found)
        return {
            "mse": metrax.MSE.from_model_output(found, batch["y"]),
            "mae": metrax.MAE.from_model_output(found, batch["y"]),
            "r2": metrax.RSQUARED.from_model_output(found, batch["y"]),
            "auroc": metrax.AUCROC.from_model_output(above, batch["above"]),
            "precision": metrax.Precision.from_model_output(above, batch["above"]),
        }

    task = lj.Task(linear_init, linear_task().train_step, eval_step)
    with jax.numpy_rank_promotion("allow"):
        result = quiet(max_epochs=20).fit(task, lj.ArrayLoader(data, 8), lj.ArrayLoader(data, 8))
    params = jax.device_get(result.state.params)
    found = data["x"] @ params["w"] + params["b"]
    expected = {
        "mse": (reference.mean_squared_error(data["y"], found), 1e-5),
        "mae": (reference.mean_absolute_error(data["y"], found), 1e-5),
        "r2": (reference.r2_score(data["y"], found), 1e-3),
        # 200 thresholds stand for all.
        "auroc": (reference.roc_auc_score(data["above"], found), 2e-2),
        "precision": (reference.precision_score(data["above"], found > 0), 1e-5),
    }
    for name, (value, tolerance) in expected.items():
        assert result.metrics[f"val/{name}"] == pytest.approx(value, rel=tolerance), name
    assert jnp.isfinite(result.metrics["val/auroc"])
