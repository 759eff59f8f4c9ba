#!/usr/bin/env python3
"""Makes tests/data/models/: one tiny random model per supported architecture, as transformers saves it and as a GGUF file, with the logits
and the LoRA gradients that transformers and PyTorch get for it in float32. tests/models/test_architectures.c compares.

Usage: tools/golden/make_models.py [--out FOLDER].  Needs numpy, PyTorch, transformers 5, tokenizers and gguf. Deterministic for given
versions of these. The tokenizer is trained on TEXT below.
"""
import argparse
import json
import os
import shutil

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "..", "..", "tests", "data", "models")
TEXT = """The mole digs a tunnel under the meadow. It cannot see well, but it smells every worm in the dark earth.
A second mole digs from the other side. Where the two tunnels meet, they stop, listen, and turn around.
Rain fills the lower tunnel; the upper one stays dry. So a mole that wants to sleep well digs two beds, and keeps the better one."""
VOCABULARY, RANK, ALPHA, ROWS, LENGTH = 96, 2, 4.0, 2, 16
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SMALL = dict(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=2)
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 4.0}

# name: configuration, type of the matrices, whether it is saved in several files
MODELS = {
    "llama": (transformers.LlamaConfig(**SMALL, tie_word_embeddings=False), torch.float16, False),
    "llama3": (transformers.LlamaConfig(**SMALL, tie_word_embeddings=True, rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True),
               torch.bfloat16, False),
    "mistral": (transformers.MistralConfig(**{**SMALL, "num_hidden_layers": 1}, sliding_window=16), torch.float32, True),
    "qwen2": (transformers.Qwen2Config(**SMALL, tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
              torch.float16, False),
    "qwen3": (transformers.Qwen3Config(**SMALL, head_dim=16, tie_word_embeddings=True, rope_parameters=LINEAR), torch.float16, False),
    "gemma": (transformers.GemmaConfig(**SMALL, head_dim=16), torch.float16, False),
}
LINEARS = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
           "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_norm": "attn_q_norm",
         "self_attn.k_norm": "attn_k_norm"}


def make_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, show_progress=False))
    return tokenizer


def randomise(model, generator):
    """Weights large enough that every part of the model shows in the logits."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if name.endswith("norm.weight") or "layernorm" in name:
                p.copy_(noise * 0.2 + (0.0 if model.config.model_type == "gemma" else 1.0))
            elif name.endswith("bias"):
                p.copy_(noise * 0.3)
            else:
                p.copy_(noise / p.shape[1] ** 0.5 if "embed" not in name else noise * 0.5)


class Lora(torch.nn.Module):
    def __init__(self, linear, generator):
        super().__init__()
        self.linear = linear
        self.a = torch.nn.Parameter(torch.randn(RANK, linear.in_features, generator=generator) / linear.in_features ** 0.5)
        self.b = torch.nn.Parameter(torch.randn(linear.out_features, RANK, generator=generator) * 0.2)

    def forward(self, x):
        return self.linear(x) + (x @ self.a.T) @ self.b.T * (ALPHA / RANK)


def golden(folder, out, generator):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids = torch.randint(3, VOCABULARY, (ROWS, LENGTH), generator=generator)
    tensors = {"input_ids": ids.to(torch.int32)}
    with torch.no_grad():
        tensors["logits"] = model(ids).logits.float()
    for p in model.parameters():
        p.requires_grad_(False)
    loras = {}
    for i, layer in enumerate(model.model.layers):
        for path in LINEARS:
            part, name = path.split(".")
            lora = Lora(getattr(getattr(layer, part), name), generator)
            setattr(getattr(layer, part), name, lora)
            loras[f"layers.{i}.{path}"] = lora
    logits = model(ids).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, VOCABULARY), ids[:, 1:].reshape(-1))
    loss.backward()
    tensors["loss"] = loss.detach().reshape(1)
    for name, lora in loras.items():
        tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"] = lora.a.detach(), lora.b.detach()
        tensors[f"grad.{name}.lora_A"], tensors[f"grad.{name}.lora_B"] = lora.a.grad, lora.b.grad
    save_file({k: v.contiguous() for k, v in tensors.items()}, out)


def pairs(rows, n_heads):
    """llama.cpp's order of the rows of q and k: rotary pairs beside each other."""
    return rows.reshape(n_heads, 2, rows.shape[0] // n_heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def numpy_of(tensor, as_vector):
    if as_vector or tensor.dtype == torch.float32:
        return tensor.float().numpy(), gguf.GGMLQuantizationType.F32
    if tensor.dtype == torch.float16:
        return tensor.numpy(), gguf.GGMLQuantizationType.F16
    return tensor.view(torch.int16).numpy().view(np.uint8), gguf.GGMLQuantizationType.BF16


def write_gguf(name, model, tokenizer, path):
    c = model.config
    arch = {"mistral": "llama"}.get(c.model_type, c.model_type)
    w = gguf.GGUFWriter(path, arch)
    w.add_name(name)
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    w.add_key_length(head_dim)
    w.add_value_length(head_dim)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    rope = c.rope_parameters
    w.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "llama3":  # factors, as llama.cpp's converter makes them from the plain frequencies
        plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, head_dim, 2).double() / head_dim)
        w.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq.double()).float().numpy())
    if name == "mistral":
        w.add_sliding_window(c.sliding_window)
    vocabulary = tokenizer.get_vocab()
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(sorted(vocabulary, key=vocabulary.get))
    w.add_token_types([3 if t in SPECIAL else 1 for t in sorted(vocabulary, key=vocabulary.get)])
    w.add_token_merges([" ".join(m) for m in json.loads(tokenizer.to_str())["model"]["merges"]])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_add_bos_token(False)
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
    for i in range(c.num_hidden_layers):
        for hf, short in {**LINEARS, **NORMS}.items():
            for end in ("weight", "bias"):
                names[f"model.layers.{i}.{hf}.{end}"] = f"blk.{i}.{short}.{end}"
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and c.tie_word_embeddings:
            continue
        data, dtype = numpy_of(tensor, tensor.ndim == 1)
        if c.model_type == "gemma" and "norm" in key:
            data = data + 1
        if arch == "llama" and (".q_proj." in key or ".k_proj." in key):
            data = pairs(data, c.num_attention_heads if ".q_proj." in key else c.num_key_value_heads)
        w.add_tensor(names[key], np.ascontiguousarray(data), raw_dtype=dtype)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=OUT)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    assert tokenizer.get_vocab_size() == VOCABULARY
    for number, (name, (config, dtype, sharded)) in enumerate(MODELS.items()):
        folder = os.path.join(out, name)
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        generator = torch.Generator().manual_seed(1000 + number)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        randomise(model, generator)
        model.tie_weights()
        rotary = model.model.rotary_emb.inv_freq.clone()
        model.to(dtype)
        model.model.rotary_emb.inv_freq = rotary
        model.save_pretrained(folder, max_shard_size="20KB" if sharded else "5GB")
        os.remove(os.path.join(folder, "generation_config.json"))
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=SPECIAL[1], eos_token=SPECIAL[2],
                                                    pad_token=SPECIAL[2], clean_up_tokenization_spaces=False)
        fast.save_pretrained(folder)
        golden(folder, os.path.join(folder, "golden.safetensors"), generator)
        write_gguf(name, model, tokenizer, os.path.join(folder, "model.gguf"))
        size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
        print(name, sorted(os.listdir(folder)), size)


if __name__ == "__main__":
    main()
