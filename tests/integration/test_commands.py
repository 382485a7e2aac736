"""`tacfast scan` and `tacfast repair` from outside: files in, exit status, files and lines out."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("torchvision")
pytest.importorskip("safetensors")
pytest.importorskip("sklearn")

from suspects import MODEL, PIXELS, draw, write_suspect

from tacfast import cli
from tacfast.demo import make_trial
from tacfast.models import build_model, load_checkpoint, load_weights

pytestmark = pytest.mark.usefixtures("one_thread")

# A repair that leaves the backdoor as it was.
TOO_LITTLE = ("--mode", "latent", "--epochs", "2", "--lr", "0.001", "--max-drop", "0.5")


@pytest.fixture(scope="module")
def trial():
    return make_trial(seed=1)


@pytest.fixture(scope="module")
def suspect(trial, tmp_path_factory):
    """Folder with the state dict of a backdoored network, and clean images of it."""
    return write_suspect(tmp_path_factory.mktemp("suspect"), trial)


def run(capsys, *arguments):
    """Exit status, standard output, standard error."""
    capsys.readouterr()
    status = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return status, captured.out, captured.err


def scan(capsys, folder, *arguments):
    return run(capsys, "scan", folder / "model.pth", "--data", folder / "images", *MODEL, *PIXELS, *arguments)


def test_scan_finds_the_class_and_writes_reports(suspect, trial, tmp_path, capsys):
    status, out, _ = scan(capsys, suspect, "--json", tmp_path / "scan.json", "--html", tmp_path / "scan.html")
    assert status == 3
    assert f"Suspicious: class {trial.attack.target} " in out
    facts = json.loads((tmp_path / "scan.json").read_text())
    assert facts["verdict"]["classes"] == [trial.attack.target]
    assert facts["scan"]["accuracy"] == pytest.approx(trial.before.acc, abs=0.02)
    assert facts["source"]["images found"] == len(trial.clean)
    norms = [entry["norm"] for entry in facts["classes"]]
    # PNG rounds pixels to 255 steps; beside that it is the same scan as from tensors.
    torch.testing.assert_close(torch.tensor(norms), trial.report.solution.norms, rtol=0.02, atol=0, check_dtype=False)
    page = (tmp_path / "scan.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert facts["verdict"]["rule"] == "full"
    assert "fewer backdoors" not in page + out
    for text in (facts["created"], facts["verdict"]["headline"], facts["bank"]["sentence"]):
        assert text in page
    for entry in facts["classes"]:
        for found in (entry, *entry["statistics"].values()):
            assert f"<td>{found['score']:.2f}</td>".replace("-", "−") in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scan.html", "scan.json"]


def test_a_quick_scan_says_that_it_sees_less(suspect, trial, tmp_path, capsys):
    files = ("--json", tmp_path / "scan.json", "--html", tmp_path / "scan.html")
    status, out, _ = scan(capsys, suspect, "--quick", *files)
    facts = json.loads((tmp_path / "scan.json").read_text())
    assert status == {"nothing_found": 0, "suspicious": 3, "borderline": 4}[facts["verdict"]["label"]]
    assert facts["verdict"]["rule"] == "quick"
    assert [list(entry["statistics"]) for entry in facts["classes"]] == [["qp"]] * 10
    assert max(facts["classes"], key=lambda entry: entry["score"])["class"] == trial.attack.target
    for text in (out, (tmp_path / "scan.html").read_text()):
        assert "by the shifts of the latents alone, which show fewer backdoors" in text
    norms = torch.tensor([entry["norm"] for entry in facts["classes"]])
    torch.testing.assert_close(norms, trial.report.solution.norms, rtol=0.02, atol=0, check_dtype=False)


@pytest.mark.parametrize(("label", "expected"), [("nothing_found", 0), ("suspicious", 3), ("inconclusive", 4)])
def test_facts_are_computed_once(suspect, tmp_path, capsys, monkeypatch, label, expected):
    """What is printed, and what is in both files, are the same."""
    from tacfast.commands.work import scan as command

    calls, real_scan, real_facts = [], command.scan_model, command.scan_facts

    def relabelled(*args, **kwargs):
        report = real_scan(*args, **kwargs)
        return dataclasses.replace(report, verdict=dataclasses.replace(report.verdict, label=label))

    def count(*args, **kwargs):
        calls.append(real_facts(*args, **kwargs))
        return calls[-1]

    monkeypatch.setattr(command, "scan_model", relabelled)
    monkeypatch.setattr(command, "scan_facts", count)
    files = ("--json", tmp_path / "scan.json", "--html", tmp_path / "scan.html")
    status, out, _ = scan(capsys, suspect, "--quick", *files)
    assert status == expected
    (facts,) = calls
    assert json.loads((tmp_path / "scan.json").read_text()) == facts
    assert facts["verdict"]["headline"] in out
    assert facts["verdict"]["headline"] in (tmp_path / "scan.html").read_text()


def test_a_clean_network_is_status_zero(tmp_path, capsys):
    trial = make_trial(seed=5, clean=True)
    weights = {f"module.{k}": v for k, v in trial.model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": weights}, tmp_path / "model.pth")
    draw(tmp_path / "images", trial.clean)
    status, out, _ = scan(capsys, tmp_path)
    assert status == 0
    assert "no proof" in out
    assert "no evidence of a clean model" in out
    assert "10 of 10" not in out
    # There is nothing to repair, but who insists gets a hardened network, of which nothing can be confirmed.
    hardened = tmp_path / "hardened.pt"
    arguments = ("--data", tmp_path / "images", "--out", hardened, *MODEL, *PIXELS)
    assert run(capsys, "repair", tmp_path / "model.pth", *arguments)[0] == 1
    assert not hardened.exists()
    status, out, err = run(capsys, "repair", tmp_path / "model.pth", *arguments, "--harden")
    assert status == 6
    assert "Repair: could not be tested" in out
    assert "the first scan did not name class 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in err
    assert hardened.exists()


@pytest.mark.parametrize(("named", "words"), [(False, "easier to reach than"), (True, "but not in every run")])
def test_borderline_is_status_four(suspect, trial, tmp_path, capsys, monkeypatch, named, words):
    from tacfast.commands.work import scan as command

    real = command.scan_model

    def borderline(*args, **kwargs):
        report = real(*args, **kwargs)
        classes = report.verdict.classes if named else ()
        return dataclasses.replace(
            report, verdict=dataclasses.replace(report.verdict, label="borderline", classes=classes)
        )

    monkeypatch.setattr(command, "scan_model", borderline)
    status, out, _ = scan(capsys, suspect)
    assert status == 4
    assert re.search(rf"Borderline: class {trial.attack.target} is .*{words}", out)
    # A class that is named can be repaired; where none is, nothing is written.
    out = tmp_path / "x.pt"
    status, _, _ = repair(capsys, suspect, out, "--epochs", "1", "--lr", "0.001", "--max-drop", "0.9")
    assert (status, out.exists()) == ((5, True) if named else (4, False))


def test_few_images_are_inconclusive_and_labels_are_not_needed(suspect, tmp_path, capsys):
    for k in range(10):
        image = next(iter((suspect / "images" / str(k)).iterdir()))
        (tmp_path / f"{k}.png").write_bytes(image.read_bytes())
    status, out, _ = run(capsys, "scan", suspect / "model.pth", "--data", tmp_path, *MODEL, *PIXELS)
    assert status == 4
    assert "Inconclusive" in out
    assert "accuracy" not in out


def test_wrong_normalisation_is_noticed(suspect, capsys):
    status, out, _ = run(
        capsys, "scan", suspect / "model.pth", "--data", suspect / "images", *MODEL, "--mean", "1", "--std", "0.01"
    )
    assert status in (0, 3, 4)
    assert "implausible" in out


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ("--mean", "--mean"),
        ("--std", "--std"),
        ("--arch", "--arch"),
        ("--num-classes", "--num-classes"),
    ],
)
def test_what_the_checkpoint_does_not_say_is_asked_for(suspect, capsys, left_out, message):
    arguments = [*MODEL, *PIXELS]
    at = arguments.index(left_out)
    del arguments[at : at + 2]
    status, _, err = run(capsys, "scan", suspect / "model.pth", "--data", suspect / "images", *arguments)
    assert status == 2
    assert f"give {message}" in re.sub(r"[\s│]+", " ", err)


def repair(capsys, folder, out, *arguments):
    return run(
        capsys, "repair", folder / "model.pth", "--data", folder / "images", "--out", out, *MODEL, *PIXELS, *arguments
    )


def test_repair_writes_weights_that_say_what_they_are(suspect, trial, tmp_path, capsys):
    out = tmp_path / "repaired.safetensors"
    status, text, _ = repair(capsys, suspect, out, "--json", tmp_path / "repair.json", "--max-drop", "0.03")
    assert status == 0
    checkpoint = load_checkpoint(out)
    assert (checkpoint.arch, checkpoint.num_classes) == ("small_preact_resnet", 10)
    assert checkpoint.provenance["classes"] == [trial.attack.target]
    model = build_model(checkpoint.arch, 10, arch_args=checkpoint.arch_args)
    load_weights(model, checkpoint.weights)
    after = trial.evaluate(model.eval())
    assert trial.before.asr > 0.9
    assert after.asr < 0.1
    assert after.acc > trial.before.acc - 0.05
    facts = json.loads((tmp_path / "repair.json").read_text())["repair"]
    assert facts["mode"] == "auto"
    assert "wrote" in text
    assert "Repair: confirmed" in text
    assert f"scanned again with the held-out images: {facts['confirmation']['label'].replace('_', ' ')}" in text
    assert "is weak evidence and no proof" in text
    assert facts["confirmation"]["doubts"] == checkpoint.metrics["not confirmed"] == []
    # The file says all that a scan must know, and which images it must not be scanned with.
    known = checkpoint.provenance["images that trained it"]
    everything = [hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in (suspect / "images").glob("*/*.png")]
    assert set(known) < set(everything)
    assert len(known) == len(everything) - facts["samples"]
    sentence = f"{len(known)} of the {len(everything)} images trained the repair of this model"
    _, text, _ = run(capsys, "scan", out, "--data", suspect / "images", "--json", tmp_path / "a.json")
    assert sentence in text
    assert any(sentence in warning for warning in json.loads((tmp_path / "a.json").read_text())["warnings"])
    draw(tmp_path / "others", trial.data.subset(trial.splits.test))
    _, text, _ = run(capsys, "scan", out, "--data", tmp_path / "others")
    assert "trained the repair" not in text
    # Neither a second repair nor another name makes it forget.
    again = tmp_path / "again.safetensors"
    settings = ("--target", "1", "--epochs", "1", "--lr", "0.001", "--max-drop", "0.9")
    status, _, err = run(capsys, "repair", out, "--data", tmp_path / "others", "--out", again, *settings)
    assert status == 6
    assert "the first scan did not name class 1" in err
    assert set(known) < set(load_checkpoint(again).provenance["images that trained it"])


def test_repair_in_mode_universal(suspect, trial, tmp_path, capsys):
    out, facts = tmp_path / "repaired.safetensors", tmp_path / "repair.json"
    arguments = ("--mode", "universal", "--settings", '{"blend": 0.8}', "--lr", "0.03", "--json", facts)
    status, _, err = repair(capsys, suspect, out, *arguments)
    assert status in (0, 5), err
    facts = json.loads(facts.read_text())["repair"]
    assert (facts["mode"], facts["settings"]["epochs"], len(facts["held_out"])) == ("universal", 5, 5)
    assert (facts["settings"]["blend"], facts["blend"]) == (0.8, 0.8)
    model = build_model("small_preact_resnet", 10, arch_args=load_checkpoint(out).arch_args)
    load_weights(model, load_checkpoint(out).weights)
    after = trial.evaluate(model.eval())
    assert after.asr < 0.1
    assert after.ra > 0.8
    assert after.acc > trial.before.acc - 0.05


def test_repair_that_costs_too_much_is_rolled_back(suspect, tmp_path, capsys):
    out = tmp_path / "repaired.safetensors"
    status, _, err = repair(capsys, suspect, out, "--epochs", "1", "--lr", "50", "--max-drop", "0")
    assert status == 1
    assert "no weights written" in err or "diverged" in err
    assert list(tmp_path.iterdir()) == []


def test_the_first_learning_rate_that_keeps_accuracy_is_taken(monkeypatch):
    from tacfast.commands.work import repair as command
    from tacfast.defenses import MODES, DivergedError, RepairResult

    def attempt(rate):
        tried.append(rate)
        if rate == 0.1:
            raise DivergedError
        return RepairResult(torch.nn.Identity(), (), 1.0, rolled_back=rate > lowest)

    for lowest, expected in ((0.01, [0.1, 0.03, 0.01]), (0.0, [0.1, 0.03, 0.01, 0.003])):
        tried = []
        result = command.first_kept(MODES["latent"].rates, attempt)
        assert (tried, result.rolled_back) == (expected, lowest == 0.0)
    with pytest.raises(DivergedError):
        command.first_kept((0.1,), attempt)


def test_an_interrupted_repair_goes_on(suspect, tmp_path, capsys, monkeypatch):
    from tacfast.commands.work import repair as command

    settings = ("--target", "4", "--epochs", "3", "--lr", "0.003", "--max-drop", "0.9")
    assert repair(capsys, suspect, tmp_path / "whole.pt", *settings)[0] in (0, 5)
    run_repair, calls = command.repair_and_keep, []

    def interrupted(*args, on_epoch, **kwargs):
        def tell(record):
            calls.append(record.epoch)
            on_epoch(record)
            if calls == [1, 2]:
                raise KeyboardInterrupt

        return run_repair(*args, on_epoch=tell, **kwargs)

    monkeypatch.setattr(command, "repair_and_keep", interrupted)
    state = ("--resume", tmp_path / "state")
    assert repair(capsys, suspect, tmp_path / "two.pt", *settings, *state)[0] == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.lr0.003", "state.scan", "whole.pt"]
    assert repair(capsys, suspect, tmp_path / "two.pt", *settings, *state)[0] in (0, 5)
    assert calls == [1, 2, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["two.pt", "whole.pt"]
    whole, two = (torch.load(tmp_path / name) for name in ("whole.pt", "two.pt"))
    assert all(torch.equal(whole[name], two[name]) for name in whole)


def test_a_repair_interrupted_between_two_learning_rates_tries_none_again(suspect, tmp_path, capsys, monkeypatch):
    from tacfast.commands.work import repair as command

    run_repair, events, interrupts = command.repair_and_keep, [], [("lr", 0.03), ("epoch", 0.03)]

    def note(event):
        events.append(event)
        if event in interrupts:
            interrupts.remove(event)
            raise KeyboardInterrupt

    def roll_back_the_first(*args, mode, on_epoch, **kwargs):
        note(("lr", mode.lr))
        result = run_repair(*args, mode=mode, on_epoch=lambda record: note(("epoch", mode.lr)), **kwargs)
        return dataclasses.replace(result, rolled_back=mode.lr == 0.1)

    monkeypatch.setattr(command, "repair_and_keep", roll_back_the_first)
    settings = ("--target", "4", "--mode", "latent", "--epochs", "1", "--max-drop", "1", "--resume", tmp_path / "state")
    first = [("lr", 0.1), ("epoch", 0.1), ("lr", 0.03)]
    for expected in (first, [("lr", 0.1), ("lr", 0.03), ("epoch", 0.03)], [("lr", 0.03)]):
        events.clear()
        status = repair(capsys, suspect, tmp_path / "two.pt", *settings)[0]
        assert events == expected  # what was rolled back is known again from its state, and not trained again
    assert status in (0, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["two.pt"]


def test_nothing_found_is_not_repaired(suspect, trial, tmp_path, capsys):
    few = tmp_path / "few"
    for k in range(10):
        for image in list((suspect / "images" / str(k)).iterdir())[:3]:
            (few / str(k)).mkdir(parents=True, exist_ok=True)
            (few / str(k) / image.name).write_bytes(image.read_bytes())
    status, _, err = run(
        capsys, "repair", suspect / "model.pth", "--data", few, "--out", tmp_path / "x.pt", *MODEL, *PIXELS
    )
    assert status == 4
    assert "nothing to repair, nothing written" in err
    assert not (tmp_path / "x.pt").exists()


def test_repair_refuses_images_without_labels(suspect, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for image in (suspect / "images" / "3").iterdir():
        (images / image.name).write_bytes(image.read_bytes())
    status, _, err = run(
        capsys, "repair", suspect / "model.pth", "--data", images, "--out", tmp_path / "x.pt", *MODEL, *PIXELS
    )
    assert status == 1
    assert err.startswith("tacfast: error: data: a repair needs labels")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("out", "more", "status", "message"),
    [
        ("x.bin", (), 1, "expected a name that ends in .safetensors, .pt or .pth"),
        ("x.safetensors", ("--json", "x.json"), 2, "expected another file than --out uses"),
        ("model.pth", (), 2, "expected another file than CHECKPOINT uses"),
        ("x.pt", ("--held-out", "0.0001"), 2, "expected a share that leaves images on both sides, got 0.0001"),
        ("x.pt", ("--target", "10"), 2, "expected a class of the model, got 10"),
        ("x.pt", ("--resume", "nowhere/x"), 1, "resume: cannot write"),
        ("x.pt", ("--held-out", "1"), 2, "expected a share in (0, 1), got 1"),
        ("x.pt", ("--mode", "magic"), 2, "expected one of auto, latent, prune, universal, got 'magic'"),
        (
            "x.pt",
            ("--settings", '{"speed": 1}'),
            2,
            "expected settings of mode auto, momentum, weight_decay, max_norm, blend",
        ),
        ("x.pt", ("--settings", '{"lr": 0.1}'), 2, "expected settings of mode auto"),
        ("x.pt", ("--settings", '{"blend": 2}'), 1, "blend: expected a share in (0, 1], got 2"),
        ("x.pt", ("--mode", "latent", "--harden"), 2, "only mode auto does that, got --mode latent"),
        ("x.pt", ("--lr", "-1"), 1, "lr: expected a finite learning rate > 0, got -1"),
    ],
)
def test_where_a_repair_cannot_go_is_said_before_the_work(
    suspect, tmp_path, capsys, monkeypatch, out, more, status, message
):
    (tmp_path / "model.pth").write_bytes((suspect / "model.pth").read_bytes())
    (tmp_path / "images").symlink_to(suspect / "images")
    monkeypatch.chdir(tmp_path)
    got, _, err = repair(capsys, tmp_path, tmp_path / out, *more, "--target", "4")
    assert got == status
    assert message in re.sub(r"[\s│]+", " ", err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "model.pth"]


def test_a_result_for_backdoorbench(suspect, trial, tmp_path, capsys):
    out = tmp_path / "defense_result.pt"
    status, text, err = repair(capsys, suspect, out, *TOO_LITTLE)
    assert status == 5
    doubt = "weights written, but the repair is not confirmed: the second scan says: "
    assert re.search(f"{doubt}(Suspicious|Borderline): class {trial.attack.target} ", err)
    assert "defense_result.pt has no room for a list of the images that trained it" in text
    assert torch.load(out, weights_only=True).keys() == {"model_name", "num_classes", "model"}


# ---- a folder of BackdoorBench, with images that have the trigger ---------------------------------------------


@pytest.fixture
def record(suspect, trial, tmp_path):
    """What BackdoorBench writes about the suspect, with the test images of the other classes that got the trigger."""
    test = trial.data.subset(trial.splits.test)
    others = test.subset((test.labels != trial.attack.target).nonzero().flatten())
    triggered = dataclasses.replace(others, images=trial.attack.trigger(others.images))
    folder = draw(tmp_path / "record" / "bd_test_dataset", triggered).parent
    entries = {
        i: {"path": f"./record/x/bd_test_dataset/{label}/{i}.png", "other_info": [trial.attack.target, label]}
        for i, label in enumerate(others.labels.tolist())
    }
    content = {"model_name": "small_preact_resnet", "num_classes": 10, "model": trial.model.state_dict()}
    content |= {"clean_data": "mnist", "data_path": "./data", "img_size": [8, 8, 1], "bd_train": {}}
    content["bd_test"] = {"bd_data_container": {"data_dict": entries}}
    torch.save(content, folder / "attack_result.pt")
    return folder


def with_record(capsys, command, record, suspect, *arguments):
    data = ("--data", suspect / "images", "--arch-args", '{"in_channels": 1}', *PIXELS)
    return run(capsys, command, record / "attack_result.pt", *data, *arguments)


def test_the_attack_is_measured_where_there_are_images_with_the_trigger(suspect, trial, record, tmp_path, capsys):
    files = ("--json", tmp_path / "a.json", "--html", tmp_path / "a.html")
    status, out, _ = with_record(capsys, "scan", record, suspect, *files)
    assert status == 3
    facts = json.loads((tmp_path / "a.json").read_text())
    found = facts["attack"]["before"]
    assert found["images"] == len(list(record.glob("*/*/*.png")))
    assert found["asr"] == pytest.approx(trial.before.asr, abs=0.01)
    assert found["ra"] == pytest.approx(trial.before.ra, abs=0.01)
    assert f"attack success (ASR) {100 * found['asr']:.1f} %, robust accuracy (RA) {100 * found['ra']:.1f} %" in out
    assert "How well the attack works" in (tmp_path / "a.html").read_text()
    # The verdict is that without them.
    assert scan(capsys, suspect, "--json", tmp_path / "b.json")[0] == 3
    without = json.loads((tmp_path / "b.json").read_text())
    assert without["attack"] is None
    assert without["verdict"] == facts["verdict"]


def test_a_repair_that_the_attack_survives_is_status_five(suspect, trial, record, tmp_path, capsys, monkeypatch):
    """Although the second scan sees nothing."""
    from tacfast.commands.work import repair as command

    out, real = tmp_path / "repaired.safetensors", command.repair_and_keep

    def blind(*args, **kwargs):
        result = real(*args, **kwargs)
        quiet = dataclasses.replace(result.confirmation.verdict, label="nothing_found", classes=())
        confirmation = dataclasses.replace(result.confirmation, verdict=quiet, followed={})
        return dataclasses.replace(result, confirmation=confirmation)

    monkeypatch.setattr(command, "repair_and_keep", blind)
    files = ("--json", tmp_path / "a.json", "--html", tmp_path / "a.html", "--out", out)
    status, text, err = with_record(capsys, "repair", record, suspect, *files, *TOO_LITTLE)
    assert status == 5
    facts = json.loads((tmp_path / "a.json").read_text())
    model = build_model("small_preact_resnet", 10, arch_args={"in_channels": 1})
    load_weights(model, load_checkpoint(out).weights)
    after = facts["attack"]["after"]["asr"]
    assert after == pytest.approx(trial.evaluate(model.eval()).asr, abs=0.01)
    assert f"(ASR) {100 * facts['attack']['before']['asr']:.1f} % → {100 * after:.1f} %" in text
    doubt = f"the attack still succeeds with {100 * after:.1f} % of the images that have its trigger"
    assert facts["repair"]["confirmation"]["doubts"] == load_checkpoint(out).metrics["not confirmed"] == [doubt]
    assert doubt in err
    assert f"Not confirmed:</strong> {doubt}" in (tmp_path / "a.html").read_text()


def test_robust_accuracy_is_that_of_each_image(suspect, trial, record, tmp_path, capsys):
    """With the trigger taken away, these are clean images, and the network knows their classes."""
    test = trial.data.subset(trial.splits.test)
    others = test.subset((test.labels != trial.attack.target).nonzero().flatten())
    draw(record / "bd_test_dataset", others)
    assert with_record(capsys, "scan", record, suspect, "--json", tmp_path / "a.json")[0] == 3
    found = json.loads((tmp_path / "a.json").read_text())["attack"]["before"]
    with torch.no_grad():
        answers = trial.model(others.images).argmax(1)
    assert found["ra"] == pytest.approx(float((answers == others.labels).float().mean()), abs=0.01)
    assert found["asr"] == pytest.approx(float((answers == trial.attack.target).float().mean()), abs=0.01)


def test_many_images_with_the_trigger_are_sampled(suspect, record, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tacfast.commands.work.triggered.MAX_IMAGES", 50)
    for name in ("a.json", "b.json"):
        assert with_record(capsys, "scan", record, suspect, "--json", tmp_path / name)[0] == 3
    first, second = (json.loads((tmp_path / name).read_text())["attack"]["before"] for name in ("a.json", "b.json"))
    assert first == second
    assert first["images"] == 50


def test_images_with_the_trigger_that_cannot_be_read_stop_nothing(suspect, record, capsys):
    images = sorted(record.glob("*/*/*.png"))
    images[0].write_bytes(b"no image")
    status, out, _ = with_record(capsys, "scan", record, suspect)
    assert status == 3
    assert f"on {len(images) - 1} images with the trigger" in out
    assert "Warning: images with the trigger that could not be read: 1; " in out
    for image in images:
        image.write_bytes(b"no image")
    status, out, _ = with_record(capsys, "scan", record, suspect)
    assert status == 3
    assert f"could not be read: {len(images)}; " in out
    assert "ASR" not in out
    shutil.rmtree(record / "bd_test_dataset")
    status, out, _ = with_record(capsys, "scan", record, suspect)
    assert status == 3
    assert re.search(r"Warning: the attack was not measured: .*: no such folder", out)


# ---- when something goes wrong --------------------------------------------------------------------------------


def test_scan_goes_on_where_it_was_interrupted(suspect, tmp_path, capsys, monkeypatch):
    state, whole = tmp_path / "scan.state", tmp_path / "whole.json"
    quick = "--quick", "--batch-size", "64"  # nothing but the pass over the images runs the model
    status = scan(capsys, suspect, *quick, "--json", whole)[0]
    from tacfast.models.architectures import SmallPreActResNet

    forward, calls = SmallPreActResNet.forward, []

    def count(self, x):
        calls.append(len(x))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(self, x)

    monkeypatch.setattr(SmallPreActResNet, "forward", count)
    ended, _, err = scan(capsys, suspect, *quick, "--resume", state)
    assert (ended, err.splitlines()[-1]) == (130, "tacfast: interrupted")
    assert [path.name for path in tmp_path.iterdir() if path != whole] == ["scan.state"]
    seen = sum(calls)
    assert scan(capsys, suspect, *quick, "--resume", state, "--json", tmp_path / "two.json")[0] == status
    assert not state.exists()
    norms = [[entry["norm"] for entry in json.loads(p.read_text())["classes"]] for p in (whole, tmp_path / "two.json")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert sum(calls) < seen + 64 * 8


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--mean", "a"), 2, "expected numbers between commas"),
        (("--arch-args", "[1]"), 2, "expected a JSON object"),
        (("--device", "cuda:99"), 2, "expected a device such as cpu or cuda:0"),
        (("--arch", "resnet1"), 1, "resnet18"),
        (("--arch", "resnet18", "--arch-args", "{}"), 1, "missing"),
        (("--num-classes", "12"), 1, "10 classes"),
        (("--mean", "0,0,0", "--std", "1,1,1"), 1, "batch of shape (128, 3, 8, 8)"),
        (("--head", "nothing"), 1, "error: --head: expected a linear layer"),
        (("--json", "/nowhere/x.json"), 1, "json: cannot write /nowhere/x.json: expected a file in an existing folder"),
        (("--html", "/"), 1, "html: cannot write /"),
        (("--json", "/dev/null"), 1, "json: cannot write /dev/null: expected the name of a file"),
        (("--workers", "100", "--device", "x"), 2, "expected a device"),
        (("--class-names", "/nowhere/names"), 1, "/nowhere/names"),
    ],
)
def test_wrong_arguments_are_named(suspect, capsys, arguments, status, message):
    given = [*MODEL, *PIXELS]
    for option, value in zip(arguments[::2], arguments[1::2], strict=True):
        if option in given:
            given[given.index(option) + 1] = value
        else:
            given += [option, value]
    got, _, err = run(capsys, "scan", suspect / "model.pth", "--data", suspect / "images", *given)
    assert got == status
    assert message in re.sub(r"[\s│]+", " ", err)
    if status == 1:
        assert err.startswith("tacfast: error: ")
        assert err.count("\n") == 1


def test_nothing_is_overwritten_by_a_slip(suspect, tmp_path, capsys):
    model = tmp_path / "model.pth"
    model.write_bytes((suspect / "model.pth").read_bytes())
    common = ("scan", model, "--data", suspect / "images", *MODEL, *PIXELS)
    for same in (("--json", model), ("--json", tmp_path / "x", "--html", tmp_path / "x")):
        status, _, err = run(capsys, *common, *same)
        assert status == 2
        assert "expected another file than" in re.sub(r"[\s│]+", " ", err)
    assert model.read_bytes() == (suspect / "model.pth").read_bytes()
    assert list(tmp_path.iterdir()) == [model]


def test_a_terminal_without_the_letters_stops_nothing(suspect, tmp_path):
    names = tmp_path / "names"
    names.write_text("\ufeff" + "\n".join(f"é{k}中" for k in range(10)), encoding="utf-8")
    arguments = ["scan", suspect / "model.pth", "--data", suspect / "images", "--class-names", names, *MODEL, *PIXELS]
    done = subprocess.run(
        [sys.executable, "-m", "tacfast", *map(str, arguments), "--json", str(tmp_path / "a.json")],
        env=os.environ | {"PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (3, b"")
    assert json.loads((tmp_path / "a.json").read_text())["classes"][1]["name"] == "é1中"


def test_when_no_image_can_be_read(suspect, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"no image")
    status, _, err = run(
        capsys, "scan", suspect / "model.pth", "--data", tmp_path, "--skip-unreadable", *MODEL, *PIXELS
    )
    assert status == 1
    assert err.startswith("tacfast: error: data: none of the 1 images can be read; data: expected an image, got ")


def test_classes_whose_images_cannot_be_read_are_missing(suspect, tmp_path, capsys):
    shutil.copytree(suspect / "images", tmp_path / "images")
    for path in (tmp_path / "images" / "3").iterdir():
        path.write_bytes(b"no image")
    status, out, _ = run(
        capsys, "scan", suspect / "model.pth", "--data", tmp_path / "images", "--skip-unreadable", *MODEL, *PIXELS
    )
    assert status == 3  # of class 4; class 3 is not judged
    assert re.search(r"not judged, because the model assigns fewer than 4 samples to them:\s+class\s+3 \(\d\)", out)
    assert "classes without an image: 1 (3)" in out
    assert "could not be read and were left out: " in out


def test_a_full_disk_leaves_nothing_half_written(suspect, tmp_path, capsys, monkeypatch):
    from pathlib import Path

    write = Path.write_bytes

    def full(self, content):
        if len(content) > 1000:
            raise OSError(28, "No space left on device", str(self))
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    status, _, err = scan(capsys, suspect, "--json", tmp_path / "a.json")
    assert status == 1
    assert "No space left on device" in err
    # A few bytes on why there is no report still find room; nothing else is there.
    (left,) = tmp_path.iterdir()
    assert "No space left on device" in json.loads(left.read_text())["error"]["message"]
