"""The models of `models.py` as torch modules with the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from models import CONTEXT, HEADS, LAYERS, VOCABULARY, WIDTH, Model, Params
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """A transformer layer with the norms in front."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.mix = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        x = x + self.mix(mixed.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))


class GPT(nn.Module):
    """Token and position embeddings, layers, norm, logits."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(self.blocks(self.token(tokens) + self.position.weight)))


def make_module(name: str, params: Params) -> nn.Module:
    """Builds a model by its name and gives it the weights."""
    if name == "linear":
        module = nn.Sequential()
        module.add_module("out", nn.Linear(32, 2))
    elif name == "mlp":
        module = nn.Sequential()
        module.add_module("one", nn.Linear(64, 128))
        module.add_module("relu1", nn.ReLU())
        module.add_module("two", nn.Linear(128, 128))
        module.add_module("relu2", nn.ReLU())
        module.add_module("out", nn.Linear(128, 10))
    elif name == "cnn":
        module = nn.Sequential()
        for layer, (before, after) in {"one": (1, 16), "two": (16, 32)}.items():
            module.add_module(layer, nn.Conv2d(before, after, 3, padding=1))
            module.add_module(f"relu_{layer}", nn.ReLU())
            module.add_module(f"pool_{layer}", nn.MaxPool2d(2))
        module.add_module("flatten", nn.Flatten())
        module.add_module("out", nn.Linear(7 * 7 * 32, 10))
    else:
        module = GPT()
    module.load_state_dict({_torch_name(key): _torch_weight(name, key, value) for key, value in params.items()})
    return module


def loss_of(module: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Returns the mean cross entropy of a batch."""
    inputs, labels = batch
    return functional.cross_entropy(module(inputs).flatten(0, -2), labels.flatten())


def val_loss(module: nn.Module, data: tuple[np.ndarray, np.ndarray]) -> float:
    """Returns the loss on validation data."""
    with torch.no_grad():
        return loss_of(module.eval(), tensors(data)).item()


def tensors(data: tuple[np.ndarray, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns data as torch wants it: channels first, labels int64."""
    inputs, labels = data
    return torch.from_numpy(inputs.transpose(0, 3, 1, 2) if inputs.ndim == 4 else inputs), torch.from_numpy(
        labels.astype(np.int64)
    )


class Batches:
    """Slices of tensors: the cheapest loader there is; a `DataLoader` would collate every example."""

    def __init__(self, data: tuple[np.ndarray, np.ndarray], size: int) -> None:
        self.inputs, self.labels = tensors(data)
        self.size = size

    def __len__(self) -> int:
        return -(-len(self.inputs) // self.size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in range(0, len(self.inputs), self.size):
            yield self.inputs[start : start + self.size], self.labels[start : start + self.size]


def loader(model: Model, data: tuple[np.ndarray, np.ndarray], *, collate: bool) -> Any:
    """Returns batches in order: slices, or what most people write, a `DataLoader` that collates examples."""
    if collate:
        dataset = torch.utils.data.TensorDataset(*tensors(data))
        return torch.utils.data.DataLoader(dataset, batch_size=model.batch, shuffle=False)
    return Batches(data, model.batch)


def _torch_name(key: str) -> str:
    if key in ("token", "position"):
        return f"{key}.weight"
    *layer, name, kind = key.split("_")
    prefix = f"blocks.{layer[0]}." if layer else ""
    return f"{prefix}{name}.{'weight' if kind == 'w' else 'bias'}"


def _torch_weight(model: str, key: str, value: np.ndarray) -> torch.Tensor:
    if value.ndim == 4:  # height, width, in, out -> out, in, height, width
        value = value.transpose(3, 2, 0, 1)
    elif model == "cnn" and key == "out_w":  # the flattened picture: height, width, channels -> channels first
        value = value.reshape(7, 7, 32, 10).transpose(3, 2, 0, 1).reshape(10, -1)
    elif key.endswith("_w") and value.ndim == 2:
        value = value.T
    return torch.from_numpy(np.ascontiguousarray(value))
