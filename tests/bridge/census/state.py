"""Modules that keep tensors: buffers, attributes, constants, and values that Python may ask for."""

import numpy as np
import torch
from torch import nn

from tests.bridge.census.collection import function, normal, program, whole


def module(name):
    def add(kind):
        program(name)(lambda: (kind(), (torch.randn(4, 3),)))
        return kind

    return add


@module("a buffer assigned anew")
class Assigned(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


@module("a buffer written in part")
class Queue(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("queue", torch.zeros(6, 3))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x):
        self.queue[2:6] = x.detach()
        self.place += 1
        return x @ self.queue.t()


@module("a tensor on an attribute")
class Attribute(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.tensor([1.0, 2.0, 3.0])
        self.more = [torch.ones(3), torch.full((3,), 2.0)]

    def forward(self, x):
        return x * self.scale + self.more[1]


@module("an attribute written in place")
class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = torch.zeros(3)

    def forward(self, x):
        self.seen.add_(x.detach().sum(0))
        return x * self.seen


@module("a moving average of a student")
class Average(nn.Module):
    def __init__(self):
        super().__init__()
        self.student, self.teacher = nn.Linear(3, 2), nn.Linear(3, 2)
        self.teacher.requires_grad_(False)

    def forward(self, x):
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                slow.mul_(0.9).add_(fast, alpha=0.1)
            target = self.teacher(x)
        return self.student(x) - target


@module("a moving average assigned to .data")
class Assigning(Average):
    def forward(self, x):
        with torch.no_grad():
            for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                slow.data = slow.data * 0.9 + fast.data * 0.1
        return self.student(x) - self.teacher(x)


@module("a divergence of distributions")
class Divergence(nn.Module):
    def forward(self, x):
        posterior = torch.distributions.Normal(x, x.exp())
        mixture = torch.distributions.Categorical(logits=x)
        prior = torch.distributions.Normal(torch.zeros_like(x), torch.ones_like(x))
        return torch.distributions.kl_divergence(posterior, prior).sum(-1) + mixture.entropy()


@module("numpy and item on constants")
class Constants(nn.Module):
    def forward(self, x):
        table = torch.from_numpy(np.linspace(0, 1, 3))
        factor = torch.tensor(3.0).item()
        if bool((torch.ones(2) > 0).all()) and torch.arange(4).sum() == 6:
            factor += 1
        return x * table * factor


@module("a loop over layers and shapes")
class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
        self.scales = nn.ParameterDict({"a": nn.Parameter(torch.ones(3)), "b": nn.Parameter(torch.zeros(3))})

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).tanh() * self.scales["a"] + self.scales["b"]
        return {"out": x, "shape": x.shape[0], "nested": [x.sum(), None, (x.mean(),)]}


@module("penalties over all parameters")
class Penalized(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x).sum() + sum((p**2).sum() for p in self.parameters())


def item_arithmetic(x):
    scale = x.detach().abs().max().item()
    return x / (scale + 1) * 2


def branch(x):
    return torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: x - 1, (x,))


function("item as a number in arithmetic", item_arithmetic, normal(4))
function("a length from a shape", lambda x: x / len(x) + x.numel() + x.new_ones(x.size(0)), normal(4))
function("whole inputs only", lambda i: torch.nn.functional.one_hot(i, 4).sum(0), whole(4, 5))
