#!/usr/bin/env python3
"""Makes tests/data/tokenizers: small tokenizers of each kind that talpa reads, and the ids that their own libraries give.

Python 3.9 or later with the packages tokenizers and sentencepiece. The text they are trained on is below and ours. Ids come from the two
packages, never from talpa. tests/io/test_tokenizer_files.c compares.
"""
import io
import json
import os
import pathlib
import random
import tempfile

import sentencepiece
import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "data" / "tokenizers"

TEXT = """The mole digs a tunnel under the meadow. It's dark there, and the mole's hands are strong; they'll dig 12 metres in an hour.
In 2024 we counted 137 molehills, in 2025 only 98. Don't step on them! "Why not?" asked the gardener. I'd say: because we've moles.
Moles eat earthworms, beetles and larvae. A mole that finds more worms than it can eat keeps them in a chamber of its tunnel.
Der Maulwurf gräbt Gänge unter der Wiese; größere Hügel heißen Burgen. Le creux où dort la taupe est tapissé d'herbe sèche.
Крот роет длинные ходы под землёй. 鼹鼠在地下挖洞。もぐらは土の中に住む。 λ = 3.14, x² + y² ≤ 10 € 🐾
    def dig(metres, hands=2):
        return metres / hands  # slow

HTTP/1.1 200 OK -- the end of the tunnel is the beginning of the next tunnel, and the next, and the next.
"""

LLAMA_3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
BYTES = [f"<0x{b:02X}>" for b in range(256)]

PARTS = ["  ", "   ", "\n", "\n\n", "\r\n", "\t", " ", "a", "the", " the", "The", " mole", "tunnel", "'s", "'S", "'ll", "\u017f", "1", "12",
         "3456", "\u00bd", "\u00b2", "\u0661", "\U0001f600", "\U0001f469\u200d\U0001f469", "\u00e9", "e\u0301", "\ufb01", "\uff21", "\u6f22",
         "\u00a0", "\u3000", "\u2009", "\u200b", "\u0085", "\u2028", "\u180e", "\ufeff", "\u0001", "\ufffd", "\u2581", ".", ",", "!?", "/", "->",
         "<s>", "</s>", "<unk>", "<|a|>", "<think>", "[R]", "[L]", "_", "(", "\u20ac", "\u01c5", "\ud55c\uad6d\uc5b4", "CamelCase", "HTTP"]


def strings():
    rng = random.Random(7)
    made = ["", " ", "   ", "a", " a", "a ", "  a  b ", "\n", TEXT[:200], "<s>a</s> b", "a <think> b", "x [R] y [L] z"]
    while len(made) < 70:
        made.append("".join(rng.choice(PARTS) for _ in range(rng.randrange(1, 14))))
    return made


def byte_level(steps, ignores_merges=False, normalizer=None, has_bos=False, added=()):
    t = Tokenizer(models.BPE(ignore_merges=ignores_merges))
    t.pre_tokenizer = steps
    if normalizer:
        t.normalizer = normalizer
    trainer = trainers.BpeTrainer(vocab_size=460, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=["<|a|>", "<s>", "</s>"], show_progress=False)
    t.train_from_iterator(TEXT.split("\n"), trainer)
    for token in added:
        t.add_tokens([token])
    if has_bos:
        t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", t.token_to_id("<s>"))])])
    return t


def split(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def characters(normalizer, steps, fallback=True, added=()):
    trained = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("\u2581*[^\u2581]+|\u2581+"), "isolated")
    # Without Cyrillic, Chinese and so on: these characters fall back to bytes or <unk>.
    latin = "".join(c for c in TEXT if ord(c) < 0x250)
    trained.train_from_iterator(latin.split("\n"), trainers.BpeTrainer(
        vocab_size=450, special_tokens=["<unk>", "<s>", "</s>"] + (BYTES if fallback else []), show_progress=False))
    model = json.loads(trained.to_str())["model"]
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=fallback))
    if normalizer:
        t.normalizer = normalizer
    if steps:
        t.pre_tokenizer = steps
    whole = json.loads(t.to_str())
    whole["model"]["vocab"], whole["model"]["merges"] = model["vocab"], model["merges"]
    t = Tokenizer.from_str(json.dumps(whole))
    t.add_special_tokens(["<unk>", "<s>", "</s>"])
    for token in added:
        t.add_tokens([token])
    t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", t.token_to_id("<s>"))])
    return t


def json_tokenizers():
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    marked = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    return {
        "smollm": byte_level(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])),
        "llama3": byte_level(split(LLAMA_3), ignores_merges=True, has_bos=True),
        "qwen2": byte_level(split(QWEN_2), normalizer=normalizers.NFC(),
                            added=[AddedToken("<think>", special=False, normalized=False),
                                   AddedToken("[R]", rstrip=True, special=True, normalized=False),
                                   AddedToken("[L]", lstrip=True, special=True, normalized=False)]),
        "llama2": characters(marked, None),
        "gemma": characters(normalizers.Replace(" ", "\u2581"), pre_tokenizers.Split(" ", "merged_with_previous"),
                            added=[AddedToken("\n\n", special=False, normalized=False)]),
        "metaspace": characters(None, pre_tokenizers.Metaspace("\u2581", "first", False), fallback=False),
    }


def sentencepiece_models():
    # Three rules: the ligature fi, the no-break space, wide A; their code points in hexadecimal. The path is kept in the model.
    pathlib.Path("rules.tsv").write_text("FB01\t66 69\nA0\t20\nFF21\t41\n", encoding="utf-8")
    common = dict(model_type="bpe", minloglevel=2, character_coverage=0.98, num_threads=1, hard_vocab_limit=False)
    return {
        "spm-llama2": dict(common, vocab_size=420, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
                           split_digits=True, allow_whitespace_only_pieces=True),
        "spm-gemma": dict(common, vocab_size=430, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
                          add_dummy_prefix=False, split_digits=True, allow_whitespace_only_pieces=True,
                          user_defined_symbols=["\u2581\u2581", "<think>", "tunnel"]),
        "spm-rules": dict(common, vocab_size=200, byte_fallback=False, normalization_rule_tsv="rules.tsv", user_defined_symbols=["\ufb01x"]),
    }


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    texts = strings()
    golden = {"made_with": f"tokenizers {tokenizers.__version__}, sentencepiece {sentencepiece.__version__}", "strings": texts, "ids": {}}
    for name, t in json_tokenizers().items():
        (OUT / f"{name}.json").write_text(t.to_str(pretty=False) + "\n", encoding="utf-8")
        golden["ids"][name] = [t.encode(s, add_special_tokens=False).ids for s in texts]
    os.chdir(tempfile.mkdtemp())
    for name, options in sentencepiece_models().items():
        written = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXT.split("\n")), model_writer=written, **options)
        (OUT / f"{name}.model").write_bytes(written.getvalue())
        model = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
        golden["ids"][name] = [model.encode(s) for s in texts]
    (OUT / "golden.json").write_text(json.dumps(golden, ensure_ascii=True, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
