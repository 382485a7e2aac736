"""Read a pickle without executing it, and refuse it unless it is numbers, containers and dense tensors.

``torch.load(weights_only=True)`` keeps a pickle from running code. It does not keep it from asking for terabytes
(``torch.Tensor(10**12)``, a view that is larger than its storage), from exhausting the C stack or from taking forever
(the hash of a tuple of shared tuples). What `torch.save` writes for a state dict needs a small, rigid part of that
language. So a stand-in for torch's unpickler walks through the opcodes first, creates nothing, and lets only that part
pass; whatever it lets pass is then read by torch.
"""

from __future__ import annotations

import math
import pickletools
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from ._strangers import BLOCKED, is_stranger, renamed

# So that a hostile pickle costs less than a gigabyte: an instruction makes at most one object of some hundred bytes.
MAX_OPCODES = 2_000_000
MAX_PICKLE_BYTES = 64 * 2**20
MAX_NAMES = 100
# About what an item of a container takes.
ITEM_BYTES = 100

ITEM_SIZES = {
    "torch.DoubleStorage": 8,
    "torch.FloatStorage": 4,
    "torch.HalfStorage": 2,
    "torch.BFloat16Storage": 2,
    "torch.LongStorage": 8,
    "torch.IntStorage": 4,
    "torch.ShortStorage": 2,
    "torch.CharStorage": 1,
    "torch.ByteStorage": 1,
    "torch.BoolStorage": 1,
}
# NumPy 1 and NumPy 2 call the same module by these names.
NUMPY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
NUMPY_GLOBALS = {"numpy.ndarray", "numpy.dtype", "_codecs.encode"} | {
    f"{module}.{name}" for module in NUMPY_MODULES for name in ("_reconstruct", "scalar")
}


DEFAULTDICT = "collections.defaultdict"  # a plain one takes its place


class ContentError(ValueError):
    """The file is damaged, or asks for more than numbers, containers and dense tensors."""


class ForeignObjectError(ContentError):
    """The pickle asks for an object of some class, for which its code would have to run."""


@dataclass(frozen=True)
class Named:
    """A global, by its name only."""

    name: str


@dataclass(frozen=True)
class Storage:
    """The numbers behind tensors, of which only the count is known here."""

    numel: int


class Ordered(dict[Any, Any]):
    """An OrderedDict; its attributes are set from another dictionary."""


@dataclass(frozen=True, eq=False)
class Opaque:
    """An object of which only the kind matters, and of a stranger its name."""

    kind: str
    name: str = ""


@dataclass
class Contents:
    """What a pickle holds: the object, with stand-ins; the size of every storage in bytes; names that it asks for.

    Those of ``dictionaries`` are strangers that are filled as dictionaries are.
    """

    root: Any = None
    storages: dict[str, int] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    dictionaries: set[str] = field(default_factory=set)


def scan_pickle(stream: BinaryIO) -> Contents:
    """Contents of the pickle at the position of ``stream``, which is left behind its end.

    Raises
    ------
    ContentError
        Unless torch's reader can be trusted with it.
    """
    machine = _Machine()
    try:
        with warnings.catch_warnings():  # of escapes in strings, which are then refused
            warnings.simplefilter("ignore")
            return machine.run(stream)
    except ContentError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise ContentError("the pickle in it is damaged") from error


class _Machine:
    """The stack machine of pickle, with stand-ins for objects; as strict about marks as torch's."""

    def __init__(self) -> None:
        self.contents = Contents()
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0

    def run(self, stream: BinaryIO) -> Contents:
        """Carry out everything up to and with STOP."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= MAX_OPCODES:
                raise ContentError(f"its pickle has more than {MAX_OPCODES} instructions")
            if opcode.name == "STOP":
                break
            self.step(opcode.name, argument)
        self.contents.root = self.pop()
        return self.contents

    def step(self, name: str, argument: Any) -> None:
        """Carry out one instruction, other than STOP."""
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]() if argument is None else argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in _TUPLES:
            start = len(self.stack) - _TUPLES[name]
            if start < 0:
                raise IndexError
            self.stack[start:] = [tuple(self.stack[start:])]
        elif name in _STEPS:
            _STEPS[name](self, argument)
        else:
            raise ContentError(f"the instruction {name} does not occur in saved weights")

    def pop(self) -> Any:
        return self.stack.pop()

    def protocol(self, argument: Any) -> None:
        if argument != 2:
            raise ContentError(f"expected pickle protocol 2, which torch.save uses by default, got {argument}")

    def mark(self, _: Any) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def make_tuple(self, _: Any) -> None:
        items = self.pop_mark()
        self.stack.append(tuple(items))

    def append(self, _: Any) -> None:
        item = self.pop()
        expect(type(self.stack[-1]) is list)
        self.stack[-1].append(item)

    def extend(self, _: Any) -> None:
        items = self.pop_mark()
        expect(type(self.stack[-1]) is list)
        self.stack[-1].extend(items)

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self.set_pairs([key, value])

    def set_items(self, _: Any) -> None:
        self.set_pairs(self.pop_mark())

    def set_pairs(self, items: list[Any]) -> None:
        target = self.stack[-1]
        expect(len(items) % 2 == 0)
        stranger = _is_kind(target, "stranger")
        if stranger:
            self.contents.dictionaries.add(target.name)
        expect(stranger or type(target) in (dict, Ordered))
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Tuples would be hashed by torch, element by element, and a tuple of shared tuples has 2 ** n of them.
            # Lightning's callbacks were once kept under their classes.
            expect(_is_key(key) or _is_kind(key, "scalar") or isinstance(key, Named))
            if not stranger:
                target[key] = value

    def find_global(self, argument: Any) -> None:
        name = argument.replace(" ", ".")
        if name in _UNWANTED:
            raise ForeignObjectError(_UNWANTED[name])
        if name.partition(".")[0] in BLOCKED:
            raise foreign(Named(name))
        # Whatever else it is, as long as it is only named, as classes are in settings, something takes its place.
        self.contents.names.add(name)
        if len(self.contents.names) > MAX_NAMES:  # torch looks through all of them again and again
            raise ContentError(f"its pickle asks for more than {MAX_NAMES} kinds of objects")
        self.stack.append(Named(name))

    def find_storage(self, _: Any) -> None:
        pid = self.pop()
        if type(pid) is tuple and pid[:1] == ("module",):  # so the old format marks the class of a layer
            raise foreign(pid[1])
        expect(type(pid) is tuple and len(pid) in (5, 6) and pid[0] == "storage" and pid[5:] in ((), (None,)))
        kind, key, location, numel = pid[1:5]
        expect(isinstance(kind, Named) and kind.name in ITEM_SIZES)
        expect(isinstance(key, str) and key.isascii() and isinstance(location, str) and _is_count(numel))
        size = numel * ITEM_SIZES[kind.name]
        expect(self.contents.storages.setdefault(key, size) == size)
        self.stack.append(Storage(numel))

    def charge(self, *values: Any) -> None:
        """Count what is about to be copied: all else is there once, but one long list can be copied again and again."""
        self.copied += sum(len(value) for value in values if isinstance(value, (str, bytes)))
        self.copied += sum(ITEM_BYTES * len(value) for value in values if isinstance(value, (tuple, list, dict)))
        if self.copied > MAX_PICKLE_BYTES:
            raise ContentError("its pickle copies things many times over")

    def call(self, _: Any) -> None:
        arguments, function = self.pop(), self.pop()
        expect(isinstance(function, Named) and type(arguments) is tuple)
        self.charge(arguments, *arguments)
        if is_stranger(function.name):
            self.stack.append(Opaque("stranger", function.name))
            return
        if function.name not in _CALLABLE:
            raise foreign(function)
        self.stack.append(_CALLABLE[function.name](*arguments))

    def make(self, _: Any) -> None:
        arguments, kind = self.pop(), self.pop()
        expect(isinstance(kind, Named) and type(arguments) is tuple)
        if not is_stranger(kind.name):
            raise foreign(kind)
        self.charge(arguments, *arguments)
        self.stack.append(Opaque("stranger", kind.name))

    def build(self, _: Any) -> None:
        state, target = self.pop(), self.stack[-1]
        self.charge(state, *(state if type(state) is tuple else ()))
        if _is_kind(target, "stranger"):
            return
        if type(target) is Ordered:
            expect(type(state) is dict)  # the versions of modules, ``_metadata``
        elif isinstance(target, Opaque) and target.kind == "dtype":
            expect(state == (3, "<", None, None, None, -1, -1, 0))
        else:
            expect(isinstance(target, Opaque) and target.kind == "array" and type(state) is tuple and len(state) == 5)
            version, shape, dtype, fortran, raw = state
            expect(version == 1 and type(shape) is tuple and len(shape) == 1 and _is_count(shape[0]))
            expect(_is_kind(dtype, "dtype") and fortran is False and type(raw) is bytes and len(raw) == 8 * shape[0])


def expect(condition: bool) -> None:
    if not condition:
        raise ContentError("it is not laid out as torch.save lays out tensors")


def foreign(asked: Any) -> ForeignObjectError:
    """What to raise for an object of a class that is not known."""
    expect(isinstance(asked, Named))
    name = renamed(asked.name)
    own = name.partition(".")[0] not in sys.stdlib_module_names
    where = ", as a whole pickled model does, or settings of a kind of their own" if own else ""
    return ForeignObjectError(f"it asks for {name[:80]!r}{where}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _is_kind(value: Any, kind: str) -> bool:
    return isinstance(value, Opaque) and value.kind == kind


def _is_key(value: Any) -> bool:
    # No large numbers: multiples of 2 ** 61 - 1 have one hash, and a dictionary of them takes for ever.
    return isinstance(value, str) or (isinstance(value, (int, float)) and abs(value) < 2**32)


def _ordered(pairs: Any = ()) -> Ordered:
    """Empty as Python 3 writes it, or made of a list of pairs, as Python 2 did."""
    expect(type(pairs) in (tuple, list))
    made = Ordered()
    for pair in pairs:
        expect(type(pair) in (tuple, list) and len(pair) == 2 and _is_key(pair[0]))
        made[pair[0]] = pair[1]
    return made


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, *metadata: Any
) -> Opaque:
    """Refuse a view larger than its storage: torch would enlarge the storage, or copy the view out in full."""
    expect(not metadata and isinstance(storage, Storage) and _is_count(offset) and isinstance(requires_grad, bool))
    expect(type(hooks) is Ordered and type(size) is tuple and type(stride) is tuple and len(size) == len(stride) <= 32)
    expect(all(_is_count(n) and n < 2**31 for n in (*size, *stride)))
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and (last >= storage.numel or math.prod(size) > storage.numel):
        raise ContentError(f"a tensor of shape {size} with strides {stride} is larger than its {storage.numel} numbers")
    return Opaque("tensor")


def _parameter(data: Any, requires_grad: Any, hooks: Any) -> Opaque:
    expect(_is_kind(data, "tensor") and isinstance(requires_grad, bool) and type(hooks) is Ordered)
    return Opaque("tensor")


def _counter(counts: Any) -> dict[Any, Any]:
    expect(type(counts) is dict)
    return dict(counts)


def _size(sizes: Any) -> Opaque:
    expect(type(sizes) is tuple and all(map(_is_count, sizes)))
    return Opaque("size")


def _set(items: Any) -> Opaque:
    expect(type(items) is list and all(map(_is_key, items)))
    return Opaque("set")


def _device(kind: Any, number: Any = 0) -> Opaque:
    expect(isinstance(kind, str) and kind.isalnum() and len(kind) < 20 and _is_count(number) and number < 128)
    return Opaque("device")


def _dtype(name: Any, align: Any, copy: Any) -> Opaque:
    expect(name in ("i8", "f8") and align in (0, False) and copy in (1, True))
    return Opaque("dtype")


def _encode(text: Any, encoding: Any) -> bytes:
    """Bytes, as protocol 2 writes them; other codecs can be slow or large."""
    expect(isinstance(text, str) and encoding == "latin1")
    return bytes(text.encode("latin1"))


def _array(kind: Any, shape: Any, code: Any) -> Opaque:
    expect(kind == Named("numpy.ndarray") and shape == (0,) and code == b"b")
    return Opaque("array")


def _scalar(dtype: Any, raw: Any) -> Opaque:
    expect(_is_kind(dtype, "dtype") and type(raw) is bytes and len(raw) == 8)
    return Opaque("scalar")


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    **dict.fromkeys(["BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1"], int),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.protocol,
    "MARK": _Machine.mark,
    "TUPLE": _Machine.make_tuple,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.extend,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.find_global,
    "BINPERSID": _Machine.find_storage,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.make,
    "BUILD": _Machine.build,
}
_CALLABLE: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "collections.Counter": _counter,  # milestones of a learning-rate schedule
    DEFAULTDICT: lambda *_: {},
    "__builtin__.set": _set,
    "torch.Size": _size,
    "torch.device": _device,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor": lambda *view: _tensor(*view, False, Ordered()),  # before torch 0.4
    "torch._utils._rebuild_parameter": _parameter,
    "numpy.dtype": _dtype,
    "_codecs.encode": _encode,
    **{f"{module}._reconstruct": _array for module in NUMPY_MODULES},
    **{f"{module}.scalar": _scalar for module in NUMPY_MODULES},
}
# What torch, or NumPy, builds itself.
KNOWN = _CALLABLE.keys() | ITEM_SIZES.keys() | NUMPY_GLOBALS
_UNWANTED = {
    "torch._utils._rebuild_sparse_tensor": "it holds a sparse tensor, and only dense ones are read",
    "torch._utils._rebuild_qtensor": "it holds a quantised tensor, and only dense numbers are read",
    "torch._utils._rebuild_meta_tensor_no_storage": "it holds a tensor without data",
    "torch.ComplexFloatStorage": "it holds complex numbers, and only real ones are read",
    "torch.ComplexDoubleStorage": "it holds complex numbers, and only real ones are read",
}
