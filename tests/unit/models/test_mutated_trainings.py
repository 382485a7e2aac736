"""Checkpoints of trainings, as Lightning and scripts leave them, damaged and hostile: read or refused in one line."""

import argparse
import datetime
import pathlib
import random
import sys
import types
import warnings
from collections import OrderedDict, defaultdict

import pytest
import torch
from checkpoints import LEGACY, read_mutations, saved, small_net
from memory import limited_memory, peak_memory

from tacfast.models import load_checkpoint

BUILT = []


class AttributeDict(dict):
    """As Lightning's, and it tells when it is built by a reader that runs code."""

    def __new__(cls, *args, **kwargs):
        BUILT.append(cls)
        return super().__new__(cls, *args, **kwargs)

    def __setstate__(self, state):
        BUILT.append(state)


AttributeDict.__module__ = "lightning_fabric.utilities.data"


class Payload:
    """Creates a file when it is unpickled by a reader that runs code."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.fixture
def lightning(monkeypatch):
    """So that the class can be pickled under Lightning's name, and could be found by it."""
    for name in ("lightning_fabric", "lightning_fabric.utilities", AttributeDict.__module__):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[AttributeDict.__module__].AttributeDict = AttributeDict


def settings():
    """What keeps hyper-parameters, by its kind."""
    plain = {"lr": 0.1, "layers": [1, 2], "path": pathlib.PurePosixPath("/a"), "device": torch.device("cuda", 0)}
    attributes = AttributeDict(plain, inner=AttributeDict(kinds={1, 2}))
    attributes.frozen = True
    found = {"dict": plain, "Namespace": argparse.Namespace(**plain), "AttributeDict": attributes}
    try:
        from easydict import EasyDict
        from omegaconf import OmegaConf
    except ImportError:
        return found
    inner = {"a": {"b": [1, {"c": None}]}}
    return found | {"EasyDict": EasyDict(inner), "OmegaConf": OmegaConf.create(inner)}


def training(hyper_parameters, **more):
    """What Lightning's Trainer writes, see its ``dump_checkpoint``."""
    net = small_net()
    optimiser = torch.optim.AdamW(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, total_steps=10)
    net(torch.randn(2, 1, 4, 4)).sum().backward()
    optimiser.step()
    callback = {"best_model_score": torch.tensor(0.5), "best_model_path": "/a.ckpt", "wait_count": 0}
    return {
        "epoch": 1,
        "global_step": 4,
        "pytorch-lightning_version": "2.6.1",
        "state_dict": OrderedDict((f"net.{name}", value) for name, value in net.state_dict().items()),
        "loops": {"fit_loop": {"epoch_progress": {"total": {"ready": 1, "completed": 1}}, "state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": callback, torch.nn.ReLU: dict(callback)},
        "optimizer_states": [optimiser.state_dict()],
        "lr_schedulers": [schedule.state_dict()],
        "hparams_name": "kwargs",
        "hyper_parameters": hyper_parameters,
        "at": datetime.datetime(2026, 1, 2),
        "counts": defaultdict(int, {"a": 1}),
        **more,
    }


@pytest.mark.usefixtures("lightning")
@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_hyper_parameters_of_every_kind_are_passed_over(tmp_path, options):
    path, expected = tmp_path / "last.ckpt", small_net().state_dict()
    for kind, found in settings().items():
        content = training({"cfg": found, "again": [found]})
        if options:
            content["callbacks"] = {}  # the source of a class would come along, for which torch's own reader is none
        path.write_bytes(saved(content, **options))
        BUILT.clear()
        weights = load_checkpoint(path, strip_prefix="net.").weights
        assert list(weights) == list(expected), kind
    assert BUILT == []


@pytest.mark.usefixtures("lightning")
@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_mutated_trainings_are_read_or_refused(tmp_path, count):
    draw, path, marker = random.Random(count), tmp_path / "last.ckpt", tmp_path / "owned"
    warnings.simplefilter("error")  # a damaged file makes no noise either
    sound, hostile = [], []
    for found in settings().values():
        content = training(found)
        plain = {**content, "callbacks": {}}
        sound += [saved(content), saved(plain, **LEGACY)]
        hostile += [saved(content | {"hook": Payload(marker)}), saved({"cfg": [Payload(marker), found]})]
        hostile += [saved(plain | {"hook": Payload(marker)}, **LEGACY)]
    for data in sound:
        path.write_bytes(data)
        load_checkpoint(path)
    originals = sound + hostile
    BUILT.clear()
    before = peak_memory()
    with limited_memory(256):
        read = read_mutations(path, originals, draw, count)
    assert 0 < read < count / 2
    assert peak_memory() - before < 100
    assert not marker.exists()
    assert BUILT == []
