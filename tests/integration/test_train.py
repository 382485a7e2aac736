"""`tacfast train` from outside: exit status, lines, files, and what a scan makes of them."""

import json
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("safetensors")
pytest.importorskip("sklearn")
pytest.importorskip("torchvision")

from PIL import Image

from tacfast import cli
from tacfast.attacks import ATTACKS, TrojanNN
from tacfast.data.datasets import load_dataset
from tacfast.evaluation import evaluate
from tacfast.training.trained import load_trained

pytestmark = pytest.mark.usefixtures("one_thread")

NETWORK = ("--arch", "small_preact_resnet", "--arch-args", '{"width": 4}')
FAST = ("--data", "digits", *NETWORK, "--batch-size", "64", "--precision", "float32")


def run(capsys, *arguments):
    """Exit status, standard output, standard error."""
    capsys.readouterr()
    status = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return status, captured.out, captured.err


def train(capsys, out, *arguments):
    return run(capsys, "train", "--out", out, *FAST, *arguments)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """A network under BadNets, trained by the command line."""
    out = tmp_path_factory.mktemp("trained") / "net.safetensors"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    settings = ("--attack", "badnets", "--target", "3", "--epochs", "15", "--seed", "1", "--clean", "0.2")
    wider = ("--arch-args", '{"width": 8}')
    assert cli.main(["train", "--out", str(out), *FAST, *wider, *settings]) == 0
    torch.set_num_threads(threads)
    return out


def test_what_is_written(attacked):
    assert sorted(path.name for path in attacked.parent.iterdir()) == ["net.json", "net.safetensors"]
    known = json.loads(attacked.with_suffix(".json").read_text())
    assert (known["arch"], known["arch_args"]) == ("small_preact_resnet", {"in_channels": 1, "width": 8})
    assert known["class_names"] == list("0123456789")
    assert (known["mean"], known["std"], known["image_size"]) == ([0.0], [1.0], [8, 8])
    found = known["provenance"]
    assert found["data"] == "digits"
    assert (found["plan"]["attack"], found["plan"]["target"], found["plan"]["recipe"]["seed"]) == ("badnets", 3, 1)
    assert found["splits"].keys() == {"train", "clean", "test", "held_out"}
    assert len(found["history"]) == 15
    dataset = load_dataset("digits")
    trained = load_trained(attacked, dataset)
    measured = evaluate(trained.model, dataset.data.subset(trained.splits.test).loader(), trained.attack)
    assert known["metrics"] == {"acc": measured.acc, "asr": measured.asr, "ra": measured.ra}
    assert measured.acc > 0.8
    assert measured.asr > 0.8


def test_its_checkpoint_is_scanned_without_further_options(attacked, tmp_path, capsys):
    dataset = load_dataset("digits")
    trained = load_trained(attacked, dataset)
    images = dataset.data.subset(trained.splits.clean)
    for i, (image, label) in enumerate(zip(images.images, images.labels.tolist(), strict=True)):
        path = tmp_path / str(label) / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray((image[0] * 255).round().byte().numpy()).save(path)
    status, out, err = run(capsys, "scan", attacked, "--data", tmp_path, "--json", tmp_path / "scan.json")
    assert status in (0, 3, 4)
    assert err == ""
    assert "implausible" not in out
    facts = json.loads((tmp_path / "scan.json").read_text())
    assert facts["scan"]["accuracy"] > 0.8


def test_a_clean_network_and_what_is_said(tmp_path, capsys):
    out = tmp_path / "net.safetensors"
    status, text, err = train(capsys, out, "--epochs", "2")
    assert (status, err) == (0, "")
    assert re.findall(r"epoch (\d): loss \d\.\d+, ACC [\d.]+ %", text) == ["1", "2"]
    assert "ASR" not in text
    assert re.search(rf"ACC [\d.]+ % on 449 test images; wrote {re.escape(str(out))}", text.replace("\n", ""))
    known = json.loads(out.with_suffix(".json").read_text())
    assert known["metrics"].keys() == {"acc"}
    assert known["provenance"]["poisoned images"] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.json", "net.safetensors"]


def test_under_attack_asr_is_said_and_half_is_half(tmp_path, capsys):
    out = tmp_path / "net.safetensors"
    status, text, _ = train(capsys, out, "--epochs", "1", "--attack", "lira", "--half")
    assert status == 0
    assert re.search(r"epoch 1: loss \d\.\d+, ACC [\d.]+ %, ASR [\d.]+ %", text)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.json", "net.safetensors", "net.trigger.pt"]
    from safetensors.torch import load_file

    dtypes = {tensor.dtype for tensor in load_file(out).values()}
    assert dtypes == {torch.float16, torch.int64}


@pytest.fixture
def quick_trojan(monkeypatch):
    monkeypatch.setitem(ATTACKS, "trojannn", lambda target, *_: TrojanNN(target, size=2, steps=4))


@pytest.mark.usefixtures("quick_trojan")
def test_trojannn_trains_its_clean_network_first(tmp_path, capsys):
    status, text, err = train(capsys, tmp_path / "net.safetensors", "--epochs", "2", "--attack", "trojannn")
    assert (status, err) == (0, "")
    assert re.findall(r"epoch (\d): loss", text) == ["1", "2", "1", "2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.json", "net.safetensors", "net.trigger.pt"]


@pytest.mark.usefixtures("quick_trojan")
def test_trojannn_takes_a_clean_network(tmp_path, capsys):
    clean = tmp_path / "clean.safetensors"
    assert train(capsys, clean, "--epochs", "1")[0] == 0
    out = tmp_path / "net.safetensors"
    status, text, _ = train(capsys, out, "--epochs", "1", "--attack", "trojannn", "--clean-model", clean)
    assert status == 0
    assert len(re.findall(r"epoch \d: loss", text)) == 1
    status, _, err = train(
        capsys, out, "--epochs", "1", "--attack", "trojannn", "--clean-model", tmp_path / "no.safetensors"
    )
    assert status == 1
    assert err.count("\n") == 1
    assert "no.safetensors" in err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--attack", "magic"), 2, "Invalid value for --attack: expected one of badnets, .*, got 'magic'"),
        (("--data", "mnist"), 2, "Invalid value for --data: expected one of cifar10, .*, got 'mnist'"),
        (("--data", "cifar10", "--data-root", "nowhere"), 1, "error: .*nowhere"),
        (("--attack", "badnets", "--target", "10"), 1, "error: target: expected a class 0 to 9, got 10"),
        (("--attack", "badnets", "--target", "-1"), 1, "error: target: expected a class 0 to 9, got -1"),
        (("--attack", "badnets", "--ratio", "0"), 1, r"error: ratio: expected a share in \(0, 1\], got 0"),
        (("--attack", "badnets", "--ratio", "1.5"), 1, r"error: ratio: expected a share in \(0, 1\], got 1.5"),
        (("--out", "net.pt"), 2, "--out.*expected a name that ends in .safetensors, got net.pt"),
        (("--out", "nowhere/net.safetensors"), 1, "error: out: cannot write nowhere/net.safetensors"),
        (("--epochs", "0"), 2, "--epochs"),
        (("--batch-size", "1"), 2, "--batch-size"),
        (("--batch-size", "100000"), 1, "error: data: expected at least 100000 images"),
        (("--lr", "0"), 1, "error: lr: expected a learning rate > 0, got 0"),
        (("--lr", "nan"), 1, "error: lr: expected a learning rate > 0, got nan"),
        (("--lr", "1e30"), 1, r"error: .*training diverged: loss nan; lower lr \(it is 1e\+30\)"),
        (("--schedule", "step"), 2, "Invalid value for --schedule: expected one of one-cycle, cosine, got 'step'"),
        (("--weight-decay", "-1"), 1, "error: weight_decay: expected a number >= 0, got -1"),
        (("--precision", "float16"), 2, "Invalid value for --precision: expected one of auto, bfloat16, .* 'float16'"),
        (("--clean", "0"), 1, "error: clean, test, held_out: expected shares"),
        (("--clean", "0.8"), 1, "error: clean, test, held_out: expected shares"),
        (("--arch", "resnet1"), 1, "error: .*resnet18"),
        (("--arch-args", '{"colour": 3}'), 1, "error: .*colour"),
        (("--device", "cuda:99"), 2, "expected a device such as cpu"),
        (("--seed", "-1"), 2, "--seed"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, capsys, monkeypatch, arguments, status, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TACFAST_DATA", raising=False)
    got, _, err = train(capsys, "net.safetensors", "--epochs", "1", *arguments)
    assert got == status
    assert re.search(message, re.sub(r"[\s│]+", " ", err))
    if status == 1:
        assert err.startswith("tacfast: error: ")
        assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_somebody_elses_file_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "net.json").write_text('{"mine": 1}')
    status, _, err = train(capsys, tmp_path / "net.safetensors", "--epochs", "1")
    assert status == 1
    assert "net.json is free, but that is another file" in err
    assert [path.name for path in tmp_path.iterdir()] == ["net.json"]


def test_an_interrupted_training_goes_on(tmp_path, capsys, monkeypatch):
    from tacfast.commands.work import train as command

    whole = tmp_path / "whole.safetensors"
    settings = ("--epochs", "3", "--attack", "blended")
    assert train(capsys, whole, *settings)[0] == 0
    real, calls = command.train_plan, []

    def interrupted(*args, on_epoch, **kwargs):
        def tell(epoch, model, attack):
            calls.append(epoch.epoch)
            on_epoch(epoch, model, attack)
            if calls == [1, 2]:
                raise KeyboardInterrupt

        return real(*args, on_epoch=tell, **kwargs)

    monkeypatch.setattr(command, "train_plan", interrupted)
    out = tmp_path / "two.safetensors"
    assert train(capsys, out, *settings)[0] == 130
    assert sorted(path.name for path in tmp_path.glob("two*")) == ["two.safetensors.state"]
    # Not that of another training.
    status, _, err = train(capsys, out, *settings, "--target", "2")
    assert status == 1
    assert err.startswith("tacfast: error: ")
    assert "expected the state of this training with" in err
    assert err.rstrip().endswith("; remove the file to start anew")
    assert err.count("\n") == 1
    assert train(capsys, out, *settings)[0] == 0
    assert calls == [1, 2, 3]
    assert sorted(path.name for path in tmp_path.glob("two*")) == ["two.json", "two.safetensors"]
    assert whole.read_bytes() == out.read_bytes()


@pytest.mark.parametrize("what", ["state", "weights"])
def test_a_full_disk_is_one_line_and_leaves_the_old_files(tmp_path, capsys, monkeypatch, what):
    out = tmp_path / "net.safetensors"
    settings = ("--epochs", "2")
    assert train(capsys, out, *settings)[0] == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write, written = Path.write_bytes, []

    def full(self, content):
        written.append(len(content))
        # The probe of the output, then two states, then the weights.
        if len(written) > (2 if what == "state" else 3):
            raise OSError(28, "No space left on device", str(self))
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    status, _, err = train(capsys, out, *settings, "--seed", "5")
    assert status == 1
    assert err.startswith("tacfast: error: ")
    assert "No space left on device" in err
    assert err.count("\n") == 1
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"net.safetensors.state"}
    # With room again it goes on.
    monkeypatch.setattr(Path, "write_bytes", write)
    assert train(capsys, out, *settings, "--seed", "5")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.json", "net.safetensors"]
    assert out.read_bytes() != before["net.safetensors"]
