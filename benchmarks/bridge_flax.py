"""The models of `bridge_torch.py` by hand in flax, images with the channels last, and torch's weights for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn


class LSTM(nn.Module):
    """Predicts the next token."""

    vocabulary: int = 256
    width: int = 128

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(self.vocabulary, self.width, name="token")(tokens)
        x = nn.RNN(nn.OptimizedLSTMCell(self.width, name="lstm"))(x)
        return nn.Dense(self.vocabulary, name="out")(x)


class Layer(nn.Module):
    """A transformer layer with the norms in front."""

    width: int
    heads: int
    causal: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        qkv = nn.Dense(3 * self.width, name="qkv")(nn.LayerNorm(1e-5, name="norm1")(x))
        q, k, v = (one.reshape(*x.shape[:2], self.heads, -1) for one in jnp.split(qkv, 3, -1))
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + nn.Dense(self.width, name="mix")(mixed.reshape(x.shape))
        hidden = nn.Dense(4 * self.width, name="up")(nn.LayerNorm(1e-5, name="norm2")(x))
        return x + nn.Dense(self.width, name="down")(nn.gelu(hidden, approximate=False))


class GPT(nn.Module):
    """Predicts the next token."""

    layers: int = 4
    width: int = 128
    heads: int = 4
    vocabulary: int = 256
    context: int = 128

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(self.vocabulary, self.width, name="token")(tokens)
        x = x + nn.Embed(self.context, self.width, name="position")(jnp.arange(tokens.shape[1]))
        for number in range(self.layers):
            x = Layer(self.width, self.heads, causal=True, name=f"layers.{number}")(x)
        return nn.Dense(self.vocabulary, name="out")(nn.LayerNorm(1e-5, name="norm")(x))


class ViT(nn.Module):
    """ViT-tiny on images of 32x32 in patches of 4x4."""

    layers: int = 12
    width: int = 192
    heads: int = 3
    classes: int = 10

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = nn.Conv(self.width, (4, 4), strides=(4, 4), name="patch")(images)
        x = x.reshape(x.shape[0], -1, self.width)
        first = nn.Embed(1, self.width, name="first")(jnp.zeros((x.shape[0], 1), jnp.int32))
        x = jnp.concatenate([first, x], 1)
        x = x + nn.Embed(65, self.width, name="position")(jnp.arange(x.shape[1]))
        for number in range(self.layers):
            x = Layer(self.width, self.heads, causal=False, name=f"layers.{number}")(x)
        return nn.Dense(self.classes, name="out")(nn.LayerNorm(1e-5, name="norm")(x)[:, 0])


def _norm(name: str) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5, name=name)


class Block(nn.Module):
    """Two convolutions, each with BatchNorm, and a way around them."""

    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        strides, padding = (self.stride, self.stride), [(1, 1), (1, 1)]
        found = nn.Conv(self.width, (3, 3), strides, padding, use_bias=False, name="conv1")(x)
        found = nn.relu(_norm("norm1")(found))
        found = _norm("norm2")(nn.Conv(self.width, (3, 3), padding=padding, use_bias=False, name="conv2")(found))
        if self.stride != 1 or x.shape[-1] != self.width:
            x = _norm("norm3")(nn.Conv(self.width, (1, 1), strides, use_bias=False, name="around")(x))
        return nn.relu(found + x)


class ResNet18(nn.Module):
    """ResNet-18 for images of 32x32."""

    classes: int = 10

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = nn.Conv(64, (3, 3), padding=[(1, 1), (1, 1)], use_bias=False, name="stem")(images)
        x = nn.relu(_norm("norm")(x))
        for number, width in enumerate([64, 64, 128, 128, 256, 256, 512, 512]):
            x = Block(width, 1 + (x.shape[-1] != width), name=f"blocks.{number}")(x)
        return nn.Dense(self.classes, name="out")(x.mean((1, 2)))


class MLP(nn.Module):
    """Two hidden layers."""

    width: int = 256
    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(self.width, name="one")(x))
        x = nn.relu(nn.Dense(self.width, name="two")(x))
        return nn.Dense(self.classes, name="out")(x)


class Linear(nn.Module):
    """Nothing to compute."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(2, name="out")(x)


MODELS: dict[str, type[nn.Module]] = {
    "linear": Linear,
    "mlp": MLP,
    "resnet18": ResNet18,
    "lstm": LSTM,
    "gpt": GPT,
    "vit": ViT,
}
_KINDS = {"kernel": "weight", "scale": "weight", "embedding": "weight", "mean": "running_mean", "var": "running_var"}


def batch_of(inputs: np.ndarray, labels: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Returns torch's batch as flax wants it: channels last, whole numbers of 32 bits."""
    if inputs.ndim == 4:
        inputs = inputs.transpose(0, 2, 3, 1)
    return tuple(
        jnp.asarray(one.astype(np.int32) if one.dtype == np.int64 else np.ascontiguousarray(one))
        for one in (inputs, labels)
    )  # pyright: ignore[reportReturnType]


def variables_of(shapes: Any, weights: Mapping[str, np.ndarray]) -> Any:
    """Returns the variables of a model with torch's weights.

    Args:
      shapes: what `model.init` returns, or its shapes.
      weights: torch's state_dict as arrays.
    """

    def fill(path: Any, leaf: Any) -> jax.Array:
        _, *modules, kind = [key.key for key in path]
        if modules[0] == "RNN_0" or "lstm" in modules:
            found = _of_lstm(weights, modules[-1], kind)
        else:
            found = weights[".".join([*modules, _KINDS.get(kind, kind)])]
            if kind == "kernel":
                found = found.transpose(2, 3, 1, 0) if found.ndim == 4 else found.T
        if found.shape != leaf.shape:
            raise ValueError(f"{'.'.join(modules)}.{kind} is {leaf.shape} in flax and {found.shape} in torch")
        return jnp.array(found)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def _of_lstm(weights: Mapping[str, np.ndarray], gate: str, kind: str) -> np.ndarray:
    """Returns one of flax's eight products, "ii" to "ho", of torch's two."""
    source = "ih" if gate[0] == "i" else "hh"
    place = "ifgo".index(gate[1])
    name = "weight" if kind == "kernel" else "bias"
    found = np.split(weights[f"lstm.{name}_{source}_l0"], 4)[place]
    return found.T if kind == "kernel" else found
