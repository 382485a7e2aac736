"""Folders as ``save_pretrained`` of transformers and the hub's layout of timm have them; nothing is downloaded.

A folder has ``config.json``, weights as ``model.safetensors`` or ``pytorch_model.bin``, whole or in parts that an index
lists, and often ``preprocessor_config.json``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from .._files import only_process, write_atomically
from .._lazy import needed
from .._text import excerpt, listed
from .weights import CheckpointError, load_file, shown_path, weights_in

PREFIX = "transformers:"
CONFIG, PREPROCESSOR, ABOUT = "config.json", "preprocessor_config.json", "tacfast.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
MAX_JSON_BYTES = 16 * 2**20
# What would fetch another model, run code that comes with this one, or only says how it was stored.
LOADS_OTHERS = ("backbone", "backbone_config", "backbone_kwargs", "use_timm_backbone", "use_pretrained_backbone")
LEFT_OUT = (*LOADS_OTHERS, "auto_map", "model_type", "dtype", "torch_dtype", "quantization_config", "text_config")
# It builds any model of timm, with arguments that read files and fetch models.
NOT_BUILT = ("timm_wrapper",)
# Characters of a file's name that a file system takes.
MAX_NAME = 255
# They average two heads in evaluation mode.
TWO_HEADS = {"DeiTForImageClassificationWithTeacher": "cls_classifier and distillation_classifier"}
PIXEL_SCALE = 1 / 255
# Numbers that a model may have beyond twice those that there are.
SPARE = 1_000_000


def is_folder_of(path: Path) -> bool:
    """Whether a path is a folder with a ``config.json``."""
    return (path / CONFIG).is_file()


def describe_folder(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights of such a folder, and the other fields of a `Checkpoint` as far as the folder says them.

    Raises
    ------
    CheckpointError
        If a file is damaged, or the model is no image classifier with one head.
    """
    config = _read_json(folder / CONFIG)
    described = _timm(folder, config) if "architecture" in config else _transformers(folder, config)
    about = folder / ABOUT
    if about.is_file():
        described |= {name: value for name, value in _read_json(about).items() if name in ("provenance", "metrics")}
    return _weights_of(folder), {name: value for name, value in described.items() if value is not None}


def _timm(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """As timm writes for the hub: the architecture's name, and how it was trained under ``pretrained_cfg``."""
    own = config.get("pretrained_cfg")
    own = own if isinstance(own, dict) else {}
    size = own.get("input_size")
    arguments = config.get("model_args")
    arguments = {k: v for k, v in arguments.items() if k != "num_classes"} if isinstance(arguments, dict) else {}
    names = config.get("label_names") or own.get("label_names")
    return {
        "arch": f"timm:{config['architecture']}",
        "arch_args": arguments or None,
        "num_classes": config.get("num_classes"),
        "class_names": tuple(names) if isinstance(names, list) and len(names) == config.get("num_classes") else None,
        "mean": own.get("mean"),
        "std": own.get("std"),
        "image_size": tuple(size[-2:]) if isinstance(size, list) else None,
        "provenance": {"source": "timm"},
    }


def _transformers(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    where = shown_path(folder / CONFIG)
    kind, classes = config.get("model_type"), config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else None
    if not isinstance(kind, str) or not isinstance(name, str):
        raise CheckpointError(
            f"{where}: expected model_type and architectures of transformers, or architecture of timm"
        )
    if name in TWO_HEADS:
        raise CheckpointError(
            f"{where}: {name} averages two heads, {TWO_HEADS[name]}: there is no one last layer to look at; load the "
            "weights in Python, wrap the model in a module that answers by one of them, and give that to tacfast.scan"
        )
    if not name.endswith("ForImageClassification"):
        raise CheckpointError(f"{where}: expected an image classifier, got {excerpt(name)}")
    if other := [key for key in LOADS_OTHERS if config.get(key)]:
        raise CheckpointError(f"{where}: expected a model of its own, got one that builds on another ({other[0]})")
    names = config.get("id2label")
    names = [names.get(str(k)) for k in range(len(names))] if isinstance(names, dict) else None
    told = names is not None and names != [f"LABEL_{k}" for k in range(len(names))]
    return {
        "arch": PREFIX + kind,
        "arch_args": {key: value for key, value in config.items() if key not in LEFT_OUT and key[:1] != "_"},
        "num_classes": len(names) if names else config.get("num_labels", 2),
        "class_names": tuple(names) if names and told else None,
        "provenance": {"source": f"transformers, {name}"},
        **_preprocessing(folder / PREPROCESSOR),
    }


def _preprocessing(path: Path) -> dict[str, Any]:
    """Mean, standard deviation and size of images, as far as it says them."""
    if not path.is_file():
        return {}
    found = _read_json(path)
    scale = found.get("rescale_factor", PIXEL_SCALE)
    if found.get("do_rescale", True) is not True or not isinstance(scale, float) or abs(255 * scale - 1) > 1e-3:
        return {}  # the numbers that it has are not for pixels in [0, 1]
    size = found.get("crop_size") if found.get("do_center_crop") else found.get("size")
    if isinstance(size, dict):
        size = [size["height"], size["width"]] if {"height", "width"} <= size.keys() else size.get("shortest_edge")
    if isinstance(size, int):
        size = [size, size]
    mean, std = found.get("image_mean"), found.get("image_std")
    if not found.get("do_normalize", True):
        mean, std = [0.0] * 3, [1.0] * 3
    return {"mean": mean, "std": std, "image_size": tuple(size) if isinstance(size, list) else None}


def _weights_of(folder: Path) -> dict[str, Tensor]:
    for name in WEIGHTS:
        if (path := folder / name).is_file():
            return weights_in(load_file(path), path)
        if (index := folder / f"{name}.index.json").is_file():
            return _parts(folder, index)
    raise CheckpointError(f"{shown_path(folder)}: expected {' or '.join(WEIGHTS)} in it, got neither")


def _parts(folder: Path, index: Path) -> dict[str, Tensor]:
    """Weights in several files, which the index names for each tensor."""
    listing = _read_json(index).get("weight_map")
    if not isinstance(listing, dict) or not all(_is_name(part) for part in listing.values()):
        raise CheckpointError(f"{shown_path(index)}: expected the file of each tensor, beside it, as weight_map")
    weights: dict[str, Tensor] = {}
    for part in sorted(set(listing.values())):
        weights |= weights_in(load_file(folder / part), folder / part)
    return weights


def _is_name(part: Any) -> bool:
    """Whether it is the name of a file in the same folder."""
    return isinstance(part, str) and Path(part).name == part and len(part) <= MAX_NAME


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{shown_path(path)}: not read: it has more than {MAX_JSON_BYTES} bytes")
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{shown_path(path)}: not read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{shown_path(path)}: expected JSON, got something damaged") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{shown_path(path)}: expected a JSON object, got {type(found).__name__}")
    return found


def outline(kind: str, num_classes: int, config: Mapping[str, Any]) -> nn.Module:
    """Build the classifier of transformers of that ``model_type``, with random weights."""
    transformers = _library()
    if kind not in transformers.CONFIG_MAPPING or kind in NOT_BUILT:
        raise ValueError(f"expected a model_type that transformers knows, got {excerpt(repr(kind))}")
    try:
        # Only what shapes this architecture: others choose code, such as that of the attention, or are not known yet.
        known = transformers.CONFIG_MAPPING[kind]().to_dict().keys() - set(LEFT_OUT)
        shaping = {key: value for key, value in config.items() if key in known}
        made = transformers.AutoConfig.for_model(kind, **{**shaping, "num_labels": num_classes})
        with _quiet(transformers):
            return cast(
                nn.Module, transformers.AutoModelForImageClassification.from_config(made, trust_remote_code=False)
            )
    except (ImportError, NotImplementedError, MemoryError):
        raise
    except Exception as error:  # its checks of configurations raise all sorts
        raise ValueError(" ".join(str(error).split())) from error


def restore(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """The same model with these weights, under names of any version of transformers.

    Raises
    ------
    CheckpointError
        Unless they fit to the last tensor.
    """
    transformers = _library()
    numbers, given = (sum(each.numel() for each in some) for some in (model.parameters(), weights.values()))
    if numbers > 2 * given + SPARE:
        raise CheckpointError(f"weights: {type(model).__name__} has {numbers} numbers, far more than the {given} given")
    with _quiet(transformers):
        found, report = type(model).from_pretrained(  # type: ignore[attr-defined]
            None,
            config=model.config,
            state_dict=dict(weights),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    missing = [name for name in report["missing_keys"] if not name.endswith("num_batches_tracked")]
    problems = [f"{len(missing)} missing ({listed(sorted(missing))})"] if missing else []
    for words, key in (("unexpected", "unexpected_keys"), ("of another shape", "mismatched_keys")):
        if names := sorted(each if isinstance(each, str) else each[0] for each in report[key]):
            problems.append(f"{len(names)} {words} ({listed(names)})")
    if problems:
        raise CheckpointError(
            f"weights: expected the {len(model.state_dict())} tensors of {type(model).__name__}, got {len(weights)}: "
            + "; ".join(problems)
        )
    return cast(nn.Module, found.train())


def check_new_folder(path: Path) -> None:
    """Raise ValueError, before the work, if a folder cannot be made under this name."""
    if path.exists():
        raise ValueError(f"path: expected the name of a new folder, got {path}, which exists")


def write_folder(model: nn.Module, like: Path, path: Path, about: Mapping[str, Any]) -> None:
    """Write a model as the folder is laid out that it came from, with all of it or nothing.

    Parameters
    ----------
    model : of transformers, or of timm
    like : that folder, whose configuration and preprocessor are taken over
    path : of the new folder; it must not exist
    about : for `ABOUT`, beside what the layout has
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f".{path.name}.new")
    with only_process(path, "path"):
        shutil.rmtree(made, ignore_errors=True)  # of a process that was killed
        made.mkdir()
        try:
            _fill_folder(model, like, made, about)
            made.replace(path)
        finally:
            shutil.rmtree(made, ignore_errors=True)


def _fill_folder(model: nn.Module, like: Path, made: Path, about: Mapping[str, Any]) -> None:
    for name in (CONFIG, PREPROCESSOR):  # nothing else: it may be a link to a file that is nobody's business
        if (like / name).is_file():
            write_atomically(made / name, (json.dumps(_read_json(like / name), indent=2) + "\n").encode())
    if hasattr(model, "save_pretrained"):
        with _quiet(_library()):
            cast(Any, model).save_pretrained(made)
    else:
        from safetensors.torch import save

        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        write_atomically(made / WEIGHTS[0], save(weights, metadata={"format": "pt"}))
    write_atomically(made / ABOUT, (json.dumps(dict(about), indent=2, allow_nan=False) + "\n").encode())


def _library() -> Any:
    return needed("transformers", "models of transformers need it: pip install 'tacfast[hf]'")


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without its progress bars and reports: what does not fit is raised."""
    log = transformers.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
