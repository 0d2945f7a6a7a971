"""Layers: normalization, convolution, pooling, resampling, embedding, recurrence, attention."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.bridge.census.collection import function, normal, program, whole


def module(name, make, *arguments):
    program(name)(lambda: (make(), tuple(argument() for argument in arguments)))


module("a multilayer perceptron", lambda: nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 3)), normal(4, 5))
module("bilinear", lambda: nn.Bilinear(3, 4, 2), normal(5, 3), normal(5, 4))
module("LayerNorm over two dimensions", lambda: nn.LayerNorm((3, 4)), normal(2, 3, 4))
module("GroupNorm", lambda: nn.GroupNorm(2, 6), normal(3, 6, 4))
module("RMSNorm", lambda: nn.RMSNorm(6), normal(3, 6))
module("BatchNorm1d updates its buffers", lambda: nn.BatchNorm1d(4), normal(6, 4))
module("BatchNorm2d without affine", lambda: nn.BatchNorm2d(3, affine=False), normal(2, 3, 4, 4))
module("BatchNorm in evaluation", lambda: nn.BatchNorm1d(4).eval(), normal(6, 4))
module("BatchNorm without statistics", lambda: nn.BatchNorm1d(4, track_running_stats=False), normal(6, 4))
module(
    "InstanceNorm with statistics", lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True), normal(2, 3, 5)
)
module("LocalResponseNorm", lambda: nn.LocalResponseNorm(3), normal(2, 5, 4, 4))
module(
    "spectral norm steps its vectors",
    lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)),
    normal(5, 4),
)
module("weight norm", lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), normal(5, 4))
module("Conv1d with stride and dilation", lambda: nn.Conv1d(3, 4, 3, 2, 2, 2), normal(2, 3, 11))
module("Conv2d in groups", lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), normal(2, 4, 5, 6))
module("Conv2d same padding", lambda: nn.Conv2d(2, 3, (2, 3), padding="same"), normal(2, 2, 5, 6))
module("Conv2d reflecting", lambda: nn.Conv2d(2, 3, 3, padding=2, padding_mode="reflect"), normal(1, 2, 5, 6))
module("Conv2d circular", lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), normal(1, 2, 5, 6))
module("Conv2d without batch", lambda: nn.Conv2d(2, 3, 3), normal(2, 5, 6))
module("Conv3d", lambda: nn.Conv3d(2, 3, 2), normal(1, 2, 3, 4, 4))
module("ConvTranspose1d", lambda: nn.ConvTranspose1d(3, 4, 3, 2, 1, 1), normal(2, 3, 5))
module(
    "ConvTranspose2d in groups",
    lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2, dilation=2),
    normal(1, 4, 4, 5),
)
module("PixelShuffle and back", lambda: nn.Sequential(nn.PixelShuffle(2), nn.PixelUnshuffle(2)), normal(1, 4, 3, 3))
module("ChannelShuffle", lambda: nn.ChannelShuffle(2), normal(1, 4, 3, 3))

function("max_pool2d overlaps", lambda x: F.max_pool2d(x, 3, 2, 1), normal(2, 3, 7, 8))
function("max_pool2d with dilation in ceil mode", lambda x: F.max_pool2d(x, 2, 2, 0, 2, True), normal(1, 2, 8, 7))
function("max_pool1d", lambda x: F.max_pool1d(x, 2), normal(2, 3, 8))
function("max_pool3d", lambda x: F.max_pool3d(x, 2), normal(1, 2, 4, 4, 5))
function(
    "max_unpool puts back", lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), normal(1, 2, 4, 6)
)
function("avg_pool2d counts the padding", lambda x: F.avg_pool2d(x, 3, 2, 1, True), normal(1, 2, 7, 8))
function("avg_pool2d leaves it out", lambda x: F.avg_pool2d(x, 3, 2, 1, False, False), normal(1, 2, 7, 8))
function("avg_pool1d", lambda x: F.avg_pool1d(x, 3, 2, 1), normal(2, 3, 8))
function("avg_pool3d with a divisor", lambda x: F.avg_pool3d(x, 2, divisor_override=3), normal(1, 2, 4, 4, 4))
function("lp_pool", lambda x: F.lp_pool2d(x.abs() + 1, 3, 2), normal(1, 2, 4, 4))
function("adaptive_avg_pool2d, uneven", lambda x: F.adaptive_avg_pool2d(x, (3, 2)), normal(1, 2, 7, 5))
function("adaptive_avg_pool1d", lambda x: F.adaptive_avg_pool1d(x, 3), normal(2, 2, 7))
function("adaptive_max_pool2d, uneven", lambda x: F.adaptive_max_pool2d(x, (3, 2)), normal(1, 2, 7, 5))
for mode in ("nearest", "nearest-exact", "area"):
    function(f"interpolate {mode}", lambda x, mode=mode: F.interpolate(x, (7, 5), mode=mode), normal(1, 2, 4, 6))
for mode in ("bilinear", "bicubic"):
    for corners in (False, True):
        function(
            f"interpolate {mode} {'with' if corners else 'without'} aligned corners",
            lambda x, mode=mode, corners=corners: F.interpolate(x, (7, 9), mode=mode, align_corners=corners),
            normal(1, 2, 4, 6),
        )
    function(
        f"interpolate {mode} antialiased",
        lambda x, mode=mode: F.interpolate(x, (3, 2), mode=mode, antialias=True),
        normal(1, 2, 7, 6),
    )
function("interpolate by a factor", lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear"), normal(1, 2, 4, 6))
function("interpolate trilinear", lambda x: F.interpolate(x, (3, 4, 5), mode="trilinear"), normal(1, 1, 2, 3, 4))
for padding in ("zeros", "border", "reflection"):
    function(
        f"grid_sample {padding}",
        lambda x, g, padding=padding: F.grid_sample(x, g, padding_mode=padding, align_corners=False),
        normal(2, 3, 4, 5),
        lambda: torch.randn(2, 3, 3, 2) * 0.8,
    )
function("grid_sample nearest", lambda x, g: F.grid_sample(x, g, "nearest"), normal(1, 2, 4, 5), normal(1, 3, 3, 2))
function("fold and unfold", lambda x: F.fold(F.unfold(x, 2) ** 2, (4, 5), 2), normal(2, 3, 4, 5))
for mode in ("reflect", "replicate", "circular", "constant"):
    function(f"pad {mode}", lambda x, mode=mode: F.pad(x, (2, 1, 1, 2), mode), normal(1, 2, 4, 5))
function("pad that crops", lambda x: F.pad(x, (-1, 2), value=3.0), normal(2, 5))

module("an embedding with padding", lambda: nn.Embedding(7, 4, padding_idx=2), whole(7, 3, 5))
module("an embedding scaled by frequency", lambda: nn.Embedding(7, 4, scale_grad_by_freq=True), whole(7, 3, 5))
module("an embedding with a largest norm", lambda: nn.Embedding(7, 4, max_norm=1.0), whole(7, 3, 5))
for mode in ("sum", "mean", "max"):
    module(f"EmbeddingBag {mode}", lambda mode=mode: nn.EmbeddingBag(7, 4, mode=mode), whole(7, 3, 5))
module(
    "EmbeddingBag with offsets and padding",
    lambda: nn.EmbeddingBag(7, 4, mode="mean", padding_idx=1),
    whole(7, 9),
    lambda: torch.tensor([0, 3, 3, 7]),
)

module("an LSTM of two layers, both ways", lambda: nn.LSTM(3, 4, 2, bidirectional=True), normal(5, 2, 3))
module("a GRU, batch first", lambda: nn.GRU(3, 4, batch_first=True), normal(2, 5, 3), normal(1, 2, 4))
module("an RNN with relu, without biases", lambda: nn.RNN(3, 4, nonlinearity="relu", bias=False), normal(5, 2, 3))
module("an LSTM with projections", lambda: nn.LSTM(3, 4, proj_size=2), normal(4, 2, 3))
module("an LSTM without batch", lambda: nn.LSTM(3, 4), normal(5, 3))


class Cells(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.gru = nn.LSTMCell(3, 4), nn.GRUCell(4, 4)

    def forward(self, x):
        h, c, g = torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(2, 4)
        for step in x:
            h, c = self.lstm(step, (h, c))
            g = self.gru(h, g)
        return g


module("cells in a loop", Cells, normal(3, 2, 3))


def causal(n):
    return lambda: nn.Transformer.generate_square_subsequent_mask(n)


attention = F.scaled_dot_product_attention
qkv = (normal(2, 3, 5, 4), normal(2, 3, 5, 4), normal(2, 3, 5, 4))
function("attention", attention, *qkv)
function("causal attention", lambda q, k, v: attention(q, k, v, is_causal=True), *qkv)
function("attention with a bool mask", lambda q, k, v, m: attention(q, k, v, m > 0), *qkv, whole(4, 5, 5))
function(
    "attention with a float mask and a scale", lambda q, k, v, m: attention(q, k, v, m, scale=0.3), *qkv, normal(5, 5)
)
function(
    "grouped-query attention",
    lambda q, k, v: attention(q, k[:, :1], v[:, :1], enable_gqa=True),
    *qkv,
)
module(
    "multi-head attention with weights",
    lambda: nn.MultiheadAttention(6, 2, batch_first=True),
    *(normal(2, 4, 6),) * 3,
)
module(
    "multi-head attention with added keys",
    lambda: nn.MultiheadAttention(6, 2, add_bias_kv=True, add_zero_attn=True, kdim=3, vdim=5),
    normal(4, 2, 6),
    normal(3, 2, 3),
    normal(3, 2, 5),
)


class CausalTransformer(nn.Module):
    """Caches its mask on an attribute, as many do."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.mask = None

    def forward(self, x):
        if self.mask is None or self.mask.shape[0] != x.shape[1]:
            self.mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.encoder(x, mask=self.mask)


module("a transformer that caches its mask", CausalTransformer, normal(2, 4, 6))
module(
    "an encoder and decoder",
    lambda: nn.Transformer(6, 2, 1, 1, 8, dropout=0.0, batch_first=True),
    normal(2, 4, 6),
    normal(2, 3, 6),
)
