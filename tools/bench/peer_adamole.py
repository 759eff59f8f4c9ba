#!/usr/bin/env python3
"""AdaMoLE training steps in PyTorch, as the baseline that `talpa train` is timed against.

The computation has the published form (Liu and Luo, AdaMoLE, arXiv 2405.00361, sections 3.1 and 4.3, and the behaviour of the
authors' public code): a softmax gate minus a learned threshold selects experts per token; a Python loop over the experts
gathers each expert's tokens, runs its LoRA pair and adds the weighted result; every expert draws its own dropout mask over
the full input; expert 0 is run over all tokens once more to learn the shape of the result. The base model is transformers'
LlamaForCausalLM with the weights of a GGUF file. Optimizer: AdamW (lr 1e-4, no decay), gradients clipped at norm 1, auxiliary
loss times 1e-3, summed over the adapted linears.

Prints one JSON object per step: step, seconds, tokens_per_s, loss, aux_loss, peak_rss_bytes.
Needs torch, transformers, gguf and numpy.
"""
import argparse

import peer_common as common  # before torch: it sets the allocator up
import torch
from torch import nn
from torch.nn import functional as F


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


def adapt(model, args):
    """Wraps q, k, v and o of every layer of a frozen model; returns the wrapped linears."""
    wrapped = []
    for layer in model.model.layers:
        for name in common.TARGETS:
            module = AdaMoleLinear(getattr(layer.self_attn, name), args.experts, args.rank, args.alpha, args.dropout)
            if args.dtype == "bf16":
                module.to(torch.bfloat16)
            setattr(layer.self_attn, name, module)
            wrapped.append(module)
    return wrapped


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_arguments(p)
    common.add_training_arguments(p)
    common.add_mixture_arguments(p)
    args = p.parse_args()
    model = common.begin(args)
    wrapped = adapt(model, args)
    model.enable_input_require_grads()  # as the published code does; layer 0's auxiliary loss depends on it there
    common.train(model, args, lambda: sum(m.aux_loss.float() for m in wrapped))


if __name__ == "__main__":
    main()
