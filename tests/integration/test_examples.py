"""The examples run, and say what they promise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("torchvision")

from PIL import Image

from tacfast.attacks import BadNets, poison
from tacfast.data import LabelledImages, load_digits, split_indices
from tacfast.demo import train_classifier
from tacfast.models import read_backdoorbench

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(*command):
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_fine_pruning_by_shift():
    rows = re.findall(r"^(\w+) +([\d.]+) +([\d.]+) +([\d.]+) *(\d*)$", run(EXAMPLES / "fine_pruning_by_shift.py"), re.M)
    assert [row[0] for row in rows] == ["backdoored", "least_active", "largest_shift"]
    assert float(rows[0][2]) > 0.9
    assert all(float(row[1]) > 0.95 for row in rows)
    assert all(0 < int(row[4]) < 64 for row in rows[1:])


def test_two_processes():
    pytest.importorskip("torch.distributed.run")
    out = run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, EXAMPLES / "two_processes.py")
    together, alone = out.splitlines()
    assert together.startswith("2 processes, 1797 samples: ")
    assert alone.startswith("1 process,   1797 samples: ")
    norms = [[float(norm) for norm in line.split(": ")[1].split()] for line in (together, alone)]
    assert norms[0] == pytest.approx(norms[1], abs=2e-4)
    assert len(norms[0]) == 10


def draw(folder, images):
    """Write images with pixels in [-1, 1], as BackdoorBench normalises MNIST, to folder/<label>/<number>.png."""
    for i, (image, label) in enumerate(zip(images.images, images.labels.tolist(), strict=True)):
        path = folder / str(label) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(((image[0] + 1) * 127.5).round().byte().numpy()).save(path)


@pytest.mark.usefixtures("one_thread")
def test_backdoorbench_folder(tmp_path):
    digits = load_digits()
    data = LabelledImages(2 * digits.images - 1, digits.labels)
    splits = split_indices(len(data), clean=0.25, test=0.25, seed=0)
    attack = BadNets(4, size=2)
    model = train_classifier(poison(data.subset(splits.train), attack, 0.1, seed=0).data, seed=0)
    test = data.subset(splits.test)
    others = test.subset((test.labels != 4).nonzero().flatten())
    draw(tmp_path / "record" / "bd_test_dataset", LabelledImages(attack.trigger(others.images), others.labels))
    draw(tmp_path / "clean", data.subset(splits.clean))
    entries = {
        i: {"path": f"./record/run/bd_test_dataset/{label}/{i}.png", "other_info": [4, label]}
        for i, label in enumerate(others.labels.tolist())
    }
    result = {
        "model_name": "small_preact_resnet",
        "num_classes": 10,
        "model": model.state_dict(),
        "clean_data": "mnist",
    }
    result |= {"data_path": "./data", "img_size": [8, 8, 1], "bd_train": {}}
    result["bd_test"] = {"bd_data_container": {"data_dict": entries}}
    torch.save(result, tmp_path / "record" / "attack_result.pt")

    out = run(EXAMPLES / "backdoorbench_folder.py", tmp_path / "record", tmp_path / "clean")
    assert "suspicious [4]" in out
    (asr_before, _), (asr_after, ra_after) = re.findall(r"ASR ([\d.]+), RA ([\d.]+)", out)
    assert float(asr_before) > 0.9
    assert float(asr_after) < 0.1
    assert float(ra_after) > 0.7
    repaired = read_backdoorbench(tmp_path / "record" / "defense" / "tacfast" / "defense_result.pt")
    assert repaired.model_name == "small_preact_resnet"
    assert any(not torch.equal(repaired.weights[name], weight) for name, weight in model.state_dict().items())


def test_timm_model(tmp_path):
    timm = pytest.importorskip("timm")
    digits = load_digits()
    draw(tmp_path / "images", LabelledImages(2 * digits.images[:30] - 1, digits.labels[:30]))
    model = timm.create_model("test_resnet", num_classes=10)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    out = run(EXAMPLES / "timm_model.py", "test_resnet", tmp_path / "images", tmp_path / "model.pth")
    assert out.startswith("test_resnet: inconclusive, clean accuracy 0.")
    assert len(re.findall(r"norm \S+, score \S+", out)) == 5
