"""A trained network on disk and back: weights, splits, attack and what was planned."""

import dataclasses
import json

import pytest
import torch
from trained import CLASSES, TARGET, hasten, make_dataset, plan_for, same, weights

pytest.importorskip("safetensors")

from tacfast.attacks import ATTACKS
from tacfast.models import load_checkpoint, restore_model
from tacfast.models.architectures import SmallPreActResNet
from tacfast.models.weights import CheckpointError
from tacfast.training.trained import load_trained, plan_as_dict, plan_from_dict, save_trained, train_plan, trigger_of

pytestmark = pytest.mark.usefixtures("one_thread")

TRAINED = {"trojannn", "lira", "input-aware"}


def clean_model():
    torch.manual_seed(9)
    return SmallPreActResNet(CLASSES, 1, width=4).eval()


def train(attack, dataset, **changes):
    return train_plan(plan_for(attack, **({"epochs": 1} | changes)), dataset, clean_model=clean_model)


@pytest.mark.parametrize("attack", [None, *ATTACKS])
def test_there_and_back(monkeypatch, tmp_path, attack):
    hasten(monkeypatch)
    dataset, path = make_dataset(), tmp_path / "net.safetensors"
    trained = train(attack, dataset)
    save_trained(trained, path)
    names = {"net.safetensors", "net.json"} | ({"net.trigger.pt"} if attack in TRAINED else set())
    assert {each.name for each in tmp_path.iterdir()} == names
    again = load_trained(path, dataset)
    assert same(weights(trained.model), weights(again.model))
    assert not again.model.training
    images = dataset.data.images
    with torch.no_grad():
        assert torch.equal(trained.model(images), again.model(images))
    for share in ("train", "clean", "held_out", "test"):
        assert torch.equal(getattr(trained.splits, share), getattr(again.splits, share))
    if attack is None:
        assert again.attack is trained.attack is None
    else:
        assert torch.equal(trained.attack.trigger(images), again.attack.trigger(images))
        assert not torch.equal(again.attack.trigger(images), images)
        assert again.attack.target == (None if attack == "badnets-a2a" else TARGET)
    assert plan_from_dict(again.checkpoint.provenance["plan"]) == plan_for(attack, epochs=1)


def test_half_precision_is_half_the_size_and_nearly_the_same(tmp_path):
    dataset = make_dataset()
    trained = train("badnets", dataset, arch_args={"width": 16})
    for half in (False, True):
        save_trained(trained, tmp_path / f"{half}.safetensors", half=half)
    sizes = [(tmp_path / f"{half}.safetensors").stat().st_size for half in (False, True)]
    assert sizes[1] < 0.6 * sizes[0]
    again = load_trained(tmp_path / "True.safetensors", dataset).model
    assert all(weight.dtype == torch.float32 for weight in again.parameters())
    for name, weight in weights(trained.model).items():
        # Half precision has 11 significant bits.
        torch.testing.assert_close(again.state_dict()[name], weight, rtol=2**-11, atol=1e-7)
    with torch.no_grad():
        before, after = trained.model(dataset.data.images), again(dataset.data.images)
    assert float((after - before).norm() / before.norm()) < 0.01
    counts = [name for name in weights(again) if name.endswith("num_batches_tracked")]
    assert all(again.state_dict()[name].dtype == torch.int64 for name in counts)
    assert counts


def test_the_sidecar_says_all_that_a_scan_must_know(tmp_path):
    dataset, path = make_dataset(channels=3), tmp_path / "net.safetensors"
    trained = train("badnets", dataset)
    save_trained(trained, path)
    known = json.loads((tmp_path / "net.json").read_text())
    assert (known["arch"], known["arch_args"]) == ("small_preact_resnet", {"in_channels": 3, "width": 4})
    assert known["num_classes"] == CLASSES
    assert known["class_names"] == list(dataset.class_names)
    assert (known["mean"], known["std"]) == ([0.4] * 3, [0.3] * 3)
    assert known["image_size"] == [8, 8]
    found = known["provenance"]
    assert found["data"] == "tiny"
    assert found["plan"] == json.loads(json.dumps(plan_as_dict(plan_for("badnets", epochs=1))))
    assert found["training images"] == len(trained.splits.train)
    assert found["poisoned images"] == round(0.25 * len(trained.splits.train))
    assert [epoch["epoch"] for epoch in found["history"]] == [1]
    network = restore_model(load_checkpoint(path)).eval()
    images = dataset.data.images
    with torch.no_grad():
        assert torch.allclose(network((images - 0.4) / 0.3), trained.model(images), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("arch", ["small_preact_resnet", "preactresnet18", "small_vgg_bn"])
def test_colour_channels_follow_from_the_data(arch, channels):
    dataset = make_dataset(channels=channels)
    plan = plan_for(None, arch=arch, arch_args={"width": 4})
    assert plan.build(dataset)(dataset.data.images[:2]).shape == (2, CLASSES)


def test_other_libraries_call_colour_channels_otherwise():
    other = plan_for(None, arch="timm:resnet18", arch_args={})
    assert other.arch_args_for(make_dataset()) == {"in_chans": 1}
    assert other.arch_args_for(make_dataset(channels=3)) == {}


@pytest.fixture
def saved(monkeypatch, tmp_path):
    hasten(monkeypatch)
    dataset, path = make_dataset(), tmp_path / "net.safetensors"
    save_trained(train("lira", dataset), path)
    return dataset, path


def flipped(content, where):
    content = bytearray(content)
    content[where] ^= 1
    return bytes(content)


@pytest.mark.parametrize("name", ["net.safetensors", "net.json", "net.trigger.pt"])
@pytest.mark.parametrize("damage", ["cut off", "empty", "something else"])
def test_damaged_files_are_named(saved, name, damage):
    dataset, path = saved
    file = path.with_name(name)
    content = file.read_bytes()
    file.write_bytes({"cut off": content[:-20], "empty": b"", "something else": b"[1, 2" * 50}[damage])
    with pytest.raises(CheckpointError, match=name.split(".")[0]) as error:
        load_trained(path, dataset)
    assert name in str(error.value)


@pytest.mark.parametrize("where", [40, 0.25, 0.5, 0.75, -30])
@pytest.mark.parametrize("name", ["net.safetensors", "net.trigger.pt"])
def test_a_single_bit_is_noticed(saved, name, where):
    dataset, path = saved
    file = path.with_name(name)
    content = file.read_bytes()
    file.write_bytes(flipped(content, where if isinstance(where, int) else int(where * len(content))))
    with pytest.raises(CheckpointError):
        load_trained(path, dataset)


def test_a_trigger_of_another_attack_is_named(saved, tmp_path):
    """Where the weights do not say which file it was, as older ones."""
    dataset, path = saved
    sidecar = path.with_suffix(".json")
    known = json.loads(sidecar.read_text())
    del known["provenance"]["trigger_sha256"]
    sidecar.write_text(json.dumps(known))
    load_trained(path, dataset)
    for content in ({"patch": torch.rand(1, 2, 2)}, [1], {"noise": {}, "optimizer": {}}):
        torch.save(content, trigger_of(path))
        with pytest.raises(CheckpointError, match=r"net\.trigger\.pt: expected the trigger of LIRA"):
            load_trained(path, dataset)
    trigger_of(path).write_bytes(b"PK\x03\x04" + b"\x00" * 100)
    with pytest.raises(CheckpointError, match=r"net\.trigger\.pt: not read: it is a damaged"):
        load_trained(path, dataset)
    trigger_of(path).unlink()
    with pytest.raises(FileNotFoundError):
        load_trained(path, dataset)


def test_no_code_in_a_trigger_is_run(saved, tmp_path):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    dataset, path = saved
    sidecar = path.with_suffix(".json")
    known = json.loads(sidecar.read_text())
    del known["provenance"]["trigger_sha256"]
    sidecar.write_text(json.dumps(known))
    torch.save({"noise": Hostile()}, trigger_of(path))
    with pytest.raises(CheckpointError):
        load_trained(path, dataset)
    assert not (tmp_path / "harm").exists()


def test_networks_from_elsewhere_are_refused(saved):
    dataset, path = saved
    with pytest.raises(ValueError, match="path: expected a network trained by tacfast on other, got "):
        load_trained(path, dataclasses.replace(dataset, name="other"))
    path.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match="path: expected a network trained by tacfast on tiny, got "):
        load_trained(path, dataset)


def test_a_plan_from_elsewhere_is_refused(saved):
    dataset, path = saved
    sidecar = path.with_suffix(".json")
    known = json.loads(sidecar.read_text())
    for plan in (
        {},
        {"recipe": {}},
        3,
        {**known["provenance"]["plan"], "more": 1},
        {**known["provenance"]["plan"], "recipe": {"epochs": 0}},
    ):
        sidecar.write_text(json.dumps({**known, "provenance": {**known["provenance"], "plan": plan}}))
        with pytest.raises(ValueError, match=r"plan|epochs"):
            load_trained(path, dataset)
