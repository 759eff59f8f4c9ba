#!/usr/bin/env python3
"""The table of tools/bench/compare_routings: means over seeds with their standard errors. Standard library only."""
import csv
import json
import math
import os
import sys


def mean_error(values):
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, float("nan")
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def main():
    at = sys.argv.index("--")
    folder, routings, seeds = sys.argv[1], sys.argv[2:at], sys.argv[at + 1:]
    rows, tasks = {}, []
    for routing in routings:
        rate = open(os.path.join(folder, routing + ".rate")).read().strip()
        runs = [os.path.join(folder, f"{routing}-{rate}-{seed}") for seed in seeds]
        scores = [{r["task"]: float(r["value"]) for r in csv.DictReader(open(os.path.join(run, "eval.csv")))} for run in runs]
        results = [json.load(open(os.path.join(run, "train_results.json"))) for run in runs]
        tasks = tasks or list(scores[0])
        rows[routing] = (rate, results, scores, runs[0])
    print("| routing | parameters | rate | held-out loss | " + " | ".join(tasks) + " |")
    print("|---|--:|--:|--:|" + "--:|" * len(tasks))
    for routing, (rate, results, scores, _) in rows.items():
        cells = [routing, f"{results[0]['trainable_parameters']:,}", rate, "%.3f ± %.3f" % mean_error([r["eval_after"]["loss"] for r in results])]
        cells += ["%.3f ± %.3f" % mean_error([s[task] for s in scores]) for task in tasks]
        print("| " + " | ".join(cells) + " |")
    print("\nActive experts per token and module, seed %s:\n" % seeds[0])
    for routing, (_, _, _, run) in rows.items():
        path = os.path.join(run, "routes.jsonl")
        if not os.path.exists(path):
            continue
        groups = [r for r in map(json.loads, open(path)) if r["kind"] == "summary" and r.get("by") in ("all", "task", "difficulty")]
        print(f"- {routing}: " + ", ".join("%s %.2f" % (g.get("task") or g.get("difficulty") or "all", g["active_experts"]) for g in groups))


if __name__ == "__main__":
    main()
