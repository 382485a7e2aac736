import json
import math
import stat
import sys

import pytest

from tacfast.detection import Verdict
from tacfast.evaluation import Metrics
from tacfast.report import before_after_table, plot_norms, write_json
from tacfast.solver._files import write_atomically


def verdict(norms, label="suspicious", classes=(1,), median=5.0, threshold=4.0):
    table = dict(enumerate(norms))
    return Verdict(label, classes, dict.fromkeys(table, 0.0), table, median, threshold, ("a reason",))


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
    """Keep the figure that `plot_norms` draws."""
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


def test_picture_shows_bars_labels_threshold_and_verdict(tmp_path, monkeypatch):
    kept = capture(monkeypatch)
    plot_norms(verdict([5.0, 3.0, 5.5]), tmp_path / "norms.png", names={1: "truck"}, note="a note")
    assert (tmp_path / "norms.png").read_bytes().startswith(b"\x89PNG")
    axes = kept[0].axes[0]
    assert [bar.get_height() for bar in axes.patches] == [5.0, 3.0, 5.5]
    colours = [bar.get_facecolor() for bar in axes.patches]
    assert colours[0] == colours[2] != colours[1]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "truck", "2"]
    assert sorted(line.get_ydata()[0] for line in axes.lines) == [4.0, 5.0]
    title = axes.get_title(loc="left")
    assert "Suspicious" in title
    assert "truck" in title
    assert "a note" in title
    assert texts(axes) == ["5.00", "3.00", "5.50"]


@pytest.mark.parametrize(("label", "word"), [("nothing_found", "Nothing found"), ("inconclusive", "Inconclusive")])
def test_title_says_the_verdict(tmp_path, monkeypatch, label, word):
    kept = capture(monkeypatch)
    plot_norms(verdict([5.0, 3.0], label=label, classes=()), tmp_path / "norms.png")
    assert word in kept[0].axes[0].get_title(loc="left")


def test_infinite_and_missing_norms_are_words(tmp_path, monkeypatch):
    kept = capture(monkeypatch)
    shown = verdict([math.inf, math.nan, 3.0], "inconclusive", (), math.inf, math.nan)
    plot_norms(shown, tmp_path / "norms.png")
    assert texts(kept[0].axes[0]) == ["not reachable", "not solved", "3.00"]
    assert len(kept[0].axes[0].lines) == 0
    plot_norms(verdict([], "inconclusive", (), math.nan, math.nan), tmp_path / "norms.png")


def test_names_are_text_whatever_they_hold(tmp_path, monkeypatch):
    kept = capture(monkeypatch)
    names = {0: "$\\frac{$", 1: "$x$ \x00\u202e", 2: "a name that is far too long for an axis"}
    plot_norms(verdict([5.0, 3.0, 5.5]), tmp_path / "norms.png", names=names, note="$\\frac{$")
    axes = kept[0].axes[0]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["$\\frac{$", "$x$ \ufffd\ufffd", "a name that is far too …"]
    assert "$x$ \ufffd\ufffd" in axes.get_title(loc="left")


def test_norms_far_out_are_cut_off(tmp_path, monkeypatch):
    kept = capture(monkeypatch)
    plot_norms(verdict([5.0, 3.0, 5.5, 5.2, 1.2e8]), tmp_path / "norms.png")
    axes = kept[0].axes[0]
    assert 5.5 < axes.get_ylim()[1] < 7
    assert texts(axes)[-1] == "1.2e+08 ↑"


def test_many_classes_stay_legible(tmp_path, monkeypatch):
    kept = capture(monkeypatch)
    plot_norms(verdict([5.0, 3.0] * 200), tmp_path / "norms.png")
    axes = kept[0].axes[0]
    assert len(axes.get_xticks()) == 50
    assert len(axes.texts) == 0
    assert len(axes.patches) == 400


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


@pytest.mark.parametrize(
    ("missing", "call", "extra"),
    [
        ("matplotlib.figure", lambda path: plot_norms(verdict([1.0]), path), r"tacfast\[report\]"),
        ("rich.table", lambda path: before_after_table(Metrics(1, 1, 1), None), r"tacfast\[cli\]"),
    ],
)
def test_without_the_extra_it_is_named(tmp_path, monkeypatch, missing, call, extra):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=extra):
        call(tmp_path / "norms.png")
    assert list(tmp_path.iterdir()) == []
