"""`scan`, `repair` and `show` on the data set, the splits and the trigger of a network of `tacfast train`."""

import dataclasses
import hashlib
import json
import re

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("safetensors")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from tacfast import cli, scan
from tacfast.attacks import LIRA
from tacfast.commands.work import show as command
from tacfast.data import load_dataset
from tacfast.evaluation import evaluate
from tacfast.models import Checkpoint, build_model, load_checkpoint, save_checkpoint
from tacfast.training import Recipe
from tacfast.training.trained import Plan, load_trained, plan_from_dict, save_trained, train_plan

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def train(path, digits, attack, epochs=1):
    recipe = Recipe(epochs=epochs, batch_size=64, precision="float32")
    plan = Plan(
        data="digits",
        arch="small_preact_resnet",
        arch_args={},
        recipe=recipe,
        attack=attack,
        target=4,
        clean=0.2,
        held_out=0.1,
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # `one_thread` comes after the fixtures of a module
    save_trained(train_plan(plan, digits), path)
    torch.set_num_threads(threads)
    return path


@pytest.fixture(scope="module")
def network(tmp_path_factory, digits):
    """A network with its splits, trained long enough to tell digits apart."""
    return train(tmp_path_factory.mktemp("network") / "net.safetensors", digits, "badnets", epochs=4)


@pytest.fixture(scope="module")
def trained(network, digits):
    return load_trained(network, digits)


def run(capsys, *arguments):
    """Exit status, standard output, standard error, the latter two in one line each."""
    capsys.readouterr()
    status = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return status, *(re.sub(r"[\s│]+", " ", text).strip() for text in captured)


def facts_of(capsys, tmp_path, *arguments):
    status, _, error = run(capsys, "scan", *arguments, "--json", tmp_path / "scan.json")
    assert status in (0, 3, 4), error
    return json.loads((tmp_path / "scan.json").read_text())


@pytest.mark.parametrize("split", [None, "clean", "held-out", "test", "train", "all"])
def test_scan_takes_the_images_of_the_split(network, trained, digits, tmp_path, capsys, split):
    options = () if split is None else ("--split", split)
    facts = facts_of(capsys, tmp_path, network, "--data", "digits", *options, "--batch-size", "100")
    splits = trained.splits
    rows = {"held-out": splits.held_out, "test": splits.test, "train": splits.train, "all": torch.arange(1797)}
    chosen = rows.get(split, splits.clean)
    report = scan(trained.model, digits.data.subset(chosen).loader(100))
    assert facts["scan"]["samples"] == len(chosen)
    assert facts["scan"]["accuracy"] == pytest.approx(report.accuracy)
    norms = torch.tensor([entry["norm"] for entry in facts["classes"]])
    torch.testing.assert_close(norms, report.solution.norms, rtol=1e-4, atol=0)
    assert facts["source"]["images"] == f"digits, {split or 'clean'}"
    warnings = [f"{len(splits.train)} of the {len(chosen)} images trained this model: images that it has not seen"]
    found = [text for text in facts["warnings"] if "trained this model" in text]
    assert [text.partition(" tell")[0] for text in found] == (warnings if split in ("train", "all") else [])


def test_of_a_strangers_network_only_the_official_split_is_known(network, tmp_path, capsys):
    known = load_checkpoint(network)
    fields = ("weights", "arch", "arch_args", "num_classes", "mean", "std")
    stranger = tmp_path / "stranger.safetensors"
    save_checkpoint(Checkpoint(**{name: getattr(known, name) for name in fields}), stranger)
    assert facts_of(capsys, tmp_path, stranger, "--data", "digits", "--split", "all")["scan"]["samples"] == 1797
    # The digits have no official test set.
    for options in ((), ("--split", "clean"), ("--split", "nothing")):
        status, _, error = run(capsys, "scan", stranger, "--data", "digits", *options)
        assert status == 2
        assert "expected one of train, all, which digits has for this model, got" in error


def test_a_folder_called_like_a_data_set_needs_a_dot(network, tmp_path, monkeypatch, capsys):
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert facts_of(capsys, tmp_path, network, "--data", "digits")["source"]["images"] == "digits, clean"
    status, _, error = run(capsys, "scan", network, "--data", "./digits")
    assert status == 1
    assert error.startswith("tacfast: error: data: expected images, got none in digits")


def write(path, network, **fields):
    known = load_checkpoint(network)
    save_checkpoint(Checkpoint(**{**vars(known), **fields}), path)
    return path


@pytest.mark.parametrize(
    ("fields", "options", "line"),
    [
        (
            {},
            ("--image-size", "16"),
            "image_size: the images of digits have 8×8 pixels, expected no other size, got 16×",
        ),
        (
            {},
            ("--mean", "0,0,0", "--std", "1,1,1"),
            "mean, std: expected 1 numbers each, for the channels of digits, got",
        ),
        (
            {"class_names": tuple("abcdefghij")},
            (),
            "class_names: expected those of digits in its order (0, 1, 2, 3, 4, 5, 6, 7 and 2 more), got a, b,",
        ),
        (
            {"provenance": {"data": "digits", "splits": {"train": "x"}}},
            (),
            "splits: expected train, clean, test, held_",
        ),
    ],
)
def test_what_does_not_fit_the_data_set_is_one_line(network, tmp_path, capsys, fields, options, line):
    other = write(tmp_path / "other.safetensors", network, **fields)
    status, _, error = run(capsys, "scan", other, "--data", "digits", *options)
    assert status == 1
    assert line in error
    assert error.count("tacfast: error: ") == 1


def test_a_data_set_of_other_classes_is_refused(network, tmp_path, capsys):
    model = build_model("small_preact_resnet", 9, arch_args={"in_channels": 1})
    fields = {"weights": model.state_dict(), "num_classes": 9, "class_names": None}
    other = write(tmp_path / "other.safetensors", network, **fields)
    status, _, error = run(capsys, "scan", other, "--data", "digits")
    assert status == 1
    assert error == "tacfast: error: data: expected images of the model's 9 classes, got digits with 10"


@pytest.mark.parametrize("option", ["--split", "--data-root"])
def test_a_folder_has_no_splits(network, tmp_path, capsys, option):
    status, _, error = run(capsys, "scan", network, "--data", tmp_path, option, "all")
    assert status == 2
    assert f"Invalid value for {option}: expected a data set by name for --data, got" in error


def test_the_files_of_the_data_set_are_pointed_to_its_name(network, tmp_path, capsys):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "n01443537" / "images").mkdir(parents=True)
    image.new("L", (8, 8)).save(tmp_path / "n01443537" / "images" / "0.png")
    status, _, error = run(capsys, "scan", network, "--data", tmp_path)
    assert status == 1
    assert "expected folders named as the classes (0, 1, 2, 3, 4, 5, 6, 7 and 2 more), got n01443537" in error
    assert error.endswith("; the model was trained on digits, and --data digits takes its images")


def test_repair_records_the_rows_that_trained_it_and_keeps_the_splits(network, trained, digits, tmp_path, capsys):
    out = tmp_path / "repaired.safetensors"
    settings = ("--target", "4", "--epochs", "1", "--lr", "0.001", "--max-drop", "0.9", "--held-out", "0.25")
    status, _, error = run(capsys, "repair", network, "--data", "digits", "--out", out, *settings)
    assert status in (0, 5), error
    provenance = load_checkpoint(out).provenance
    assert provenance["splits"] == trained.splits.as_dict()
    pixels = digits.data.images[trained.splits.clean]
    clean = [hashlib.sha256(image.numpy().tobytes()).hexdigest()[:16] for image in pixels]
    known = provenance["images that trained it"]
    assert set(known) < set(clean)
    assert len(known) == pytest.approx(0.75 * len(clean), abs=5)
    sentence = f"{len(known)} of the {len(clean)} images trained the repair of this model"
    assert sentence in " ".join(facts_of(capsys, tmp_path, out, "--data", "digits")["warnings"])
    assert facts_of(capsys, tmp_path, out, "--data", "digits", "--split", "held-out")["warnings"] == []


def test_the_attack_that_a_network_was_trained_under_is_measured(network, trained, digits, tmp_path, capsys):
    """With the trigger on the test images of other classes, as `evaluate` does; the verdict is that without it."""
    facts = facts_of(capsys, tmp_path, network, "--data", "digits")
    test = digits.data.subset(trained.splits.test)
    before = evaluate(trained.model, test.loader(), trained.attack)
    assert 0 < before.asr < 1
    found = facts["attack"]["before"]
    per_class = found.pop("ra_per_class")
    assert found == pytest.approx({"asr": before.asr, "ra": before.ra, "images": int((test.labels != 4).sum())})
    for k, share in enumerate(per_class):
        own = test.subset((test.labels == k).nonzero().flatten())
        assert (
            (share is None)
            if k == 4
            else share == pytest.approx(evaluate(trained.model, own.loader(), trained.attack).ra)
        )
    stranger = write(tmp_path / "stranger.safetensors", network, provenance={"data": "digits"})
    other = facts_of(capsys, tmp_path, stranger, "--data", "digits", "--split", "all")
    assert other["attack"] is None
    splits = {"data": "digits", "splits": load_checkpoint(network).provenance["splits"]}
    unknown = facts_of(
        capsys, tmp_path, write(tmp_path / "b.safetensors", network, provenance=splits), "--data", "digits"
    )
    assert unknown["attack"] is None
    assert unknown["verdict"] == facts["verdict"]


def test_a_repair_that_a_known_attack_survives_is_not_confirmed(network, tmp_path, capsys):
    settings = ("--target", "4", "--epochs", "1", "--lr", "1e-6", "--max-drop", "0.9")
    status, text, error = run(
        capsys, "repair", network, "--data", "digits", "--out", tmp_path / "a.safetensors", *settings
    )
    assert status == 5
    assert re.search(r"\(ASR\) (\S+) % → (\S+) %", text)
    assert "the attack still succeeds with" in error


def test_an_attack_with_other_settings_than_now_is_not_measured(network, digits, tmp_path, capsys):
    known = load_checkpoint(network).provenance
    assert known["attack"] == "BadNets(target=4, size=2, value=1.0, num_classes=None)"
    other = write(tmp_path / "o.safetensors", network, provenance=known | {"attack": "BadNets(target=4, size=5)"})
    facts = facts_of(capsys, tmp_path, other, "--data", "digits")
    assert facts["attack"] is None
    sentence = "expected a network trained under BadNets(target=4, size=2, value=1.0, num_classes=None), got BadNets("
    assert any(text.startswith("the attack was not measured: ") and sentence in text for text in facts["warnings"])
    with pytest.raises(ValueError, match="got BadNets\\(target=4, size=5\\)"):
        load_trained(other, digits)


# ---- tacfast show --checkpoint --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lira(tmp_path_factory, digits):
    return train(tmp_path_factory.mktemp("lira") / "lira.safetensors", digits, "lira")


def test_show_draws_the_trigger_that_was_trained(lira, digits, tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(command, "plot_triggers", lambda *arguments, headline: drawn.append(arguments))
    status, _, error = run(capsys, "show", "lira", "--checkpoint", lira, "--out", tmp_path / "a.png")
    assert (status, error) == (0, "")
    ((clean, triggered, titles, _),) = drawn
    attack = LIRA(4, (1, 8, 8), 0)
    untrained = attack.trigger(clean)
    attack.load_state_dict(torch.load(lira.with_suffix(".trigger.pt"), weights_only=True))
    assert torch.equal(triggered, attack.trigger(clean))
    assert not torch.equal(triggered, untrained)
    assert all(title.endswith("→ 4") for title in titles)  # the target of the network, not that of --target


def test_show_says_in_one_line_what_is_wrong_with_the_network(network, lira, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, _, error = run(capsys, "show", "lira", "--checkpoint", network)
    assert (status, error) == (
        1,
        "tacfast: error: checkpoint: expected a network trained under lira, got badnets",
    )
    for name in ("lira.safetensors", "lira.json"):
        (tmp_path / name).write_bytes((lira.parent / name).read_bytes())
    status, _, error = run(capsys, "show", "lira", "--checkpoint", "lira.safetensors")
    assert status == 1
    assert "expected the trained trigger beside the network, in lira.trigger.pt, which is not there" in error
    (tmp_path / "lira.trigger.pt").write_bytes(lira.with_suffix(".trigger.pt").read_bytes()[:2000])
    status, _, error = run(capsys, "show", "lira", "--checkpoint", "lira.safetensors")
    assert (status, error) == (
        1,
        "tacfast: error: lira.trigger.pt: its content differs from what was saved with the weights",
    )
    assert not (tmp_path / "lira.png").exists()


# ---- a stranger's network -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plan",
    [{"attack": ["x"]}, {"target": None}, {"target": "x"}, {"recipe": None}, {"arch_args": 3, "attack": "trojannn"}],
)
def test_whatever_a_file_says_of_its_attack_the_verdict_is_told(network, tmp_path, capsys, plan):
    known = load_checkpoint(network).provenance
    other = write(
        tmp_path / "o.safetensors", network, provenance=known | {"plan": known["plan"] | plan, "attack": None}
    )
    facts = facts_of(capsys, tmp_path, other, "--data", "digits")
    assert facts["attack"] is None
    assert any(text.startswith("the attack was not measured: ") for text in facts["warnings"])


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        (torch.zeros(1, dtype=torch.float16).expand(1, 12000, 12000), "not read"),  # more than its numbers
        (torch.zeros(3), "patch: expected floating point"),
        ("text", "patch: expected floating point"),
        (torch.zeros(7, 2, 2), "images: expected shape"),
    ],
)
def test_whatever_a_file_holds_for_a_trigger_the_verdict_is_told(network, digits, tmp_path, capsys, patch, words):
    known = load_checkpoint(network).provenance
    attack = dataclasses.replace(plan_from_dict(known["plan"]), attack="trojannn").make_attack(digits)
    changes = {"plan": known["plan"] | {"attack": "trojannn"}, "attack": repr(attack)}
    other = write(tmp_path / "o.safetensors", network, provenance=known | changes)
    torch.save({"patch": patch}, other.with_suffix(".trigger.pt"))
    facts = facts_of(capsys, tmp_path, other, "--data", "digits")
    assert facts["attack"] is None
    assert any(text.startswith("the attack was not measured: ") and words in text for text in facts["warnings"])
