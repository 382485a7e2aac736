"""`tacfast show`: one picture, or one line that says why not."""

import numpy as np
import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("matplotlib")

from tacfast import cli
from tacfast.attacks import ATTACKS, BadNets, make_attack
from tacfast.commands.work import show as command
from tacfast.data import load_digits
from tacfast.report import new_figure, plot_triggers, plots


def run(capsys, *arguments):
    """Exit status, standard output, standard error."""
    status = cli.main(["show", *map(str, arguments)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return status, captured.out, captured.err


@pytest.fixture
def drawn(monkeypatch):
    """Catch what would be drawn: (clean, triggered, titles, path, headline)."""
    pytest.importorskip("sklearn")
    calls = []
    monkeypatch.setattr(command, "plot_triggers", lambda *arguments, headline: calls.append((*arguments, headline)))
    return calls


@pytest.fixture
def figures(monkeypatch):
    """Every figure that is made."""
    made = []
    monkeypatch.setattr(plots, "new_figure", lambda *size: made.append(new_figure(*size)) or made[-1])
    return made


def test_the_grid_is_clean_triggered_and_ten_times_the_difference(figures, tmp_path):
    clean = torch.full((2, 3, 2, 2), 0.5)
    triggered = clean.clone()
    triggered[0, :, 1, 1] = torch.tensor([0.53, 0.46, 0.5])
    triggered[1, :, 0, 0] = torch.tensor([1.0, 0.0, 0.5])  # ten times that is more than can be shown
    titles = ["3\n→ 0", "a $ $ b"]
    plot_triggers(clean, triggered, titles, tmp_path / "grid.png", headline="badnets on digits")
    axes = figures[0].axes
    assert len(axes) == 6
    shown = [axis.images[0].get_array() for axis in axes]
    for image, array in zip([*clean, *triggered], shown, strict=False):
        np.testing.assert_array_equal(array, image.permute(1, 2, 0))
    np.testing.assert_allclose(shown[4], [[[0.5] * 3, [0.5] * 3], [[0.5] * 3, [0.8, 0.1, 0.5]]], atol=1e-6)
    np.testing.assert_allclose(shown[5], [[[1, 0, 0.5], [0.5] * 3], [[0.5] * 3, [0.5] * 3]], atol=1e-6)
    assert [axis.get_title() for axis in axes[:2]] == titles
    assert [axis.get_ylabel().splitlines()[0] for axis in axes[::2]] == ["clean", "triggered", "difference × 10"]
    assert figures[0].get_suptitle() == "badnets on digits"
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_black_is_zero_and_white_is_one_whatever_else_is_in_the_image(figures, tmp_path):
    plot_triggers(torch.full((1, 1, 8, 8), 0.5), torch.full((1, 1, 8, 8), 0.6), [""], tmp_path / "grid.png")
    for axis in figures[0].axes:
        assert axis.images[0].get_clim() == (0, 1)
        assert axis.images[0].get_cmap().name == "gray"


def test_show_draws_what_the_attack_does(drawn, tmp_path, capsys):
    out = tmp_path / "wanet.png"
    assert run(capsys, "wanet", "--target", 3, "--seed", 4, "--images", 5, "--out", out) == (0, f"wrote {out}\n", "")
    ((clean, triggered, titles, path, headline),) = drawn
    assert (path, headline) == (out, "wanet on digits")
    attack = make_attack("wanet", 3, num_classes=10, image_shape=(1, 8, 8), seed=4)
    assert torch.equal(triggered, attack.trigger(clean))
    digits = load_digits()
    for image, title in zip(clean, titles, strict=True):
        k = int(digits.labels[(digits.images == image).flatten(1).all(1)][0])
        assert k != 3  # whose own class is the target is not attacked
        assert title == f"{k}\n→ 3"
    run(capsys, "wanet", "--target", 3, "--seed", 4, "--images", 5, "--out", out)
    assert torch.equal(drawn[1][0], clean)
    run(capsys, "wanet", "--target", 3, "--seed", 5, "--images", 5, "--out", out)
    assert not torch.equal(drawn[2][0], clean)


def test_all_to_all_says_where_each_class_goes(drawn, tmp_path, capsys):
    run(capsys, "badnets-a2a", "--images", 16, "--out", tmp_path / "a.png")
    titles = drawn[0][2]
    assert len(titles) == 16
    for title in titles:
        before, after = title.split("\n→ ")
        assert int(after) == (int(before) + 1) % 10


def test_the_picture_is_named_after_the_attack(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "blended", "--images", 2)[:2] == (0, "wrote blended.png\n")
    assert [path.name for path in tmp_path.iterdir()] == ["blended.png"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nothing"], "attack: expected one of badnets, "),
        (["sig", "--target", 10], "target: expected a class 0 to 9, got 10"),
        (["sig", "--data", "nothing"], "data: expected one of cifar10, "),
        (["sig", "--out", "missing/a.png"], "out: cannot write missing/a.png: "),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, capsys, arguments, line):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    status, _, error = run(capsys, *arguments)
    assert status == 1
    assert error.startswith(f"tacfast: error: {line}")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_trained_trigger_cannot_be_shown_before_it_is_trained(drawn, tmp_path, monkeypatch, capsys):
    class Trained(BadNets):
        trained = True

    monkeypatch.setitem(ATTACKS, "lira-like", lambda target, *_: Trained(target))
    status, _, error = run(capsys, "lira-like", "--out", tmp_path / "a.png")
    assert status == 1
    assert error == (
        "tacfast: error: attack: the trigger of lira-like is trained along with a network; "
        "--checkpoint names one of tacfast train\n"
    )
    assert drawn == []


@pytest.mark.parametrize(
    "arguments", [[], ["sig", "--images", "0"], ["sig", "--images", "17"], ["sig", "--seed", "-1"]]
)
def test_wrong_usage_is_exit_status_two(capsys, arguments):
    assert run(capsys, *arguments)[0] == 2
