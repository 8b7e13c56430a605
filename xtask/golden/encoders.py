#!/usr/bin/env python3
"""Writes golden data of encoders, computed by `transformers` in float64.

usage: encoders.py [MODEL] [TINY] [EMBEDDINGS]     needs torch (any build), transformers, safetensors, tokenizers and gguf from PyPI

TINY (tests/data/tiny): a tiny random BERT as `bert/` (config.json, model.safetensors in F32, a WordPiece tokenizer, the files in which
sentence-transformers says how rows are pooled) and as `bert.gguf`, with the names that llama.cpp's converter gives; and `bert.hidden`, the
little-endian f32 `[tokens, width]` hidden states of the tokens in `bert.tokens`, then those of the first two of them as a text.

EMBEDDINGS (tests/data/embeddings/minilm.json): for each of TEXTS the token ids, and the embedding of MODEL, the folder of
all-MiniLM-L6-v2: the mean over all tokens, of length one.
"""
import json
import pathlib
import sys

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, BertConfig, BertModel

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)] + [str(d) for d in range(10)] + list(".,!?'-")
WORDS = ["the", "cat", "sat", "on", "mat", "##ing", "##er", "##ed", "river", "bank", "money", "é", "中"]
TOKENS = SPECIAL + LETTERS + ["##" + letter for letter in LETTERS] + WORDS
assert len(set(TOKENS)) == len(TOKENS)
CONFIG = {
    "architectures": ["BertModel"], "model_type": "bert", "vocab_size": len(TOKENS), "hidden_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 4, "intermediate_size": 96, "hidden_act": "gelu", "max_position_embeddings": 64, "type_vocab_size": 2,
    "layer_norm_eps": 1e-12, "pad_token_id": 0, "position_embedding_type": "absolute",
}
MAX_SEQ_LENGTH = 48

TEXTS = [
    "The cat sat on the mat.",
    "A feline rested upon a rug.",
    "Quarterly revenue rose by eleven percent, beating expectations.",
    "How do I reset my password?",
    "Wie setze ich mein Passwort zurück?",
    "def add(a, b):\n    return a + b",
    "你好，世界",
    "naïve café résumé",
    "a",
    "!!! ??? ... --- ###",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "The [MASK] token and [SEP] are plain text here.",
    "Emoji \U0001F600 and\ttabs\u00a0and  spaces",
    " ".join(f"Sentence number {i} speaks of the weather in town {i * 7}." for i in range(14)),
]

GGUF_NAMES = {
    "embeddings.word_embeddings": "token_embd", "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types", "embeddings.LayerNorm": "token_embd_norm",
    "attention.self.query": "attn_q", "attention.self.key": "attn_k", "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output", "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up", "output.dense": "ffn_down", "output.LayerNorm": "layer_output_norm",
}


def gguf_name(name):
    stem, kind = name.rsplit(".", 1)
    if not stem.startswith("encoder.layer."):
        return f"{GGUF_NAMES[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[part]}.{kind}"


def random_weights(model):
    generator = torch.Generator().manual_seed(sum(b"bert"))
    state = {}
    for name, p in sorted(model.named_parameters()):
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float32)
        if "LayerNorm.weight" in name:
            state[name] = noise * 0.2 + 1.0
        elif name.endswith("bias"):
            state[name] = noise * 0.3
        elif "embeddings" in name:
            state[name] = noise
        else:
            state[name] = noise * (1.3 / p.shape[1] ** 0.5)
    return state


def tiny(out):
    folder = out / "bert"
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    model = BertModel(BertConfig(**CONFIG), add_pooling_layer=False).double().eval()
    model.config._attn_implementation = "eager"
    state = random_weights(model)
    missing, unexpected = model.load_state_dict({k: v.double() for k, v in state.items()}, strict=False)
    assert not unexpected and not missing, (missing, unexpected)
    rng = np.random.default_rng(1)
    tokens = [2, *rng.integers(5, len(TOKENS), size=38).tolist(), 3]
    with torch.no_grad():
        hidden = torch.cat([model(torch.tensor([text])).last_hidden_state[0] for text in (tokens, tokens[:2])])
    assert hidden.dtype == torch.float64 and hidden.shape == (42, 32)
    (out / "bert.tokens").write_text(" ".join(map(str, tokens)) + "\n")
    (out / "bert.hidden").write_bytes(hidden.float().numpy().astype("<f4").tobytes())
    save_file(state, folder / "model.safetensors")
    write = lambda name, value: (folder / name).write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    write("config.json", CONFIG)
    write("tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "cls_token": "[CLS]",
                                    "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"})
    write("modules.json", [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")])])
    write("sentence_bert_config.json", {"max_seq_length": MAX_SEQ_LENGTH, "do_lower_case": False})
    write("1_Pooling/config.json", {
        "word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False})
    tokenizer = Tokenizer(models.WordPiece({t: i for i, t in enumerate(TOKENS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    tiny_gguf(out / "bert.gguf", state)


def tiny_gguf(path, state):
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name("bert")
    writer.add_context_length(CONFIG["max_position_embeddings"])
    writer.add_embedding_length(CONFIG["hidden_size"])
    writer.add_feed_forward_length(CONFIG["intermediate_size"])
    writer.add_block_count(CONFIG["num_hidden_layers"])
    writer.add_head_count(CONFIG["num_attention_heads"])
    writer.add_layer_norm_eps(CONFIG["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    # Words begin with a mark in these files, and their continuations with none.
    phantom = lambda t: t if t in SPECIAL else t[2:] if t.startswith("##") else "\u2581" + t
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_type_count(CONFIG["type_vocab_size"])
    writer.add_token_list([phantom(t) for t in TOKENS])
    writer.add_token_types([3 if t in SPECIAL else 1 for t in TOKENS])
    writer.add_unk_token_id(1)
    writer.add_pad_token_id(0)
    writer.add_sep_token_id(3)
    writer.add_bos_token_id(2)
    writer.add_mask_token_id(4)
    for name, tensor in state.items():
        writer.add_tensor(gguf_name(name), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def minilm(folder, out):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertModel.from_pretrained(folder, attn_implementation="eager").double().eval()
    entries = []
    for text in TEXTS:
        tokens = tokenizer(text, padding=False, truncation=False, split_special_tokens=True)["input_ids"]
        assert len(tokens) <= 256, len(tokens)
        with torch.no_grad():
            hidden = model(torch.tensor([tokens])).last_hidden_state[0]
        assert hidden.dtype == torch.float64
        mean = hidden.mean(0)
        vector = (mean / mean.norm()).tolist()
        entries.append({"text": text, "tokens": tokens, "embedding": [float(f"{v:.9f}") for v in vector]})
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    out.write_text(f"[\n{lines}\n]\n")


def main():
    tiny(pathlib.Path(sys.argv[2]))
    minilm(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[3]))


main()
