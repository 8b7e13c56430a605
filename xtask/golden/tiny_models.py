#!/usr/bin/env python3
"""Writes tests/data/tiny: tiny random models of every architecture and the logits that `transformers` computes for them.

usage: tiny_models.py LLAMA_CPP [OUT]     needs torch (any build), transformers, safetensors, tokenizers and gguf from PyPI;
                                          LLAMA_CPP is a llama.cpp source tree, whose converter makes the GGUF files

For each model: `NAME/` (config.json, model.safetensors in F32, a byte-level tokenizer), `NAME.gguf` (the same in F32) and
`NAME.logits` (little-endian f32 `[tokens, vocab]`, computed in float64) for the tokens in `tokens.txt`.
"""
import json
import pathlib
import sys

import torch
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


def convert(llama_cpp, directory, out):
    """Runs llama.cpp's converter in this process. What it knows of published tokenizers (classes with tokens of their own,
    hashes of pre-tokenizers) is replaced, for this one is none of them."""
    sys.path[:0] = [str(llama_cpp / "gguf-py"), str(llama_cpp)]
    import convert_hf_to_gguf
    from conversion.base import TextModel
    from conversion.llama import LlamaModel
    AutoTokenizer.from_pretrained = PreTrainedTokenizerFast.from_pretrained
    TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    LlamaModel.set_vocab = lambda self: self._set_vocab_gpt2()
    sys.argv = ["convert_hf_to_gguf.py", str(directory), "--outtype", "f32", "--outfile", str(out)]
    convert_hf_to_gguf.main()


def main():
    llama_cpp = pathlib.Path(sys.argv[1])
    out = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else "tests/data/tiny")
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
        convert(llama_cpp, directory, out / f"{name}.gguf")


main()
