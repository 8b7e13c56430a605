#!/usr/bin/env python3
"""Writes tests/data/tiny: tiny random models of every architecture and the logits that `transformers` computes for them.

usage: tiny_models.py LLAMA_CPP|--quantized [OUT]     needs torch (any build), transformers, safetensors, tokenizers and gguf from PyPI;
                                          LLAMA_CPP is a llama.cpp source tree, whose converter makes the GGUF files

For each model of MODELS: `NAME/` (config.json, model.safetensors in F32, a byte-level tokenizer), `NAME.gguf` (the same in F32) and
`NAME.logits` (little-endian f32 `[tokens, vocab]`, computed in float64) for the tokens in `tokens.txt`.

For each model of QUANTIZED: `NAME.gguf` with quantized matrices, and `NAME.logits` as above, of the weights that the `gguf` package
expands these to. `--quantized` writes these alone; it needs no LLAMA_CPP, but the `qwen3.gguf` of an earlier run for its metadata.
"""
import json
import pathlib
import sys

if len(sys.argv) > 1 and sys.argv[1] != "--quantized":
    # The converter needs the package of its own source tree.
    sys.path[:0] = [str(pathlib.Path(sys.argv[1]) / "gguf-py"), sys.argv[1]]

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as T
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

MERGES = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n")]
SPECIAL = ["<s>", "</s>"]
VOCAB = 256 + len(MERGES) + len(SPECIAL)
COMMON = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "bos_token_id": VOCAB - 2, "eos_token_id": VOCAB - 1, "torch_dtype": "float32", "tie_word_embeddings": False,
}

# Written as published models write their config.json: most with `rope_theta` and `rope_scaling`, qwen3 in the newer style.
MODELS = {
    "llama-linear": COMMON | {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_theta": 1000.0,
        "rope_scaling": {"type": "linear", "factor": 2.0}, "num_hidden_layers": 3,
    },
    "llama-llama3": COMMON | {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_theta": 1000.0, "head_dim": 16,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 32},
        "tie_word_embeddings": True,
    },
    "qwen2": COMMON | {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rope_theta": 10000.0, "rms_norm_eps": 1e-6,
        "use_sliding_window": False, "sliding_window": 16, "max_window_layers": 2, "tie_word_embeddings": True,
    },
    "qwen2-yarn": COMMON | {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rope_theta": 1000.0, "rms_norm_eps": 1e-6,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    },
    "qwen3": COMMON | {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "rms_norm_eps": 1e-6, "head_dim": 24,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "tie_word_embeddings": True,
    },
    "gemma3": COMMON | {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "num_hidden_layers": 7, "head_dim": 16,
        "num_key_value_heads": 1, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "sliding_window": 8,
        "sliding_window_pattern": 6, "query_pre_attn_scalar": 16, "hidden_activation": "gelu_pytorch_tanh",
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
        "attn_logit_softcapping": None, "final_logit_softcapping": None,
    },
    "lfm2": {k: v for k, v in COMMON.items() if k not in ("intermediate_size", "hidden_act", "rms_norm_eps")} | {
        "architectures": ["Lfm2ForCausalLM"], "model_type": "lfm2", "num_hidden_layers": 5, "norm_eps": 1e-5,
        "layer_types": ["conv", "conv", "full_attention", "conv", "full_attention"], "conv_L_cache": 3, "conv_bias": False,
        "block_ff_dim": 100, "block_auto_adjust_ff_dim": True, "block_ffn_dim_multiplier": 1.0, "block_multiple_of": 32,
        "rope_theta": 1000.0, "tie_word_embeddings": True,
    },
}


def byte_level_tokenizer():
    """All bytes, four merges, two special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = alphabet + [a + b for a, b in MERGES]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(names)}, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def random_weights(model, gemma, generator):
    """Every parameter random: matrices that keep unit variance, norm weights off one, biases off zero."""
    def normal(p, deviation):
        return torch.randn(p.shape, generator=generator, dtype=torch.float32) * deviation
    state = {}
    for name, p in sorted(model.named_parameters()):
        if "norm" in name:
            state[name] = normal(p, 0.2) + (0.0 if gemma else 1.0)
        elif name.endswith("bias"):
            state[name] = normal(p, 0.3)
        elif "embed_tokens" in name:
            state[name] = normal(p, 1.0 if not gemma else 0.3)
        else:
            state[name] = normal(p, 1.3 / p.shape[1] ** 0.5)
    return state


def convert(directory, out):
    """Runs llama.cpp's converter in this process. What it knows of published tokenizers (classes with tokens of their own,
    hashes of pre-tokenizers) is replaced, for this one is none of them."""
    import convert_hf_to_gguf
    from conversion.base import TextModel
    from conversion.llama import LlamaModel
    AutoTokenizer.from_pretrained = PreTrainedTokenizerFast.from_pretrained
    TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    LlamaModel.set_vocab = lambda self: self._set_vocab_gpt2()
    sys.argv = ["convert_hf_to_gguf.py", str(directory), "--outtype", "f32", "--outfile", str(out)]
    convert_hf_to_gguf.main()


WIDTH_64 = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 24}
# Rows of 256, the block of these types, in every matrix.
WIDTH_256 = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_hidden_layers": 1}
# Types of embedding (and tied head), query, key, value, output, gate, up and down.
QUANTIZED = {
    "qwen3-q4_0": (WIDTH_64, [T.Q8_0] + [T.Q4_0] * 7),
    "qwen3-q8_0": (WIDTH_64, [T.Q8_0] * 8),
    "qwen3-mixed32": (WIDTH_64, [T.Q5_1, T.Q4_1, T.Q5_0, T.Q5_1, T.IQ4_NL, T.MXFP4, T.Q4_1, T.IQ4_NL]),
    "qwen3-q4_k": (WIDTH_256, [T.Q6_K, T.Q4_K, T.Q4_K, T.Q6_K, T.Q4_K, T.Q4_K, T.Q4_K, T.Q6_K]),
    "qwen3-mixed256": (WIDTH_256, [T.Q5_K, T.Q3_K, T.IQ4_XS, T.Q5_K, T.Q2_K, T.IQ4_XS, T.Q3_K, T.Q5_K]),
}
# Types that the package expands only: byte offsets of the scale and of the scale of minimums in a block, and the ratio of the two for
# which values are centered.
RANDOM_BLOCKS = {
    T.IQ4_NL: (0, None, 0), T.IQ4_XS: (0, None, 0), T.Q2_K: (80, 82, 1.5), T.Q3_K: (108, None, 0), T.Q4_K: (0, 2, 7.5),
    T.Q5_K: (0, 2, 15.5), T.Q6_K: (208, None, 0),
}
# Names in GGUF and in `transformers`; matrices in the order of QUANTIZED's types.
MATRICES = [
    ("token_embd", "model.embed_tokens"), ("attn_q", "self_attn.q_proj"), ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"), ("attn_output", "self_attn.o_proj"), ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"), ("ffn_down", "mlp.down_proj"),
]
NORMS = [
    ("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm"), ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
]


def blocks_of(ty, values, rng):
    """Blocks of a type for a matrix, and what they expand to: `values` rounded, or random blocks of the same deviation."""
    if ty not in RANDOM_BLOCKS:
        data = gguf.quants.quantize(values, ty)
        return data, gguf.quants.dequantize(data, ty)
    length, size = gguf.GGML_QUANT_SIZES[ty]
    scale_at, min_at, ratio = RANDOM_BLOCKS[ty]
    blocks = rng.integers(0, 256, size=(values.size // length, size), dtype=np.uint8)

    def scaled(scale):
        blocks[:, scale_at:scale_at + 2] = np.array([scale], dtype="<f2").view(np.uint8)
        if min_at is not None:
            blocks[:, min_at:min_at + 2] = np.array([scale * ratio], dtype="<f2").view(np.uint8)
        return gguf.quants.dequantize(blocks.reshape(values.shape[0], -1), ty)
    scale = 2.0 ** -8
    expanded = scaled(scale * values.std() / scaled(scale).std())
    return blocks.reshape(values.shape[0], -1).copy(), expanded


def quantized_model(out, name, changes, types, tokens):
    """One model of QUANTIZED; its metadata is that of qwen3.gguf with other sizes."""
    seed = sum(name.encode())
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    config = MODELS["qwen3"] | changes
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**config), dtype=torch.float64, attn_implementation="eager")
    state = random_weights(model, False, generator)
    tensors = []
    for layer in [None, *range(config["num_hidden_layers"])]:
        places = [(f"blk.{layer}.{g}", f"model.layers.{layer}.{h}") for g, h in MATRICES[1:]]
        kinds = types[1:]
        norms = [(f"blk.{layer}.{g}", f"model.layers.{layer}.{h}") for g, h in NORMS]
        if layer is None:
            places, kinds, norms = MATRICES[:1], types[:1], [("output_norm", "model.norm")]
        for (to, of), ty in zip(places, kinds, strict=True):
            data, expanded = blocks_of(ty, state[f"{of}.weight"].numpy(), rng)
            state[f"{of}.weight"] = torch.from_numpy(expanded)
            tensors.append((f"{to}.weight", data, ty))
        tensors.extend((f"{to}.weight", state[f"{of}.weight"].numpy(), T.F32) for to, of in norms)
    missing, unexpected = model.load_state_dict({k: v.double() for k, v in state.items()}, strict=False)
    assert missing in ([], ["lm_head.weight"]) and not unexpected, (missing, unexpected)
    model.tie_weights()
    with torch.no_grad():
        logits = model.eval()(tokens).logits[0]
    assert logits.dtype == torch.float64 and logits.shape == (40, VOCAB), (logits.dtype, logits.shape)
    print(name, "max", float(logits.abs().max()), "rms", float(logits.square().mean().sqrt()))
    (out / f"{name}.logits").write_bytes(logits.float().numpy().astype("<f4").tobytes())
    sizes = {
        "block_count": config["num_hidden_layers"], "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"], "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
    }
    writer = gguf.GGUFWriter(out / f"{name}.gguf", "qwen3")
    for key, field in gguf.GGUFReader(out / "qwen3.gguf").fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        value = sizes.get(key.removeprefix("qwen3."), field.contents())
        writer.add_key_value(key, name if key == "general.name" else value, field.types[0],
                             field.types[-1] if len(field.types) > 1 else None)
    for to, data, ty in tensors:
        writer.add_tensor(to, data, raw_dtype=None if ty == T.F32 else ty)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantized_models(out):
    tokens = torch.tensor([[int(t) for t in (out / "tokens.txt").read_text().split()]])
    for name, (changes, types) in QUANTIZED.items():
        quantized_model(out, name, changes, types, tokens)


def main():
    out = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else "tests/data/tiny")
    if sys.argv[1] != "--quantized":
        float_models(out)
    quantized_models(out)


def float_models(out):
    out.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(20240301)
    tokens = torch.randint(0, VOCAB - 2, (1, 40), generator=generator)
    (out / "tokens.txt").write_text(" ".join(str(t) for t in tokens[0].tolist()) + "\n")
    for name, config in MODELS.items():
        directory = out / name
        directory.mkdir(exist_ok=True)
        (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        byte_level_tokenizer().save(str(directory / "tokenizer.json"), pretty=False)
        (directory / "tokenizer_config.json").write_text(json.dumps({
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL[0], "eos_token": SPECIAL[1],
            "add_bos_token": False, "clean_up_tokenization_spaces": False,
        }, indent=2) + "\n")
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
        weights = random_weights(empty, name.startswith("gemma"), generator)
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64, attn_implementation="eager")
        with torch.no_grad():
            logits = model(tokens).logits[0]
        assert logits.dtype == torch.float64 and logits.shape == (40, VOCAB), (logits.dtype, logits.shape)
        print(name, "max", float(logits.abs().max()), "rms", float(logits.square().mean().sqrt()))
        (out / f"{name}.logits").write_bytes(logits.float().numpy().astype("<f4").tobytes())
        convert(directory, out / f"{name}.gguf")


main()
