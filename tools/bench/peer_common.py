"""What the PyTorch peers share: the allocator's settings, the base model from a GGUF file, rows of token ids, the training loop.

Importing this module starts the program anew with glibc's malloc told to keep freed memory (unless --default-malloc is given): the
settings must stand before the first allocation, and they make the published form of AdaMoLE several times faster. So import it before
torch.
"""
import json
import os
import resource
import sys
import time

MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_MMAP_MAX_": "0", "MALLOC_TOP_PAD_": str(64 << 20)}
if "--default-malloc" not in sys.argv and any(os.environ.get(k) != v for k, v in MALLOC.items()):
    os.execve(sys.executable, [sys.executable] + sys.argv, {**os.environ, **MALLOC})

import numpy as np  # noqa: E402
import torch  # noqa: E402
from gguf import GGUFReader  # noqa: E402
from gguf.quants import dequantize  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


def add_arguments(p, dtypes=("fp32", "bf16-base", "bf16")):
    """Flags of every peer that runs the model."""
    p.add_argument("-m", "--model", required=True, help="GGUF file of a Llama model (F32, F16, Q4_0, Q4_1, Q8_0 tensors)")
    p.add_argument("--threads", type=int, default=0, help="0: torch's default")
    p.add_argument("--dtype", choices=dtypes, default="fp32", help="bf16-base: fp32 adapters on a bf16 base")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--default-malloc", action="store_true",
                   help="keep glibc's own malloc settings (the tuned ones are several times faster here)")


def add_training_arguments(p):
    p.add_argument("--data", help="JSONL with rows of --seq input_ids; without it random token ids")
    p.add_argument("--steps", type=int, default=5)
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--seq", type=int, default=256)
    p.add_argument("--dropout", type=float, default=0.05)
    p.add_argument("--alpha", type=float, default=16)
    p.add_argument("--lr", type=float, default=1e-4)


def add_mixture_arguments(p):
    p.add_argument("--experts", type=int, default=8)
    p.add_argument("--rank", type=int, default=4, help="rank of one expert")
    p.add_argument("--aux", type=float, default=1e-3, help="weight of the balance loss")


def peak_rss_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def say(**record):
    print(json.dumps(record), flush=True)


def begin(args):
    """Seed and threads; the model in the wanted type, frozen."""
    torch.manual_seed(args.seed)
    if args.threads:
        torch.set_num_threads(args.threads)
    model = load_base(GGUFReader(args.model)).requires_grad_(False)
    return model if args.dtype == "fp32" else model.to(torch.bfloat16)


def unpermute(w, n_heads):
    """GGUF rotates the row pairs (2i, 2i+1) of q and k, transformers the pairs (i, i + half)."""
    return w.reshape(n_heads, w.shape[0] // n_heads // 2, 2, -1).swapaxes(1, 2).reshape(w.shape)


def field(reader, key, default=None):
    f = reader.fields.get(key)
    return default if f is None else f.contents()


def load_base(reader):
    """transformers' model with the file's weights, in fp32."""
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


def token_rows(args, n_vocab):
    """[steps * batch, seq] token ids: the data's rows, repeated if they are too few, or random ones"""
    n_rows = args.steps * args.batch
    if args.data is None:
        return torch.randint(0, n_vocab, (n_rows, args.seq), generator=torch.Generator().manual_seed(args.seed))
    with open(args.data, encoding="utf-8") as lines:
        ids = [json.loads(line)["input_ids"] for line in lines]
    if any(len(row) != args.seq for row in ids):
        sys.exit(f"{args.data}: every row needs {args.seq} input_ids")
    return torch.tensor((ids * (n_rows // len(ids) + 1))[:n_rows])


def train(model, args, auxiliary=None):
    """Timed AdamW steps (no decay, gradients clipped at norm 1) on all parameters that require gradients; a JSON object per step.
    auxiliary() gives the balance loss of the last forward pass."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.0)
    rows = token_rows(args, model.config.vocab_size)
    model.train()
    for step in range(args.steps):
        ids = rows[step * args.batch:(step + 1) * args.batch]
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        aux = auxiliary() if auxiliary else torch.zeros(())
        (loss + args.aux * aux if auxiliary else loss).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - start
        say(step=step + 1, seconds=seconds, tokens_per_s=ids.numel() / seconds, loss=loss.item(), aux_loss=aux.item(),
            peak_rss_bytes=peak_rss_bytes())
