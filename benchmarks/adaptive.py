"""Attackers who know the method: backdoored digits whose training hides them from the scan.

    python benchmarks/adaptive.py

Beside the usual loss they minimise (mean_j ‖s_j‖ − ‖s_p‖)₊ / mean_j ‖s_j‖, through `tacfast.solve_tac`, on the clean
samples of each batch (``shift``), the cross-entropy of clean samples under a universal perturbation towards p that
learns along, of the size at which clean digits are led anywhere (``perturbation``), or both. The scan, and the repair
with the class told, are then what they are for anybody.
"""

from __future__ import annotations

import argparse
import pathlib
from dataclasses import asdict
from functools import partial

import torch
from _common import markdown_table, write_results
from torch.nn import functional as F

from tacfast import repair, scan, solve_tac
from tacfast.attacks import BadNets, poison
from tacfast.data import load_digits, split_indices
from tacfast.data.randomness import isolated_randomness
from tacfast.defenses.shifts import capped
from tacfast.demo import BATCH_SIZE, CLEAN_SHARE, POISON_RATIO, TEST_SHARE, TRAIN_EPOCHS, TRIGGER_SIZE
from tacfast.detection.lock_step import scaled
from tacfast.detection.universal import spread_of
from tacfast.evaluation import Trial, evaluate
from tacfast.models.architectures import SmallPreActResNet
from tacfast.training.augment import random_crop

RESULTS = pathlib.Path(__file__).parent / "results" / "adaptive.json"
BOTH = ("shift", "perturbation")
# What is penalised, and the weight of that.
ATTACKERS: dict[str, tuple[tuple[str, ...], float]] = {
    "usual": ((), 0.0),
    "shift": (("shift",), 1.0),
    "shift, ×5": (("shift",), 5.0),
    "perturbation": (("perturbation",), 1.0),
    "perturbation, ×5": (("perturbation",), 5.0),
    "both": (BOTH, 1.0),
    "both, ×5": (BOTH, 5.0),
}
SEEDS, FIRST_SEED = 5, 200
# Norm of the perturbation over the spread of the inputs, and of its steps over that.
RADIUS, STEP = 0.3, 0.2
# The penalties set in when there is a backdoor to hide.
WARM_UP = 5


class Hiding:
    """The penalties of one attacker."""

    def __init__(self, kinds: tuple[str, ...], model: SmallPreActResNet, target: int, radius: float) -> None:
        self._kinds, self._model, self._target, self._radius = kinds, model, target, radius
        self._perturbation: torch.Tensor | None = None

    def penalty(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Of clean samples."""
        terms = {"shift": self._shift, "perturbation": self._perturbed}
        return sum((terms[kind](images, labels) for kind in self._kinds), torch.zeros(()))

    def _shift(self, images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        head = self._model.linear
        norms = solve_tac(self._model.features(images), head.weight, head.bias, raise_on_failure=False).norms
        others = torch.cat([norms[: self._target], norms[self._target + 1 :]]).mean().detach()
        return F.relu(others - norms[self._target]) / others

    def _perturbed(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        delta = torch.zeros(images.shape[1:]) if self._perturbation is None else self._perturbation
        delta.requires_grad_()
        aim = torch.full_like(labels, self._target)
        (gradient,) = torch.autograd.grad(F.cross_entropy(self._model(images + delta), aim), delta)
        step = scaled(gradient[None], STEP * self._radius)[0]
        self._perturbation = capped(delta.detach() - step, self._radius)
        return F.cross_entropy(self._model((images + self._perturbation).clamp(0, 1)), labels)


def train(train_data, poisoned_rows: torch.Tensor, target: int, attacker: str, seed: int) -> SmallPreActResNet:
    """The training of the demo with the penalties of an attacker."""
    kinds, weight = ATTACKERS[attacker]
    with isolated_randomness(seed):
        model = SmallPreActResNet(10)
        hiding = Hiding(kinds, model, target, RADIUS * spread_of(train_data.images[~poisoned_rows]))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
        steps = len(train_data) // BATCH_SIZE
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 0.1, total_steps=TRAIN_EPOCHS * steps + 1, cycle_momentum=False
        )
        for epoch in range(TRAIN_EPOCHS):
            for rows in torch.randperm(len(train_data)).split(BATCH_SIZE)[:steps]:
                images, labels, bad = random_crop(train_data.images[rows]), train_data.labels[rows], poisoned_rows[rows]
                loss = F.cross_entropy(model(images), labels)
                if epoch >= WARM_UP:
                    loss = loss + weight * hiding.penalty(images[~bad], labels[~bad])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return model.eval()


def run(attacker: str, seed: int) -> dict:
    """Train one, scan it, repair it."""
    data = load_digits()
    splits = split_indices(len(data), clean=CLEAN_SHARE, test=TEST_SHARE, seed=seed)
    target = int(torch.randint(10, (), generator=torch.Generator().manual_seed(seed)))
    attack = BadNets(target, size=TRIGGER_SIZE)
    poisoned = poison(data.subset(splits.train), attack, POISON_RATIO, seed=seed)
    rows = torch.zeros(len(poisoned.data), dtype=torch.bool)
    rows[poisoned.indices] = True
    model = train(poisoned.data, rows, target, attacker, seed)
    trial = Trial(model, data, splits, attack)
    given, held_out = trial.split_clean(0.2)
    report = scan(model, trial.clean.loader())
    loader = given.loader(32, shuffle=True)
    result = repair(model, loader, report, targets=(target,), held_out=held_out.loader(), epochs=15, seed=seed)
    measure = partial(evaluate, loader=trial.test.loader(), attack=attack)
    return {
        "attacker": attacker,
        "seed": seed,
        "poisoned class": target,
        "verdict": report.verdict.label,
        "classes": list(report.verdict.classes),
        "surprise": report.verdict.surprise,
        "before": asdict(measure(model)),
        "after": asdict(measure(result.model)),
        "outcome": None if result.confirmation is None else result.confirmation.outcome,
    }


def summarise(rows: list[dict]) -> list[dict]:
    """One line per attacker."""
    found = []
    for attacker in ATTACKERS:
        group = [row for row in rows if row["attacker"] == attacker]
        named = sum(row["poisoned class"] in row["classes"] for row in group)
        mean = {
            f"{name} {when}": sum(row[when][name.lower()] for row in group) / len(group)
            for when in ("before", "after")
            for name in ("ACC", "ASR", "RA")
        }
        odd = sorted(row["surprise"] for row in group)[len(group) // 2]
        found.append({"attacker": attacker, "found": f"{named} of {len(group)}", "median surprise": odd, **mean})
    return found


def main() -> None:
    """Run all seeds, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="networks per attacker")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed in range(FIRST_SEED, FIRST_SEED + arguments.seeds):
        for attacker in ATTACKERS:
            rows.append(run(attacker, seed))
            print({k: rows[-1][k] for k in ("attacker", "seed", "verdict", "classes", "before", "after")}, flush=True)
    table = summarise(rows)
    print(markdown_table(table))
    write_results(arguments.out, {"radius": RADIUS, "table": table, "rows": rows})


if __name__ == "__main__":
    main()
