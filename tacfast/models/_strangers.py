"""Objects beside the weights, such as settings: which are passed over, and what takes their place instead of them."""

from __future__ import annotations

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from typing import Any, ClassVar

from .._text import excerpt

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


def renamed(name: str) -> str:
    """A name of Python 2, which pickles of protocol 2 have, as Python 3 and torch know it."""
    module, _, last = name.rpartition(".")
    if (module, last) in NAME_MAPPING:
        module, last = NAME_MAPPING[module, last]
    return f"{IMPORT_MAPPING.get(module, module)}.{last}"


class Stranger:
    """Stands for an object beside the weights whose own code is not run; it takes everything and does nothing."""

    stands_for: ClassVar[str]

    def __new__(cls, *_: object, **__: object) -> Stranger:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def stand_in(name: str) -> type[Stranger]:
    """What takes the place of a class, or of a function, of this name."""
    return type("Stranger", (Stranger,), {"stands_for": name})


def kind_of(value: object) -> str:
    """What an object of a file is, for messages: of a stranger, the name that the file gives it."""
    if isinstance(value, Stranger):
        return excerpt(value.stands_for)
    if isinstance(value, type) and issubclass(value, Stranger):
        return f"{excerpt(value.stands_for)} itself"
    return type(value).__name__


class StrangeDictionary:
    """Stands for a kind of dictionary: torch fills none but its own kinds, and sets attributes of this one alone."""

    def __new__(cls, *_: object) -> Any:
        return OrderedDict()


def plain_dictionary(*_: object) -> dict[object, object]:
    """In the place of a defaultdict, whose default is a function."""
    return {}
