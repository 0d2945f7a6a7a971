"""Losses, linear algebra, complex numbers, dtypes."""

import math

import torch
import torch.nn.functional as F

from tests.bridge.census.collection import function, given, normal, positive, whole

function(
    "cross entropy ignores, weighs and smooths",
    lambda x, t: F.cross_entropy(x, t, torch.tensor([1.0, 2.0, 0.5, 3.0]), ignore_index=1, label_smoothing=0.1),
    normal(6, 4),
    whole(4, 6),
)
function("cross entropy of images", F.cross_entropy, normal(2, 4, 3, 3), whole(4, 2, 3, 3))
function("cross entropy of soft labels", lambda x, t: F.cross_entropy(x, t.softmax(1)), normal(5, 4), normal(5, 4))
function("cross entropy unreduced", lambda x, t: F.cross_entropy(x, t, reduction="none"), normal(5, 4), whole(4, 5))
function(
    "binary cross entropy with weights",
    lambda x, t: F.binary_cross_entropy_with_logits(x, t.sigmoid(), pos_weight=torch.tensor([1.0, 2.0, 0.5])),
    normal(5, 3),
    normal(5, 3),
)
function("binary cross entropy", lambda x, t: F.binary_cross_entropy(x.sigmoid(), t.sigmoid()), normal(5), normal(5))
function(
    "KL divergence of logs",
    lambda x, t: F.kl_div(x.log_softmax(1), t.log_softmax(1), log_target=True),
    *[normal(4, 3)] * 2,
)
function(
    "smooth and Huber losses", lambda x, t: F.smooth_l1_loss(x, t) + F.huber_loss(x * 3, t, delta=0.7), *[normal(9)] * 2
)
function("triplet margin", lambda a, p, n: F.triplet_margin_loss(a, p, n), *[normal(4, 3)] * 3)
function(
    "cosine embedding", lambda a, b: F.cosine_embedding_loss(a, b, torch.tensor([1, -1, 1, -1])), *[normal(4, 3)] * 2
)
function("margins", lambda x: F.margin_ranking_loss(x[:, 0], x[:, 1], x[:, 2].sign()), normal(4, 5))
function(
    "Poisson and Gaussian likelihoods",
    lambda x, t, v: F.poisson_nll_loss(x, t) + F.gaussian_nll_loss(x, t, v),
    normal(5),
    positive(5),
    positive(5),
)
function(
    "CTC with padding",
    lambda x, t: F.ctc_loss(x.log_softmax(-1), t, torch.tensor([7, 6]), torch.tensor([3, 2])),
    normal(7, 2, 5),
    lambda: torch.randint(1, 5, (2, 3)),
)
function(
    "soft margin and dice",
    lambda x: F.soft_margin_loss(x, x.detach().sign()) + 1 - 2 * (x.sigmoid() * 0.3).sum() / (x.sigmoid().sum() + 0.3),
    normal(6),
)

for name, activation in {
    "silu": F.silu,
    "mish": F.mish,
    "gelu, tanh": lambda x: F.gelu(x, approximate="tanh"),
    "selu and celu": lambda x: F.selu(x) + F.celu(x, 0.7),
    "elu": lambda x: F.elu(x, 0.5),
    "softplus": lambda x: F.softplus(x * 12, 2, 10),
    "hardswish": lambda x: F.hardswish(x * 3),
    "logsigmoid and tanhshrink": lambda x: F.logsigmoid(x) + F.tanhshrink(x),
    "softshrink and hardshrink": lambda x: F.softshrink(x) + F.hardshrink(x),
    "glu": lambda x: F.glu(x, 1),
    "softmin and gumbel off": lambda x: F.softmin(x, 1) + F.log_softmax(x, 0),
    "threshold and relu6": lambda x: F.threshold(x, 0.1, 20) + F.relu6(x * 5),
    "prelu": lambda x: F.prelu(x, x.detach().abs().mean(0)[:1]),
    "trigonometry": lambda x: x.tan() + x.sinh() + x.cosh() + x.atan() + (x.tanh() * 0.9).asin() + x.asinh(),
    "exponentials": lambda x: x.exp2() + x.expm1() + x.abs().log1p() + (x**2 + 1).log2() + (x**2 + 1).log10(),
    "special functions": lambda x: (
        x.erf() + x.erfc() + (x.tanh() * 0.9).erfinv() + (x.abs() + 0.5).lgamma() + (x.abs() + 1).digamma()
    ),
    "rounding is flat": lambda x: x.round() + x.floor() * x.ceil() + x.trunc() + x.frac() + x.sign() * x,
    "remainders": lambda x: x.remainder(0.7) + x.fmod(0.7) + torch.remainder(x, -x.detach().abs() - 0.5),
    "powers": lambda x: x**3 + (x.abs() + 1) ** -1.5 + 2**x + (x.abs() + 0.1) ** x + x**0 + (x.abs()) ** 0.5,
    "divisions": lambda x: x / 3 + torch.div(x, 0.3, rounding_mode="floor") + 1 / (x.abs() + 1) + torch.rsub(x, 2),
    "hypot and atan2": lambda x: torch.hypot(x, x + 1) + torch.atan2(x, x - 2) + torch.logaddexp(x, 2 * x),
    "lerp, addcmul, addcdiv": lambda x: (
        torch.lerp(x, x * 2, 0.3) + torch.addcmul(x, x, x, value=2) + torch.addcdiv(x, x, x.abs() + 1)
    ),
    "nan_to_num": lambda x: torch.nan_to_num(x / (x > 0), 1.0, 2.0, -2.0),
    "xlogy and entr": lambda x: torch.xlogy(x.relu(), x.abs() + 1) + torch.special.entr(x.abs() + 0.1),
}.items():
    function(f"elementwise: {name}", activation, normal(4, 6))


def spd(*shape):
    def make():
        x = torch.randn(*shape)
        return x @ x.mT + torch.eye(shape[-1])

    return make


function("matmul broadcasts", torch.matmul, normal(2, 1, 3, 4), normal(5, 4, 2))
function("einsum", lambda a, b: torch.einsum("bij,bjk->kib", a, b), normal(2, 3, 4), normal(2, 4, 5))
function(
    "addmm and baddbmm",
    lambda c, a, b: torch.addmm(c, a, b, beta=0.5, alpha=2) + torch.baddbmm(c, a[None], b[None]),
    normal(3, 2),
    normal(3, 4),
    normal(4, 2),
)
function(
    "tensordot, outer, kron",
    lambda a, b: torch.kron(torch.outer(a, b), a[:, None]) * torch.tensordot(a, b, 1),
    *[normal(3)] * 2,
)
function("inverse and determinant", lambda x: torch.linalg.inv(x) * torch.linalg.det(x) + torch.logdet(x), spd(3, 3))
function(
    "Cholesky and triangular solve",
    lambda x, b: torch.linalg.solve_triangular(torch.linalg.cholesky(x), b, upper=False),
    spd(3, 3),
    normal(3, 2),
)
function("solve", torch.linalg.solve, spd(2, 3, 3), normal(2, 3, 2))
function("singular values", torch.linalg.svdvals, normal(4, 3))
function("eigenvalues of symmetric matrices", torch.linalg.eigvalsh, spd(3, 3))
function("QR", lambda x: torch.linalg.qr(x)[0].abs() + torch.linalg.qr(x)[1].abs().sum(), normal(4, 3))
function("matrix norms", lambda x: torch.linalg.matrix_norm(x) + torch.linalg.norm(x, 1) + torch.trace(x), normal(3, 3))
function("matrix_exp and powers", lambda x: torch.linalg.matrix_power(x, 3), normal(3, 3))
function(
    "tril, triu, diag",
    lambda x: x.tril(-1) + x.triu(1) * 2 + torch.diag(x.diagonal() * 3) + torch.diag_embed(x[0]),
    normal(3, 3),
)

function(
    "rfft and back", lambda x: torch.fft.irfft(torch.fft.rfft(x, norm="ortho") * torch.arange(5), 8).abs(), normal(3, 8)
)
function(
    "fft2 of complex numbers",
    lambda x: torch.fft.ifft2(torch.fft.fft2(torch.complex(x, x * 2)) * 1j).real,
    normal(3, 4),
)
function(
    "polar and angle", lambda r, a: torch.view_as_real(torch.polar(r, a) * torch.complex(a, r)), positive(4), normal(4)
)


def rotary(x):
    pairs = torch.view_as_complex(x.reshape(2, 5, 3, 2))
    angles = torch.outer(torch.arange(5.0), 1e4 ** (-torch.arange(3.0) / 3))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(2)


function("rotary positions", rotary, normal(2, 5, 6))
function("complex absolute values", lambda x: torch.complex(x, x**2).abs() + torch.complex(x, x).angle(), normal(5))
function(
    "the spectrogram", lambda x: torch.stft(x, 8, 4, window=torch.hann_window(8), return_complex=True).abs(), normal(24)
)

function(
    "bool and whole numbers promote",
    lambda x, i: (x > 0) * x + i * 0.5 + (i // 2) * x + i.float().to(x) / 3,
    normal(4),
    whole(5, 4),
)
function(
    "16-bit floats and back",
    lambda x: (x.to(torch.bfloat16) * 2).to(x.dtype) + x.half().to(x.dtype),
    given(torch.tensor([0.5, 1.5, -2.0], dtype=torch.float64)),
)
function(
    "float32 inside float64",
    lambda x: (x.float() * 0.5).double() * x,
    given(torch.tensor([0.5, 1.5, -2.0], dtype=torch.float64)),
)
function("whole arithmetic", lambda i: ((i * 7) % 5 + i // 2 - (i >> 1) + (i & 3)) * torch.ones(4), whole(9, 4))
function(
    "one_hot and bincount",
    lambda i: F.one_hot(i, 5).sum(0) + torch.bincount(i, minlength=5) + torch.zeros(5),
    whole(5, 6),
)
function("searchsorted and bucketize", lambda x: torch.bucketize(x, torch.tensor([-0.5, 0.0, 0.5])) * x, normal(7))
function(
    "argmax, argsort, sort of whole numbers",
    lambda i: i.argmax(1) + torch.sort(i, dim=1, stable=True).indices[:, 0] + torch.zeros(3),
    whole(9, 3, 4),
)
function(
    "any, all, count_nonzero",
    lambda x: (x > 0).any(1) * 2 + (x > -1).all(1) + (x > 0).count_nonzero(1) + x.sum(1),
    normal(3, 4),
)
function("constants keep torch's bits", lambda x: x * torch.sin(torch.arange(6.0) * math.pi / 7), normal(6))
function(
    "stack, cat, split, chunk",
    lambda x: torch.cat([torch.stack(x.split([1, 3], 1)[1].chunk(3, 1)).sum(0), x], 1),
    normal(3, 4),
)
function(
    "repeat, tile, interleave",
    lambda x: x.repeat(2, 1).sum(0) + x.tile(3)[:4].sum() + x.repeat_interleave(2, 0)[1],
    normal(3, 4),
)
function(
    "flip, roll, rot90, movedim",
    lambda x: x.flip(0) + x.roll((1, 2), (0, 1)) + x.rot90() + x.movedim(0, 1),
    normal(3, 3),
)
function(
    "meshgrid and cross",
    lambda x: torch.cross(x, x.roll(1, 0), dim=1) + torch.stack(torch.meshgrid(x[0], x[1], indexing="ij")).sum(0),
    normal(3, 3),
)
function(
    "cosine similarity and normalize",
    lambda x, y: F.cosine_similarity(x, y, dim=1) + F.normalize(x, dim=1).sum(1),
    *[normal(3, 4)] * 2,
)
function("pairwise distances", lambda x: F.pdist(x), normal(4, 3))
function(
    "trapezoid, diff, quantile-free", lambda x: torch.trapezoid(x, dim=1) + x.diff(dim=1).abs().sum(1), normal(3, 4)
)
