import numpy as np
import pytest
import torch
from checkpoints import attack_result, saved, small_net, with_pickle

from tacfast.models import (
    CheckpointError,
    PoisonedImage,
    build_model,
    load_checkpoint,
    read_attack_settings,
    read_backdoorbench,
    read_weights,
    write_defense_result,
)


@pytest.fixture
def write(tmp_path):
    """Write a result into a folder with pictures, and give its path."""
    folder = tmp_path / "moved here"
    for i in range(4):
        picture = folder / "bd_test_dataset" / str(i % 3) / f"{i}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(b"\x89PNG")

    def write(data, name="attack_result.pt"):
        (folder / name).write_bytes(data)
        return folder / name

    return write


def refusal(call, *args):
    with pytest.raises(CheckpointError) as caught:
        call(*args)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("numpy_1", [False, True], ids=["NumPy 2", "NumPy 1"])
@pytest.mark.parametrize("indices", [np.int64, int], ids=["most", "WaNet"])
@pytest.mark.parametrize("folder", ["./record/run", "/data/one/record/deep/run", ".\\record\\run"])
def test_results_are_read_wherever_they_are_now(write, folder, indices, numpy_1):
    path = write(attack_result(folder, indices=indices, numpy_1=numpy_1))
    result = read_backdoorbench(path)
    assert (result.model_name, result.num_classes, result.dataset) == ("preactresnet18", 3, "cifar10")
    assert (result.image_size, result.mean[0], result.std[2]) == ((32, 24), 0.4914, 0.261)
    assert result.weights.keys() == small_net().state_dict().keys()
    images = result.poisoned_images()
    base = path.parent / "bd_test_dataset"
    assert images == [PoisonedImage(base / str(i % 3) / f"{i}.png", 0, i % 3) for i in range(4)]
    assert all(image.path.is_file() for image in images)
    assert all(type(image.bd_label) is int for image in images)


def test_loading_changes_nothing_for_others(write):
    """The globals of NumPy are allowed for that one load, and only in a file that is laid out as BackdoorBench's."""
    path = write(attack_result())
    for allowed in ([], [np.dtype]):
        with torch.serialization.safe_globals(allowed):
            before = set(torch.serialization.get_safe_globals())
            read_backdoorbench(path)
            assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        torch.load(path, weights_only=True)
    other = saved({"state_dict": small_net().state_dict(), "indices": np.arange(3)})
    assert "NumPy" in refusal(read_weights, write(other))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"X\x02\x00\x00\x00i8", b"X\x02\x00\x00\x00O8"),
        (b"X\x02\x00\x00\x00i8", b"X\x02\x00\x00\x00V8"),
        (b"K\x00\x85", b"J\xff\xff\xff\x7f\x85"),
        (b"K\x01K\x04\x85", b"K\x01J\xff\xff\xff\x7f\x85"),
        (b"cnumpy\ndtype\n", b"cnumpy\nload\n"),
        (b"latin1", b"base64"),
        (b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t", b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ft"),
    ],
    ids=["objects", "void", "allocation", "shape", "function", "codec", "flags"],
)
def test_arrays_are_only_those_of_backdoorbench(write, monkeypatch, old, new):
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch.load was called"))

    def change(code):
        assert old in code
        return code.replace(old, new)

    refusal(read_backdoorbench, write(with_pickle(change, attack_result())))


def test_paths_stay_in_the_folder(write):
    result = read_backdoorbench(write(attack_result("/etc/../..")))
    folder = result.path.parent
    assert all(folder in image.path.parents for image in result.poisoned_images())
    for path in ("../../passwd", "a/../b", "passwd", "/etc/passwd", "a/b\0/c", 3, None):
        container = {"data_dict": {0: {"path": path, "other_info": [0, 1]}}}
        changed = read_backdoorbench(write(attack_result(bd_test={"bd_data_container": container})))
        assert "expected poisoned test images as" in refusal(changed.poisoned_images)


def test_lists_of_images_that_cannot_be_used_are_refused(write):
    for wrong in (None, {}, {"bd_data_container": {"data_dict": {}}}, {"bd_data_container": {"data_dict": [1]}}):
        result = read_backdoorbench(write(attack_result(bd_test=wrong)))
        assert "got none" in refusal(result.poisoned_images)
    for labels in ([0], [0, 1, 2], ["0", "1"], None, [0, 0.5]):
        container = {"data_dict": {0: {"path": "./record/run/bd_test_dataset/1/0.png", "other_info": labels}}}
        result = read_backdoorbench(write(attack_result(bd_test={"bd_data_container": container})))
        assert "expected poisoned test images as" in refusal(result.poisoned_images)
    path = write(attack_result())
    alone = path.parent.parent / path.name
    path.rename(alone)
    assert "no such folder" in refusal(read_backdoorbench(alone).poisoned_images)


def test_other_files_are_no_results(write):
    assert "expected a result of BackdoorBench" in refusal(read_backdoorbench, write(saved(small_net().state_dict())))
    assert "number of its classes" in refusal(read_backdoorbench, write(attack_result(num_classes="3")))
    assert "img_size" in refusal(read_backdoorbench, write(attack_result(img_size=[32])))
    clean = write(saved(small_net().state_dict()), "clean_model.pth")
    assert read_weights(clean).keys() == small_net().state_dict().keys()


def test_unknown_data_has_no_normalisation(write):
    result = read_backdoorbench(write(attack_result(clean_data="my own")))
    assert (result.dataset, result.mean, result.std) == ("my own", None, None)


def test_settings_of_the_attack_are_read_from_the_file_beside(write):
    path = write(attack_result())
    assert "no such file" in refusal(read_attack_settings, path)
    settings = {"attack": "badnet", "attack_target": 0, "pratio": 0.1, "dataset": "cifar10", "gpu": None}
    write(saved(settings), "info.pickle")
    assert read_attack_settings(path) == settings
    write(saved([1]), "info.pickle")
    assert "expected a dictionary" in refusal(read_attack_settings, path)


@pytest.mark.parametrize("name", ["preactresnet18", "vit_b_16"])
def test_defence_results_are_those_that_backdoorbench_loads(tmp_path, name):
    """Its ViTs are the second part of a Sequential, so that every name has a prefix."""
    path, state = tmp_path / "defense_result.pt", small_net().state_dict()
    write_defense_result(path, name, 3, state)
    content = torch.load(path, weights_only=True)
    assert list(content) == ["model_name", "num_classes", "model"]
    assert (content["model_name"], content["num_classes"]) == (name, 3)
    prefix = "1." if name == "vit_b_16" else ""
    assert list(content["model"]) == [prefix + key for key in state]
    checkpoint = load_checkpoint(path)
    assert (checkpoint.arch, checkpoint.num_classes, checkpoint.mean) == (name, 3, None)
    assert checkpoint.image_size == ((224, 224) if prefix else None)
    assert checkpoint.weights.keys() == state.keys()
    assert [file.name for file in tmp_path.iterdir()] == ["defense_result.pt"]


def test_a_vit_of_backdoorbench_has_the_names_of_our_model(write):
    pytest.importorskip("torchvision")
    with torch.device("meta"):
        own = build_model("vit_b_16", 3).state_dict()
    path = write(attack_result(model_name="vit_b_16", model={f"1.{key}": torch.zeros(1) for key in own}))
    result = read_backdoorbench(path)
    assert result.image_size == (224, 224)
    assert result.weights.keys() == own.keys()
