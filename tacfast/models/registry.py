"""Build an architecture by its name, with random weights: nothing is ever downloaded."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, cast

from torch import nn

from .._text import excerpt
from . import huggingface
from .architectures import PreActResNet18, SmallPreActResNet, SmallVggBn

OWN: dict[str, Callable[..., nn.Module]] = {
    "preactresnet18": PreActResNet18,
    "small_preact_resnet": SmallPreActResNet,
    "small_vgg_bn": SmallVggBn,
}
TIMM = "timm:"
# Training scripts build these with auxiliary heads, which only training uses: without them a model has one output in
# every mode. Their own initialisation takes minutes and is replaced by the checkpoint anyway.
AUXILIARY = ("googlenet", "inception_v3")
# Arguments with which torchvision and timm would read files or download.
FORBIDDEN = ("weights", "checkpoint_path", "cache_dir", "num_classes", "device", "dtype")


def build_model(arch: str, num_classes: int, *, arch_args: Mapping[str, Any] | None = None) -> nn.Module:
    """Build a classifier with random weights.

    Parameters
    ----------
    arch : name of one of our own architectures (``preactresnet18``, ``small_preact_resnet``,
        ``small_vgg_bn``), of a classifier of
        torchvision (``resnet18``), or ``timm:`` and the name of a model of timm (``timm:vit_tiny_patch16_224``). The
        prefix says which library is meant, as both have a ``resnet18``, with different layers; it may be left out
        where only timm knows the name. (``timm/...`` would be a repository of the Hugging Face hub.) Or
        ``transformers:`` and a ``model_type`` of transformers (``transformers:vit``), an image classifier
    num_classes : C, at least 2
    arch_args : further arguments of the architecture, such as ``{"img_size": 32, "patch_size": 4}``

    Returns
    -------
    torch.nn.Module : in training mode, on the default device. GoogLeNet and Inception have no auxiliary heads unless
        ``arch_args`` has ``aux_logits``; `load_weights` leaves the weights of such heads out.

    Raises
    ------
    ValueError
        For an unknown name, with those that are most like it; for arguments that the architecture does not take, or
        that would read a file or download.
    ImportError
        Without the extra ``vision`` (torchvision and timm) or ``hf`` (transformers), for a model from there.
    """
    if not isinstance(arch, str):
        raise TypeError(f"arch: expected the name of an architecture, got {type(arch).__name__}")
    if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 2:
        raise ValueError(f"num_classes: expected a whole number of at least 2, got {num_classes!r}")
    arguments = dict(arch_args or {})
    for name in arguments:
        # Of a configuration of transformers only what shapes the architecture is used.
        if name in FORBIDDEN or ("pretrained" in name and not arch.startswith(huggingface.PREFIX)):
            raise ValueError(f"arch_args: expected arguments that only shape the architecture, got {name!r}")
    builder = _find_builder(arch)
    try:
        return builder(num_classes=num_classes, **arguments)
    except NotImplementedError:  # of an operation on a device without data, such as "meta"
        raise
    except (TypeError, ValueError, AssertionError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise ValueError(
            f"arch_args: {arch} cannot be built with {excerpt(repr(arguments))}: {excerpt(str(error))}"
        ) from error


def _find_builder(arch: str) -> Callable[..., nn.Module]:
    if arch in OWN:
        return OWN[arch]
    if arch.startswith(huggingface.PREFIX):
        kind = arch.removeprefix(huggingface.PREFIX)
        return lambda num_classes, **config: huggingface.outline(kind, num_classes, config)
    if arch.startswith(TIMM):
        timm = _installed("timm")
        if timm is None:
            raise ImportError(f"{arch} needs timm: pip install 'tacfast[vision]'")
        return _timm_builder(timm, arch)
    torchvision, timm = _installed("torchvision"), _installed("timm")
    if torchvision is not None and arch in _torchvision_names(torchvision):
        defaults = {"aux_logits": False, "init_weights": False} if arch in AUXILIARY else {}
        return lambda **arguments: torchvision.models.get_model(arch, weights=None, **{**defaults, **arguments})
    if timm is not None and arch in timm.list_models():
        return _timm_builder(timm, TIMM + arch)
    if torchvision is None:
        raise ImportError(
            f"{arch} is none of our own ({', '.join(OWN)}); for torchvision's: pip install 'tacfast[vision]'"
        )
    known = dict.fromkeys([*OWN, *_torchvision_names(torchvision), *(timm.list_models() if timm else [])])
    raise _unknown(arch, list(known))


def _timm_builder(timm: Any, arch: str) -> Callable[..., nn.Module]:
    name = arch.removeprefix(TIMM)
    # Only names that timm lists: create_model also takes addresses of the Hugging Face hub, and downloads.
    if name not in timm.list_models():
        raise _unknown(arch, [TIMM + known for known in timm.list_models()])
    return lambda **arguments: cast(nn.Module, timm.create_model(name, pretrained=False, **arguments))


def _unknown(arch: str, known: list[str]) -> ValueError:
    close = difflib.get_close_matches(arch, known, n=5)
    hint = f"did you mean {', '.join(close)}?" if close else f"try {', '.join(OWN)}, resnet18 or timm:resnet18"
    return ValueError(f"arch: expected the name of an architecture, got {arch!r}: {hint}")


def _torchvision_names(torchvision: Any) -> list[str]:
    return cast("list[str]", torchvision.models.list_models(module=torchvision.models))


def _installed(library: str) -> Any:
    """The library; None without it."""
    try:
        return import_module(library)
    except ImportError:
        return None
