"""``tacfast scan`` and ``repair`` of a folder of transformers, which says all that they need."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tacfast import cli
from tacfast.models import load_checkpoint, restore_model

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES, SIDE = ("cat", "dog", "ship", "frog", "deer"), 24
PREPROCESSOR = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": SIDE, "width": SIDE}}


@pytest.fixture(scope="module")
def suspect(tmp_path_factory):
    """A network of five classes, each told by its colours, and images in folders of the classes' names."""
    root = tmp_path_factory.mktemp("suspect")
    generator = np.random.default_rng(0)
    images, labels = [], []
    for k, name in enumerate(NAMES):
        (root / "images" / name).mkdir(parents=True)
        for i in range(24):
            pixels = generator.integers(0, 60, (SIDE, SIDE, 3)) + 150 * np.array([k >> 2, k >> 1 & 1, k & 1])
            Image.fromarray(pixels.astype("uint8")).save(root / "images" / name / f"{i}.png")
            images.append(torch.from_numpy(pixels / 255.0).float().permute(2, 0, 1))
            labels.append(k)
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1])
    config.id2label = dict(enumerate(NAMES))
    config.label2id = {name: k for k, name in enumerate(NAMES)}
    torch.manual_seed(0)
    model = transformers.AutoModelForImageClassification.from_config(config)
    inputs, wanted = (torch.stack(images) - 0.5) / 0.25, torch.tensor(labels)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(30):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs).logits, wanted).backward()
        optimizer.step()
    model.eval().save_pretrained(root / "model")
    (root / "model" / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return root


def run(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_folder_is_scanned_without_an_option(suspect, tmp_path, capsys):
    facts = tmp_path / "facts.json"
    status, text, err = run(capsys, "scan", suspect / "model", "--data", suspect / "images", "--json", facts)
    assert status in (0, 3, 4), err
    assert "Verdict: " in text
    found = json.loads(facts.read_text())
    assert found["scan"]["accuracy"] == 1.0
    assert found["source"]["normalised by"] == "mean 0.5, 0.5, 0.5; standard deviation 0.25, 0.25, 0.25"
    assert found["source"]["image size"] == f"{SIDE}×{SIDE}"
    assert [row["name"] for row in found["classes"]] == list(NAMES)
    assert len(found["source"]["architecture"]) < 200


def test_a_repair_writes_such_a_folder(suspect, tmp_path, capsys):
    out = tmp_path / "repaired"
    arguments = ("--data", suspect / "images", "--target", "2", "--epochs", "1", "--max-drop", "1")
    status, text, err = run(capsys, "repair", suspect / "model", *arguments, "--out", out)
    assert status in (5, 6), err
    assert f"wrote {out}" in text.replace("\n", "")
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
        "tacfast.json",
    }
    theirs = transformers.AutoModelForImageClassification.from_pretrained(out).eval()
    images = torch.randn(4, 3, SIDE, SIDE)
    checkpoint = load_checkpoint(out)
    assert torch.equal(restore_model(checkpoint).eval()(images).logits, theirs(images).logits)
    assert checkpoint.provenance["repaired from"] == str(suspect / "model")
    # It must not be scanned with the images that trained it.
    _, text, _ = run(capsys, "scan", out, "--data", suspect / "images")
    assert "trained the repair of this model" in text.replace("\n", " ")
    # What exists is not written over, and that is said before the work.
    status, text, err = run(capsys, "repair", suspect / "model", *arguments, "--out", out)
    assert (status, text) == (1, "")
    assert "expected the name of a new folder" in err
    assert err.count("\n") == 1


def test_a_repaired_folder_may_become_a_file(suspect, tmp_path, capsys):
    out = tmp_path / "repaired.safetensors"
    arguments = ("--data", suspect / "images", "--target", "2", "--epochs", "1", "--max-drop", "1")
    status, _, err = run(capsys, "repair", suspect / "model", *arguments, "--out", out)
    assert status in (5, 6), err
    status, _, err = run(capsys, "scan", out, "--data", suspect / "images", "--quick")
    assert status in (0, 3, 4), err
