"""Trainings on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from ..._processes import all_processes
from ...attacks import Attack
from ...data.datasets import ImageDataset, load_dataset
from ...evaluation import Metrics, evaluate
from ...models.checkpoint import check_target
from ...models.resuming import telling_of
from ...training import TrainedEpoch
from ...training.trained import Plan, Trained, load_trained, save_trained, train_plan
from .console import printer
from .loading import check_files, device_of
from .scan import leave_unless_first

# ACC and ASR after each epoch are measured on so many test images.
GLANCE = 1000


def train(
    plan: Plan, out: Path, *, data_root: Path | None, clean_model: Path | None, half: bool, device: str | None
) -> None:
    """Train with a progress bar, measure, and write the weights."""
    check_target(out)
    check_files({} if clean_model is None else {"--clean-model": [clean_model]}, out=out)
    dataset, where, console = load_dataset(plan.data, data_root), device_of(device), Console()

    def provide_clean_model() -> nn.Module:
        if clean_model is not None:
            return load_trained(clean_model, dataset).model.to(where)
        first = replace(plan, attack=None)
        path = out.with_suffix(".clean")
        return _run(console, first, dataset, path, where, provide_clean_model).model

    with telling_of([_state_of(out), _state_of(out.with_suffix(".clean"))]):
        trained = _run(console, plan, dataset, out, where, provide_clean_model)
        leave_unless_first(None)
        _finish(console, trained, dataset, out, half=half)


def _finish(console: Console, trained: Trained, dataset: ImageDataset, out: Path, *, half: bool) -> None:
    """Measure, write the weights, and delete what was kept of the training."""
    metrics = _measure(trained.model, dataset, trained.splits.test, trained.attack)
    facts = {"acc": metrics.acc} if trained.attack is None else asdict(metrics)
    save_trained(replace(trained, checkpoint=replace(trained.checkpoint, metrics=facts)), out, half=half)
    for path in (out, out.with_suffix(".clean")):
        _state_of(path).unlink(missing_ok=True)
    printer(console)(f"{_in_words(metrics, trained.attack)} on {len(trained.splits.test)} test images; wrote {out}")


def _state_of(path: Path) -> Path:
    """The file from which the training of ``path`` goes on."""
    return path.with_name(f"{path.name}.state")


def _run(
    console: Console,
    plan: Plan,
    dataset: ImageDataset,
    path: Path,
    device: torch.device,
    clean_model: Callable[[], nn.Module],
) -> Trained:
    """Train with a progress bar, and a line with ACC and ASR after each epoch."""
    glance, processes = plan.split(dataset).some_test(GLANCE), all_processes()
    with _bar(console, "training" if plan.attack is None else f"training, {plan.attack}") as (advance, show):

        def look(epoch: TrainedEpoch, model: nn.Module, attack: Attack | None) -> None:
            if processes.rank > 0:
                return
            show(
                f"epoch {epoch.epoch}: loss {epoch.loss:.3f}, "
                + _in_words(_measure(model, dataset, glance, attack), attack)
            )

        with _state_blamed():
            return train_plan(
                plan,
                dataset,
                device=device,
                clean_model=clean_model,
                resume=_state_of(path),
                on_epoch=look,
                on_step=advance,
                group=processes.group,
            )


@contextmanager
def _state_blamed() -> Iterator[None]:
    """Blame the file, which the message names, and no argument that the command line does not have."""
    try:
        yield
    except ValueError as error:
        name, colon, message = str(error).partition("resume: ")
        if name or not colon:
            raise
        raise ValueError(message) from error


def _measure(model: nn.Module, dataset: ImageDataset, rows: torch.Tensor, attack: Attack | None) -> Metrics:
    """ACC on these images, and of an attack ASR and RA."""
    return evaluate(model, dataset.data.subset(rows).loader(), attack)


def _in_words(metrics: Metrics, attack: Attack | None) -> str:
    asr = "" if attack is None else f", ASR {100 * metrics.asr:.1f} %"
    return f"ACC {100 * metrics.acc:.1f} %{asr}"


@contextmanager
def _bar(console: Console, text: str) -> Iterator[tuple[Callable[[int, int], None], Callable[..., None]]]:
    columns = TextColumn("{task.description:>20}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %")
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bars:
        task = bars.add_task(text, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total), printer(console)
