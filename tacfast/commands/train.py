"""``tacfast train``: a classifier, plain or under an attack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from .._processes import all_processes
from ..attacks import ATTACKS, Attack
from ..data.datasets import DATASETS, ROOT_VARIABLE, ImageDataset, load_dataset
from ..evaluation import Metrics, evaluate
from ..models.checkpoint import SAFETENSORS, check_target
from ..training import Recipe, TrainedEpoch
from ..training.recipe import PRECISIONS, SCHEDULES
from ..training.trained import Plan, Trained, load_trained, save_trained, train_plan
from . import options
from .console import printer
from .demo import MAX_SEED
from .loading import check_outputs
from .scan import leave_unless_first

DATA, MODEL, ATTACK, RECIPE = "The data", "The network", "The attack", "The training"
# ACC and ASR after each epoch are measured on so many test images.
GLANCE = 1000


def train(
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="The weights, .safetensors; a .json beside it says what they are, and FILE.state, from which an "
            "interrupted training goes on, is deleted at the end.",
            rich_help_panel=options.RESULT,
            show_default=False,
        ),
    ],
    data: Annotated[str, typer.Option(help=f"One of {', '.join(DATASETS)}.", rich_help_panel=DATA)] = "digits",
    data_root: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help=f"Where the data sets are; {ROOT_VARIABLE}, else the current folder.",
            rich_help_panel=DATA,
        ),
    ] = None,
    clean: Annotated[
        float, typer.Option(help="Share of the training images kept for the defender.", rich_help_panel=DATA)
    ] = 0.05,
    held_out: Annotated[
        float, typer.Option(help="Share kept for the defender to measure on.", rich_help_panel=DATA)
    ] = 0.02,
    arch: options.Arch = "preactresnet18",
    arch_args: options.ArchArgs = None,
    attack: Annotated[
        str | None,
        typer.Option(help=f"One of {', '.join(ATTACKS)}; none if not given.", rich_help_panel=ATTACK),
    ] = None,
    target: Annotated[int, typer.Option(help="The poisoned class.", rich_help_panel=ATTACK)] = 0,
    ratio: Annotated[float, typer.Option(help="Share of the images that are poisoned.", rich_help_panel=ATTACK)] = 0.1,
    clean_model: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="For trojannn: a clean network of tacfast train on these data. Without it one is trained first.",
            rich_help_panel=ATTACK,
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the images.", rich_help_panel=RECIPE)] = Recipe.epochs,
    batch_size: Annotated[
        int, typer.Option(min=2, help="Images per step.", rich_help_panel=RECIPE)
    ] = Recipe.batch_size,
    lr: Annotated[float, typer.Option(help="Peak learning rate.", rich_help_panel=RECIPE)] = Recipe.lr,
    schedule: Annotated[
        str, typer.Option(help=f"One of {', '.join(SCHEDULES)}.", rich_help_panel=RECIPE)
    ] = Recipe.schedule,
    weight_decay: Annotated[float, typer.Option(help="Of SGD.", rich_help_panel=RECIPE)] = Recipe.weight_decay,
    precision: Annotated[
        str,
        typer.Option(
            help=f"One of {', '.join(PRECISIONS)}; auto is bfloat16 where the processor computes in it.",
            rich_help_panel=RECIPE,
        ),
    ] = Recipe.precision,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Of everything random.", rich_help_panel=RECIPE)
    ] = Recipe.seed,
    half: Annotated[
        bool, typer.Option("--half", help="Write the weights in half precision.", rich_help_panel=options.RESULT)
    ] = False,
    device: options.Device = None,
) -> None:
    """Train a classifier, clean or with a backdoor. Killed and called again, it goes on after the last whole epoch."""
    if out.suffix != SAFETENSORS:
        raise typer.BadParameter(f"expected a name that ends in {SAFETENSORS}, got {out}", param_hint="--out")
    check_target(out)
    check_outputs(out=out)
    recipe = Recipe(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        schedule=schedule,  # type: ignore[arg-type]  # Recipe checks it
        weight_decay=weight_decay,
        precision=precision,  # type: ignore[arg-type]
        seed=seed,
    )
    plan = Plan(
        data=data,
        arch=arch or "preactresnet18",
        arch_args=arch_args or {},
        recipe=recipe,
        attack=attack,
        ratio=ratio,
        target=target,
        clean=clean,
        held_out=held_out,
    )
    dataset = load_dataset(data, data_root)
    where = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    console = Console()

    def provide_clean_model() -> nn.Module:
        if clean_model is not None:
            return load_trained(clean_model, dataset).model.to(where)
        first = replace(plan, attack=None)
        path = out.with_suffix(".clean")
        return _run(console, first, dataset, path, where, provide_clean_model).model

    trained = _run(console, plan, dataset, out, where, provide_clean_model)
    leave_unless_first()
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

        with _state_blamed(_state_of(path)):
            return train_plan(
                plan,
                dataset,
                device=device,
                clean_model=clean_model,
                state_file=_state_of(path),
                on_epoch=look,
                on_step=advance,
                group=processes.group,
            )


@contextmanager
def _state_blamed(state: Path) -> Iterator[None]:
    """Blame the file rather than an argument that the command line does not have."""
    try:
        yield
    except ValueError as error:
        name, colon, message = str(error).partition("state_file: ")
        if name or not colon:
            raise
        raise ValueError(f"{state}: {message}") from error


def _measure(model: nn.Module, dataset: ImageDataset, rows: torch.Tensor, attack: Attack | None) -> Metrics:
    """ACC on these images, and of an attack ASR and RA."""
    return evaluate(model, dataset.data.subset(rows).loader(), attack)


def _in_words(metrics: Metrics, attack: Attack | None) -> str:
    asr = "" if attack is None else f", ASR {100 * metrics.asr:.1f} %"
    return f"ACC {100 * metrics.acc:.1f} %{asr}"


@contextmanager
def _bar(console: Console, text: str) -> Iterator[tuple[Callable[[int, int], None], Callable[..., None]]]:
    columns: tuple[Any, ...] = (
        TextColumn("{task.description:>20}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        task = bars.add_task(text, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total), printer(console)
