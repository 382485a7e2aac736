"""Objects beside the weights, such as settings: which are passed over, and what takes their place instead of them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

# Settings and notes that training scripts keep beside the weights. They are never built: something that does nothing
# takes their place, whatever the pickle would do with them.
STRANGERS = frozenset(
    {"argparse.Namespace", "torch.torch_version.TorchVersion"}
    | {f"__builtin__.{kind}" for kind in ("bool", "dict", "float", "int", "list", "long", "str", "tuple", "unicode")}
)
STRANGERS_OF = tuple(
    f"{module}."
    for module in (
        *("datetime", "pathlib", "types", "typing"),
        *("lightning", "lightning_fabric", "pytorch_lightning"),
        *("addict", "attrdict", "box", "easydict", "ml_collections", "munch", "omegaconf", "yacs"),
    )
)
# torch refuses what only bears a name of these, too.
BLOCKED = ("sys", "os", "posix", "nt")


def is_stranger(name: str) -> bool:
    """Whether a global stands for something beside the weights that is passed over."""
    return name in STRANGERS or name.startswith(STRANGERS_OF)


class Stranger:
    """Stands for an object beside the weights whose own code is not run; it takes everything and does nothing."""

    def __new__(cls, *_: object, **__: object) -> Stranger:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class StrangeDictionary:
    """Stands for a kind of dictionary: torch fills none but its own kinds, and sets attributes of this one alone."""

    def __new__(cls, *_: object) -> Any:
        return OrderedDict()


def plain_dictionary(*_: object) -> dict[object, object]:
    """In the place of a defaultdict, whose default is a function."""
    return {}
