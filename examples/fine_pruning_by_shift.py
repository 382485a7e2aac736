"""The solver inside another defence: Fine-Pruning (arXiv 1805.12185) guided by s_p instead of activations.

Fine-Pruning cuts off the latents that clean images activate least, as long as clean accuracy allows, and fine-tunes.
Here those with the largest |s_p| go first, which takes one call of `tacfast.solve_tac`. A defence is any function of
(model, loader, report, held_out); `run_defense` gives it clean images only and measures the outcome. Neither order
removes the backdoor of this network, whose latents share it: `tacfast.repair` does, in the mode "latent".

    python examples/fine_pruning_by_shift.py
"""

import copy
from functools import partial

import torch
from torch.nn import functional as F

import tacfast
from tacfast.defenses import RepairResult
from tacfast.demo import make_trial
from tacfast.evaluation import run_defense

MAX_DROP, EPOCHS, LR = 0.01, 5, 0.01


def least_active(latents, head, target):
    """Order of Fine-Pruning: what clean images hardly use, a backdoor may live in."""
    return latents.mean(0).argsort()


def largest_shift(latents, head, target):
    """Our order: what moves the latents to the suspicious class."""
    solution = tacfast.solve_tac(latents, head.weight, head.bias, classes=[target])
    return solution.perturbations[0].abs().argsort(descending=True)


def fine_pruning(model, loader, report, *, held_out, order):
    """Prune the inputs of the head in the given order, as many as held-out accuracy allows, and fine-tune."""
    repaired = copy.deepcopy(model)
    head = repaired.get_submodule(report.head.name)
    latents = tacfast.extract_latents(repaired, loader, report.head.name).latents
    kept = tacfast.extract_latents(repaired, held_out, report.head.name)
    mask, best = torch.ones(latents.shape[1]), torch.ones(latents.shape[1])
    allowed = (kept.logits.argmax(1) == kept.labels).sum() - max(1, MAX_DROP * len(kept.labels))
    for latent in order(latents, report.head, report.verdict.classes[0]):
        mask[latent] = 0
        answers = F.linear(kept.latents * mask, report.head.weight, report.head.bias).argmax(1)
        if (answers == kept.labels).sum() < allowed:
            break
        best = mask.clone()
    with torch.no_grad():
        head.weight *= best
    optimizer = torch.optim.SGD(repaired.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
    repaired.train()
    for _ in range(EPOCHS):
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(repaired(images), labels).backward()
            optimizer.step()
            with torch.no_grad():
                head.weight *= best  # the gradient of a pruned column is not zero
    pruned = tuple((best == 0).nonzero().flatten().tolist())
    return RepairResult(repaired.eval(), history=(), seconds=0.0, pruned=pruned)


def main():
    """Train a backdoored digit classifier, and repair it with either order."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # a network this small gains nothing from more
    trial = make_trial(0)
    print(f"{'':24}   ACC    ASR     RA  pruned")
    print(f"{'backdoored':24} {trial.before.acc:.3f}  {trial.before.asr:.3f}  {trial.before.ra:.3f}")
    for order in (least_active, largest_shift):
        outcome = run_defense(partial(fine_pruning, order=order), trial, held_out=0.2)
        after = outcome.after
        print(f"{order.__name__:24} {after.acc:.3f}  {after.asr:.3f}  {after.ra:.3f}  {len(outcome.result.pruned)}")


if __name__ == "__main__":
    main()
