"""What the size of the batches does to a repair with the default settings.

Backdoored digit classifiers. Each is repaired with seven tenths of its
clean share, and measured on the rest of that share: what the defaults were chosen by never touches the test share.

    python benchmarks/repair_batches.py
"""

from __future__ import annotations

import argparse
import pathlib
from dataclasses import asdict
from importlib.metadata import version

import torch
from _common import markdown_table, write_results

from tacfast import repair, scan
from tacfast.defenses import LatentRepair
from tacfast.demo import make_trial
from tacfast.evaluation import evaluate

RESULTS = pathlib.Path(__file__).parent / "results" / "repair_batches.json"
BATCH_SIZES = (32, 64, 256)
FIRST_SEED, SEEDS = 100, 8
SHARE_TO_REPAIR_WITH = 0.7


def run_seed(seed: int) -> list[dict]:
    """Repair one model once per batch size."""
    trial = make_trial(seed)
    indices = trial.splits.clean
    n = int(SHARE_TO_REPAIR_WITH * len(indices))
    given, held_out = trial.data.subset(indices[:n]), trial.data.subset(indices[n:])
    report = scan(trial.model, given.loader())
    before = evaluate(trial.model, held_out.loader(), trial.attack)
    rows = []
    for batch_size in BATCH_SIZES:
        # The true target, so that a class that the scan missed says nothing about the repair.
        loader = given.loader(batch_size, shuffle=True)
        result = repair(trial.model, loader, report, mode="latent", targets=(trial.attack.target,), seed=seed)
        after = evaluate(result.model, held_out.loader(), trial.attack)
        row = {"seed": seed, "batch_size": batch_size, "steps": LatentRepair.epochs * len(loader), "given": n}
        rows.append(row | {"acc_loss": before.acc - after.acc, **asdict(after)})
    return rows


def summarise(rows: list[dict]) -> list[dict]:
    """The worst figures per batch size."""
    groups = [[row for row in rows if row["batch_size"] == size] for size in BATCH_SIZES]
    return [
        {
            "batch size": group[0]["batch_size"],
            "steps": group[0]["steps"],
            "largest loss of ACC": max(row["acc_loss"] for row in group),
            "mean loss of ACC": sum(row["acc_loss"] for row in group) / len(group),
            "largest ASR": max(row["asr"] for row in group),
            "smallest RA": min(row["ra"] for row in group),
        }
        for group in groups
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # networks this small gain nothing from more
    rows = [row for seed in range(FIRST_SEED, FIRST_SEED + SEEDS) for row in run_seed(seed)]
    versions = {name: version(name) for name in ("torch", "numpy", "scikit-learn")}
    summary = summarise(rows)
    write_results(arguments.out, {"versions": versions, "summary": summary, "rows": rows})
    print(markdown_table(summary))


if __name__ == "__main__":
    main()
