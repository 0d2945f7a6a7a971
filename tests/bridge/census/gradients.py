"""Where a gradient is what torch says, not what the numbers would suggest."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.bridge.census.collection import function, given, normal, program


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


class WrongOnPurpose(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * ctx.factor * x, None


class TwoOutputs(torch.autograd.Function):
    @staticmethod
    def forward(x, y):
        return x * y, x - y

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, a, b):
        x, y = ctx.saved_tensors
        return a * y + b, (a * x - b) * 2


def no_grad_teacher(x, w):
    with torch.no_grad():
        target = torch.tanh(x @ w)
    return (torch.tanh(x @ (w * 2)) - target) ** 2


def hooked(x):
    y = x * 2
    y.register_hook(lambda g: g * 10)
    return y.exp()


def penalty(x, w):
    out = torch.tanh(x @ w).sum()
    (g,) = torch.autograd.grad(out, x, create_graph=True)
    return (g.norm(2, dim=1) - 1) ** 2


def inner_step(x, w):
    loss = ((x @ w) ** 2).mean()
    (g,) = torch.autograd.grad(loss, w, create_graph=True)
    return ((x @ (w - 0.1 * g)) ** 2).mean()


def data_is_detached(x):
    return x.data * x


def data_assigned(x):
    y = x * 1
    view = y.view(4)
    y.data = y * 3
    return y * x, view * 2


def enabled_inside(x):
    with torch.no_grad():
        a = x * 3
        with torch.enable_grad():
            b = x * 5
    return a + b


def detached_in_place(x):
    y = x * 2
    z = y.detach_()
    return z * x


ties = torch.tensor([[1.0, 2.0, 2.0, -1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 3.0, -2.0, 3.0]], dtype=torch.float64)

function("detach stops the gradient", lambda x: x.detach() * x, normal(3))
function(".data stops the gradient", data_is_detached, normal(3))
function(".data assigned leaves views the old memory", data_assigned, normal(2, 2))
function("detach_ stops the gradient", detached_in_place, normal(3))
function("a no_grad teacher gets none", no_grad_teacher, normal(4, 3), normal(3, 2))
function("enable_grad inside no_grad", enabled_inside, normal(3))
function("a straight-through estimator", lambda x: StraightThrough.apply(x * 3) ** 2, normal(5))
function("a backward that is wrong on purpose", lambda x: WrongOnPurpose.apply(x, 3.0), normal(5))
function("a Function with setup_context", lambda x, y: sum(TwoOutputs.apply(x, y)), normal(3), normal(3))
function("a tensor hook scales the gradient", hooked, normal(4))
function("a gradient penalty", penalty, normal(4, 3), normal(3, 2))
function("a step of gradient descent inside", inner_step, normal(4, 3), normal(3, 2))
function("torch.func.grad inside", lambda x: torch.func.grad(lambda y: (y**3).sum())(x) * x, normal(4))
function("torch.func.jvp inside", lambda x: torch.func.jvp(torch.sin, (x,), (x * 2,))[1], normal(4))
function("torch.vmap inside", lambda x, w: torch.vmap(lambda row: (row @ w).tanh())(x), normal(5, 3), normal(3, 2))
function("checkpoint computes the same", lambda x: checkpoint(torch.sin, x * 2, use_reentrant=False), normal(4))
function("reentrant checkpoint too", lambda x: checkpoint(torch.cos, x * 2, use_reentrant=True), normal(4))
function("amax shares between ties", lambda x: x.amax(1), given(ties))
function("max picks the first of ties", lambda x: x.max(1).values, given(ties))
function("max of all shares", lambda x: x.max(), given(ties))
function("median picks one", lambda x: x.median(1).values, given(ties))
function("clamp passes at its ends", lambda x: x.clamp(0, 2), given(ties))
function("hardtanh does not", lambda x: F.hardtanh(x, 0, 2), given(ties))
function("relu is flat at zero", F.relu, given(ties))
function("abs is flat at zero", torch.abs, given(ties))
function("maximum halves at ties", lambda x: torch.maximum(x, torch.full_like(x, 2)), given(ties))
function("the norm is flat at zero", lambda x: x.norm(dim=1), given(ties))
function("the 1-norm is flat at zero", lambda x: x.norm(p=1, dim=1), given(ties))
function("the inf-norm shares ties", lambda x: torch.linalg.vector_norm(x, float("inf"), dim=1), given(ties))
function("where hides nothing of NaN", lambda x: torch.where(x > 0, x, x.sin()), given(ties))
function("leaky_relu at zero", lambda x: F.leaky_relu(x, 0.2), given(ties))
function("sort carries the gradient", lambda x: x.sort(1, descending=True).values * torch.arange(4.0), normal(3, 4))
function("topk carries the gradient", lambda x: x.topk(2, 1).values, normal(3, 4))
function("kthvalue carries the gradient", lambda x: x.kthvalue(2, 1).values, normal(3, 4))
function("prod with zeros", lambda x: x.prod(1), given(ties))
function("cumprod with zeros", lambda x: x.cumprod(1), given(ties))
function("cumsum", lambda x: x.cumsum(0) * ties, given(ties))
function("cummax keeps the newest of ties", lambda x: x.cummax(1).values, given(ties))
function("logcumsumexp", lambda x: x.logcumsumexp(1), normal(3, 4))
function("std of one dimension", lambda x: x.std(1) + x.var(1, correction=0), normal(3, 4))
function("logsumexp", lambda x: x.logsumexp((0, 1)), normal(3, 4))
function("cdist with equal rows", lambda x: torch.cdist(x, torch.cat([x[:1].detach(), x[1:] * 2])), normal(3, 4))


@program("a module hook changes the gradient")
def module_hook():
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    module[0].register_full_backward_hook(lambda m, gi, go: tuple(g * 2 if g is not None else g for g in gi))
    module[1].register_forward_hook(lambda m, i, o: o * 3)
    return module, (torch.randn(5, 3),)


@program("a frozen layer has no gradient")
def frozen():
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    module[0].requires_grad_(False)
    return module, (torch.randn(5, 3),)


@program("a layer that nobody calls has none either")
def unused():
    return Spare(), (torch.randn(5, 3),)


class Spare(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.spare = nn.Linear(3, 4), nn.Linear(2, 2)

    def forward(self, x):
        return self.used(x)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, i):
        return self.out(self.embed(i).tanh())


@program("tied weights add their gradients up")
def tied():
    return Tied(), (torch.randint(0, 7, (3, 5)),)
