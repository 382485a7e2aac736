import argparse
import dataclasses
import json
import random
import sys

import pytest
import torch
from checkpoints import attack_result, mutated, saved, small_net

from tacfast.models import (
    Checkpoint,
    CheckpointError,
    build_model,
    load_checkpoint,
    load_weights,
    read_weights,
    restore_model,
    save_checkpoint,
)

safetensors = pytest.importorskip("safetensors.torch")
ARGS = {"in_channels": 1, "width": 4}


def example():
    torch.manual_seed(0)
    return Checkpoint(
        weights=build_model("small_preact_resnet", 3, arch_args=ARGS).state_dict(),
        arch="small_preact_resnet",
        arch_args=ARGS,
        num_classes=3,
        class_names=("zero", "één", "二"),
        mean=(0.5,),
        std=(0.25,),
        image_size=(8, 6),
        provenance={"data": "digits", "seed": 0, "repairs": [{"class": 1}]},
        metrics={"accuracy": 0.98},
    )


def assert_same(found, expected):
    for item in dataclasses.fields(Checkpoint):
        if item.name != "weights":
            assert getattr(found, item.name) == getattr(expected, item.name), item.name
    assert found.weights.keys() == expected.weights.keys()
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in expected.weights.items())


def test_what_is_saved_comes_back(tmp_path):
    save_checkpoint(example(), tmp_path / "model.safetensors")
    assert_same(load_checkpoint(tmp_path / "model.safetensors"), example())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    sidecar = (tmp_path / "model.json").read_text(encoding="utf-8")
    assert '"class_names": [\n    "zero",\n    "één"' in sidecar
    assert safetensors.load_file(tmp_path / "model.safetensors").keys() == example().weights.keys()
    save_checkpoint(Checkpoint(example().weights), tmp_path / "model.safetensors")  # over the old one
    assert load_checkpoint(tmp_path / "model.safetensors").arch is None


def test_restored_model_computes_the_same(tmp_path):
    torch.manual_seed(1)
    model = build_model("small_preact_resnet", 3, arch_args=ARGS).eval()
    save_checkpoint(dataclasses.replace(example(), weights=model.state_dict()), tmp_path / "a.safetensors")
    images = torch.randn(2, 1, 8, 6)
    assert torch.equal(restore_model(load_checkpoint(tmp_path / "a.safetensors")).eval()(images), model(images))


def test_any_tensor_can_be_saved(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    weights = {
        "t": base.t(),
        "same": base,
        "part": base[1:],
        "parameter": torch.nn.Parameter(base),
        "count": torch.tensor(3),
    }
    for name in ("m.safetensors", "m.pt"):
        save_checkpoint(Checkpoint(weights), tmp_path / name)
        assert_same(load_checkpoint(tmp_path / name), Checkpoint(weights))


def test_pickles_are_plain_state_dicts(tmp_path):
    for name in ("m.pt", "m.pth"):
        save_checkpoint(example(), tmp_path / name)
        content = torch.load(tmp_path / name, weights_only=True)
        build_model("small_preact_resnet", 3, arch_args=ARGS).load_state_dict(content)
        assert load_checkpoint(tmp_path / name).num_classes is None
    assert not (tmp_path / "m.json").exists()
    with pytest.raises(ValueError, match=r"path: expected a name that ends in \.safetensors, \.pt or \.pth"):
        save_checkpoint(example(), tmp_path / "m.bin")


def test_checkpoints_from_elsewhere_have_weights_only(tmp_path):
    path, state = tmp_path / "m.safetensors", small_net().state_dict()
    safetensors.save_file(dict(state), path)
    (tmp_path / "m.json").write_text('{"architectures": ["ResNet"]}')  # somebody else's
    assert_same(load_checkpoint(path), Checkpoint(dict(state)))
    with pytest.raises(ValueError, match="is free, but that is another file"):
        save_checkpoint(example(), path)
    path = tmp_path / "m.pt"
    path.write_bytes(saved(state))
    assert_same(load_checkpoint(path), Checkpoint(dict(state)))


def test_results_of_backdoorbench_say_what_they_are(tmp_path):
    path = tmp_path / "attack_result.pt"
    path.write_bytes(attack_result())
    expected = Checkpoint(
        dict(small_net().state_dict()),
        arch="preactresnet18",
        num_classes=3,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.247, 0.243, 0.261),
        image_size=(32, 24),
        provenance={"source": "BackdoorBench", "dataset": "cifar10"},
    )
    assert_same(load_checkpoint(path), expected)
    path.write_bytes(attack_result(num_classes=1))
    with pytest.raises(CheckpointError, match=r"attack_result\.pt: num_classes: expected a whole number"):
        load_checkpoint(path)


def test_a_sidecar_belongs_to_its_weights(tmp_path):
    path = tmp_path / "m.safetensors"
    save_checkpoint(example(), path)
    safetensors.save_file({"other": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match=r"m\.json: it does not belong to .*m\.safetensors"):
        load_checkpoint(path)


def test_a_save_that_fails_leaves_nothing_half_written(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    save_checkpoint(example(), path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(Checkpoint({"w": torch.ones(3)}), path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    with pytest.raises(FileNotFoundError):
        save_checkpoint(example(), tmp_path / "missing" / "m.safetensors")


WRONG = {
    "arch": (3, "a name, got 3"),
    "arch_args": ([1], "arguments by name"),
    "num_classes": (True, "from 2 to 100000, got True"),
    "class_names": (["a", "b"], "one for each of 3 classes, got 2"),
    "mean": ([0.1, 0.2], "for the same colour channels"),
    "std": ([0.0], "positive numbers, got (0.0,)"),
    "image_size": ([32], "height and width of at most 4096, got (32,)"),
    "provenance": ("me", "a dictionary"),
    "metrics": (0.5, "a dictionary"),
}


@pytest.mark.parametrize("name", WRONG)
def test_fields_are_checked_in_memory_and_in_files(tmp_path, name):
    value, message = WRONG[name]
    with pytest.raises(ValueError, match=name) as caught:
        dataclasses.replace(example(), **{name: value})
    assert message in str(caught.value)
    path, sidecar = tmp_path / "m.safetensors", tmp_path / "m.json"
    save_checkpoint(example(), path)
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), name: value}))
    with pytest.raises(CheckpointError, match=name) as caught:
        load_checkpoint(path)
    assert message in str(caught.value)
    assert str(sidecar) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-20], "expected JSON, got something damaged"),
        (lambda text: "[" * 10**5, "expected JSON, got something damaged"),
        (lambda text: text.replace("0.25", "Infinity"), "std: expected"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "too old"),
        (lambda text: text.replace('"mean"', '"meen"'), "got 'meen'"),
        (lambda text: text.replace('"std"', '"weights"'), "got 'weights'"),
        (lambda text: text.replace("zero", "\\u001b[31m"), "class_names: expected a list of printable names"),
        (lambda text: text.replace('"zero"', "9" * 5000), "expected JSON, got something damaged"),
    ],
)
def test_damaged_sidecars_are_refused(tmp_path, change, message):
    path, sidecar = tmp_path / "m.safetensors", tmp_path / "m.json"
    save_checkpoint(example(), path)
    sidecar.write_text(change(sidecar.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert message in str(caught.value)
    assert str(sidecar) in str(caught.value)


def test_mutated_sidecars_are_read_or_refused(tmp_path):
    path, sidecar = tmp_path / "m.safetensors", tmp_path / "m.json"
    save_checkpoint(example(), path)
    original, draw, read = sidecar.read_bytes(), random.Random(0), 0
    for _ in range(500):
        sidecar.write_bytes(mutated(original, original, draw))
        try:
            load_checkpoint(path)
            read += 1
        except CheckpointError as error:
            assert str(tmp_path) in str(error)  # noqa: PT017
            assert str(error).isprintable()  # noqa: PT017
    assert 0 < read < 250


def test_a_model_is_only_restored_if_it_is_known_and_fits():
    with pytest.raises(CheckpointError, match="arch: expected it"):
        restore_model(Checkpoint(example().weights))
    with pytest.raises(CheckpointError, match="num_classes: expected it"):
        restore_model(Checkpoint(example().weights, arch="small_preact_resnet"))
    with pytest.raises(CheckpointError, match="made for 3 classes and the model for 4"):
        restore_model(dataclasses.replace(example(), class_names=None, num_classes=4))


def test_an_architecture_larger_than_its_weights_is_never_built():
    """These would take 4 TB and more."""
    for arch_args in ({"in_channels": 1, "width": 10**5}, {"in_channels": 10**5, "width": 10**5}):
        with pytest.raises(CheckpointError, match="of another shape"):
            restore_model(dataclasses.replace(example(), arch_args=arch_args))
    with pytest.raises(CheckpointError, match="of another shape"):
        restore_model(dataclasses.replace(example(), class_names=None, num_classes=10**5))
    for field, value in {"num_classes": 100_001, "image_size": (4097, 8)}.items():
        with pytest.raises(ValueError, match=f"{field}: expected"):
            dataclasses.replace(example(), class_names=None, **{field: value})
    for arch_args in ({"width": 10**6}, {"sizes": [1, {"a": [10**30]}]}, {"width": 1e300}):
        with pytest.raises(ValueError, match="numbers up to 100000"):
            dataclasses.replace(example(), arch_args=arch_args)


def test_an_architecture_of_far_more_layers_than_weights_is_given_up():
    pytest.importorskip("timm")
    weights, arch = {"head.weight": torch.ones(3, 192)}, "timm:vit_tiny_patch16_224"
    registered = torch.nn.modules.module._global_parameter_registration_hooks
    before = len(registered)
    with pytest.raises(ValueError, match="far more than the 1 tensors"):
        restore_model(Checkpoint(weights, arch=arch, num_classes=3, arch_args={"depth": 10**5}))
    assert len(registered) == before


def test_a_regnet_is_restored_and_takes_no_arguments():
    pytest.importorskip("torchvision")
    weights = build_model("regnet_y_400mf", 3).state_dict()
    checkpoint = Checkpoint(weights, arch="regnet_y_400mf", num_classes=3)
    assert torch.equal(restore_model(checkpoint).fc.weight, weights["fc.weight"])
    with pytest.raises(CheckpointError, match="arch_args: expected none"):
        restore_model(dataclasses.replace(checkpoint, arch_args={"stem_width": 10**5}))


def test_without_safetensors_the_extra_is_named(tmp_path, monkeypatch):
    save_checkpoint(example(), tmp_path / "m.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for call in (lambda path: save_checkpoint(example(), path), load_checkpoint, read_weights):
        with pytest.raises(ImportError, match=r"tacfast\[io\]"):
            call(tmp_path / "m.safetensors")
    save_checkpoint(example(), tmp_path / "m.pt")
    assert_same(load_checkpoint(tmp_path / "m.pt"), Checkpoint(example().weights))


# ---- checkpoints of trainings --------------------------------------------------------------------------------


@pytest.fixture
def training(tmp_path):
    """As training scripts leave them: weights, their average, and a Lightning module with a loss."""
    net, average = small_net().state_dict(), {name: 2 * value for name, value in small_net().state_dict().items()}
    lightning = {f"net.{name}": 3 * value for name, value in net.items()} | {"loss.weight": torch.ones(3)}
    content = {
        "epoch": 3,
        "model": net,
        "model_ema": average,
        "nets": {"teacher": average, "a.b": net},
        "pl": lightning,
    }
    torch.save(content, tmp_path / "last.pt")
    torch.save({"epoch": 3, "model_ema": average}, tmp_path / "ema.pt")
    torch.save({"state_dict": lightning, "hyper_parameters": {"lr": 0.1}}, tmp_path / "lightning.ckpt")
    return tmp_path


@pytest.mark.parametrize(
    ("file", "options", "factor", "where"),
    [
        ("last.pt", {}, 1, "model"),
        ("last.pt", {"key": "model_ema"}, 2, "model_ema"),
        ("last.pt", {"key": "nets.teacher"}, 2, "nets.teacher"),
        ("ema.pt", {}, 2, "model_ema"),
        ("lightning.ckpt", {"strip_prefix": "net."}, 3, "state_dict"),
        ("last.pt", {"key": "pl", "strip_prefix": "net."}, 3, "pl"),
    ],
)
def test_the_state_dict_of_a_training_is_found_or_named(training, file, options, factor, where):
    found = load_checkpoint(training / file, **options)
    for name, value in small_net().state_dict().items():
        assert torch.equal(found.weights[name], factor * value)
    assert len(found.weights) == len(small_net().state_dict())
    assert found.provenance == {"state dict": where}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": "ema"}, "expected 'ema' in it, got a dictionary with epoch, model, model_ema, nets, pl"),
        ({"key": "nets.student"}, "expected 'nets.student' in it"),
        ({"key": "epoch"}, "expected a state dict"),
        ({"strip_prefix": "backbone."}, r"expected names that begin with 'backbone\.', got 0\.weight, 0\.bias"),
    ],
)
def test_a_name_that_is_not_there_is_told(training, options, message):
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(training / "last.pt", **options)


def test_beside_what_a_prefix_chooses_may_be_anything(tmp_path):
    """Such as settings among the tensors themselves."""
    net, path = small_net().state_dict(), tmp_path / "flat.pt"
    others = {"args": argparse.Namespace(lr=0.1), "epoch": 3, 7: None}
    torch.save({f"net.{name}": value for name, value in net.items()} | others, path)
    found = load_checkpoint(path, strip_prefix="net.").weights
    assert found.keys() == net.keys()
    assert all(torch.equal(found[name], net[name]) for name in net)
    with pytest.raises(CheckpointError, match=r"got argparse\.Namespace for 'args'"):
        load_checkpoint(path)


def test_a_prefix_that_hides_the_models_names_is_named(training):
    weights = load_checkpoint(training / "lightning.ckpt").weights
    with pytest.raises(CheckpointError, match=r"are there behind the prefix 'net\.', strip it"):
        load_weights(small_net(), weights)
    incomplete = {name: value for name, value in weights.items() if name != "net.0.bias"}
    with pytest.raises(CheckpointError) as caught:
        load_weights(small_net(), incomplete)
    assert "strip it" not in str(caught.value)
