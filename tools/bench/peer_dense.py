#!/usr/bin/env python3
"""AdaMoLE training steps in PyTorch without a loop over experts: the dense rewrite that `talpa train` is timed against at dropout 0.

Every expert is computed for every token and weighted, zero where it is not selected, which is the same function as gathering each
expert's tokens (arXiv 2405.00361). --form einsum is the direct transcription: one contraction over experts and ranks per linear.
--form matmul stacks the experts into one pair of matrices and scales the narrow activation between them; it needs less memory traffic.
Base, optimizer and output as peer_adamole.py.
"""
import argparse

import peer_common as common  # before torch: it sets the allocator up
import torch
from torch import nn
from torch.nn import functional as F


class DenseAdaMole(nn.Module):
    def __init__(self, base, args, dtype):
        super().__init__()
        n_experts, rank, d_out, d_in = args.experts, args.rank, *base.weight.shape
        self.base, self.form, self.rank, self.scale, self.dropout = base, args.form, rank, args.alpha / rank, args.dropout
        bound = d_in ** -0.5
        self.lora_a = nn.Parameter(torch.empty(n_experts, rank, d_in, dtype=dtype).uniform_(-bound, bound))
        self.lora_b = nn.Parameter(torch.zeros(n_experts, d_out, rank, dtype=dtype))
        self.gate = nn.Linear(d_in, n_experts, bias=False, dtype=dtype)
        self.threshold = nn.Linear(d_in, 1, dtype=dtype)
        self.max_threshold = 1.0 / n_experts
        self.aux_loss = None

    def forward(self, x):
        h = x.reshape(-1, x.shape[-1]).to(self.lora_a.dtype)
        scores = torch.softmax(self.gate(h), dim=-1) - torch.sigmoid(self.threshold(h)) * self.max_threshold
        selected = (scores >= 0).to(scores.dtype)
        weights = scores * selected
        total = weights.sum(dim=-1, keepdim=True)
        weights = weights / torch.where(total == 0, torch.ones_like(total), total)
        self.aux_loss = scores.shape[-1] * torch.sum(selected.mean(dim=0) * scores.mean(dim=0))
        h = F.dropout(h, self.dropout, self.training)
        if self.form == "einsum":
            down = torch.einsum("nd,erd->ner", h, self.lora_a)
            mixed = torch.einsum("ner,eor,ne->no", down, self.lora_b, weights)
        else:
            down = h @ self.lora_a.flatten(0, 1).t()
            mixed = (down * weights.repeat_interleave(self.rank, dim=1)) @ self.lora_b.permute(0, 2, 1).flatten(0, 1)
        return self.base(x) + (self.scale * mixed).to(x.dtype).reshape(*x.shape[:-1], -1)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_arguments(p)
    common.add_training_arguments(p)
    common.add_mixture_arguments(p)
    p.add_argument("--form", choices=["einsum", "matmul"], default="einsum")
    p.set_defaults(dropout=0.0)
    args = p.parse_args()
    model = common.begin(args)
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    wrapped = []
    for layer in model.model.layers:
        for name in common.TARGETS:
            wrapped.append(DenseAdaMole(getattr(layer.self_attn, name), args, dtype))
            setattr(layer.self_attn, name, wrapped[-1])
    common.train(model, args, lambda: sum(m.aux_loss.float() for m in wrapped))


if __name__ == "__main__":
    main()
