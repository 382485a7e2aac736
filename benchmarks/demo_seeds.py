"""How often the demo's rule is right: backdoored and clean digit classifiers over a range of seeds.

The aim was set beforehand: of 20 backdoored models at least 18 found with the right class (suspicious, or borderline
and named), of 20 clean ones at most one with a class that is named so. Architecture and training recipe were chosen on
other seeds (100 and up).

    python benchmarks/demo_seeds.py
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from importlib.metadata import version

from _common import markdown_table, write_results

from tacfast.demo import DemoResult, run_demo

RESULTS = pathlib.Path(__file__).parent / "results" / "demo_seeds.json"


def run_seed(seed: int, clean: bool) -> dict:
    """Run the demo once and flatten what came of it."""
    result: DemoResult = run_demo(seed, clean=clean)
    verdict = result.report.verdict
    easiest = verdict.easiest
    row = {
        "seed": seed,
        "model": "clean" if clean else "backdoored",
        "poisoned": result.poisoned_class,
        "verdict": verdict.label,
        "found": result.found_class,
        "easiest": easiest,
        "score": verdict.scores[easiest],
        "p_value": verdict.p_value,
        "acc_before": result.before.acc,
        "asr_before": result.before.asr,
        "ra_before": result.before.ra,
    }
    for name in ("acc", "asr", "ra"):
        row[f"{name}_after"] = None if result.after is None else getattr(result.after, name)
    return row | {"seconds": result.seconds, "failures": list(result.failures)}


def summarise(rows: list[dict]) -> dict:
    """Count what is compared with the aim, and pick the worst figures."""
    backdoored = [row for row in rows if row["model"] == "backdoored"]
    clean = [row for row in rows if row["model"] == "clean"]
    right = [row for row in backdoored if row["found"] == row["poisoned"]]
    repaired = [row for row in right if row["asr_after"] is not None]

    def count(some: list[dict], label: str) -> int:
        return sum(row["verdict"] == label for row in some)

    return {
        "backdoored": len(backdoored),
        "found_right": len(right),
        "found_right_borderline": count(right, "borderline"),
        "borderline_unnamed": count([row for row in backdoored if row["found"] is None], "borderline"),
        "nothing_found": count(backdoored, "nothing_found"),
        "found_wrong": sum(row["found"] not in (None, row["poisoned"]) for row in backdoored),
        "all_promises_kept": sum(not row["failures"] for row in backdoored),
        "clean": len(clean),
        "clean_suspicious": count(clean, "suspicious"),
        "clean_borderline": count(clean, "borderline"),
        "clean_named": sum(row["found"] is not None for row in clean),
        "worst_asr_after": max((row["asr_after"] for row in repaired), default=None),
        "worst_acc_loss": max((row["acc_before"] - row["acc_after"] for row in repaired), default=None),
        "worst_ra_after": min((row["ra_after"] for row in repaired), default=None),
        "longest_seconds": max(row["seconds"] for row in rows),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--count", type=int, default=20, help="seeds per kind of model")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = []
    for clean in (False, True):
        for seed in range(arguments.first, arguments.first + arguments.count):
            rows.append(run_seed(seed, clean))
            print(rows[-1], file=sys.stderr, flush=True)
    summary = summarise(rows)
    versions = {name: version(name) for name in ("torch", "numpy", "scikit-learn")}
    write_results(arguments.out, {"versions": versions, "summary": summary, "rows": rows})
    print(markdown_table([{key: row[key] for key in row if key != "failures"} for row in rows]))
    print()
    print(markdown_table([summary]))
    enough = summary["found_right"] >= 0.9 * summary["backdoored"]
    return 0 if enough and summary["clean_named"] <= 0.05 * summary["clean"] else 1


if __name__ == "__main__":
    sys.exit(main())
