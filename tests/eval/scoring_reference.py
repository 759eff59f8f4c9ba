#!/usr/bin/env python3
"""Reads JSON lines {"rule", ...} on stdin and answers each with a JSON line: the scoring rules once more, from their descriptions, with Python's own
regular expressions and string methods. Knows nothing of the C code. SQuAD's rules follow the published evaluate-v1.1.py."""
import collections
import json
import re
import string
import sys


def number(text):
    text = text.replace(",", "").replace("$", "")
    pattern = r"-?(?:\d+(?:\.\d+)?|(?:(?<=-)|(?<![.\d]))\.\d+)"
    if "####" in text:
        found = re.search(pattern, text.split("####", 1)[1], re.ASCII)
        if found:
            return found.group()
    found = re.findall(pattern, text, re.ASCII)
    return found[-1] if found else None


def generated_letter(text):
    if "####" in text:
        found = re.search("[A-E]", text.split("####", 1)[1])
        if found:
            return found.group()
    found = re.findall(r"\b[A-E]\b", text)
    return found[-1] if found else None


def first_letter(text, n):
    found = re.search("[A-%s]" % chr(ord("A") + max(n, 5) - 1), text)
    return found.group() if found else None


def normalise(s):
    s = s.lower()
    s = "".join(c for c in s if c not in set(string.punctuation))
    s = re.sub(r"\b(a|an|the)\b", " ", s)
    return " ".join(s.split())


def f1(prediction, reference):
    p, r = normalise(prediction).split(), normalise(reference).split()
    same = sum((collections.Counter(p) & collections.Counter(r)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(p), same / len(r)
    return 2 * precision * recall / (precision + recall)


for line in sys.stdin:
    q = json.loads(line)
    rule = q["rule"]
    if rule == "number":
        answer = number(q["text"])
    elif rule == "letter":
        answer = generated_letter(q["text"])
    elif rule == "first":
        answer = first_letter(q["text"], q["n"])
    elif rule == "normalise":
        answer = normalise(q["text"])
    else:
        answer = f1(q["text"], q["reference"])
    print(json.dumps({"answer": answer}), flush=True)
