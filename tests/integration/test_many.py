"""``tacfast scan`` of several models, for programs and for continuous integration."""

import json
import os
import shutil
from pathlib import Path
from urllib.parse import unquote, urlparse
from xml.etree import ElementTree

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("torchvision")
pytest.importorskip("safetensors")
pytest.importorskip("sklearn")

import jsonschema
from PIL import Image

from tacfast import cli
from tacfast.commands.scan import FailOn
from tacfast.commands.work.scan import worst_status
from tacfast.demo import make_trial
from tacfast.models import save_checkpoint
from tacfast.models.checkpoint import Checkpoint, digest_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def suspects(tmp_path_factory):
    """A backdoored and a clean network, each saying what it is, something that is none, and images."""
    folder = tmp_path_factory.mktemp("suspects")
    for name, clean in (("attacked", False), ("harmless", True)):
        trial = make_trial(seed=2, clean=clean)
        about = {"arch": "small_preact_resnet", "arch_args": {"in_channels": 1}, "num_classes": 10}
        about |= {"mean": (0.0,), "std": (1.0,)}
        save_checkpoint(Checkpoint(trial.model.state_dict(), **about), folder / f"{name}.safetensors")
    (folder / "broken.pt").write_bytes(b"nothing of the kind")
    for i, (image, label) in enumerate(zip(trial.clean.images, trial.clean.labels.tolist(), strict=True)):
        path = folder / "images" / str(label) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image[0] * 255).round().byte().numpy()).save(path)
    return folder


def run(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return status, captured.out, captured.err


def flat(err):
    """A usage error without the box around it."""
    return " ".join(err.replace("│", " ").split())


def rows_of(out):
    return [json.loads(line) for line in (out / "summary.jsonl").read_text().splitlines()]


@pytest.fixture
def schema(capsys):
    status, text, _ = run(capsys, "schema")
    assert status == 0
    found = json.loads(text)
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def test_many_are_scanned_the_worst_first_and_one_that_fails_stops_nothing(suspects, tmp_path, capsys, schema):
    out = tmp_path / "results"
    given = [suspects / name for name in ("harmless.safetensors", "broken.pt", "attacked.safetensors")]
    status, text, err = run(capsys, "scan", *given, "--data", suspects / "images", "--out", out)
    assert (status, err) == (3, "")
    rows = rows_of(out)
    assert [(Path(row["path"]).stem, row["label"]) for row in rows] == [
        ("attacked", "suspicious"),
        ("broken", "error"),
        ("harmless", "nothing_found"),
    ]
    places = [text.rindex(name) for name in ("attacked", "broken", "harmless")]
    assert places == sorted(places)
    for row in rows:
        assert row["sha256"] == digest_of(Path(row["path"]))
        assert row["name"] == f"{Path(row['path']).stem}-{row['sha256'][:8]}"
    assert "not read" in rows[1]["error"]
    facts = json.loads((out / rows[0]["json"]).read_text())
    schema.validate(facts)
    assert facts["verdict"]["classes"] == rows[0]["classes"]
    assert facts["source"]["SHA-256"] == rows[0]["sha256"]
    page = (out / "index.html").read_text()
    assert [page.index(f'href="{row["html"]}"') for row in (rows[0], rows[2])] == sorted(
        page.index(f'href="{row["html"]}"') for row in (rows[0], rows[2])
    )
    assert 'href="broken' not in page
    assert (out / rows[0]["html"]).is_file()

    # What is done is not done again; what failed, or has changed, is. Others stay.
    reports = {Path(row["path"]).stem: out / f"{row['name']}.json" for row in rows}
    made = {name: path.stat().st_mtime_ns for name, path in reports.items() if path.is_file()}
    assert made.keys() == {"attacked", "harmless"}
    shutil.copy(suspects / "harmless.safetensors", suspects / "broken.pt")
    status, text, _ = run(capsys, "scan", *given[:2], "--data", suspects / "images", "--out", out, "--arch",
                          "small_preact_resnet", "--num-classes", "10", "--mean", "0", "--std", "1",
                          "--arch-args", '{"in_channels": 1}')  # fmt: skip
    assert status == 0
    labels = {Path(row["path"]).stem: row["label"] for row in rows_of(out)}
    assert labels == {"attacked": "suspicious", "broken": "nothing_found", "harmless": "nothing_found"}
    assert next(iter(labels)) == "attacked"
    assert reports["harmless"].stat().st_mtime_ns > made["harmless"]  # with other settings
    again = reports["harmless"].stat().st_mtime_ns
    status, text, _ = run(capsys, "scan", given[0], "--data", suspects / "images", "--out", out, "--arch",
                          "small_preact_resnet", "--num-classes", "10", "--mean", "0", "--std", "1",
                          "--arch-args", '{"in_channels": 1}')  # fmt: skip
    assert reports["harmless"].stat().st_mtime_ns == again
    assert "judging" not in text
    assert reports["attacked"].stat().st_mtime_ns == made["attacked"]


def test_a_damaged_summary_is_no_obstacle(suspects, tmp_path, capsys):
    lines = ['{"name": "x"}', "nonsense", '{"name": "x", "label": "suspicious"}', "[]", "[" * 5000]
    (tmp_path / "summary.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff\n")
    status, _, err = run(
        capsys, "scan", suspects / "harmless.safetensors", "--data", suspects / "images", "--out", tmp_path
    )
    assert (status, err) == (0, "")
    assert [Path(row["path"]).stem for row in rows_of(tmp_path)] == ["harmless"]


@pytest.mark.parametrize("option", ["--json", "--html", "--resume"])
def test_a_folder_of_results_keeps_everything(suspects, tmp_path, capsys, option):
    given = ("scan", suspects / "harmless.safetensors", "--data", suspects / "images", "--out", tmp_path / "out")
    status, _, err = run(capsys, *given, option, tmp_path / "x")
    assert status == 2
    assert option in err
    assert not (tmp_path / "out").exists()


def test_several_models_need_a_folder_for_their_results(suspects, capsys):
    path = suspects / "harmless.safetensors"
    status, _, err = run(capsys, "scan", path, path, "--data", suspects / "images")
    assert status == 2
    assert "--out" in err


def test_models_of_one_name_in_one_folder_of_results_keep_their_own_reports(suspects, tmp_path, capsys):
    out = tmp_path / "out"
    for folder, source in (("a", "attacked"), ("b", "harmless")):
        (tmp_path / folder).mkdir()
        for suffix in (".safetensors", ".json"):
            shutil.copy(suspects / f"{source}{suffix}", tmp_path / folder / f"index{suffix}")
        run(capsys, "scan", tmp_path / folder, "--data", suspects / "images", "--out", out, "--quick")
    rows = rows_of(out)
    assert sorted(Path(row["path"]).name for row in rows) == ["a", "b"]
    assert len({row["html"] for row in rows} | {"index.html"}) == 3
    assert all((out / row["html"]).is_file() for row in rows)


def test_results_beside_a_checkpoint_leave_its_description_alone(suspects, tmp_path, capsys):
    for suffix in (".safetensors", ".json"):
        shutil.copy(suspects / f"harmless{suffix}", tmp_path / f"m{suffix}")
    before = (tmp_path / "m.json").read_bytes()
    status, _, err = run(
        capsys, "scan", tmp_path / "m.safetensors", "--data", suspects / "images", "--out", tmp_path, "--quick"
    )
    assert (status, err) == (0, "")
    assert (tmp_path / "m.json").read_bytes() == before


def test_a_name_that_is_no_text_stops_nothing(suspects, tmp_path, capsys):
    odd = tmp_path / os.fsdecode(b"a b\xff\n.safetensors")
    shutil.copy(suspects / "harmless.safetensors", odd)
    given = (odd, suspects / "harmless.safetensors")
    status, _, err = run(capsys, "scan", *given, "--data", suspects / "images", "--out", tmp_path / "out", "--quick")
    assert (status, err) == (1, "")  # the copy does not say what it is
    assert [row["label"] for row in rows_of(tmp_path / "out")] == ["error", "nothing_found"]
    assert "harmless" in (tmp_path / "out" / "index.html").read_text()


def test_json_to_standard_output_is_all_that_is_there(suspects, capsys, schema):
    given = ("scan", suspects / "attacked.safetensors", "--data", suspects / "images", "--json", "-")
    status, text, err = run(capsys, *given)
    assert status == 3
    schema.validate(json.loads(text))
    assert "Verdict: suspicious" in err


def test_errors_are_reported_as_json_too(suspects, tmp_path, capsys, schema):
    (tmp_path / "x.pt").write_bytes(b"nothing of the kind")
    status, _, err = run(capsys, "scan", tmp_path / "x.pt", "--data", suspects / "images", "--json", tmp_path / "x")
    found = json.loads((tmp_path / "x").read_text())
    schema.validate(found)
    assert status == 1
    assert found["error"]["kind"] == "CheckpointError"
    assert found["error"]["message"] in err
    # The schema is no rubber stamp.
    for damaged in ({**found, "extra": 1}, {k: v for k, v in found.items() if k != "error"}, {**found, "version": 2}):
        assert not schema.is_valid(damaged)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["nothing_found"], (0, 0, 0, 0)),
        (["inconclusive", "nothing_found"], (4, 0, 0, 0)),
        (["borderline", "inconclusive"], (4, 4, 0, 0)),
        (["borderline", "error"], (1, 1, 1, 1)),
        (["error", "suspicious"], (3, 3, 3, 1)),
        (["suspicious"], (3, 3, 3, 0)),
    ],
)
def test_what_counts_as_failed_can_be_chosen(labels, expected):
    assert tuple(worst_status(labels, least) for least in FailOn) == expected


def test_fail_on_on_the_command_line(suspects, capsys):
    given = ("scan", suspects / "attacked.safetensors", "--data", suspects / "images", "--quick", "--fail-on")
    assert run(capsys, *given, "never")[0] == 0
    status, _, err = run(capsys, *given, "sometimes")
    assert status == 2
    assert "suspicious" in err


# ---- presets and fewer images ------------------------------------------------------------------------------------


def test_a_preset_says_how_images_are_fed(tmp_path, suspects, capsys):
    from tacfast.models import build_model

    torch.manual_seed(0)
    torch.save(build_model("small_preact_resnet", 10, arch_args={"in_channels": 3}).state_dict(), tmp_path / "m.pt")
    for k in range(10):
        (tmp_path / "images" / str(k)).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (40, 40), (20 * k, 5 * i, 90)).save(tmp_path / "images" / str(k) / f"{i}.png")
    model = ("--arch", "small_preact_resnet", "--arch-args", '{"in_channels": 3}', "--num-classes", "10")
    given = ("scan", tmp_path / "m.pt", "--data", tmp_path / "images", *model, "--json", tmp_path / "facts.json")
    _, _, err = run(capsys, *given)
    assert "give --mean and --std (or --preset cifar10|gtsrb|tinyimagenet|imagenet)" in flat(err)
    status, _, err = run(capsys, *given, "--preset", "cifar10", "--std", "0.5,0.5,0.5", "--max-images", "30", "--quick")
    assert status in (0, 3, 4), err
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["source"]["normalised by"] == (
        "mean 0.4914, 0.4822, 0.4465; standard deviation 0.5, 0.5, 0.5"  # what is said goes first
    )
    assert facts["source"]["image size"] == "32×32"
    assert facts["scan"]["samples"] == 30
    status, _, err = run(capsys, *given, "--preset", "mnist")
    assert status == 2
    assert "expected one of cifar10, gtsrb, tinyimagenet, imagenet" in flat(err)


def test_continuous_integration_is_told_in_its_own_formats(suspects, tmp_path, capsys):
    junit, sarif = tmp_path / "junit.xml", tmp_path / "found.sarif"
    names = ("attacked.safetensors", "broken.pt", "harmless.safetensors")
    given = ("scan", *(suspects / name for name in names), "--data", suspects / "images", "--out", tmp_path / "out")
    assert run(capsys, *given, "--junit", junit, "--sarif", sarif)[0] == 3
    suite = ElementTree.parse(junit).getroot()
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "3",
        "failures": "1",
        "errors": "1",
        "skipped": "0",
    }
    cases = {Path(case.get("name")).name: [child.tag for child in case] for case in suite}
    assert cases == dict(zip(names, (["failure"], ["error"], []), strict=True))
    (log,) = json.loads(sarif.read_text())["runs"]
    rules = {rule["id"] for rule in log["tool"]["driver"]["rules"]}
    found = {Path(unquote(urlparse(place(each)).path)).name: each["ruleId"] for each in log["results"]}
    assert found == {"attacked.safetensors": "suspicious", "broken.pt": "error"}
    assert set(found.values()) <= rules
    assert all(each["message"]["text"] for each in log["results"])
    # What --fail-on lets pass is no failure, but not clean either.
    assert run(capsys, *given, "--junit", junit, "--fail-on", "never")[0] == 1
    assert [child.tag for child in ElementTree.parse(junit).getroot().iter() if child.tag != "testcase"][1:] == [
        "skipped",
        "error",
    ]


def place(result):
    (location,) = result["locations"]
    return location["physicalLocation"]["artifactLocation"]["uri"]


@pytest.mark.parametrize(("known", "status", "rule"), [(True, 3, "suspicious"), (False, 1, "error")])
def test_of_one_model_they_are_told_too(suspects, tmp_path, capsys, known, status, rule):
    junit, sarif, broken = tmp_path / "junit.xml", tmp_path / "found.sarif", tmp_path / "broken.pt"
    broken.write_bytes(b"nothing of the kind")
    given = ("scan", suspects / "attacked.safetensors" if known else broken, "--data", suspects / "images", "--quiet")
    assert run(capsys, *given, "--junit", junit, "--sarif", sarif)[0] == status
    assert len(ElementTree.parse(junit).getroot()[0]) == 1
    assert [each["ruleId"] for each in json.loads(sarif.read_text())["runs"][0]["results"]] == [rule]
    assert run(capsys, *given, "--junit", sarif, "--sarif", sarif)[0] == 2


def test_what_is_scanned_is_not_overwritten(suspects, tmp_path, capsys):
    """Neither weights nor what describes them, also those in a folder, nor one report by another."""
    for name in ("attacked", "harmless"):
        for suffix in (".safetensors", ".json"):
            shutil.copy(suspects / f"{name}{suffix}", tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in tmp_path.glob("attacked.*"):
        shutil.copy(path, folder)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    attacked, inside = tmp_path / "attacked.safetensors", folder / "attacked.safetensors"
    out, report = ("--out", tmp_path / "out"), tmp_path / "report"
    for given in (
        (attacked, "--junit", attacked),
        (attacked, *out, "--junit", attacked),
        (attacked, tmp_path / "harmless.safetensors", *out, "--sarif", tmp_path / "harmless.json"),
        (attacked, *out, "--junit", report, "--sarif", report),
        (folder, "--html", inside),
        (folder, "--json", inside.with_suffix(".json")),
        (folder, *out, "--junit", inside),
    ):
        status, _, err = run(capsys, "scan", *given, "--data", suspects / "images")
        assert (status, "expected another file than" in flat(err)) == (2, True), given
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before


def test_a_missing_model_is_told_too(suspects, tmp_path, capsys):
    junit = tmp_path / "junit.xml"
    given = ("scan", tmp_path / "nowhere.pt", "--data", suspects / "images", "--junit", junit)
    assert run(capsys, *given)[0] == 1
    assert ElementTree.parse(junit).getroot().get("errors") == "1"


def test_a_damaged_line_of_the_summary_is_done_again(suspects, tmp_path, capsys):
    given = ("scan", suspects / "attacked.safetensors", "--data", suspects / "images", "--out", tmp_path)
    assert run(capsys, *given)[0] == 3
    (row,) = rows_of(tmp_path)
    (tmp_path / "summary.jsonl").write_text(json.dumps(row | {"seconds": "abc"}) + "\n")
    assert run(capsys, *given, "--junit", tmp_path / "junit.xml")[0] == 3
    assert rows_of(tmp_path)[0]["seconds"] > 0


def test_a_folder_that_cannot_be_made_is_named(suspects, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    given = ("scan", suspects / "broken.pt", "--data", suspects / "images", "--out", tmp_path / "file")
    status, _, err = run(capsys, *given)
    assert status == 1
    assert err.startswith("tacfast: error: out: expected a folder, or the name of a new one, got ")
