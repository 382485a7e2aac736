"""What results show of themselves: text, pictures, tables, plain values, and copies that are as good."""

import ast
import base64
import copy
import dataclasses
import functools
import json
import math
import pickle
import subprocess
import sys
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import TARGET as PLANTED
from planted import checkerboard, make_images
from shortcut import TARGET, make_data, make_model
from torch import nn

import tacfast
from tacfast import attacks, data, defenses, detection, evaluation, models, training
from tacfast.detection.universal import Additive
from tacfast.report import scan_facts, write_json

PACKAGE = Path(tacfast.__file__).parent


@functools.cache
def report(classes=10):
    """With all that a report can have."""
    found = tacfast.scan(make_model(classes), make_data(classes).loader(400), blocks=2)
    assert found.stability is not None
    assert found.perturbations
    return found


@functools.cache
def infeasible():
    W = torch.tensor([[0.0, 0], [1, 1], [1, -1], [-1, 1], [-1, -1]])
    b = torch.tensor([-1.0, 0, 0, 0, 0])
    return tacfast.solve_tac(torch.randn(9, 2, generator=torch.Generator().manual_seed(0)), W, b)


def solution(count=10, kind=torch.Tensor.float, **settings):
    generator = torch.Generator().manual_seed(1)
    latents, W = (kind(torch.randn(n, 7, generator=generator)) for n in (40, count))
    return tacfast.solve_tac(latents, W, **settings)


def gap_matrix(classes=10, keep_logits=False):
    generator = torch.Generator().manual_seed(2)
    W = torch.randn(classes, 7, generator=generator, requires_grad=True)
    return tacfast.GapMatrix(W, keep_logits=keep_logits).update(torch.randn(40, 7, generator=generator))


@functools.cache
def results(classes=10):
    """One of every type of result that the package exports, with so many classes."""
    generator = torch.Generator().manual_seed(3)
    scanned = report(classes)
    latents, W = (torch.randn(n, 7, generator=generator) for n in (40, classes))
    samples = tacfast.solve_tac_per_sample(latents, W, return_perturbations=True)
    accuracy = defenses.Accuracy((3,) * classes, (4,) * classes)
    epoch = defenses.EpochRecord(1, 0.5, 0.75, 0.7, dict.fromkeys(range(classes), 0.125), tuple(range(classes)))
    verdict = dataclasses.replace(scanned.verdict, reasons=(*scanned.verdict.reasons, *["a long sentence " * 99] * 9))
    confirmation = defenses.Confirmation(verdict, verdict, tuple(range(classes)), dict.fromkeys(range(classes), 0.5))
    repaired = defenses.RepairResult(
        make_model(classes),
        (epoch,) * 40,
        12.5,
        before=accuracy,
        after=accuracy,
        targets=tuple(range(classes)),
        settings={f"setting {i}": i for i in range(99)},
        confirmation=confirmation,
    )
    weights = {f"layer {i}": torch.zeros(classes, 3) for i in range(200)}
    names = tuple(f"name {k}" for k in range(classes))
    images = make_data(classes)
    metrics = evaluation.Metrics(0.9, 0.1, 0.8)
    batch = torch.randn(40, 7), torch.randn(40, classes), torch.arange(40) % classes
    splits = data.Splits(*torch.arange(len(images)).chunk(3))
    poisoned = attacks.poison(images, attacks.BadNets(target=0, size=1), 0.1)
    return [
        scanned,
        *(scanned.verdict, scanned.solution, scanned.head, scanned.stability, scanned.perturbations[0]),
        *(scanned.solution.certificate, scanned.verdict.findings[0], scanned.stability.scores[0]),
        dataclasses.replace(scanned, verdict=verdict),
        *(verdict, samples, infeasible(), solution(classes).to("meta"), solution(classes, torch.Tensor.numpy)),
        *(gap_matrix(classes), gap_matrix(classes, keep_logits=True), tacfast.GapMatrix(W)),
        *(tacfast.Status.OPTIMAL, tacfast.SolverError("no", scanned.solution)),
        *(accuracy, defenses.Accuracy((0,), (0,)), epoch, confirmation, repaired),
        models.Checkpoint(weights, "resnet18", {}, classes, names),
        models.BackdoorBenchResult(Path("a"), "resnet18", classes, weights, (32, 32), "cifar10", None, None, None),
        models.PoisonedImage(Path("a"), 0, 1),
        *(models.LatentBatch(*batch), models.Latents(*batch, scanned.head)),
        *(images, splits, data.ImageDataset("a", images, 9, names, (0.5,), (0.5,), 4, True)),
        *(attacks.choose_rows(images.labels, attacks.BadNets(target=0, size=1), 0.1), poisoned),
        *(metrics, evaluation.Relearned(5, 0.5, 0.5), evaluation.Reconstruction(0.5, 0.5)),
        *(evaluation.TrueChange(torch.zeros(512), torch.zeros(512)), evaluation.Outcome(repaired, metrics, metrics)),
        evaluation.Trial(make_model(classes), images, splits, attacks.BadNets(target=0, size=1)),
        training.TrainedEpoch(1, 0.5, 0.5, 1.0),
        detection.Evidence(gap_matrix(classes)),
    ]


TYPES = [type(each) for each in results()]


def unwrapped(text):
    return " ".join(text.split())


# ---- text ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [10, 200])
@pytest.mark.parametrize("i", range(len(TYPES)), ids=[each.__name__ for each in TYPES])
def test_a_repr_is_a_screenful_without_tensors(i, classes):
    text = repr(results(classes)[i])
    lines = text.splitlines()
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 100
    assert "tensor(" not in text
    assert "array(" not in text
    assert TYPES[i].__name__ in lines[0]


def test_every_exported_record_of_arrays_is_tested_here():
    rooms = (tacfast, attacks, data, defenses, detection, evaluation, models, training)
    exported = [getattr(room, name) for room in rooms for name in room.__all__]
    records = {
        each
        for each in exported
        if dataclasses.is_dataclass(each)
        and any(word in str(field.type) for field in dataclasses.fields(each) for word in ("Tensor", "Kind", "Mapping"))
    }
    settled = {attacks.Victim}  # what an attack is given
    assert {tacfast.TacSolution, detection.Finding, models.Latents} <= records
    assert {each for each in records if not issubclass(each, attacks.Attack)} - settled <= set(TYPES)


def test_a_report_says_its_verdict_and_why_and_how_well_it_was_solved():
    found, text = report(), unwrapped(repr(report()))
    assert text.startswith(f"ScanReport: suspicious (class {TARGET})")
    assert all(reason in text for reason in found.verdict.reasons)
    assert f"threshold {found.verdict.threshold:.2f}" in text
    assert f"{found.solution.n_samples}, accuracy {100 * found.accuracy:.1f} %" in text
    assert "of 2 runs without a block of samples suspicious in 2" in text
    assert "10 OPTIMAL" in text
    norms = found.solution.norms.numpy()
    for shown in (text, unwrapped(repr(found.solution))):
        assert ", ".join(f"class {k}: {norms[k]:.4g}" for k in np.argsort(norms)[:5]) + ", …" in shown
    scores = sorted(found.verdict.scores.items(), key=lambda pair: -pair[1])[:5]
    assert ", ".join(f"class {k}: {score:.4g}" for k, score in scores) + ", …" in unwrapped(repr(found.verdict))


def test_a_solution_says_its_statuses_and_largest_residuals():
    residuals = {"primal": [math.nan, 0.25, 0.5, 0, 0.125], "dual": [0.0] * 5}
    residuals |= {"stationarity": [3.0, 0, 0, 0, 1.0], "gap": [math.nan, 0, 0, 0, 0.75]}
    certificate = {name: torch.tensor(values, dtype=torch.float64) for name, values in residuals.items()}
    found = infeasible()
    found = dataclasses.replace(found, certificate=dataclasses.replace(found.certificate, **certificate))
    text = unwrapped(repr(found))
    assert text.startswith("TacSolution: 5 of 5 classes in 2 dimensions, 9 samples")
    assert "4 OPTIMAL, 1 INFEASIBLE" in text
    assert found.certificate.worst == {"primal": 0.5, "dual": 0.0, "stationarity": 3.0, "gap": 0.75}
    assert "primal 5.0e-01, dual 0.0e+00, stationarity 3.0e+00, gap 7.5e-01" in text
    assert "class 0: inf" in text
    partly = dataclasses.replace(found, norms=torch.tensor([math.nan, 3.0, 1.0, math.inf, 2.0]))
    assert "class 2: 1, class 4: 2, class 1: 3, class 3: inf, class 0: nan" in unwrapped(repr(partly))


def test_per_sample_solutions_say_the_smallest_medians():
    generator = torch.Generator().manual_seed(0)
    latents, W = (torch.randn(n, 7, generator=generator) for n in (41, 8))
    found = tacfast.solve_tac_per_sample(latents, W, classes=[5, 0, 7, 2])
    medians = dict(zip([5, 0, 7, 2], np.median(found.norms.numpy(), axis=0), strict=True))
    expected = ", ".join(f"class {k}: {medians[k]:.4g}" for k in sorted(medians, key=medians.get))
    assert expected in unwrapped(repr(found))
    assert "164 OPTIMAL" in repr(found)


def test_one_long_reason_hides_nothing_else():
    verdict = dataclasses.replace(report().verdict, reasons=("a long sentence " * 999, "a short one"))
    text = repr(dataclasses.replace(report(), verdict=verdict))
    assert all(word in text for word in ("a short one", "judged by", "smallest norms", "stability"))


def test_names_cannot_garble_the_terminal():
    garbled = dataclasses.replace(report().verdict, reasons=("a\x1b[31m\u202eb",))
    assert "a\ufffd[31m\ufffdb" in repr(garbled)
    assert "\x1b" not in repr(models.Checkpoint({"a\x1b": torch.zeros(1)}))


# ---- plain values and tables ---------------------------------------------------------------------------------


def test_the_dictionary_of_a_report_is_what_is_written_as_json(tmp_path):
    write_json(tmp_path / "a", scan_facts(report()))
    written, found = json.loads((tmp_path / "a").read_text()), report().to_dict()
    assert {**json.loads(json.dumps(found, allow_nan=False)), "created": written["created"]} == written


def test_the_dictionary_of_a_solution_has_its_values():
    for each in (solution(6, margin=0.25), solution(6, margin=0.25, trim=0.1)):
        facts = json.loads(json.dumps(each.to_dict(), allow_nan=False))
        assert [row["class"] for row in facts["classes"]] == each.classes.tolist()
        assert [row["norm"] for row in facts["classes"]] == each.norms.tolist()
        for name in ("primal", "dual", "stationarity", "gap", "lower", "upper"):
            assert [row["certificate"][name] for row in facts["classes"]] == getattr(each.certificate, name).tolist()
        assert (facts["solve"]["margin"], facts["solve"]["trim"]) == (0.25, each.trim)
        assert (facts["solve"]["samples"], facts["solve"]["classes"], facts["solve"]["latents"]) == (40, 6, 7)
    first = infeasible().to_dict()["classes"][0]
    assert (first["norm"], first["status"], first["certificate"]["gap"]) == (None, "INFEASIBLE", None)


def test_tables_have_a_row_per_class():
    pytest.importorskip("pandas")
    solved = solution(6, classes=[4, 1])
    found = solved.to_pandas()
    assert found.index.tolist() == solved.classes.tolist()
    assert found["norm"].tolist() == solved.norms.tolist()
    assert found["certificate.gap"].tolist() == solved.certificate.gap.tolist()
    assert infeasible().to_pandas()["norm"][0] == math.inf
    scanned = report().to_pandas()
    assert scanned["score"].to_dict() == report().verdict.scores
    assert scanned["statistics.qp.value"].to_dict() == report().verdict.findings[0].values
    assert scanned.index[scanned["named"]].tolist() == [TARGET]


def test_without_pandas_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    for found in (report(), report().solution):
        with pytest.raises(ImportError, match="pip install pandas"):
            found.to_pandas()


# ---- pictures ------------------------------------------------------------------------------------------------


def planted():
    images, _ = make_images(40)
    change = 0.2 * checkerboard()[None]
    additive = Additive.of(images)
    return detection.Perturbation(PLANTED, images[:5], additive.apply(images[:5], change), 0.5, 0.75, additive, change)


def test_the_norms_of_a_solution_are_drawn_as_bars():
    pytest.importorskip("matplotlib")
    (axes,) = solution(6, classes=[4, 1]).plot().axes
    assert [bar.get_height() for bar in axes.patches] == solution(6).norms[[4, 1]].tolist()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["4", "1"]
    (axes,) = infeasible().plot().axes
    assert len(axes.patches) == 4
    assert "not reachable" in [text.get_text() for text in axes.texts]


def test_the_scores_of_a_report_are_drawn_with_the_threshold():
    pytest.importorskip("matplotlib")
    (axes,) = report().plot().axes
    (stems,) = axes.collections
    assert [segment[1].tolist() for segment in stems.get_segments()] == [
        [k, score] for k, score in report().verdict.scores.items()
    ]
    assert report().verdict.threshold in [line.get_ydata()[0] for line in axes.lines]
    assert axes.get_title(loc="left").startswith(f"Suspicious: class {TARGET}")


@pytest.mark.parametrize("classes", [10, 200])
def test_the_ranges_of_a_jackknife_are_drawn(classes):
    pytest.importorskip("matplotlib")
    found = report(classes).stability
    (axes,) = found.plot().axes
    shown = [int(label.get_text()) for label in axes.get_yticklabels()]
    bars = [line.get_xdata() for line in axes.lines if line.get_linewidth() == 5]
    assert [tuple(bar) for bar in bars] == [found.scores[k] for k in shown]
    assert len(shown) == min(classes, 40)
    assert TARGET in shown
    assert found.runs[0].threshold in [line.get_xdata()[0] for line in axes.lines]


def test_a_perturbation_is_drawn_on_its_images():
    pytest.importorskip("matplotlib")
    cells = planted().plot().axes
    assert len(cells) == 3 * 5
    drawn = np.stack([cell.images[0].get_array() for cell in cells[:10]])
    expected = torch.cat([planted().inputs, planted().perturbed])[:, 0].numpy()
    # To the whole range of grey.
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    np.testing.assert_allclose(np.squeeze(drawn), expected, atol=1e-6)
    flat = torch.zeros(5, 7)
    with pytest.raises(ValueError, match=r"inputs: expected images \(m, channels, h, w\).*, got shape \(5, 7\)"):
        dataclasses.replace(planted(), inputs=flat, perturbed=flat).plot()


def test_without_matplotlib_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for found in (report(), report().solution, report().stability, planted()):
        with pytest.raises(ImportError, match=r"tacfast\[report\]"):
            found.plot()


@pytest.mark.parametrize("found", [report(), infeasible()], ids=["report", "solution"])
def test_notebooks_show_the_text_and_the_picture(found, monkeypatch):
    pytest.importorskip("matplotlib")
    text, _, picture = found._repr_html_().partition("</pre>")
    assert unescape(text) == f"<pre>{found!r}"
    assert base64.b64decode(picture.partition("base64,")[2].partition('"')[0]).startswith(b"\x89PNG")
    for missing in ("matplotlib.figure", "jinja2"):
        monkeypatch.setitem(sys.modules, missing, None)
    assert found._repr_html_() == f"{text}</pre>"


def test_what_notebooks_show_is_text_whatever_it_holds():
    hostile = dataclasses.replace(report().verdict, reasons=("<script>alert(1)</script>",))
    found = dataclasses.replace(report(), verdict=hostile)._repr_html_()
    assert "<script" not in found
    assert "&lt;script&gt;" in found


# ---- copies --------------------------------------------------------------------------------------------------


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert (a.device, a.requires_grad) == (b.device, b.requires_grad)
        if not a.is_meta:
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    elif isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, nn.Module):
        assert_same(a.state_dict(), b.state_dict())
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            assert_same(left, right)
    elif isinstance(a, float):
        assert a == b or (math.isnan(a) and math.isnan(b))
    elif type(a).__module__.startswith("tacfast") and hasattr(a, "__dict__") and not isinstance(a, tacfast.Status):
        assert_same(vars(a), vars(b))
    else:
        assert a == b


COPIES = {"pickle": lambda x: pickle.loads(pickle.dumps(x)), "copy": copy.copy, "deepcopy": copy.deepcopy}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("i", range(len(TYPES)), ids=[each.__name__ for each in TYPES])
def test_copies_are_as_good(i, how):
    original = results()[i]
    assert_same(original, COPIES[how](original))


@pytest.mark.parametrize("how", COPIES)
def test_solutions_with_gradients_are_copied(how):
    W = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    found = tacfast.solve_tac(torch.randn(20, 7, generator=torch.Generator().manual_seed(1)), W)
    again = COPIES[how](found)
    assert_same(found, again)
    if how != "pickle":  # a file has no history
        expected, came = (torch.autograd.grad(x.norms.sum(), W, retain_graph=True)[0] for x in (found, again))
        assert expected.any()
        assert torch.equal(expected, came)


def test_deep_copies_share_no_memory():
    for original in (solution(), solution(kind=torch.Tensor.numpy)):
        again = copy.deepcopy(original)
        again.perturbations[:] = 0
        assert original.perturbations.any()


def test_a_copied_gap_matrix_goes_on_alone():
    more = torch.randn(40, 7, generator=torch.Generator().manual_seed(9))
    for how in COPIES.values():
        original, alone = gap_matrix(keep_logits=True), gap_matrix(keep_logits=True)
        again = how(original)
        again.update(more)
        assert again.n_samples == 80
        assert original.samples_per_class.sum() == 40
        assert_same(alone.solve(trim=0.1), original.solve(trim=0.1))
        assert_same(alone.update(more).solve(trim=0.1), again.solve(trim=0.1))


# ---- what is said while it happens ---------------------------------------------------------------------------


def test_a_scan_logs_and_prints_nothing(caplog, capfd):
    with caplog.at_level("INFO", logger="tacfast"):
        tacfast.scan(make_model(), make_data().loader(64), quick=True, blocks=0)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("tacfast.")]
    assert any(f"suspicious (class {TARGET})" in message for message in said)
    assert any(message.startswith("200 samples") for message in said)
    assert capfd.readouterr() == ("", "")


def test_training_epochs_of_a_repair_are_logged(caplog):
    shuffled = make_data().loader(32, shuffle=True)
    with caplog.at_level("INFO", logger="tacfast"):
        result = tacfast.repair(make_model(), shuffled, report_of_model(), mode="ft", epochs=2)
        tacfast.repair(make_model(), shuffled, report_of_model(), mode="latent", epochs=2)
    said = [record.getMessage() for record in caplog.records]
    assert any(f"loss {result.history[1].loss:.4g}" in message for message in said)
    assert sum(message.startswith("epoch 2: ") for message in said) == 2
    assert "repair by LatentRepair" in said


def report_of_model():
    return tacfast.scan(make_model(), make_data().loader(400), quick=True, blocks=0)


SPOKEN = {"cli.py", "commands"}  # the command line


def writes(tree):
    """Calls of print, and uses of sys.stdout and sys.stderr."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "print":
            yield node.lineno
        if isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr"):
            yield node.lineno


def test_the_library_never_prints():
    assert list(writes(ast.parse((PACKAGE / "cli.py").read_text())))
    modules = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in SPOKEN]
    assert len(modules) > 50
    assert [str(path) for path in modules if list(writes(ast.parse(path.read_text())))] == []


def test_importing_the_package_loads_no_optional_one_and_no_report():
    optional = ("matplotlib", "jinja2", "pandas", "rich", "typer", "tacfast.report", "tacfast.commands")
    code = f"import sys, tacfast; print([name for name in {optional} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
