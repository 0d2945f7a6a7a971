"""Writes in place and through views."""

import torch

from tests.bridge.census.collection import function, normal, whole


def writes(change):
    def call(x):
        y = x * 2
        change(y)
        return y * y

    return call


def assigned(y):
    y[1:, ::2] = y[0, 0]


for name, change in {
    "a transposed view": lambda y: y.t()[0].mul_(3),
    "a strided flat view": lambda y: y.view(-1)[::2].add_(1),
    "an unsqueezed view": lambda y: y.unsqueeze(0).mul_(y.detach().sum()),
    "a diagonal": lambda y: y.diagonal().fill_(7),
    "a permuted row": lambda y: y.permute(1, 0)[0].add_(1),
    "a narrowed part": lambda y: y.narrow(0, 0, 1).zero_(),
    "a selected column": lambda y: y.select(1, 1).fill_(9),
    "a flattened view": lambda y: y.flatten().mul_(2),
    "a slice with steps": assigned,
    "a view of a view": lambda y: y.view(2, 2, 4)[1].t()[2].exp_(),
    "a swap of two rows": lambda y: y.copy_(y[[1, 0, 2, 3]]),
    "itself, shifted": lambda y: y[1:].copy_(y[:-1].clone()),
}.items():
    function(f"writes through {name}", writes(change), normal(4, 4))


def relu_in_place(x):
    y = x.clone()
    torch.relu_(y)
    return y.add(1).sigmoid_()


def filled_by_slices(x):
    out = torch.zeros(3, 4)
    for row in range(3):
        out[row] = x[row] ** (row + 1)
    return out


def view_then_base(x):
    base = x * 1
    view = base[0]
    base.mul_(2)
    return view + base[1]


def as_strided_write(x):
    y = x * 1
    y.as_strided((2, 2), (4, 1), 1).mul_(5)
    return y


function("chained in-place activations", relu_in_place, normal(3, 4))
function("a result filled slice by slice", filled_by_slices, normal(3, 4))
function("a view sees what is written to its base later", view_then_base, normal(2, 3))
function("writes through as_strided", as_strided_write, normal(3, 4))
function("unfold overlaps", lambda x: x.unfold(0, 3, 2).exp().sum(-1), normal(9))
function("expand shares one element", lambda x: x.expand(4, 3) * torch.arange(12.0).view(4, 3), normal(3))


def written_at(x, index):
    y = x.clone()
    y[index] = x[:2] * 3
    return y


def accumulated_at(x, index):
    y = x * 1
    return y.index_put_((index,), x[:3], accumulate=True)


def masked_by_scalar(x):
    y = x * 2
    y[x > 0] = 0.5
    return y * x


function("index_put with duplicates", written_at, normal(4, 3), lambda: torch.tensor([2, 1]))
function("index_put accumulates duplicates", accumulated_at, normal(4, 3), lambda: torch.tensor([1, 1, 3]))
function("a mask takes a scalar", masked_by_scalar, normal(4, 3))
function(
    "scatter overwrites",
    lambda x, i, s: x.scatter(1, i, s),
    normal(3, 4),
    lambda: torch.rand(3, 4).argsort(1)[:, :2],
    normal(3, 2),
)
function("scatter_add adds", lambda x, i, s: x.scatter_add(0, i, s), normal(3, 4), whole(3, 2, 4), normal(2, 4))
function(
    "scatter_reduce amax shares ties",
    lambda x, s: x.scatter_reduce(0, torch.tensor([0, 0, 1, 1]), s, "amax"),
    normal(3),
    lambda: torch.tensor([2.0, 2.0, -1.0, 3.0], dtype=torch.float64),
)
function(
    "scatter_reduce mean without self",
    lambda x, s: x.scatter_reduce(0, torch.tensor([0, 0, 2, 2]), s, "mean", include_self=False),
    normal(3),
    normal(4),
)
function("gather picks", lambda x, i: x.gather(1, i), normal(3, 4), whole(4, 3, 2))
function("index_add with alpha", lambda x, i, s: x.index_add(0, i, s, alpha=2), normal(3, 4), whole(3, 5), normal(5, 4))
function("index_select repeats", lambda x, i: x.index_select(1, i), normal(3, 4), whole(4, 6))
function("indices and slices mixed", lambda x, i: x[:, i, 1:], normal(3, 4, 5), whole(4, 2))
function("two index tensors broadcast", lambda x, i: x[i[:, None], i], normal(4, 4), whole(4, 3))
function("negative indices wrap", lambda x: x[torch.tensor([-1, 0, -2])], normal(4, 3))
function("take_along_dim", lambda x: torch.take_along_dim(x, x.argsort(1), 1), normal(3, 4))
function("masked_fill with minus infinity", lambda x: x.masked_fill(x < 0, float("-inf")).softmax(1), normal(4, 6))
