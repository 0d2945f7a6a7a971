"""The models of `bridge.py` as people write them in torch, with AdamW, and one batch for each."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-2


class LSTM(nn.Module):
    """Predicts the next token; one of torch's two biases stands still, since others have one."""

    def __init__(self, vocabulary: int = 256, width: int = 128) -> None:
        super().__init__()
        self.token, self.out = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.lstm.bias_ih_l0.requires_grad_(False).zero_()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(self.lstm(self.token(tokens))[0])


class Layer(nn.Module):
    """A transformer layer with the norms in front."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=self.causal)
        x = x + self.mix(mixed.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Predicts the next token."""

    def __init__(
        self, layers: int = 4, width: int = 128, heads: int = 4, vocabulary: int = 256, context: int = 128
    ) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.layers = nn.Sequential(*(Layer(width, heads, causal=True) for _ in range(layers)))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1]))
        return self.out(self.norm(self.layers(x)))


class ViT(nn.Module):
    """ViT-tiny on images of 32x32 in patches of 4x4."""

    def __init__(self, layers: int = 12, width: int = 192, heads: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, stride=4)
        self.position = nn.Embedding(65, width)
        self.first = nn.Embedding(1, width)
        self.layers = nn.Sequential(*(Layer(width, heads, causal=False) for _ in range(layers)))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patch(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.weight.expand(x.shape[0], 1, -1), x], 1) + self.position.weight
        return self.out(self.norm(self.layers(x))[:, 0])


class Block(nn.Module):
    """Two convolutions, each with BatchNorm, and a way around them."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.around: nn.Module | None = None
        if stride != 1 or before != after:
            self.around = nn.Conv2d(before, after, 1, stride=stride, bias=False)
            self.norm3 = nn.BatchNorm2d(after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        around = x if self.around is None else self.norm3(self.around(x))
        return functional.relu(found + around)


class ResNet18(nn.Module):
    """ResNet-18 for images of 32x32."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
        sizes = itertools.pairwise(widths)
        self.blocks = nn.Sequential(*(Block(one, two, 1 + (one != two)) for one, two in sizes))
        self.out = nn.Linear(512, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.out(self.blocks(functional.relu(self.norm(self.stem(images)))).mean((2, 3)))


class MLP(nn.Module):
    """Two hidden layers."""

    def __init__(self, inputs: int = 64, width: int = 256, classes: int = 10) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(inputs, width), nn.Linear(width, width), nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(functional.relu(self.two(functional.relu(self.one(x)))))


class Linear(nn.Module):
    """Nothing to compute: its step is what a call costs."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(x)


def _tokens() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, 256, (8, 129))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


# How the model is made, and its batch: inputs and labels.
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[torch.Tensor, torch.Tensor]]]] = {
    "linear": (Linear, lambda: (torch.randn(4, 8), torch.randint(0, 2, (4,)))),
    "mlp": (MLP, lambda: (torch.randn(128, 64), torch.randint(0, 10, (128,)))),
    "resnet18": (ResNet18, lambda: (torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,)))),
    "lstm": (LSTM, _tokens),
    "gpt": (GPT, _tokens),
    "vit": (ViT, lambda: (torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,)))),
}


def make(name: str) -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    """Returns a model and a batch, the same ones in every process."""
    torch.manual_seed(0)
    model, batch = MODELS[name]
    return model(), batch()


def loss_of(module: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Returns the mean cross entropy of a batch."""
    inputs, labels = batch
    return functional.cross_entropy(module(inputs).flatten(0, -2), labels.flatten())


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
    """Returns AdamW over what is trained."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)


def module_class(base: type) -> Any:
    """Makes a LightningModule around a model, of Lightning's class or of ours."""

    class Module(base):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return loss_of(self.model, batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer_of(self.model)

    return Module
