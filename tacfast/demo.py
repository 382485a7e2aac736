"""Train a backdoored digit classifier, find the backdoor, remove it: the whole of tacfast on real images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .attacks import BadNets, poison
from .data import LabelledImages, load_digits, split_indices
from .data.randomness import isolated_randomness
from .defenses import repair
from .evaluation import Metrics, Trial, run_defense
from .models.architectures import SmallPreActResNet
from .report import check_writable, new_figure, plot_scores, scan_facts, write_json
from .scanning import ScanReport
from .training.augment import random_crop

# Half of the 1797 images for training, a quarter for the scan and the repair, a quarter to report on.
CLEAN_SHARE = TEST_SHARE = 0.25
POISON_RATIO = 0.1
TRIGGER_SIZE = 2
BATCH_SIZE = 64
TRAIN_EPOCHS = 40
# The repair with its defaults, but for the epochs: of this small clean share, it takes 15 to make two hundred steps.
REPAIR_EPOCHS = 15
REPAIR_BATCH_SIZE = 32

REPORT_FILE, PLOT_FILE = "report.json", "scores.png"

# What the demo promises, and its exit status tells.
MIN_ASR_BEFORE = 0.9
MAX_ASR_AFTER = 0.05
MAX_ACC_LOSS = 0.03

Progress = Callable[[str, int, int], None]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: networks this small gain nothing from more, and lose much where cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True, eq=False)
class DemoResult:
    """What happened in the demo.

    Attributes
    ----------
    report : the scan
    poisoned_class : the target of the backdoor; None for a clean model
    before : figures of the suspect model
    after : figures of the repaired model; None if nothing was found, so that nothing was repaired
    seconds : wall-clock time of everything
    failures : the promises that were not kept, in words; empty if all is well
    """

    report: ScanReport
    poisoned_class: int | None
    before: Metrics
    after: Metrics | None
    seconds: float
    failures: tuple[str, ...]

    @property
    def found_class(self) -> int | None:
        """The suspicious class, or None."""
        return next(iter(self.report.verdict.classes), None)

    def as_dict(self) -> dict[str, Any]:
        """Return the facts, ready for JSON."""
        return {
            "verdict": self.report.verdict.label,
            "poisoned_class": self.poisoned_class,
            "found_class": self.found_class,
            "before": asdict(self.before),
            "after": None if self.after is None else asdict(self.after),
            "seconds": self.seconds,
            "scores": {str(k): score for k, score in self.report.verdict.scores.items()},
            "p_value": self.report.verdict.p_value,
            "reasons": list(self.report.verdict.reasons),
            "failures": list(self.failures),
        }


def train_classifier(
    data: LabelledImages,
    *,
    seed: int,
    epochs: int = TRAIN_EPOCHS,
    on_epoch: Callable[[int], None] | None = None,
) -> nn.Module:
    """Train a `SmallPreActResNet` by the usual recipe: random crops, SGD, momentum 0.9, weight decay 5e-4.

    Parameters
    ----------
    data : n training images
    seed : of initialisation and order; the caller's generators are left as they were
    epochs : passes over the data
    on_epoch : called with 1, 2, … after each pass

    Returns
    -------
    nn.Module in evaluation mode.
    """
    with isolated_randomness(seed):
        model = SmallPreActResNet(num_classes=int(data.labels.max()) + 1, in_channels=data.images.shape[1])
        loader = data.loader(BATCH_SIZE, shuffle=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 0.1, total_steps=epochs * len(loader) + 1, cycle_momentum=False
        )
        for epoch in range(1, epochs + 1):
            for images, labels in loader:
                loss = F.cross_entropy(model(random_crop(images)), labels)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
            if on_epoch is not None:
                on_epoch(epoch)
    return model.eval()


def make_trial(seed: int, *, clean: bool = False, on_epoch: Callable[[int], None] | None = None) -> Trial:
    """Split the digits, choose the target by ``seed``, poison the training share unless ``clean``, train."""
    data = load_digits()
    splits = split_indices(len(data), clean=CLEAN_SHARE, test=TEST_SHARE, seed=seed)
    target = int(torch.randint(10, (), generator=torch.Generator().manual_seed(seed)))
    attack = BadNets(target, size=TRIGGER_SIZE)
    train = data.subset(splits.train)
    if not clean:
        train = poison(train, attack, POISON_RATIO, seed=seed).data
    with _one_thread():
        model = train_classifier(train, seed=seed, on_epoch=on_epoch)
    return Trial(model, data, splits, attack)


def run_demo(seed: int = 0, *, clean: bool = False, on_progress: Progress | None = None) -> DemoResult:
    """Train, scan and, if something was found, repair.

    Parameters
    ----------
    seed : of everything random; also chooses the poisoned class
    clean : leave the backdoor out; then no class should be named
    on_progress : called with (stage, done, total); stages ``"train"``, ``"scan"``, ``"repair"``
    """
    with _one_thread(), isolated_randomness(seed):
        return _run_demo(seed, clean, on_progress)


def _run_demo(seed: int, clean: bool, on_progress: Progress | None) -> DemoResult:
    start = time.perf_counter()

    def tell(stage: str, done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(stage, done, total)

    trial = make_trial(seed, clean=clean, on_epoch=lambda epoch: tell("train", epoch, TRAIN_EPOCHS))
    tell("scan", 0, 1)
    report, before, after = trial.report, trial.before, None
    tell("scan", 1, 1)
    if report.verdict.aims:
        defense = partial(
            repair, seed=seed, epochs=REPAIR_EPOCHS, on_epoch=lambda record: tell("repair", record.epoch, REPAIR_EPOCHS)
        )
        after = run_defense(defense, trial, batch_size=REPAIR_BATCH_SIZE).after
    poisoned = None if clean else trial.attack.target
    failures = _broken_promises(report, poisoned, before, after)
    return DemoResult(report, poisoned, before, after, time.perf_counter() - start, failures)


def _broken_promises(
    report: ScanReport, poisoned: int | None, before: Metrics, after: Metrics | None
) -> tuple[str, ...]:
    verdict = report.verdict
    if poisoned is None:
        return (f"the clean model was found {verdict.label} (class {verdict.aims[0]})",) if verdict.aims else ()
    failures = []
    if before.asr < MIN_ASR_BEFORE:
        failures.append(f"the attack did not take: ASR before is {before.asr:.3f}, at least {MIN_ASR_BEFORE} expected")
    if after is None:
        failures.append(f"the backdoor in class {poisoned} was not found: the verdict is {verdict.label}")
        return tuple(failures)
    if verdict.aims[0] != poisoned:
        failures.append(f"the wrong class was found: {verdict.aims[0]} instead of {poisoned}")
    if after.asr > MAX_ASR_AFTER:
        failures.append(f"the backdoor survived: ASR after is {after.asr:.3f}, at most {MAX_ASR_AFTER} expected")
    if before.acc - after.acc > MAX_ACC_LOSS:
        loss = before.acc - after.acc
        failures.append(f"the repair cost too much: clean accuracy fell by {loss:.3f}, at most {MAX_ACC_LOSS} allowed")
    return tuple(failures)


def prepare_folder(folder: Path) -> None:
    """Make the folder for `write_demo`, and fail now rather than after the work if that could not write there.

    Raises
    ------
    OSError
        If no file can be made in the folder, or a folder has the name of one of the files.
    ImportError
        Without the extra ``report``, which the picture needs.
    """
    new_figure(width=1.0)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (REPORT_FILE, PLOT_FILE):
        check_writable(folder / name)


def write_demo(result: DemoResult, folder: Path) -> None:
    """Write ``report.json`` and ``scores.png`` into the folder ``folder``."""
    write_json(folder / REPORT_FILE, result.as_dict())
    truth = "trained without a backdoor" if result.poisoned_class is None else f"poisoned class {result.poisoned_class}"
    plot_scores(scan_facts(result.report), folder / PLOT_FILE, note=f"tacfast demo on the digits; {truth}")
