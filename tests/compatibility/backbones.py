"""Small models of every class of keras_hub that has a table of tokens."""

import inspect
from typing import Any

import keras
import keras_hub
import numpy as np

VOCABULARY = 30

# By the name of a parameter of a constructor; the others keep their defaults.
SMALL: dict[str, Any] = {
    "vocabulary_size": VOCABULARY,
    "vocab_size": VOCABULARY,
    "text_vocab_size": VOCABULARY,
    "num_layers": 2,
    "num_hidden_layers": 2,
    "num_layers_enc": 1,
    "num_layers_dec": 1,
    "encoder_num_layers": 1,
    "decoder_num_layers": 1,
    "num_heads": 2,
    "num_attention_heads": 2,
    "encoder_num_attention_heads": 2,
    "decoder_num_attention_heads": 2,
    "num_query_heads": 2,
    "num_key_value_heads": 1,
    "encoder_num_key_value_heads": 1,
    "decoder_num_key_value_heads": 1,
    "hidden_dim": 8,
    "hidden_size": 8,
    "text_hidden_size": 8,
    "encoder_hidden_dim": 8,
    "decoder_hidden_dim": 8,
    "embedding_dim": 8,
    "intermediate_dim": 16,
    "intermediate_size": 16,
    "encoder_intermediate_dim": 16,
    "decoder_intermediate_dim": 16,
    "moe_intermediate_dim": 16,
    "shared_expert_intermediate_dim": 16,
    "shared_expert_intermediate_size": 16,
    "head_dim": 4,
    "head_size": 4,
    "encoder_head_dim": 4,
    "decoder_head_dim": 4,
    "num_experts": 2,
    "top_k": 1,
    "max_sequence_length": 12,
    "dropout": 0.0,
    "encoder_layer_types": ["full_attention"],
    "decoder_layer_types": ["full_attention"],
    "layer_types": ["full_attention", "full_attention"],
    "image_size": 16,
}

LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
}

# What a class asks for beside, or otherwise.
OTHERWISE: dict[str, dict[str, Any]] = {
    "Gemma3nBackbone": {
        "pad_token_id": 0,
        "hidden_activation": "gelu_approximate",
        "sliding_window": 4,
        "rope_theta": 10000.0,
        "max_position_embeddings": 12,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 4,
        "altup_num_inputs": 2,
        "laurel_rank": 1,
        "intermediate_size": [16, 16],
    },
    "PARSeqBackbone": {
        "max_label_length": 12,
        "num_decoder_layers": 1,
        "num_decoder_heads": 2,
        "decoder_hidden_dim": 8,
        "decoder_mlp_dim": 16,
    },
    "MoonshineBackbone": {
        "filter_dim": 8,
        "encoder_num_heads": 2,
        "decoder_num_heads": 2,
    },
    "GPTNeoXBackbone": {"hidden_dim": 16, "rotary_percentage": 0.5},
    "Qwen3_5Backbone": {"head_dim": 8, "partial_rotary_factor": 0.5, **LINEAR},
    "Qwen3_5MoeBackbone": {"head_dim": 8, "partial_rotary_factor": 0.5, **LINEAR},
    "SigLIPTextEncoder": {"max_sequence_length": 6},
    "PaliGemmaBackbone": {
        "vit_patch_size": 8,
        "vit_num_heads": 2,
        "vit_hidden_dim": 8,
        "vit_num_layers": 1,
    },
    "SmolLM3Backbone": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rope_layer_enabled_list": [True, True],
        "mlp_bias": False,
        "layer_norm_epsilon": 1e-6,
        "max_position_embeddings": 12,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 1.0,
    },
    "VideoPrismBackbone": {
        "num_frames": 2,
        "patch_size": 8,
        "num_spatial_layers": 1,
        "num_temporal_layers": 1,
        "num_auxiliary_layers": 1,
        "num_text_layers": 1,
        "image_shape": (16, 16, 3),
    },
}
OTHERWISE["SmolLMBackbone"] = OTHERWISE["SmolLM3Backbone"]

# Of these, which are made of others, the text encoder has the table.
TEXT_ENCODERS = {
    "CLIPBackbone": "CLIP",
    "MetaCLIP2Backbone": "MetaCLIP2",
    "SigLIPBackbone": "SigLIP",
}
# Where several tables may be meant, the one that is extended.
TABLES = {"Gemma3nBackbone": "text_model/embed_tokens/embedding"}

NOT_TRIED = {
    "BLIP2Backbone": "made of parts that keras_hub does not export",
    "SAM3PromptableConceptBackbone": "made of parts that keras_hub does not export",
    "StableDiffusion3Backbone": "made of parts that keras_hub does not export",
}
REFUSED = {
    "PARSeqBackbone": "its output has two rows fewer than its table",
}


def names() -> list[str]:
    """Every class of backbones that keras_hub exports and that has a table of tokens."""
    models = keras_hub.models
    found = [
        name
        for name in sorted(dir(models))
        if isinstance(getattr(models, name), type)
        and issubclass(getattr(models, name), models.Backbone)
    ]
    return [name for name in found if _parameters(name) & _ASKS_FOR_WORDS]


def small(name: str) -> Any:
    """A small model of a class."""
    backbone_class = getattr(keras_hub.models, name)
    if name in TEXT_ENCODERS:
        return backbone_class(**_towers(TEXT_ENCODERS[name]))
    parameters = inspect.signature(backbone_class.__init__).parameters
    required = {key for key, each in parameters.items() if each.default is each.empty}
    config = {key: value for key, value in SMALL.items() if key in parameters}
    config = {
        key: value for key, value in config.items() if key != "embedding_dim" or key in required
    }
    if name == "PARSeqBackbone":
        config["image_encoder"] = keras_hub.models.ViTBackbone((16, 16, 3), 8, 1, 2, 8, 16)
    return backbone_class(**{**config, **OTHERWISE.get(name, {})})


def batch(model: Any, ids: Any) -> Any:
    """A batch of two for a model, of which the token ids are drawn from `ids`."""
    generator = np.random.default_rng(0)
    is_meta = type(model).__name__ == "MetaCLIP2Backbone"  # which looks at what stands before a 2
    is_sound = any(tensor.name == "encoder_input_values" for tensor in model.inputs)

    def values(tensor: Any) -> np.ndarray:
        length = 4000 if is_sound and tensor.name.startswith("encoder") else 6
        shape = [2, *(size or length for size in tensor.shape[1:])]
        if is_meta and "mask" in tensor.name:
            return np.ones((2, 7), dtype=tensor.dtype)
        if "mask" in tensor.name or "segment" in tensor.name:
            return np.full(shape, "mask" in tensor.name, dtype=tensor.dtype)
        if "token_ids" in tensor.name or tensor.name == "text_token_ids":
            # Ascending, since CLIP looks at what stands before the largest id.
            found = np.sort(np.resize(generator.permutation(ids), shape)).astype("int32")
            return np.append(found, np.full((2, 1), 2, "int32"), axis=1) if is_meta else found
        if "int" in tensor.dtype:
            return np.zeros(shape, dtype=tensor.dtype)
        return generator.normal(size=shape).astype("float32")

    return keras.tree.map_structure(values, model.input)


def _towers(kind: str) -> dict[str, Any]:
    text = small(f"{kind}TextEncoder")
    vision_class = getattr(keras_hub.models, f"{kind}VisionEncoder")
    vision = vision_class(8, 8, 2, 2, 16, image_shape=(16, 16, 3))
    both = {"vision_encoder": vision, "text_encoder": text}
    return both if kind == "SigLIP" else {**both, "projection_dim": 8}


_ASKS_FOR_WORDS = {
    "vocabulary_size",
    "vocab_size",
    "text_vocab_size",
    "text_encoder",
    "language_model",
    "clip_l",
}


def _parameters(name: str) -> set[str]:
    return set(inspect.signature(getattr(keras_hub.models, name).__init__).parameters)
