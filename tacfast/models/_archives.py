"""Files of `torch.save`, looked through before torch reads them: nothing is unpacked or allocated that is not there."""

from __future__ import annotations

import io
import os
import struct
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import torch

from ._pickles import (
    DEFAULTDICT,
    KNOWN,
    MAX_PICKLE_BYTES,
    NUMPY_GLOBALS,
    NUMPY_MODULES,
    ContentError,
    Contents,
    ForeignObjectError,
    expect,
    scan_pickle,
)
from ._strangers import StrangeDictionary, plain_dictionary, renamed, stand_in

ZIP_MAGIC = b"PK\x03\x04"
# The first of the five pickles of the format before torch 1.6: the number 0x1950a86a20f9469cfc6c.
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
MAX_DIRECTORY_BYTES = 16 * 2**20
END, LOCATOR, END64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
# What BackdoorBench writes for an attack; only there NumPy's arrays and numbers are expected.
ATTACK_KEYS = frozenset({"model_name", "num_classes", "model", "bd_test"})
# What torch may build is one list for all threads.
_allowing = threading.Lock()


def load_pickled(file: BinaryIO) -> Any:
    """Object in a file that begins with ``ZIP_MAGIC`` or ``LEGACY_MAGIC``, read by ``torch.load(weights_only=True)``.

    Raises
    ------
    ContentError
        If the file is something else, damaged, or asks for more than numbers, containers and dense tensors. Damage
        that only torch notices comes as whatever torch raises.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    legacy = file.read(len(LEGACY_MAGIC)) == LEGACY_MAGIC
    file.seek(0)
    contents = _scan_legacy(file, size) if legacy else _scan_zip(file, size)
    numpy = contents.names & (NUMPY_GLOBALS - {"_codecs.encode"})  # which also makes the bytes of a date
    if numpy and not (type(contents.root) is dict and contents.root.keys() >= ATTACK_KEYS):
        raise ForeignObjectError(f"it holds objects of NumPy, it asks for {min(numpy)!r}")
    file.seek(0)
    with _only([*_stand_ins(contents), *(_numpy_globals() if numpy else ())]):
        return torch.load(file, map_location="cpu", weights_only=True, mmap=False)


@contextmanager
def _only(allowed: list[Any]) -> Iterator[None]:
    """Let torch build these, and nothing that the user has allowed it: that may bear the name of a stranger."""
    with _allowing:
        before = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        try:
            torch.serialization.add_safe_globals(allowed)
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)


def _stand_ins(contents: Contents) -> Iterator[Any]:
    """What takes the place of everything that the pickle names and torch does not know."""
    for name in contents.names:
        if name == DEFAULTDICT:
            yield plain_dictionary, name
        elif name not in KNOWN:
            known_as = renamed(name)
            yield StrangeDictionary if name in contents.dictionaries else stand_in(known_as), known_as


def _numpy_globals() -> list[Any]:
    """What NumPy's arrays and numbers are rebuilt with, under the names of NumPy 1 and 2."""
    reconstruct, scalar = np.empty(0).__reduce__()[0], np.int64(0).__reduce__()[0]
    renamed = [(function, f"{module}.{name}")
               for module in NUMPY_MODULES
               for function, name in ((reconstruct, "_reconstruct"), (scalar, "scalar"))]  # fmt: skip
    return [*renamed, np.ndarray, np.dtype, type(np.dtype("i8")), type(np.dtype("f8"))]


def _scan_zip(file: BinaryIO, size: int) -> Contents:
    _check_directory(file, size)
    with zipfile.ZipFile(file) as archive:
        records = _records(archive, size)
        pickled = records.get("data.pkl")
        if pickled is None:
            raise ContentError("it is a zip archive, but torch.save did not write it")
        expect(pickled.file_size <= MAX_PICKLE_BYTES)
        contents = scan_pickle(io.BytesIO(archive.read(pickled)))
    for key, nbytes in contents.storages.items():
        record = records.get(f"data/{key}")
        if record is None or record.file_size != nbytes:
            found = "nothing" if record is None else f"{record.file_size} bytes"
            raise ContentError(f"it promises {nbytes} bytes for the tensor record {key[:40]!r} and holds {found}")
    return contents


def _check_directory(file: BinaryIO, size: int) -> None:
    """Raise unless the archive ends as torch.save ends it, so that every reader finds the same directory."""
    file.seek(max(0, size - END.size - LOCATOR.size - END64.size))
    tail = file.read()
    damaged = ContentError("it is a damaged or truncated zip archive")
    if len(tail) < END.size:
        raise damaged
    signature, _, _, _, _, length, start, comment = END.unpack(tail[-END.size :])
    end = size - END.size
    if signature != b"PK\x05\x06" or comment:
        raise damaged
    if tail[-END.size - LOCATOR.size :].startswith(b"PK\x06\x07"):
        end -= LOCATOR.size + END64.size
        _, _, where, _ = LOCATOR.unpack(tail[END64.size : END64.size + LOCATOR.size])
        signature, *_, length, start = END64.unpack(tail[: END64.size])
        if signature != b"PK\x06\x06" or where != end:
            raise damaged
    if start + length != end or length > MAX_DIRECTORY_BYTES:
        raise damaged


def _records(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Records by their name below the one folder, of which none is compressed and no two share a name or bytes."""
    entries = archive.infolist()
    folder = entries[0].orig_filename.partition("/")[0] if entries else ""
    _refuse_programs({entry.orig_filename[len(folder) + 1 :] for entry in entries})
    records = {}
    for entry in entries:
        name = entry.orig_filename
        if not name.startswith(f"{folder}/") or not (name.isascii() and name.isprintable()):
            raise ContentError("it is a zip archive, but torch.save did not write it")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise ContentError(f"it is compressed ({name[:80]!r}), and torch.save does not compress")
        records[name[len(folder) + 1 :]] = entry
    # torch finds records without regard to case.
    if len({name.lower() for name in records}) != len(entries) or sum(entry.file_size for entry in entries) > size:
        raise ContentError("it is a zip archive whose records overlap")
    return records


def _refuse_programs(names: set[str]) -> None:
    """Raise, saying what the archive is, if it has a record that only a program has."""
    if "constants.pkl" in names:
        raise ContentError(
            "it is a TorchScript archive, a program that would have to run: save the weights of the model that it "
            "was made from, torch.save(model.state_dict(), ...)"
        )
    if names & {"archive_format", "serialized_exported_program.json"}:
        raise ContentError(
            "it is an exported program (.pt2), not weights: save those of the model that it was made from, "
            "torch.save(model.state_dict(), ...)"
        )


def _scan_legacy(file: BinaryIO, size: int) -> Contents:
    """Five pickles (magic number, version, machine, object, list of storages), then the bytes of every storage."""
    stream = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    for _ in range(3):
        expect(not scan_pickle(stream).names)
    contents, listed = scan_pickle(stream), scan_pickle(stream)
    keys = listed.root
    expect(type(keys) is list and all(isinstance(key, str) for key in keys) and not listed.names)
    expect(len(keys) == len(contents.storages) and set(keys) == set(contents.storages))
    promised = sum(8 + nbytes for nbytes in contents.storages.values())
    if promised != size - stream.tell():
        raise ContentError(f"it promises {promised} bytes of tensors and holds {size - stream.tell()}")
    return contents
