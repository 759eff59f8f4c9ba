"""A plain float64 Llama with LoRA and mixtures of LoRA experts, written from the definitions and independent of the C code.

Sources: Llama (arXiv 2302.13971, rotate-half rotary embedding as in transformers), LoRA (2106.09685), AdaMoLE (2405.00361).
Nothing is fused: attention has its T x T matrix, and every expert runs on the rows that selected it, one after the other, as in the
published AdaMoLE code. An expert that no row of a micro-batch selected is then absent from the graph and its gradient stays None,
which torch's AdamW takes as "no step": that is the rule the C code has to follow.
"""
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

IGNORED = -100


# ---- numbers from a counter ----

def splitmix(n, seed, parameter, scale):
    """n float32 values scale * (2u - 1); u from the upper 53 bits of SplitMix64 (seed * 1000003 + parameter, i + 1)."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed * 1000003 + parameter) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    u = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (scale * (2.0 * u - 1.0)).astype(np.float32)


def as_double(values, shape):
    return torch.from_numpy(values.astype(np.float64)).reshape(shape)


# ---- the model random:tiny ----

@dataclass
class Config:
    n_layers: int = 2
    d_model: int = 64
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 16
    d_ff: int = 128
    vocab_size: int = 259
    theta: float = 10000.0
    eps: float = 1e-5

    def linear_shapes(self):
        d_q, d_kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        return {"self_attn.q_proj": (d_q, self.d_model), "self_attn.k_proj": (d_kv, self.d_model),
                "self_attn.v_proj": (d_kv, self.d_model), "self_attn.o_proj": (self.d_model, d_q),
                "mlp.gate_proj": (self.d_ff, self.d_model), "mlp.up_proj": (self.d_ff, self.d_model),
                "mlp.down_proj": (self.d_model, self.d_ff)}


class Llama:
    """Frozen weights by counter: tensors are numbered in order of appearance; norms are 1 but count."""

    def __init__(self, config):
        self.config = c = config
        self.weights = {}
        self._random("model.embed_tokens", c.vocab_size, c.d_model)
        for layer in range(c.n_layers):
            self._ones(f"model.layers.{layer}.input_layernorm", c.d_model)
            for name, shape in c.linear_shapes().items():
                self._random(f"model.layers.{layer}.{name}", *shape)
            self._ones(f"model.layers.{layer}.post_attention_layernorm", c.d_model)
        self._ones("model.norm", c.d_model)

    def _random(self, name, rows, columns):
        values = splitmix(rows * columns, 0, len(self.weights), np.sqrt(3.0 / columns))
        self.weights[name] = as_double(values, (rows, columns))

    def _ones(self, name, n):
        self.weights[name] = torch.ones(n, dtype=torch.float64)

    def _norm(self, x, name):
        return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.config.eps) * self.weights[name]

    def _rotate(self, x):
        """[heads, T, head_dim]: element i pairs with i + head_dim / 2."""
        half = self.config.head_dim // 2
        angle = torch.outer(torch.arange(x.shape[1], dtype=torch.float64),
                            self.config.theta ** (-torch.arange(half, dtype=torch.float64) / half))
        first, second = x[..., :half], x[..., half:]
        return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], -1)

    def _attention(self, q, k, v):
        c = self.config
        split = lambda x, n: x.reshape(-1, n, c.head_dim).transpose(0, 1)
        q, k, v = self._rotate(split(q, c.n_heads)), self._rotate(split(k, c.n_kv_heads)), split(v, c.n_kv_heads)
        group = c.n_heads // c.n_kv_heads
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        scores = q @ k.transpose(1, 2) / np.sqrt(c.head_dim)
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        mixed = torch.softmax(scores.masked_fill(future, -torch.inf), -1) @ v
        return mixed.transpose(0, 1).reshape(-1, c.n_heads * c.head_dim)

    def logits(self, sequences, adapter=None):
        """Logits of every sequence; each sees only itself. The adapter sees the rows of the whole micro-batch together, layer by layer,
        because its routing statistics are those of the micro-batch."""
        w = self.weights
        bounds = np.cumsum([0] + [len(s) for s in sequences])
        x = w["model.embed_tokens"][torch.tensor([i for s in sequences for i in s])]

        def linear(h, name):
            y = h @ w[name].T
            return y + adapter(name, h) if adapter and adapter.has(name) else y

        for layer in range(self.config.n_layers):
            at = f"model.layers.{layer}."
            h = self._norm(x, at + "input_layernorm")
            q, k, v = (linear(h, at + f"self_attn.{n}_proj") for n in "qkv")
            mixed = torch.cat([self._attention(q[a:b], k[a:b], v[a:b]) for a, b in zip(bounds, bounds[1:])])
            x = x + linear(mixed, at + "self_attn.o_proj")
            h = self._norm(x, at + "post_attention_layernorm")
            h = F.silu(linear(h, at + "mlp.gate_proj")) * linear(h, at + "mlp.up_proj")
            x = x + linear(h, at + "mlp.down_proj")
        y = self._norm(x, "model.norm") @ w["model.embed_tokens"].T
        return [y[a:b] for a, b in zip(bounds, bounds[1:])]


def cross_entropy_sum(logits, labels):
    """Sum over the labelled tokens of -log p(label | what came before), and their number. labels[p] belongs to position p."""
    total, n = 0.0, 0
    for y, wanted in zip(logits, labels):
        wanted = torch.tensor(wanted[1:])
        total = total + F.cross_entropy(y[:-1], wanted, ignore_index=IGNORED, reduction="sum")
        n += int((wanted != IGNORED).sum())
    return total, n


# ---- adapters ----

class Adapter:
    """LoRA or a mixture of LoRA experts on the linears whose name ends in one of `modules`.

    Parameters stand under the names they have in an adapter file, and are numbered in that order for the starting values: layer, module,
    A.0.., B.0.., gating, threshold weight, threshold bias. Scale of the start: A, gating and threshold 1/sqrt(d_in), B `b_scale`."""

    def __init__(self, config, routing, n_experts, rank, alpha, modules, seed, b_scale, top_k=None, threshold=None, contrast=None):
        self.routing, self.top_k, self.scale = routing, top_k, alpha / rank
        self.n_experts = n_experts if routing != "lora" else 1
        self.threshold = threshold if threshold is not None else 1.0 / self.n_experts
        self.contrast = contrast  # moelora: temperature, normalise, gated
        self.skips_unselected = routing in ("threshold", "adamole")
        self.parameters, self.adapted = {}, []
        self.start_batch()
        self.margin = np.inf
        for layer in range(config.n_layers):
            for name, (d_out, d_in) in config.linear_shapes().items():
                if name.split(".")[1] not in modules:
                    continue
                at = f"model.layers.{layer}.{name}"
                self.adapted.append(at)
                for suffix, shape, scale in self._tensors(d_out, d_in, rank, b_scale):
                    values = splitmix(int(np.prod(shape)), seed, len(self.parameters), scale)
                    self.parameters[f"{at}.{suffix}"] = as_double(values, shape).requires_grad_(True)

    def _tensors(self, d_out, d_in, rank, b_scale):
        fan = 1.0 / np.sqrt(d_in)
        if self.routing == "lora":
            return [("lora_A.weight", (rank, d_in), fan), ("lora_B.weight", (d_out, rank), b_scale)]
        tensors = [(f"lora_A.{e}.weight", (rank, d_in), fan) for e in range(self.n_experts)]
        tensors += [(f"lora_B.{e}.weight", (d_out, rank), b_scale) for e in range(self.n_experts)]
        tensors += [("lora_gating.weight", (self.n_experts, d_in), fan)]
        if self.routing == "adamole":
            tensors += [("lora_threshold.weight", (1, d_in), fan), ("lora_threshold.bias", (1,), fan)]
        return tensors

    def start_batch(self):
        self.aux, self.n_active = torch.zeros((), dtype=torch.float64), 0.0
        self.contrastive = torch.zeros((), dtype=torch.float64)

    def has(self, name):
        return name in self.adapted

    def _gate(self, name, x):
        """Selected [T, E] bool, weights [T, E], the score that the balance loss averages."""
        p = torch.softmax(x @ self.parameters[name + ".lora_gating.weight"].T, -1)
        if self.routing in ("topk", "moelora"):
            ranked = p.detach().sort(-1, descending=True)
            if self.top_k < self.n_experts:
                self.margin = min(self.margin, (ranked.values[:, self.top_k - 1] - ranked.values[:, self.top_k]).min().item())
            selected = torch.zeros_like(p, dtype=torch.bool).scatter(1, ranked.indices[:, :self.top_k], True)
            score = value = p
        elif self.routing == "threshold":
            selected, score, value = p >= self.threshold, p, p
            self.margin = min(self.margin, (p - self.threshold).abs().min().item())
        else:
            raw = x @ self.parameters[name + ".lora_threshold.weight"].T + self.parameters[name + ".lora_threshold.bias"]
            score = value = p - self.threshold * torch.sigmoid(raw)
            selected = score >= 0
            self.margin = min(self.margin, score.abs().min().item())
        value = torch.where(selected, value, 0.0)
        total = value.sum(-1, keepdim=True)
        return selected, value / torch.where(total == 0, 1.0, total), score

    def _contrastive(self, name, x, selected, weight):
        """Contrastive loss among the outputs of the experts that tokens chose."""
        outputs, experts = [], []
        for e in range(self.n_experts):
            a, b = self.parameters[f"{name}.lora_A.{e}.weight"], self.parameters[f"{name}.lora_B.{e}.weight"]
            rows = selected[:, e].nonzero()[:, 0]
            outputs.append(self.scale * (x[rows] @ a.T) @ b.T * (weight[rows, e, None] if self.contrast["gated"] else 1.0))
            experts += [e] * len(rows)
        o, experts = torch.cat(outputs), torch.tensor(experts)
        if self.contrast["normalise"]:
            seen = o.norm(dim=1) > 1e-8
            o, experts = o[seen] / o[seen].norm(dim=1, keepdim=True), experts[seen]
        similarity = o @ o.T / self.contrast["temperature"]
        same = experts[:, None] == experts[None]
        positive = same & ~torch.eye(len(experts), dtype=torch.bool)
        anchors = positive.any(1) & ~same.all(1)
        if not anchors.any():
            return torch.zeros((), dtype=x.dtype)
        similarity, same, positive = similarity[anchors], same[anchors], positive[anchors]
        negatives = torch.logsumexp(similarity.masked_fill(same, -torch.inf), 1, keepdim=True)
        terms = (torch.logaddexp(similarity, negatives) - similarity).masked_fill(~positive, 0.0)
        return (terms.sum(1) / positive.sum(1)).mean()

    def __call__(self, name, x):
        if self.routing == "lora":
            a, b = self.parameters[name + ".lora_A.weight"], self.parameters[name + ".lora_B.weight"]
            return self.scale * (x @ a.T) @ b.T
        selected, weight, score = self._gate(name, x)
        y = torch.zeros(x.shape[0], self.parameters[name + ".lora_B.0.weight"].shape[0], dtype=x.dtype)
        for e in range(self.n_experts):
            rows = selected[:, e].nonzero()[:, 0]
            if len(rows) == 0 and self.skips_unselected:
                continue
            a, b = self.parameters[f"{name}.lora_A.{e}.weight"], self.parameters[f"{name}.lora_B.{e}.weight"]
            y = y.index_add(0, rows, weight[rows, e, None] * self.scale * (x[rows] @ a.T) @ b.T)
        fraction = selected.to(x.dtype).mean(0)
        self.aux = self.aux + self.n_experts * (fraction * score.mean(0)).sum()
        if self.contrast:
            self.contrastive = self.contrastive + self._contrastive(name, x, selected, weight)
        self.n_active += selected.sum().item() / x.shape[0] / len(self.adapted)
        return y
