import io
import json
import math
import re
import stat
import sys

import pytest
from shortcut import TARGET, make_data, make_model

from tacfast import scan
from tacfast._files import write_atomically
from tacfast.detection import FULL
from tacfast.evaluation import Metrics
from tacfast.report import before_after_table, plot_scores, scan_facts, write_json


def facts(scores, classes=(1,), names=None, threshold=4.0, headline="Suspicious: class 1"):
    """What `plot_scores` draws of `scan_facts`; ``scores`` by statistic."""

    def of_class(k):
        found = {name: {"score": values[k]} for name, values in scores.items()}
        known = [each["score"] for each in found.values() if not math.isnan(each["score"])]
        score = max(known, default=math.nan)
        return {"class": k, "name": (names or {}).get(k), "named": k in classes, "score": score, "statistics": found}

    return {
        "verdict": {"headline": headline, "threshold": threshold},
        "statistics": [{"name": name, "title": f"title of {name}"} for name in scores],
        "classes": [of_class(k) for k in range(len(next(iter(scores.values()))))],
    }


def test_json_is_strict_and_readable(tmp_path):
    path = tmp_path / "report.json"
    write_json(path, {"a": [1.5, math.inf, (math.nan,)], "b": {"c": None, "d": True}})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "a": [1.5, None, [None]],
        "b": {"c": None, "d": True},
    }


def test_files_are_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444
    with pytest.raises(TypeError):
        write_atomically(path, "text")
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})

    def fail(self, target):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", fail)
        with pytest.raises(OSError, match="full"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def capture(monkeypatch):
    """Keep the figure that `plot_scores` draws."""
    figure = pytest.importorskip("matplotlib.figure")
    kept = []
    original = figure.Figure.savefig

    def savefig(self, *args, **kwargs):
        kept.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(figure.Figure, "savefig", savefig)
    return kept


def texts(axes):
    return [text.get_text() for text in axes.texts]


def lines(axes):
    """Points of everything drawn with a label, by that label, in the order of their x."""
    found = {}
    for line in axes.lines:
        found.setdefault(line.get_label(), []).extend(zip(*line.get_data(), strict=True))
    return {label: sorted(points) for label, points in found.items()}


def test_picture_shows_scores_of_each_statistic_threshold_and_verdict(tmp_path, monkeypatch):
    kept = capture(monkeypatch)
    shown = facts({"a": [-0.5, 5.5, 0.25], "b": [0.5, 4.5, -1.0]}, names={1: "truck"})
    plot_scores(shown, tmp_path / "scores.png", note="a note")
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = kept[0].axes
    found = lines(axes)
    assert found["title of a"] == [(0, -0.5), (2, 0.25)]
    assert found["title of b"] == [(0, 0.5), (2, -1.0)]
    ordinary = next(line for line in axes.lines if line.get_label() == "title of a")
    flagged = [line for line in axes.lines if list(line.get_xdata()) == [1]]
    assert sorted(line.get_ydata()[0] for line in flagged) == [4.5, 5.5]
    assert {line.get_color() for line in flagged}.isdisjoint({ordinary.get_color()})
    assert len({line.get_marker() for line in flagged}) == 2
    assert [y for _, y in found["threshold 4.00: suspicious above"]] == [4.0, 4.0]
    (stems,) = axes.collections
    assert [segment.tolist() for segment in stems.get_segments()] == [
        [[k, 0], [k, score]] for k, score in enumerate([0.5, 5.5, 0.25])
    ]
    assert stems.get_colors()[0].tolist() == stems.get_colors()[2].tolist() != stems.get_colors()[1].tolist()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "truck", "2"]
    assert axes.get_title(loc="left") == "Suspicious: class 1\na note"
    assert texts(axes) == []
    (legend,) = kept[0].legends
    entries = ["threshold 4.00: suspicious above", "title of a", "title of b"]
    assert sorted(text.get_text() for text in legend.get_texts()) == entries


def test_without_a_threshold_none_is_drawn(tmp_path, monkeypatch):
    kept = capture(monkeypatch)
    plot_scores(facts({"a": [0.5, math.nan]}, (), threshold=math.nan), tmp_path / "scores.png")
    plot_scores(facts({"a": []}, (), threshold=math.nan), tmp_path / "scores.png")
    for figure in kept:
        assert not any("threshold" in text.get_text() for legend in figure.legends for text in legend.get_texts())
        assert [y for label, points in lines(figure.axes[0]).items() for _, y in points if "title" not in label] == [
            0,
            0,
        ]


def test_scores_far_out_are_cut_off_and_written_beside_their_mark(tmp_path, monkeypatch):
    kept = capture(monkeypatch)
    shown = facts({"a": [math.inf, 0.5, 16.77, math.nan, math.nan], "b": [math.nan, -15.0, 13.0, math.nan, 14.0]})
    plot_scores(shown, tmp_path / "scores.png")
    (axes,) = kept[0].axes
    written = {text.get_text(): text.xy for text in axes.texts}
    low, high = axes.get_ylim()
    assert written == {"∞ ↑": (0, 12), "−15.0 ↓": (1, -12), "16.8 ↑": (2, 12), "14.0 ↑": (4, 12)}
    assert -14 < low < -12
    assert 12 < high < 14
    # Nothing is drawn of the NaN.
    assert [segment[1].tolist() for segment in axes.collections[0].get_segments() if len(segment)] == [
        [0, 12],
        [1, 0.5],
        [2, 12],
        [4, 12],
    ]


def test_names_are_text_whatever_they_hold(tmp_path, monkeypatch):
    kept = capture(monkeypatch)
    names = {0: "$\\frac{$", 1: "$x$ \x00\u202e", 2: "a name that is far too long for an axis"}
    shown = facts({"a": [0.0, 5.0, 0.5]}, names=names, headline="$\\frac{$")
    plot_scores(shown, tmp_path / "scores.png", note="$\\frac{$")
    axes = kept[0].axes[0]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["$\\frac{$", "$x$ \ufffd\ufffd", "a name that is far too …"]
    assert axes.get_title(loc="left") == "$\\frac{$\n$\\frac{$"


@pytest.mark.parametrize("classes", [200, 1000])
def test_many_classes_stay_legible(tmp_path, monkeypatch, classes):
    kept = capture(monkeypatch)
    plot_scores(facts({"a": [0.5, 6.0, *[-0.5] * (classes - 2)]}), tmp_path / "scores.png")
    axes = kept[0].axes[0]
    assert len(axes.get_xticks()) == 50
    assert len(lines(axes)["title of a"]) == classes - 1
    assert kept[0].get_figwidth() <= 40


def test_table_has_one_row_per_figure():
    console = pytest.importorskip("rich.console")
    output = console.Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    output.print(before_after_table(Metrics(0.99, 1.0, 0.0), Metrics(0.98, 0.0123, 0.9), title="digits"))
    output.print(before_after_table(Metrics(0.99, 1.0, 0.0), None))
    text = output.export_text()
    output.file.close()
    assert "digits" in text
    first, second = text.split("on the test images")[1:]
    assert "after repair" in first
    assert "after repair" not in second
    for words in (["ACC", "99.0 %", "98.0 %"], ["ASR", "100.0 %", "1.2 %"], ["RA", "0.0 %", "90.0 %"]):
        assert any(all(word in line for word in words) for line in first.splitlines())


def printed(facts, names):
    """What `print_scan` says, and the rows of its table."""
    console = pytest.importorskip("rich.console")
    pytest.importorskip("typer")
    from tacfast.commands.work.console import MAX_ROWS, print_scan

    output = console.Console(width=160, file=io.StringIO())
    print_scan(output, facts, names)
    text = output.file.getvalue()
    start = text.index("easiest classes to reach")
    return text, [re.split(" {2,}", line.strip()) for line in text[start:].splitlines()[1 : 1 + MAX_ROWS]]


@pytest.mark.parametrize(("quick", "classes"), [(False, 10), (True, 200)])
def test_terminal_says_what_the_facts_say(quick, classes):
    report = scan(make_model(classes), make_data(classes, per_class=8, noise=0.1).loader(400), quick=quick, blocks=2)
    facts = scan_facts(report)
    text, rows = printed(facts, {TARGET: "[b]truck[/b]"})
    said = (facts["verdict"]["headline"], *facts["verdict"]["reasons"], facts["bank"]["sentence"])
    for sentence in (*said, facts["stability"]["sentence"], f"Verdict: {facts['verdict']['label']}"):
        assert sentence in text
    assert ("which show fewer backdoors" in text) == quick
    easiest = sorted(report.verdict.scores, key=lambda k: -report.verdict.scores[k])[:5]
    expected = [
        [
            f"{k} ([b]truck[/b])" if k == TARGET else str(k),
            f"{report.verdict.scores[k]:.2f}",
            *(f"{found.scores[k]:.2f}" for found in report.verdict.findings),
            f"{float(report.solution.norms[k]):.4g}",
        ]
        for k in easiest
    ]
    assert rows == expected
    assert len(rows[0]) == (4 if quick else 3 + len(FULL.statistics))


def test_terminal_shows_what_is_no_number():
    facts = scan_facts(scan(make_model(5), make_data(5).loader(64), quick=True, blocks=0))
    odd = [(math.inf, 0.0), (2.0, 1.0), (-1.5, math.inf), (math.nan, math.nan), (-math.inf, 1.0)]
    for place, (row, (score, norm)) in enumerate(zip(facts["classes"], odd, strict=True)):
        row |= {"score": score, "norm": norm, "rank": place, "statistics": {"qp": {"score": score}}}
    _, rows = printed(facts, {})
    cells = [
        ["inf", "inf", "0"],
        ["2.00", "2.00", "1"],
        ["-1.50", "-1.50", "inf"],
        ["-", "-", "-"],
        ["-inf", "-inf", "1"],
    ]
    assert [row[1:] for row in rows] == cells


@pytest.mark.parametrize(
    ("missing", "call", "extra"),
    [
        ("matplotlib.figure", lambda path: plot_scores(facts({"a": [1.0]}), path), r"tacfast\[report\]"),
        ("rich.table", lambda path: before_after_table(Metrics(1, 1, 1), None), r"tacfast\[cli\]"),
    ],
)
def test_without_the_extra_it_is_named(tmp_path, monkeypatch, missing, call, extra):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=extra):
        call(tmp_path / "scores.png")
    assert list(tmp_path.iterdir()) == []
