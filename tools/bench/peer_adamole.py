#!/usr/bin/env python3
"""AdaMoLE training steps in PyTorch, as the baseline that `talpa train` is timed against.

The computation has the published form (Liu and Luo, AdaMoLE, arXiv 2405.00361, sections 3.1 and 4.3, and the behaviour of the
authors' public code): a softmax gate minus a learned threshold selects experts per token; a Python loop over the experts
gathers each expert's tokens, runs its LoRA pair and adds the weighted result; every expert draws its own dropout mask over
the full input; expert 0 is run over all tokens once more to learn the shape of the result. The base model is transformers'
LlamaForCausalLM with the weights of a GGUF file. Optimizer: AdamW (lr 1e-4, no decay), gradients clipped at norm 1, auxiliary
loss times 1e-3, summed over the adapted linears.

Prints one JSON object per step: step, seconds, tokens_per_s, loss, aux_loss, peak_rss_bytes.
Needs torch, transformers, gguf, numpy and, with --data, tokenizers.
"""
import argparse
import json
import os
import resource
import sys
import time

MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_MMAP_MAX_": "0", "MALLOC_TOP_PAD_": str(64 << 20)}


def parse_arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("-m", "--model", required=True, help="GGUF file of a Llama model (F32, F16, Q4_0, Q4_1, Q8_0 tensors)")
    p.add_argument("--data", help="JSONL of {prompt, completion} or {text}, packed; without it random token ids")
    p.add_argument("--steps", type=int, default=5)
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--seq", type=int, default=256)
    p.add_argument("--threads", type=int, default=0, help="0: torch's default")
    p.add_argument("--dropout", type=float, default=0.05)
    p.add_argument("--dtype", choices=["fp32", "bf16-base", "bf16"], default="fp32", help="bf16-base: fp32 adapters on a bf16 base")
    p.add_argument("--experts", type=int, default=8)
    p.add_argument("--rank", type=int, default=4, help="rank of one expert")
    p.add_argument("--alpha", type=float, default=16)
    p.add_argument("--lr", type=float, default=1e-4)
    p.add_argument("--aux", type=float, default=1e-3)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--default-malloc", action="store_true",
                   help="keep glibc's own malloc settings (the tuned ones are several times faster here)")
    return p.parse_args()


args = parse_arguments()
if not args.default_malloc and any(os.environ.get(k) != v for k, v in MALLOC.items()):
    os.execve(sys.executable, [sys.executable] + sys.argv, {**os.environ, **MALLOC})

import numpy as np  # noqa: E402  (the allocator's settings must stand before the first allocation)
import torch  # noqa: E402
from gguf import GGUFReader  # noqa: E402
from gguf.quants import dequantize  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402


class LoraExpert(nn.Module):
    """One low-rank pair; A uniform as nn.Linear's default (kaiming, a = sqrt 5), B zero."""

    def __init__(self, d_in, d_out, rank, scale):
        super().__init__()
        self.lora_a = nn.Linear(d_in, rank, bias=False)
        self.lora_b = nn.Linear(rank, d_out, bias=False)
        nn.init.zeros_(self.lora_b.weight)
        self.scale = scale

    def forward(self, x):
        return self.lora_b(self.lora_a(x)) * self.scale


class AdaMoleLinear(nn.Module):
    """A frozen linear with n_experts LoRA experts, a gate and a threshold (arXiv 2405.00361, equations 5 to 7)."""

    def __init__(self, base, n_experts, rank, alpha, dropout):
        super().__init__()
        d_out, d_in = base.weight.shape
        self.base = base
        self.experts = nn.ModuleList(LoraExpert(d_in, d_out, rank, alpha / rank) for _ in range(n_experts))
        self.gate = nn.Linear(d_in, n_experts, bias=False)
        self.threshold = nn.Linear(d_in, 1)
        self.max_threshold = 1.0 / n_experts
        self.dropout = dropout
        self.aux_loss = None

    def route(self, h):
        """h [n_tokens, d_in] -> scores, selection and weights, each [n_tokens, n_experts]"""
        probabilities = torch.softmax(self.gate(h), dim=-1)
        scores = probabilities - torch.sigmoid(self.threshold(h)) * self.max_threshold
        selected = torch.ge(scores, 0)
        weights = scores * selected
        total = weights.sum(dim=-1, keepdim=True)
        return scores, selected, weights / torch.where(total == 0, torch.ones_like(total), total)

    def forward(self, x):
        y = self.base(x)
        h = x.reshape(-1, x.shape[-1]).to(self.gate.weight.dtype)
        scores, selected, weights = self.route(h)
        dropped = [F.dropout(h, self.dropout, self.training) for _ in self.experts]
        mixed = torch.zeros_like(self.experts[0](dropped[0]))
        for e, expert in enumerate(self.experts):
            rows = torch.where(selected[:, e])[0]
            mixed[rows] += weights[rows, e, None] * expert(dropped[e][rows])
        share = selected.to(scores.dtype).mean(dim=0)
        self.aux_loss = len(self.experts) * torch.sum(share * scores.mean(dim=0))
        return y + mixed.reshape(y.shape).to(y.dtype)


def unpermute(w, n_heads):
    """GGUF rotates the row pairs (2i, 2i+1) of q and k, transformers the pairs (i, i + half)."""
    return w.reshape(n_heads, w.shape[0] // n_heads // 2, 2, -1).swapaxes(1, 2).reshape(w.shape)


def field(reader, key, default=None):
    f = reader.fields.get(key)
    return default if f is None else f.contents()


def load_base(reader):
    head, kv_head = field(reader, "llama.attention.head_count"), field(reader, "llama.attention.head_count_kv")
    weights = {}
    for t in reader.tensors:
        shape = tuple(int(n) for n in reversed(t.shape))
        weights[t.name] = np.array(dequantize(t.data, t.tensor_type), dtype=np.float32).reshape(shape)
    tied = "output.weight" not in weights
    config = LlamaConfig(
        hidden_size=field(reader, "llama.embedding_length"), num_hidden_layers=field(reader, "llama.block_count"),
        num_attention_heads=head, num_key_value_heads=kv_head, intermediate_size=field(reader, "llama.feed_forward_length"),
        vocab_size=weights["token_embd.weight"].shape[0], max_position_embeddings=field(reader, "llama.context_length"),
        rms_norm_eps=field(reader, "llama.attention.layer_norm_rms_epsilon"), tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": float(field(reader, "llama.rope.freq_base", 10000.0))})
    parts = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
             "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    ends = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    state = {}
    for name, w in weights.items():
        piece = name.split(".")
        if piece[0] == "blk":
            if piece[2] in ("attn_q", "attn_k"):
                w = unpermute(w, head if piece[2] == "attn_q" else kv_head)
            key = f"model.layers.{piece[1]}.{parts[piece[2]]}.weight"
        else:
            key = ends[piece[0]] + ".weight"
        state[key] = torch.from_numpy(np.ascontiguousarray(w))
    if tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = LlamaForCausalLM(config)
    model.load_state_dict(state, strict=True)
    model.tie_weights()
    return model


def adapt(model):
    """Freezes the base and wraps q, k, v and o of every layer; returns the wrapped linears."""
    model.requires_grad_(False)
    if args.dtype != "fp32":
        model.to(torch.bfloat16)
    wrapped = []
    for layer in model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            module = AdaMoleLinear(getattr(layer.self_attn, name), args.experts, args.rank, args.alpha, args.dropout)
            if args.dtype == "bf16":
                module.to(torch.bfloat16)
            setattr(layer.self_attn, name, module)
            wrapped.append(module)
    model.enable_input_require_grads()  # as the published code does; layer 0's auxiliary loss depends on it there
    return wrapped


def token_rows(reader, n_rows, n_vocab):
    """n_rows rows of --seq token ids: rows of input_ids as they are, packed text (wrapping around), or random ids"""
    if args.data is not None:
        with open(args.data, encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        if all("input_ids" in row and len(row["input_ids"]) == args.seq for row in rows):
            ids = [row["input_ids"] for row in rows]
            return torch.tensor((ids * (n_rows // len(ids) + 1))[:n_rows])
    if args.data is None:
        generator = torch.Generator().manual_seed(args.seed)
        return torch.randint(0, n_vocab, (n_rows, args.seq), generator=generator)
    from tokenizers import Tokenizer, models, pre_tokenizers
    tokens = field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(m.split(" ")) for m in field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    split = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    if field(reader, "tokenizer.ggml.pre") == "smollm":
        split.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    eos = field(reader, "tokenizer.ggml.eos_token_id")
    ids = []
    with open(args.data, encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            for key in ("prompt", "completion") if "prompt" in row else ("text",):
                ids += tokenizer.encode(row[key], add_special_tokens=False).ids
            ids.append(eos)
    need = n_rows * args.seq
    return torch.tensor((ids * (need // len(ids) + 1))[:need]).view(n_rows, args.seq)


def main():
    torch.manual_seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    reader = GGUFReader(args.model)
    model = load_base(reader)
    wrapped = adapt(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.0)
    rows = token_rows(reader, args.steps * args.batch, model.config.vocab_size)
    model.train()
    for step in range(args.steps):
        ids = rows[step * args.batch:(step + 1) * args.batch]
        begin = time.perf_counter()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        aux = sum(m.aux_loss.float() for m in wrapped)
        (loss + args.aux * aux).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - begin
        print(json.dumps({"step": step + 1, "seconds": seconds, "tokens_per_s": ids.numel() / seconds, "loss": loss.item(),
                          "aux_loss": aux.item(), "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}),
              flush=True)


if __name__ == "__main__":
    main()
