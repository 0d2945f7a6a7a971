"""The four models of the benchmarks: initial weights, data, and the forward pass as a pure function.

Weights and data are numpy arrays drawn from fixed seeds, so that every contestant starts from the same numbers and
sees the same batches in the same order. `torch_models.py` has the same models as torch modules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Params = dict[str, np.ndarray]
LEARNING_RATE = 1e-3  # of Adam, for everybody
LABEL_NOISE = 0.1  # keeps every loss away from zero, where equal training would look unequal
VOCABULARY, CONTEXT, WIDTH, HEADS, LAYERS = 256, 128, 128, 4, 4


@dataclass(frozen=True)
class Model:
    """A model and how it is trained.

    Attributes:
      title: what the table calls it.
      batch: examples in a batch.
      steps: steps in an epoch.
      epochs: epochs of a timed window.
      val_examples: examples that the contestants with defaults evaluate after each epoch.
      parameters: makes the initial weights.
      examples: makes inputs and labels: `(generator, count) -> (inputs, labels)`.
      logits: the forward pass in jax: `(params, inputs) -> logits`.
    """

    title: str
    batch: int
    steps: int
    epochs: int
    val_examples: int
    parameters: Callable[[np.random.Generator], Params]
    examples: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
    logits: Callable[[Any, Any], Any]

    def initial(self) -> Params:
        """Returns the weights everybody starts from, float32."""
        return {name: array.astype(np.float32) for name, array in self.parameters(np.random.default_rng(1)).items()}

    def data(self, steps: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Returns `(inputs, labels)` for training and for validation; labels are int32."""
        count = steps * self.batch
        inputs, labels = self.examples(np.random.default_rng(0), count + self.val_examples)
        return (inputs[:count], labels[:count]), (inputs[count:], labels[count:])


def cross_entropy(logits: Any, labels: Any) -> Any:
    """Returns the mean loss of integer labels, in jax."""
    import optax

    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _dense(generator: np.random.Generator, name: str, fan_in: int, fan_out: int, scale: float = 1.0) -> Params:
    weight = generator.normal(0, scale / np.sqrt(fan_in), (fan_in, fan_out))
    return {f"{name}_w": weight, f"{name}_b": np.zeros(fan_out)}


def _noisy(generator: np.random.Generator, labels: np.ndarray, classes: int) -> np.ndarray:
    random = generator.integers(0, classes, labels.shape)
    return np.where(generator.random(labels.shape) < LABEL_NOISE, random, labels).astype(np.int32)


def _projected(features: int, classes: int) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Makes examples whose label is the largest of some random projections."""

    def examples(generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        inputs = generator.normal(size=(count, features)).astype(np.float32)
        scores = inputs @ generator.normal(size=(features, classes))
        return inputs, _noisy(generator, scores.argmax(-1), classes)

    return examples


def _linear_parameters(generator: np.random.Generator) -> Params:
    return _dense(generator, "out", 32, 2)


def _linear_logits(params: Any, inputs: Any) -> Any:
    return inputs @ params["out_w"] + params["out_b"]


def _mlp_parameters(generator: np.random.Generator) -> Params:
    sizes = {"one": (64, 128), "two": (128, 128), "out": (128, 10)}
    return {key: value for name, size in sizes.items() for key, value in _dense(generator, name, *size).items()}


def _mlp_logits(params: Any, inputs: Any) -> Any:
    import jax

    hidden = jax.nn.relu(inputs @ params["one_w"] + params["one_b"])
    hidden = jax.nn.relu(hidden @ params["two_w"] + params["two_b"])
    return hidden @ params["out_w"] + params["out_b"]


def _images(generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Makes noisy copies of ten random pictures, [count, 28, 28, 1]."""
    labels = generator.integers(0, 10, count)
    pictures = generator.normal(size=(10, 28, 28, 1))
    images = 0.3 * pictures[labels] + generator.normal(size=(count, 28, 28, 1))
    return images.astype(np.float32), _noisy(generator, labels, 10)


def _cnn_parameters(generator: np.random.Generator) -> Params:
    return {
        "one_w": generator.normal(0, np.sqrt(2 / 9), (3, 3, 1, 16)),
        "one_b": np.zeros(16),
        "two_w": generator.normal(0, np.sqrt(2 / 144), (3, 3, 16, 32)),
        "two_b": np.zeros(32),
        **_dense(generator, "out", 7 * 7 * 32, 10),
    }


def _cnn_logits(params: Any, inputs: Any) -> Any:
    import jax

    hidden = inputs
    for name in ("one", "two"):
        hidden = jax.lax.conv_general_dilated(
            hidden, params[f"{name}_w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        hidden = jax.nn.relu(hidden + params[f"{name}_b"])
        # The numbers of reduce_window, whose gradient is slow in XLA on a CPU: 33 ms a step, and 6 ms like this.
        batch, height, width, channels = hidden.shape
        hidden = hidden.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))
    return hidden.reshape(hidden.shape[0], 7 * 7 * 32) @ params["out_w"] + params["out_b"]


def _text(generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Makes sequences in which a token decides the next one, and the same sequences moved on by one."""
    follower = generator.permutation(VOCABULARY)
    tokens = np.empty((count, CONTEXT + 1), np.int32)
    tokens[:, 0] = generator.integers(0, VOCABULARY, count)
    for position in range(CONTEXT):
        tokens[:, position + 1] = _noisy(generator, follower[tokens[:, position]], VOCABULARY)
    return tokens[:, :-1].copy(), tokens[:, 1:].copy()


def _gpt_parameters(generator: np.random.Generator) -> Params:
    params = {
        "token": generator.normal(0, 0.02, (VOCABULARY, WIDTH)),
        "position": generator.normal(0, 0.02, (CONTEXT, WIDTH)),
    }
    for layer in range(LAYERS):
        for norm in ("norm1", "norm2"):
            params |= {f"{layer}_{norm}_w": np.ones(WIDTH), f"{layer}_{norm}_b": np.zeros(WIDTH)}
        params |= _dense(generator, f"{layer}_qkv", WIDTH, 3 * WIDTH)
        params |= _dense(generator, f"{layer}_mix", WIDTH, WIDTH, scale=0.5)
        params |= _dense(generator, f"{layer}_up", WIDTH, 4 * WIDTH)
        params |= _dense(generator, f"{layer}_down", 4 * WIDTH, WIDTH, scale=0.5)
    params |= {"norm_w": np.ones(WIDTH), "norm_b": np.zeros(WIDTH)}
    return params | _dense(generator, "out", WIDTH, VOCABULARY)


def _gpt_logits(params: Any, tokens: Any) -> Any:
    import jax

    def dense(name: str, x: Any) -> Any:
        return x @ params[f"{name}_w"] + params[f"{name}_b"]

    def norm(name: str, x: Any) -> Any:
        return jax.nn.standardize(x, axis=-1, epsilon=1e-5) * params[f"{name}_w"] + params[f"{name}_b"]

    x = params["token"][tokens] + params["position"]
    for layer in range(LAYERS):
        qkv = dense(f"{layer}_qkv", norm(f"{layer}_norm1", x)).reshape(*tokens.shape, 3, HEADS, WIDTH // HEADS)
        mixed = jax.nn.dot_product_attention(qkv[..., 0, :, :], qkv[..., 1, :, :], qkv[..., 2, :, :], is_causal=True)
        x = x + dense(f"{layer}_mix", mixed.reshape(x.shape))
        x = x + dense(f"{layer}_down", jax.nn.gelu(dense(f"{layer}_up", norm(f"{layer}_norm2", x))))
    return dense("out", norm("norm", x))


MODELS = {
    "linear": Model("Linear(32, 2)", 4, 500, 5, 20, _linear_parameters, _projected(32, 2), _linear_logits),
    "mlp": Model("MLP 64-128-128-10", 64, 500, 5, 320, _mlp_parameters, _projected(64, 10), _mlp_logits),
    "cnn": Model("CNN on 28x28", 64, 40, 3, 32, _cnn_parameters, _images, _cnn_logits),
    "gpt": Model("GPT, 4 layers of 128, sequence 128", 16, 10, 3, 2, _gpt_parameters, _text, _gpt_logits),
}
