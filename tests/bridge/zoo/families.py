"""Small models of timm's families, with random weights: nothing is downloaded."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from tests.bridge.zoo import torchvision_schemas as torchvision_schemas
from tests.bridge.zoo.comparison import Model

import timm  # isort: skip

# Name: size of the images, and what makes the model smaller.
_MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    "beit_base_patch16_224": (32, {"embed_dim": 32, "depth": 2, "num_heads": 4}),
    "test_byobnet": (64, {}),
    "repvgg_a0": (64, {}),
    "mobileone_s0": (64, {}),
    "resnet33ts": (64, {}),
    "gernet_s": (64, {}),
    "halonet26t": (256, {}),
    "botnet26t_256": (128, {}),
    "lambda_resnet26t": (64, {}),
    "cait_xxs24_224": (32, {"embed_dim": 32, "depth": 2, "num_heads": 4}),
    "coat_tiny": (64, {}),
    "convit_tiny": (32, {"embed_dim": 32, "depth": 3, "num_heads": 4}),
    "convmixer_768_32": (32, {}),
    "test_convnext": (64, {}),
    "test_convnext2": (64, {}),
    "cpubone_nano": (64, {}),
    "crossvit_9_240": (240, {"embed_dim": (16, 32), "depth": ((1, 1, 0),) * 3, "num_heads": (2, 2)}),
    "cspresnet50": (64, {}),
    "cs3darknet_s": (64, {}),
    "cspnext_tiny": (64, {}),
    "csatv2": (64, {}),
    "davit_tiny": (64, {"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 32, 64), "num_heads": (1, 2, 2, 4)}),
    "deit_tiny_distilled_patch16_224": (32, {"embed_dim": 32, "depth": 2, "num_heads": 4}),
    "deit3_small_patch16_224": (32, {"embed_dim": 32, "depth": 2, "num_heads": 4}),
    "densenet121": (64, {"growth_rate": 8, "block_config": (2, 2, 2, 2)}),
    "dla34": (64, {}),
    "dpn48b": (64, {}),
    "edgenext_xx_small": (64, {}),
    "efficientformer_l1": (224, {}),
    "efficientformerv2_s0": (64, {}),
    "test_efficientnet": (64, {}),
    "test_efficientnet_ln": (64, {}),
    "test_efficientnet_evos": (64, {}),
    "efficientnet_b0": (64, {}),
    "mnasnet_small": (64, {}),
    "mixnet_s": (64, {}),
    "tinynet_e": (64, {}),
    "fbnetc_100": (64, {}),
    "spnasnet_100": (64, {}),
    "mobilenetv2_050": (64, {}),
    "mobilenetv4_conv_small": (64, {}),
    "efficientvim_m1": (64, {}),
    "efficientvit_b0": (64, {}),
    "efficientvit_m0": (64, {}),
    "eva02_tiny_patch14_224": (28, {"embed_dim": 32, "depth": 2, "num_heads": 4}),
    "vit_small_patch16_dinov3": (32, {"embed_dim": 32, "depth": 2, "num_heads": 4}),
    "fasternet_t0": (64, {}),
    "fastvit_t8": (64, {}),
    "focalnet_tiny_srf": (64, {}),
    "gcvit_xxtiny": (224, {}),
    "ghostnet_050": (64, {}),
    "ghostnetv2_100": (64, {}),
    "hardcorenas_a": (64, {}),
    "hgnetv2_b0": (64, {}),
    "hiera_tiny_224": (224, {"embed_dim": 16, "stages": (1, 1, 1, 1)}),
    "sam2_hiera_tiny": (64, {}),
    "hrnet_w18_small": (64, {}),
    "inception_next_atto": (64, {}),
    "inception_resnet_v2": (96, {}),
    "inception_v3": (96, {}),
    "inception_v4": (96, {}),
    "iformer_t": (64, {}),
    "lcnet_035": (64, {}),
    "lcnetv2_small": (64, {}),
    "levit_128s": (224, {}),
    "lowformer_b0": (64, {}),
    "test_mambaout": (64, {}),
    "test_maxvit": (64, {}),
    "test_coatnet": (64, {}),
    "poolformer_s12": (64, {}),
    "caformer_s18": (64, {}),
    "convformer_s18": (64, {}),
    "mixer_s32_224": (64, {}),
    "gmlp_ti16_224": (32, {}),
    "resmlp_12_224": (32, {}),
    "mobilenetv3_small_050": (64, {}),
    "mobilevit_xxs": (64, {}),
    "mobilevitv2_050": (64, {}),
    "mvitv2_tiny": (64, {}),
    "nest_tiny": (64, {}),
    "nextvit_small": (64, {}),
    "test_nfnet": (64, {}),
    "nf_regnet_b0": (64, {}),
    "pit_ti_224": (64, {}),
    "pvt_v2_b0": (64, {}),
    "rdnet_tiny": (64, {}),
    "regnetx_002": (64, {}),
    "regnety_002": (64, {}),
    "repghostnet_050": (64, {}),
    "repvit_m0_9": (64, {}),
    "res2net50_14w_8s": (64, {"layers": (1, 1, 1, 1)}),
    "resnest14d": (64, {}),
    "test_resnet": (64, {}),
    "resnet18": (64, {}),
    "resnext50_32x4d": (64, {"layers": (1, 1, 1, 1)}),
    "seresnet18": (64, {}),
    "ecaresnet26t": (64, {"layers": (1, 1, 1, 1)}),
    "resnetaa50": (64, {"layers": (1, 1, 1, 1)}),
    "resnetv2_18": (64, {}),
    "resnetv2_50d_gn": (64, {"layers": (1, 1, 1, 1)}),
    "rexnet_100": (64, {}),
    "selecsls42": (64, {}),
    "legacy_seresnet18": (64, {}),
    "sequencer2d_s": (64, {"layers": (1, 1, 1, 1), "embed_dims": (16, 32, 32, 32), "hidden_sizes": (4, 8, 8, 8)}),
    "shvit_s1": (64, {}),
    "skresnet18": (64, {}),
    "starnet_s050": (64, {}),
    "swiftformer_xs": (64, {}),
    "swin_tiny_patch4_window7_224": (56, {"embed_dim": 16, "depths": (2, 1), "num_heads": (2, 4)}),
    "swinv2_tiny_window8_256": (64, {"embed_dim": 16, "depths": (2, 1), "num_heads": (2, 4)}),
    "swinv2_cr_tiny_224": (64, {"embed_dim": 16, "depths": (2, 1), "num_heads": (2, 4)}),
    "tiny_vit_5m_224": (64, {"depths": (1, 1, 1, 1)}),
    "tnt_s_patch16_224": (
        32,
        {"embed_dim": 32, "inner_dim": 8, "depth": 2, "num_heads_outer": 4, "num_heads_inner": 2},
    ),
    "tresnet_m": (64, {"layers": (1, 1, 1, 1)}),
    "twins_svt_small": (64, {"depths": (1, 1, 1, 1)}),
    "twins_pcpvt_small": (64, {"depths": (1, 1, 1, 1)}),
    "vgg11": (32, {"mlp_ratio": 0.01}),
    "visformer_tiny": (64, {"depth": (1, 1, 1), "embed_dim": 48}),
    "test_vit": (64, {}),
    "vit_tiny_patch16_224": (32, {"embed_dim": 32, "depth": 2, "num_heads": 4}),
    "vit_base_patch16_siglip_224": (32, {"embed_dim": 32, "depth": 2, "num_heads": 4}),
    "vit_tiny_r_s16_p8_224": (64, {"embed_dim": 32, "depth": 2, "num_heads": 4}),
    "test_vit_relpos": (64, {}),
    "samvit_base_patch16_224": (64, {"embed_dim": 32, "depth": 2, "num_heads": 4, "global_attn_indexes": (1,)}),
    "vitamin_small_224": (64, {"depth": 2}),
    "volo_d1_224": (64, {}),
    "ese_vovnet19b_slim_dw": (64, {}),
    "legacy_xception": (96, {}),
    "xception41": (96, {}),
    "xcit_nano_12_p16_224": (32, {"embed_dim": 32, "depth": 2, "num_heads": 4}),
    "naflexvit_base_patch16_gap": (32, {"embed_dim": 32, "depth": 2, "num_heads": 4}),
    "deepseek_vit_412m": (28, {"embed_dim": 32, "depth": 2, "num_heads": 4}),
}
NAMES = list(_MODELS)
# Of these a buffer takes its shape from the first batch.
_SHAPED_BY_A_BATCH = {"convit_tiny"}


def build(name: str) -> Model:
    """Makes a model and a batch for it."""
    size, options = _MODELS[name]
    try:
        module = timm.create_model(name, num_classes=5, img_size=size, **options)
    except TypeError:  # convolutional networks take any size
        module = timm.create_model(name, num_classes=5, **options)
    for part in module.modules():
        for probability in ("p", "drop_prob", "drop_rate", "attn_drop", "proj_drop"):
            if isinstance(getattr(part, probability, None), float) and (
                "drop" in probability or isinstance(part, torch.nn.Dropout)
            ):
                setattr(part, probability, 0.0)
    # The last maps are of one pixel: a BatchNorm of two of them would be a sign, and its gradient rounding.
    batch = {"images": torch.randn(4, 3, size, size), "labels": torch.tensor([1, 3, 0, 2])}
    if name in _SHAPED_BY_A_BATCH:
        with torch.no_grad():
            module(batch["images"])
    return Model(module.train(), batch, _classify)


def _classify(module: torch.nn.Module, batch: dict[str, torch.Tensor]) -> Any:
    found = module(batch["images"])
    outputs = list(found) if isinstance(found, list | tuple) else [found]
    losses = [F.cross_entropy(one.flatten(1), batch["labels"]) for one in outputs]
    return [torch.stack(losses).sum() / math.sqrt(len(losses)), *outputs]
