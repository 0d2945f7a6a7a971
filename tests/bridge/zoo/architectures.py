"""Tiny models of transformers' architectures, with random weights: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models import auto

from tests.bridge.zoo import torchvision_schemas as torchvision_schemas
from tests.bridge.zoo.comparison import Model

# What configurations call their sizes; a configuration gets those that it has.
_SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "decoder_vocab_size", "encoder_vocab_size", "n_words"), 96),
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "emb_dim", "attention_hidden_size"), 32
    ),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "ffn_dim"), 64),
    **dict.fromkeys(("feed_forward_proj_size", "hidden_dim", "ffn_hidden_size", "moe_intermediate_size"), 64),
    **dict.fromkeys(("shared_expert_intermediate_size", "encoder_ffn_dim", "d_inner", "intermediate_dim"), 64),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"), 64),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_top_k"), 2),
    **{"head_dim": 8, "d_kv": 8, "d_head": 8, "rotary_dim": 4, "image_size": 32, "patch_size": 8, "projection_dim": 16},
    **{"word_embed_proj_dim": 32, "state_size": 4, "pad_token_id": 0, "use_cache": False, "type_vocab_size": 2},
    **{
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
        "num_labels": 5,
    },
    **{"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "apply_spec_augment": False},
    **{"conv_dim": (16, 16, 16), "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 3), "num_feat_extract_layers": 3},
    **{"max_source_positions": 16, "max_target_positions": 64, "num_mel_bins": 16, "output_hidden_size": 32},
}
# Random numbers that are not called dropout.
_NO_CHANCE = ("layerdrop", "mask_time_prob", "mask_feature_prob", "router_jitter_noise", "input_jitter_noise")

_TOKENS = 12


def _text(**more: Any) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 96, (2, _TOKENS))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **more}


def _labelled() -> dict[str, torch.Tensor]:
    return _text(labels=torch.randint(3, 96, (2, _TOKENS)))


def _image(size: int = 32) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(2, 3, size, size)}


def _classified(size: int = 32) -> dict[str, torch.Tensor]:
    return _image(size) | {"labels": torch.tensor([1, 3])}


def _video(frames: int, size: int = 32) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(2, frames, 3, size, size), "labels": torch.tensor([1, 3])}


def _wave(length: int = 800) -> dict[str, torch.Tensor]:
    return {"input_values": torch.randn(2, length), "labels": torch.tensor([1, 3])}


def _spoken(frames: int, bins: int = 16) -> dict[str, torch.Tensor]:
    return {"input_features": torch.randn(2, bins, frames), "labels": torch.randint(3, 90, (2, 7))}


def _pairs(size: int = 32) -> dict[str, Any]:
    return _text() | _image(size) | {"return_loss": True}


def _series(**more: Any) -> dict[str, Any]:
    return {
        "past_values": torch.randn(2, 18),
        "past_time_features": torch.randn(2, 18, 1),
        "past_observed_mask": torch.ones(2, 18),
        "future_values": torch.randn(2, 6),
        "future_time_features": torch.randn(2, 6, 1),
        **more,
    }


def _names(text: str) -> list[str]:
    return text.split()


_ENCODERS = _names(
    """
    albert bert big_bird camembert convbert data2vec-text deberta deberta-v2 distilbert electra ernie esm eurobert
    flaubert fnet funnel ibert layoutlm megatron-bert mobilebert modernbert mpnet mra nystromformer rembert roberta
    roberta-prelayernorm roc_bert roformer squeezebert tapas xlm xlm-roberta xlm-roberta-xl yoso longformer nomic_bert
    jina_embeddings_v3
    """
)
_DECODERS = _names(
    """
    apertus arcee biogpt bitnet bloom codegen cohere cohere2 ctrl diffllama ernie4_5 exaone4 falcon gemma gemma2
    gemma3_text glm glm4 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gptj granite helium llama mistral
    modernbert-decoder mpt nanochat nemotron olmo olmo2 olmo3 openai-gpt opt persimmon phi phi3 qwen2 qwen3 seed_oss
    smollm3 stablelm starcoder2 vaultgemma xglm xlnet
    """
)
_EXPERTS = _names(
    """
    deepseek_v2 deepseek_v3 ernie4_5_moe flex_olmo glm4_moe gpt_oss granitemoe granitemoeshared hunyuan_v1_moe jetmoe
    minimax mixtral olmoe phimoe qwen2_moe qwen3_moe
    """
)
_RECURRENT = _names(
    """
    bamba falcon_h1 falcon_mamba jamba lfm2 mamba mamba2 recurrent_gemma rwkv xlstm
    """
)
_PAIRS = _names(
    """
    bart bigbird_pegasus blenderbot blenderbot-small fsmt led longt5 m2m_100 marian mbart mt5 mvp nllb-moe pegasus
    pegasus_x plbart switch_transformers t5 t5gemma umt5
    """
)
_CLASSIFIERS = _names(
    """
    beit bit convnext convnextv2 cvt data2vec-vision deit dinov2 dinov2_with_registers focalnet hgnet_v2 ijepa levit
    mobilenet_v1 mobilenet_v2 mobilevit mobilevitv2 poolformer pvt pvt_v2 regnet resnet segformer siglip swiftformer
    swin swinv2 vit vit_msn
    """
)
_SPEECH = _names(
    """
    data2vec-audio hubert sew sew-d unispeech unispeech-sat wav2vec2 wav2vec2-conformer wavlm
    """
)
_OTHERS = _names(
    """
    altclip audio-spectrogram-transformer autoformer blip chinese_clip clip clipseg decision_transformer flava glpn
    informer moonshine patchtsmixer patchtst speech_to_text time_series_transformer timesformer vilt videomae vit_mae
    vitdet vivit whisper wav2vec2-bert yolos
    """
)

_AUTO = {
    **dict.fromkeys(_ENCODERS, "MODEL_FOR_MASKED_LM_MAPPING"),
    **dict.fromkeys([*_DECODERS, *_EXPERTS, *_RECURRENT], "MODEL_FOR_CAUSAL_LM_MAPPING"),
    **dict.fromkeys(_PAIRS, "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING"),
    **dict.fromkeys(_CLASSIFIERS, "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING"),
    **dict.fromkeys([*_SPEECH, "wav2vec2-bert"], "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING"),
    **dict.fromkeys(("whisper", "speech_to_text", "moonshine"), "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING"),
    **dict.fromkeys(("videomae", "timesformer", "vivit"), "MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING"),
    **dict.fromkeys(("dpt", "glpn", "depth_anything"), "MODEL_FOR_DEPTH_ESTIMATION_MAPPING"),
    "audio-spectrogram-transformer": "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING",
    "vit_mae": "MODEL_FOR_PRETRAINING_MAPPING",
    "patchtst": "MODEL_FOR_TIME_SERIES_CLASSIFICATION_MAPPING",
}

_CONVOLUTIONAL = _names(
    """
    bit convnext convnextv2 cvt focalnet hgnet_v2 levit mobilenet_v1 mobilenet_v2 mobilevit mobilevitv2 poolformer pvt
    pvt_v2 regnet resnet segformer swiftformer
    """
)
_LATENT = {
    **{"q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8},
    **{"head_dim": 8, "num_key_value_heads": 4},
}
# What a configuration needs beside the usual sizes.
_MORE: dict[str, dict[str, Any]] = {
    "audio-spectrogram-transformer": {"max_length": 32},
    "autoformer": {"prediction_length": 6, "context_length": 16, "lags_sequence": [1, 2], "num_time_features": 1},
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "attn_layer_indices": [1]},
    "big_bird": {"block_size": 1, "num_random_blocks": 1},
    "bigbird_pegasus": {"block_size": 1, "num_random_blocks": 1},
    "decision_transformer": {"state_dim": 3, "act_dim": 2, "n_head": 4},
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT | {"n_group": 2, "topk_group": 1, "first_k_dense_replace": 1},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8},
    "falcon_mamba": {"conv_kernel": 4},
    "fsmt": {"src_vocab_size": 96, "tgt_vocab_size": 96},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "informer": {"prediction_length": 6, "context_length": 16, "lags_sequence": [1, 2], "num_time_features": 1},
    "led": {"attention_window": [4, 4]},
    "levit": {"image_size": 64},
    "longformer": {"attention_window": [4, 4]},
    "longt5": {"decoder_start_token_id": 0},
    "mamba": {"conv_kernel": 4},
    "mamba2": {"conv_kernel": 4, "chunk_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1},
    "patchtsmixer": {"context_length": 24, "patch_length": 6, "num_input_channels": 2, "prediction_length": 6},
    "patchtst": {"context_length": 24, "patch_length": 6, "patch_stride": 6, "num_input_channels": 2, "num_targets": 5},
    "pvt": {"image_size": 64},
    "roc_bert": {"pronunciation_vocab_size": 20, "shape_vocab_size": 20},
    "speech_to_text": {"input_feat_per_channel": 16, "conv_channels": 32},
    "swin": {"depths": [2, 1], "num_heads": [2, 4], "embed_dim": 16, "window_size": 2, "patch_size": 4},
    "swinv2": {"depths": [2, 1], "num_heads": [2, 4], "embed_dim": 16, "window_size": 2, "patch_size": 4},
    "switch_transformers": {"decoder_start_token_id": 0},
    "t5": {"decoder_start_token_id": 0},
    "time_series_transformer": {
        **{"prediction_length": 6, "context_length": 16, "lags_sequence": [1, 2], "num_time_features": 1},
    },
    "timesformer": {"num_frames": 4},
    "videomae": {"num_frames": 4},
    "vit_mae": {
        **{"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_intermediate_size": 64},
        **{"decoder_num_attention_heads": 4, "mask_ratio": 0.5},
    },
    "vivit": {"num_frames": 4, "tubelet_size": [2, 8, 8]},
    "wav2vec2-bert": {"feature_projection_input_dim": 16},
}
_BATCHES: dict[str, Any] = {
    "time_series_transformer": _series,
    "autoformer": _series,
    "informer": _series,
    "patchtst": lambda: {"past_values": torch.randn(2, 24, 2), "target_values": torch.tensor([1, 3])},
    "patchtsmixer": lambda: {"past_values": torch.randn(2, 24, 2)},
    "audio-spectrogram-transformer": lambda: {"input_values": torch.randn(2, 32, 16), "labels": torch.tensor([1, 3])},
    "whisper": lambda: _spoken(32),
    "speech_to_text": lambda: {"input_features": torch.randn(2, 32, 16), "labels": torch.randint(3, 90, (2, 7))},
    "moonshine": lambda: {"input_values": torch.randn(2, 4000), "labels": torch.randint(3, 90, (2, 7))},
    "wav2vec2-bert": lambda: {"input_features": torch.randn(2, 24, 16), "labels": torch.tensor([1, 3])},
    "videomae": lambda: _video(4),
    "timesformer": lambda: _video(4),
    "vivit": lambda: _video(4),
    "encodec": lambda: {"input_values": torch.randn(2, 1, 640)},
    "decision_transformer": lambda: {
        "states": torch.randn(2, 5, 3),
        "actions": torch.randn(2, 5, 2),
        "rewards": torch.randn(2, 5, 1),
        "returns_to_go": torch.randn(2, 5, 1),
        "timesteps": torch.arange(5).repeat(2, 1),
        "attention_mask": torch.ones(2, 5),
    },
    **dict.fromkeys(("align", "altclip", "chinese_clip", "clip", "siglip"), _pairs),
    **dict.fromkeys(("dpt", "glpn", "depth_anything", "sam", "vit_mae", "vitdet", "yolos"), _image),
    **dict.fromkeys(("clipseg", "flava", "vilt", "blip"), lambda: _text() | _image()),
    **dict.fromkeys(_SPEECH, _wave),
    **dict.fromkeys(_CLASSIFIERS, _classified),
    **dict.fromkeys(_CONVOLUTIONAL, lambda: _classified(64)),
}
# The size of a table follows the longest batch yet: it is called once before it is ported, as the bridge asks for.
_GROWING = ("wav2vec2-conformer",)

NAMES = sorted(
    dict.fromkeys([*_ENCODERS, *_DECODERS, *_EXPERTS, *_RECURRENT, *_PAIRS, *_CLASSIFIERS, *_SPEECH, *_OTHERS])
)


def _shrunk(name: str, given: PretrainedConfig, more: dict[str, Any]) -> PretrainedConfig:
    """Returns a configuration of the same kind with small sizes, and without chance."""
    inner = {key: one for key, one in vars(given).items() if isinstance(one, PretrainedConfig)}
    options: dict[str, Any] = {}
    for key, value in given.to_dict().items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if key in inner:
            options[key] = _shrunk(name, inner[key], more.get(key, {})).to_dict()
        elif ("drop" in key or key in _NO_CHANCE) and number:
            options[key] = type(value)(0)
        elif key in ("depths", "layer_depths") and isinstance(value, list | tuple):
            options[key] = [1] * len(value)
        elif key in _SIZES and not (name in _CONVOLUTIONAL and key in ("patch_size", "hidden_dim")):
            same = isinstance(value, list | tuple) == isinstance(_SIZES[key], list | tuple)
            options[key] = _SIZES[key] if same or value is None else value
    options = {key: value for key, value in options.items() if value is not None}
    return type(given)(**{**options, **{key: one for key, one in more.items() if key not in inner}})


def configuration(name: str) -> PretrainedConfig:
    """Returns the tiny configuration of an architecture."""
    classes = {"num_labels": 5} if _AUTO.get(name, "").endswith("CLASSIFICATION_MAPPING") else {}
    return _shrunk(name, CONFIG_MAPPING[name](), classes | _MORE.get(name, {}))


def build(name: str) -> Model:
    """Makes a model and a batch for it."""
    config = configuration(name)
    config._experts_implementation = "batched_mm"  # the grouped product of torch has no float64
    mapping = getattr(auto.modeling_auto, _AUTO.get(name, "MODEL_MAPPING"))
    model_class = mapping[type(config)]
    module = (model_class[0] if isinstance(model_class, tuple) else model_class)._from_config(config)
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    batch = _BATCHES.get(name, _labelled)()
    flags = {key: value for key, value in batch.items() if not isinstance(value, torch.Tensor)}
    tensors = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}
    if name in _GROWING:
        with torch.no_grad():
            module(**batch)
    return Model(module.train(), tensors, lambda module, batch: module(**batch, **flags))
