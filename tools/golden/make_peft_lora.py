#!/usr/bin/env python3
"""Makes tests/data/peft_lora: adapters saved by the real PEFT on the weights of random:tiny, and what they compute.

Two adapters: "list" (a list of target modules, lora_alpha / r, f32) and "linear" (all-linear, rank-stabilised, saved in f16). Beside each,
expected.json holds the natural log-probabilities of every token of rows.jsonl but the first, by transformers and PEFT in float32.
Needs numpy, torch, transformers and peft. Deterministic."""
import json
import os
import shutil

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from reference import splitmix

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tests", "data", "peft_lora")
ROWS = [[ord(c) + 3 for c in "A mole digs 12 holes."], [ord(c) + 3 for c in "def f(x): return x"]]


def tiny():
    """The built-in model: tensor number j is sqrt(3 / columns) * (2u - 1), norms are 1 but count."""
    config = LlamaConfig(vocab_size=259, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, head_dim=16, max_position_embeddings=512, rms_norm_eps=1e-5, rope_theta=10000.0,
                         tie_word_embeddings=True)
    model = LlamaForCausalLM(config).eval()
    linears = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    names = ["model.embed_tokens"]
    for layer in range(2):
        names += [f"model.layers.{layer}.{part}" for part in ["input_layernorm", *linears, "post_attention_layernorm"]]
    names.append("model.norm")
    state = dict(model.named_parameters())
    for number, name in enumerate(names):
        weight = state[f"{name}.weight"]
        if weight.dim() == 1:
            weight.data = torch.ones_like(weight)
        else:
            values = splitmix(weight.numel(), 0, number, (3.0 / weight.shape[1]) ** 0.5)
            weight.data = torch.from_numpy(np.asarray(values, dtype=np.float32).copy()).reshape(weight.shape)
    return model


def fill(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name:
            parameter.data = (torch.rand(parameter.shape, generator=generator) * 2 - 1) * (0.3 if "lora_A" in name else 0.2)


def logprobs(model):
    result = []
    with torch.no_grad():
        for ids in ROWS:
            logp = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
            result.append([float(f"{float(logp[i, token]):.9g}") for i, token in enumerate(ids[1:])])
    return result


def make(name, seed, half, **settings):
    model = get_peft_model(tiny(), LoraConfig(lora_dropout=0.1, bias="none", task_type="CAUSAL_LM", **settings)).eval()
    fill(model, seed)
    if half:  # the values that the f16 file holds
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.data = parameter.data.half().float()
    folder = os.path.join(OUT, name)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    path = os.path.join(folder, "adapter_model.safetensors")
    if half:
        save_file({key: value.half() for key, value in load_file(path).items()}, path, {"format": "pt"})
    for extra in os.listdir(folder):
        if not extra.startswith("adapter_"):
            os.unlink(os.path.join(folder, extra))
    with open(os.path.join(folder, "expected.json"), "w", encoding="utf-8") as file:
        json.dump({"logprobs": logprobs(model)}, file)
        file.write("\n")


def main():
    os.makedirs(OUT, exist_ok=True)
    with open(os.path.join(OUT, "rows.jsonl"), "w", encoding="utf-8") as file:
        for ids in ROWS:
            file.write(json.dumps({"input_ids": ids}) + "\n")
    make("list", 1, False, r=2, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"])
    make("linear", 2, True, r=3, lora_alpha=6, target_modules="all-linear", use_rslora=True)


if __name__ == "__main__":
    main()
