"""What the measuring scripts share: running talpa and its peers one after the other on the same CPUs, environments, prompts, tables.
Standard library only."""
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
TALPA = os.path.join(ROOT, "build", "bin", "talpa")
DEBIAN_POCL = "/etc/OpenCL/vendors/pocl.icd"


class Skip(Exception):
    """This cannot be measured here; the text says why."""


def say(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class Ran:
    """A finished process: its output, its own peak of resident bytes, wall time and the time to the first byte of its output."""

    def __init__(self, command, env=None, threads=0, limit_s=0.0):
        def bind():
            if threads:
                os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])

        self.command, self.first_byte_s = command, None
        if limit_s:
            command = ["timeout", "-k", "5", str(limit_s)] + command
        pieces = []
        with tempfile.TemporaryFile("w+", errors="replace") as err:
            start = time.perf_counter()
            process = subprocess.Popen(command, env={**os.environ, **(env or {})}, stdout=subprocess.PIPE, stderr=err, preexec_fn=bind)
            while piece := os.read(process.stdout.fileno(), 65536):
                if self.first_byte_s is None:
                    self.first_byte_s = time.perf_counter() - start
                pieces.append(piece)
            _, status, usage = os.wait4(process.pid, 0)
            self.seconds = time.perf_counter() - start
            process.stdout.close()
            process.returncode = os.waitstatus_to_exitcode(status)
            err.seek(0)
            self.err = err.read()
        self.out, self.rss_bytes = b"".join(pieces).decode(errors="replace"), usage.ru_maxrss * 1024
        if process.returncode != 0:
            tail = "; ".join(self.err.strip().splitlines()[-3:])
            raise Skip(f"exit code {process.returncode} from '{shlex.join(self.command)}': {tail}")

    def records(self):
        return [json.loads(line) for line in self.out.splitlines() if line.startswith("{")]


def shell_environment(script):
    """What a bash script adds to the environment."""
    done = subprocess.run(["bash", "-c", f"{script}\nenv -0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise Skip(done.stderr.decode(errors="replace").strip().splitlines()[-1])
    pairs = (item.split("=", 1) for item in done.stdout.decode(errors="replace").split("\0") if "=" in item)
    return {k: v for k, v in pairs if os.environ.get(k) != v and k not in ("_", "SHLVL", "PWD", "OLDPWD")}


def talpa_profiles(given, threads):
    """name -> environment. Without --talpa-env: PoCL as Debian installs it, and Intel's runtime if tools/setup --intel has it."""
    profiles = {}
    for text in given:
        name, _, path = text.partition("=")
        if not path or not os.path.exists(path):
            sys.exit(f"--talpa-env {text}: expected NAME=FILE, a file of shell assignments")
        profiles[name] = shell_environment(f"set -a; set -e; . {shlex.quote(os.path.abspath(path))}; set +a")
    if not given:
        if os.path.exists(DEBIAN_POCL):
            profiles["pocl"] = {"OCL_ICD_VENDORS": DEBIAN_POCL}
        try:
            setup = shlex.quote(os.path.join(ROOT, "tools", "setup"))
            profiles["intel"] = shell_environment(f'set -e; text=$({setup} --intel); eval "$text"')
        except Skip as why:
            say(f"no Intel runtime: {why}")
    if not profiles:
        sys.exit("no OpenCL runtime found: name its environment with --talpa-env NAME=FILE")
    for env in profiles.values():
        env.setdefault("POCL_MAX_PTHREAD_COUNT", str(threads))
    return profiles


def add_common_arguments(p):
    p.add_argument("--talpa", default=TALPA, help="the program [build/bin/talpa]")
    p.add_argument("--talpa-env", action="append", default=[], metavar="NAME=FILE",
                   help="an OpenCL runtime: shell assignments that choose it (may be repeated) [PoCL, and Intel's by tools/setup --intel]")
    p.add_argument("--threads", type=int, default=2, help="of everybody; processes are bound to as many CPUs [2]")


def tokenize(args, env, texts, folder):
    path = os.path.join(folder, "texts.jsonl")
    with open(path, "w", encoding="utf-8") as out:
        for text in texts:
            out.write(json.dumps({"text": text}) + "\n")
    return [row["ids"] for row in Ran([args.talpa, "tokenize", "-m", args.model, "-f", path, "--jsonl"], env).records()]


def read_texts(path):
    with open(path, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [row["text"] if "text" in row else row["prompt"] + row["completion"] for row in rows]


def write_rows(path, rows):
    with open(path, "w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row) + "\n")
    return path


def pack(args, env, folder, n_rows, length):
    """The data as rows of exactly `length` token ids, so that nobody computes padding; repeated if it is too short."""
    ids = [token for row in tokenize(args, env, read_texts(args.data), folder) for token in row]
    if len(ids) < length:
        raise Skip(f"{args.data} has {len(ids)} tokens, {length} are needed")
    n_full = len(ids) // length
    rows = [{"input_ids": ids[i % n_full * length:(i % n_full + 1) * length]} for i in range(n_rows)]
    return write_rows(os.path.join(folder, f"packed{length}.jsonl"), rows)


def exact_prompts(args, env, folder, n_prompts, length):
    """Texts of exactly `length` tokens that begin differently (no prefix can be reused), and their ids."""
    words = " ".join(read_texts(args.data)[:400]).split(" ")
    found, stride = [], max(1, len(words) // (4 * n_prompts))
    for start in range(0, len(words), stride):
        counts = range(max(1, length // 3), length + 1, 1)
        ids = tokenize(args, env, [" ".join(words[start:start + length])], folder)[0]
        if len(ids) < length or any(row[2][:8] == ids[:8] for row in found):
            continue
        # as many words as make `length` tokens: near a proportional guess
        guess = int(min(length, len(words[start:start + length])) * length / len(ids))
        near = [n for n in range(guess - 40, guess + 41) if n in counts]
        texts = [" ".join(words[start:start + n]) for n in near]
        for text, row in zip(texts, tokenize(args, env, texts, folder)):
            if len(row) == length:
                found.append((len(found), text, row))
                break
        if len(found) == n_prompts:
            break
    if len(found) < n_prompts:
        raise Skip(f"{args.data}: found {len(found)} prompts of exactly {length} tokens, {n_prompts} are needed")
    text_path = write_rows(os.path.join(folder, f"prompts{length}.jsonl"), [{"prompt": text} for _, text, _ in found])
    return text_path, write_rows(os.path.join(folder, f"ids{length}.jsonl"), [{"input_ids": ids} for _, _, ids in found]), found[0][1]


def training_log(folder):
    with open(os.path.join(folder, "trainer_log.jsonl"), encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def machine():
    name = "unknown processor"
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
            name = names[0] if names else name
    flags = "unknown"
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            have = next((set(line.split()) for line in lines if line.startswith("flags")), set())
        flags = " ".join(f for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if f in have)
    return {"cpu": name, "features": flags, "n_cpus": os.cpu_count(), "kernel": platform.release()}


def versions(python, names):
    """Of the packages that a Python has; python may be None."""
    if not python:
        return {}
    code = ("import importlib.metadata as m, json, sys\nfound = {}\nfor n in sys.argv[1:]:\n    try: found[n] = m.version(n)\n"
            "    except m.PackageNotFoundError: pass\nprint(json.dumps(found))")
    done = subprocess.run([python, "-c", code] + names, stdout=subprocess.PIPE, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else {}


def middle(values):
    return statistics.median(values)


def span(values, digits=2):
    """median (least to greatest)"""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{middle(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"
