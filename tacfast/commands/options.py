"""The options that several commands share. Nothing here, nor in the commands themselves, imports torch."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from ..data.registry import DATASETS, ROOT_VARIABLE
from ..models.presets import PRESETS

T = TypeVar("T")
# What every generator of torch accepts as a seed.
MAX_SEED = 2**63 - 1


class Numbers(tuple[float, ...]):
    """Numbers given in one argument; Typer takes a plain tuple for several arguments."""


def parse_numbers(text: str) -> Numbers:
    """Numbers between commas."""
    try:
        return Numbers(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"expected numbers between commas, such as 0.5,0.5,0.5, got {text!r}") from None


def parse_mapping(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise typer.BadParameter(f"expected a JSON object, such as '{{\"img_size\": 32}}', got {text!r}")
    return value


MODEL, DATA, RUN, RESULT = "The model", "The images", "The run", "Results"

Checkpoint = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT",
        help="Weights: .safetensors, or a state dict saved by torch; or a folder of transformers, timm or "
        "BackdoorBench, or with one such file. No code in it is run.",
        show_default=False,
    ),
]
Checkpoints = Annotated[
    list[Path],
    typer.Argument(
        metavar="CHECKPOINT",
        help="As many models as you like: weights as .safetensors, or a state dict saved by torch; or a folder of "
        "transformers, timm or BackdoorBench, or with one such file. No code in it is run.",
        show_default=False,
    ),
]
# Of a data set, the images to take.
SPLITS = ("clean", "held-out", "test", "train", "all")

Data = Annotated[
    str,
    typer.Option(
        metavar="FOLDER|NAME",
        help="Folder of clean images that the model was not trained on: one folder per class, or all together. Or the "
        f"name of a data set: {', '.join(DATASETS)}; a folder that is called so is ./NAME.",
        rich_help_panel=DATA,
        show_default=False,
    ),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help=f"Where the data sets are; {ROOT_VARIABLE}, else the current folder.",
        rich_help_panel=DATA,
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        help=f"Images of the data set to take, one of {', '.join(SPLITS)}. A network of tacfast train says which "
        "these are, and clean is the default. For others, train and test are those of the data set, and test is the "
        "default.",
        rich_help_panel=DATA,
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Under which name a checkpoint of a training has its state dict, such as model_ema; without it the most "
        "usual one, which the report tells.",
        rich_help_panel=MODEL,
    ),
]
StripPrefix = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="What stands before the names of the tensors, such as net.; those without it are left out.",
        rich_help_panel=MODEL,
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(help="Architecture: a name that torchvision or timm knows.", rich_help_panel=MODEL),
]
ArchArgs = Annotated[
    dict[str, Any] | None,
    typer.Option(
        parser=parse_mapping,
        metavar="JSON",
        help="Further arguments of the architecture, such as '{\"img_size\": 32}'.",
        rich_help_panel=MODEL,
    ),
]
NumClasses = Annotated[int | None, typer.Option(min=2, help="Number of classes.", rich_help_panel=MODEL)]
Head = Annotated[
    str | None,
    typer.Option(metavar="MODULE", help="Name of the last linear layer, if it is not found.", rich_help_panel=MODEL),
]
Preset = Annotated[
    str | None,
    typer.Option(
        help=f"Normalisation and size of images that are usual for a data set, where the model does not say them: "
        f"{', '.join(PRESETS)}. --mean, --std and --image-size go before it.",
        rich_help_panel=DATA,
    ),
]
MaxImages = Annotated[
    int | None,
    typer.Option(min=1, help="Take so many of the images, at random, always the same.", rich_help_panel=DATA),
]
Mean = Annotated[
    Numbers | None,
    typer.Option(
        parser=parse_numbers,
        metavar="NUMBERS",
        help="Mean that the model's inputs were normalised with, for pixels in [0, 1]: one number for grey images, "
        "three for colour: 0.5,0.5,0.5.",
        rich_help_panel=DATA,
    ),
]
Std = Annotated[
    Numbers | None,
    typer.Option(
        parser=parse_numbers,
        metavar="NUMBERS",
        help="Standard deviation, likewise.",
        rich_help_panel=DATA,
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="PIXELS",
        help="Resize the shorter side to this and cut out the central square; else images stay as they are.",
        rich_help_panel=DATA,
    ),
]
ClassNames = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Names of the classes in the model's order, one per line, as the folders are named. Without it, folders "
        "named by numbers are these classes, and others are in alphabetical order.",
        rich_help_panel=DATA,
    ),
]
SkipUnreadable = Annotated[
    bool,
    typer.Option(
        "--skip-unreadable", help="Leave out images that cannot be read, and count them.", rich_help_panel=DATA
    ),
]
BatchSize = Annotated[int, typer.Option(min=2, help="Images per batch.", rich_help_panel=RUN)]
Workers = Annotated[
    int | None,
    typer.Option(min=0, help="Processes that read images; up to 8 for many images, else none.", rich_help_panel=RUN),
]
Device = Annotated[
    str | None,
    typer.Option(metavar="DEVICE", help="Where the model runs; cuda if there is one.", rich_help_panel=RUN),
]
Quick = Annotated[
    bool,
    typer.Option(
        "--quick",
        help="Look at the latents alone, in one pass: a fraction of the time, and fewer backdoors found.",
        rich_help_panel=RUN,
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="Print nothing but errors: files and the exit status tell.", rich_help_panel=RUN
    ),
]
Json = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write everything found as JSON, errors too; - is standard output. tacfast schema says what is in it.",
        rich_help_panel=RESULT,
    ),
]
Html = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write a report that stands alone.", rich_help_panel=RESULT)
]


def check_there(checkpoint: Path, data: str) -> None:
    """Raise, before anything slow, unless there are such a checkpoint and such images.

    Raises
    ------
    FileNotFoundError
        Naming what is not there.
    """
    if not checkpoint.exists():
        raise FileNotFoundError(f"{checkpoint}: not read: there is no such file")
    if data not in DATASETS and not Path(data).exists():
        raise FileNotFoundError(f"data: expected a folder of images, got {data}")


@dataclass(frozen=True, kw_only=True)
class SuspectOptions:
    """What ``scan`` and ``repair`` are told of the model, its images, and where it runs."""

    key: Key = None
    strip_prefix: StripPrefix = None
    arch: Arch = None
    num_classes: NumClasses = None
    arch_args: ArchArgs = None
    head: Head = None
    preset: Preset = None
    mean: Mean = None
    std: Std = None
    image_size: ImageSize = None
    class_names: ClassNames = None
    data_root: DataRoot = None
    split: Split = None
    max_images: MaxImages = None
    skip_unreadable: SkipUnreadable = False
    workers: Workers = None
    device: Device = None


def gathered(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the fields of `SuspectOptions` as options of its own, gathered in its parameter of that type."""
    hints = get_type_hints(command, include_extras=True)
    own, options = inspect.signature(command).parameters.values(), get_type_hints(SuspectOptions, include_extras=True)
    parameters: list[inspect.Parameter] = []
    (place,) = (parameter.name for parameter in own if hints[parameter.name] is SuspectOptions)
    for parameter in own:
        if parameter.name == place:
            parameters += [
                inspect.Parameter(
                    field.name, parameter.KEYWORD_ONLY, default=field.default, annotation=options[field.name]
                )
                for field in fields(SuspectOptions)
            ]
        else:
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=hints[parameter.name]))

    def run(**given: Any) -> None:
        shared = {field.name: given.pop(field.name) for field in fields(SuspectOptions)}
        command(**given, **{place: SuspectOptions(**shared)})

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
