"""Small checkpoints of every kind, and tools to make hostile ones out of them."""

import argparse
import datetime
import io
import pathlib
import pickle
import random
import struct
import zipfile
from collections import defaultdict

import numpy as np
import torch
from torch import nn

from tacfast.models import CheckpointError, load_checkpoint

LEGACY = {"_use_new_zipfile_serialization": False}


def small_net(classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, classes))


def assert_same(found, expected):
    """Plain tensors of the same names in the same order, equal in dtype and values."""
    assert list(found) == list(expected)
    for name, tensor in found.items():
        assert type(tensor) is torch.Tensor
        assert not tensor.requires_grad
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name])


def saved(content, **options):
    """The bytes that `torch.save` writes."""
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def records(data):
    """Records of a zip archive by name."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(contents, compression=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return stream.getvalue()


def with_pickle(change, data=None):
    """A zip archive of torch.save, ``data``, with its pickle changed and everything else right."""
    contents = records(data or saved(small_net().state_dict()))
    contents["archive/data.pkl"] = change(contents["archive/data.pkl"])
    return zipped(contents)


def legacy_with_pickle(change):
    """The same for the format before torch 1.6, whose fourth pickle is the object."""
    data = saved(small_net().state_dict(), **LEGACY)
    stream = io.BytesIO(data)
    for _ in range(3):
        pickle.load(stream)
    start = stream.tell()
    end = data.index(b".\x80\x02]", start) + 1
    return data[:start] + change(data[start:end]) + data[end:]


def with_header(header, payload=b""):
    """A safetensors file."""
    return struct.pack("<Q", len(header)) + header + payload


def attack_result(folder="./record/run", count=4, *, indices=np.int64, numpy_1=False, model=None, **changes):
    """What BackdoorBench writes: the layout of ``attack_result.pt`` (utils/save_load_attack.py, bd_dataset_v2.py)."""

    def dataset(name, chosen):
        data_dict = {
            indices(i): {"path": f"{folder}/{name}/{i % 3}/{i}.png", "other_info": [0, i % 3]} for i in range(chosen)
        }
        container = {"save_folder_path": f"{folder}/{name}", "data_dict": data_dict, "save_file_format": ".png"}
        return {
            "bd_data_container": container,
            "getitem_all": True,
            "getitem_all_switch": False,
            "original_index_array": np.arange(count),
            "poison_indicator": np.zeros(count),
            "save_folder_path": f"{folder}/{name}",
        }

    content = {
        "model_name": "preactresnet18",
        "num_classes": 3,
        "model": small_net().state_dict() if model is None else model,
        "data_path": "./data/cifar10",
        "img_size": [32, 24, 3],
        "clean_data": "cifar10",
        "bd_train": dataset("bd_train_dataset", 2),
        "bd_test": dataset("bd_test_dataset", count),
        **changes,
    }
    data = saved(content)
    if numpy_1:
        data = with_pickle(lambda code: code.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"), data)
        assert b"numpy.core.multiarray" in data
    return data


def seeds():
    """Small valid files of every format."""
    from safetensors.torch import save

    net = small_net()
    optimiser = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net(torch.randn(2, 1, 4, 4)).sum().backward()
    optimiser.step()
    training = {"net": net.state_dict(), "optimizer": optimiser.state_dict(), "epoch": 3, "best": 0.5}
    weights = net.state_dict()
    settings = argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("/a"), at=datetime.timedelta(3))
    lightning = {"state_dict": weights, "hyper_parameters": settings, "counts": defaultdict(int, {"a": 1})}
    return [
        saved(lightning),
        saved(lightning, **LEGACY),
        saved(weights),
        saved(weights, **LEGACY),
        saved(training),
        saved(training, **LEGACY),
        save(weights, metadata={"format": "pt"}),
        attack_result(),
        attack_result(numpy_1=True),
    ]


def mutated(data, other, draw: random.Random):
    """One random change: bytes flipped, cut off, put in or taken from another file; also under a valid checksum."""
    if data.startswith(b"PK") and draw.random() < 0.5:
        contents = records(data)
        inner = records(other)["archive/data.pkl"] if other.startswith(b"PK") else other
        name = "archive/data.pkl" if draw.random() < 0.9 else draw.choice(list(contents))
        contents[name] = _mutated(contents[name], inner, draw)
        return zipped(contents)
    return _mutated(data, other, draw)


def read_mutations(path, originals, draw: random.Random, count):
    """How many of ``count`` mutations can be read; all others must be refused in a line that names the file."""
    read = 0
    for _ in range(count):
        path.write_bytes(mutated(draw.choice(originals), draw.choice(originals), draw))
        try:
            load_checkpoint(path)
            read += 1
        except CheckpointError as error:
            assert str(path) in str(error)  # noqa: PT017
            assert str(error).isprintable()  # noqa: PT017
    return read


def _mutated(data, other, draw):
    data = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 5])):
        where, length = draw.randrange(len(data) + 1), draw.choice([1, 2, 4, 8, 40])
        kind = draw.randrange(6)
        if kind == 0 and where < len(data):
            data[where] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[where : where + length] = draw.randbytes(length)
        elif kind == 2:
            data[where : where + length] = draw.choice([b"\xff", b"\x7f", b"\x00", b"9"]) * length
        elif kind == 3:
            data[where:where] = bytes(draw.choice(OPCODES) for _ in range(length))
        elif kind == 4:
            start = draw.randrange(len(other))
            data[where : where + length] = other[start : start + draw.choice([8, 40, 400])]
        else:
            del data[where : where + (length if draw.random() < 0.8 else len(data))]
    return bytes(data)


# Instructions that torch's reader knows, and some that it does not.
OPCODES = b"cRbQ\x81(t\x85\x86\x87ues0.)]}NhqjrKJMXG\x8a\x88\x89a\x8f\x80UI"
