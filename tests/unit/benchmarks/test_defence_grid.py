"""The harness, the store of cells, locks, and a grid of two networks."""

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("safetensors")
pytest.importorskip("typer")
pytest.importorskip("jinja2")
pytest.importorskip("fcntl")

import small_grid
from backdoored import make_trial
from small_grid import BADNETS, BLENDED, CLEAN, DEFENCES, TINY, make_grid, say

from benchmarks.defence import networks as networks_module
from benchmarks.defence import running
from benchmarks.defence.cells import NETWORK_CELL, SCAN_CELL, identity
from benchmarks.defence.networks import model_path
from benchmarks.defence.profiles import DEFENCES as ALL_DEFENCES
from benchmarks.defence.profiles import PROFILES, Network
from benchmarks.defence.store import Store, try_lock
from tacfast.data import LabelledImages
from tacfast.data.splits import split_indices
from tacfast.defenses import RepairResult
from tacfast.evaluation import Trial, run_defense

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- what a defence is handed ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test", "attack", "trigger", "target", "poisoned", "trial", "train"])
def test_a_defence_that_asks_for_more_fails(name):
    called = []
    source = f"lambda model, loader, report, *, {name}, **more: called.append(1)"
    with pytest.raises(TypeError, match=f"missing 1 required keyword-only argument: '{name}'"):
        run_defense(eval(source, {"called": called}), make_trial())  # source is a few lines above
    assert not called


def mapped_trial(tmp_path):
    """The trial with its images mapped from a file, as those of the large data sets are."""
    trial = make_trial()
    path = tmp_path / "pixels"
    pixels = (trial.data.images.clamp(0, 1) * 255).round().byte()
    pixels.numpy().tofile(path)
    mapped = torch.from_file(str(path), size=pixels.numel(), dtype=torch.uint8).view(pixels.shape)
    splits = split_indices(len(pixels), clean=0.1, held_out=0.05, test=0.3, seed=0)
    return Trial(trial.model, LabelledImages(mapped, trial.data.labels), splits, trial.attack)


def reachable_tensors(root):
    """All tensors that can be reached from an object, the bases of views included."""
    found, seen, left = [], set(), [root]
    while left:
        value = left.pop()
        if id(value) in seen or isinstance(value, (str, bytes, int, float, type(None), type)):
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            found.append(value)
            left.append(value._base)
        elif isinstance(value, dict):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            left += value
        elif callable(value) and getattr(value, "__closure__", None):
            left += [cell.cell_contents for cell in value.__closure__]
        elif hasattr(value, "__dict__") and not isinstance(value, type(sys)):
            left.append(vars(value))
    return found


def test_a_defence_is_handed_the_clean_and_held_out_images_alone(tmp_path):
    trial, handed = mapped_trial(tmp_path), {}

    def spy(model, loader, report, **more):
        handed.update(model=model, loader=loader, report=report, **more)
        return RepairResult(model, (), 0.0)

    run_defense(spy, trial)
    assert handed.keys() == {"model", "loader", "report", "held_out"}
    splits, pixels = trial.splits, trial.data.images
    for name, rows in (("loader", splits.clean), ("held_out", splits.held_out)):
        images = handed[name].dataset.images
        assert torch.equal(images, pixels[rows])
        assert images.untyped_storage().nbytes() == images.numel()  # not the whole memory map
        assert images.untyped_storage().data_ptr() != pixels.untyped_storage().data_ptr()
        assert torch.equal(handed[name].dataset.labels, trial.data.labels[rows])
    # Whatever else is there holds no image that it should not: by content, and by storage.
    forbidden = torch.cat([splits.train, splits.test])
    secret = {bytes(image.numpy()) for image in pixels[forbidden]}
    triggered = trial.attack.trigger(pixels.float() / 255)
    secret |= {bytes((image * 255).round().byte().numpy()) for image in triggered}
    secret -= {bytes(image.numpy()) for image in pixels[torch.cat([splits.clean, splits.held_out])]}
    assert len(secret) > 0.5 * len(pixels)
    tensors = reachable_tensors(handed)
    assert any(torch.equal(tensor, pixels[splits.clean]) for tensor in tensors)
    storages = {trial.data.images.untyped_storage().data_ptr(), trial.data.labels.untyped_storage().data_ptr()}
    for tensor in tensors:
        assert tensor.untyped_storage().data_ptr() not in storages
        if tensor.ndim == 4 and tensor.shape[1:] == pixels.shape[1:]:
            scaled = tensor if tensor.dtype == torch.uint8 else (tensor * 255).round().clamp(0, 255).byte()
            assert secret.isdisjoint(bytes(image.numpy()) for image in scaled)
    weights = {weight.data_ptr() for weight in trial.model.parameters()}
    assert weights.isdisjoint(weight.data_ptr() for weight in handed["model"].parameters())


# ---- the store ------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    store.write("net", "cell", {"identity": {"a": (1, 2)}, "asr": 0.123456789, "nan": math.nan, "deep": [math.inf]})
    return store


def test_a_cell_there_and_back(store):
    assert store.read("net", "cell") == {"identity": {"a": [1, 2]}, "asr": 0.123456789, "nan": None, "deep": [None]}
    assert store.has("net", "cell", {"a": (1, 2)})
    assert not store.has("net", "cell", {"a": (1, 3)})
    assert not store.has("net", "other", {"a": (1, 2)})
    assert [path.name for path in store.path("net", "cell").parent.iterdir()] == ["cell.json"]


def test_every_flipped_digit_is_noticed(store):
    path = store.path("net", "cell")
    text = path.read_text()
    digits = [i for i, letter in enumerate(text) if letter.isdigit()]
    assert len(digits) > 20
    for i in digits:
        path.write_text(text[:i] + str((int(text[i]) + 1) % 10) + text[i + 1 :])
        assert store.read("net", "cell") is None, text[i - 5 : i + 5]
    path.write_text(text)
    assert store.read("net", "cell") is not None


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"null", b'{"a": 1}', b'{"sha256": 1}', b"\xff\xfe", b"{" * 9])
def test_damaged_cells_are_missing(store, content):
    store.path("net", "cell").write_bytes(content)
    assert store.read("net", "cell") is None


@pytest.mark.parametrize("length", [1, 20, -1, -2, -40])
def test_half_a_cell_is_missing(store, length):
    path = store.path("net", "cell")
    content = path.read_bytes()
    path.write_bytes(content[:length])
    sound = content[:length].strip() == content.strip()
    assert (store.read("net", "cell") is not None) == sound


HOLD = "import sys, time; sys.path.insert(0, {root!r})\n" + (
    "from pathlib import Path; from benchmarks.defence.store import try_lock\n"
    "with try_lock(Path(sys.argv[1])) as ours:\n    print(ours, flush=True); time.sleep(600)\n"
)


def test_a_lock_excludes_others_until_its_process_is_killed(tmp_path):
    path = tmp_path / "locks" / "net"
    with try_lock(path) as ours:
        assert ours
        with try_lock(path) as second:
            assert not second
    command = [sys.executable, "-c", HOLD.format(root=str(small_grid.ROOT)), str(path)]
    environment = os.environ | {"PYTHONPATH": str(small_grid.ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "True\n"
        with try_lock(path) as ours:
            assert not ours
        process.send_signal(signal.SIGKILL)
    with try_lock(path) as ours:
        assert ours


# ---- a grid ---------------------------------------------------------------------------------------------------

VOLATILE = {"seconds", "made", "machine", "timings", "versions"}


def stable(value):
    """A cell without what differs from run to run: times, and the machine."""
    if isinstance(value, dict):
        return {key: stable(item) for key, item in value.items() if key not in VOLATILE}
    return [stable(item) for item in value] if isinstance(value, list) else value


def all_cells(grid):
    store = Store(grid.results)
    return {(each.name, name): stable(store.read(each.name, name)) for each in grid.networks for name in grid.cells}


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """A grid that one worker completed, and what was said."""
    threads = torch.get_num_threads()
    grid, said = make_grid(tmp_path_factory.mktemp("grid")), []
    running.work(grid, lambda text, cells=0: said.append(text))
    torch.set_num_threads(threads)
    return grid, said


def test_every_cell_is_made_once_and_has_every_figure(complete):
    grid, said = complete
    done = [text for text in said if text.endswith(" done")]
    expected = [f"{net.name}: {name} done" for net in TINY.networks for name in (NETWORK_CELL, SCAN_CELL, *DEFENCES)]
    assert done == expected
    store = Store(grid.results)
    for network in TINY.networks:
        about = store.read(network.name, NETWORK_CELL)
        assert {"acc", "asr", "ra"} == about["before"].keys()
        assert {"training", "evaluation", "relearning"} == about["seconds"].keys()
        verdict = store.read(network.name, SCAN_CELL)
        assert verdict["label"] in ("nothing_found", "borderline", "suspicious", "inconclusive")
        assert len(verdict["scores"]) == 10
        assert (about["ceiling"] is None) == (network is CLEAN)
        assert (about["reconstruction"] is None) == (network is CLEAN)
        for name in DEFENCES:
            cell = store.read(network.name, name)
            assert {"acc", "asr", "ra"} == cell["after"].keys()
            der = max(0.0, about["before"]["asr"] - cell["after"]["asr"])
            der = (der - max(0.0, about["before"]["acc"] - cell["after"]["acc"]) + 1) / 2
            assert cell["der"] == pytest.approx(der)
            assert [step["poisoned_images"] for step in cell["relearning"]] == [5, 50, 500]
            assert cell["identity"]["settings"]["seed"] == network.seed
            assert {"tacfast", "torch", "python"} == cell["versions"].keys()
            assert cell["machine"]["processor"]
            assert cell["error"] is None
    assert all(not grid.missing(network) for network in TINY.networks)


def test_a_complete_grid_makes_nothing(complete):
    grid, _ = complete
    said = []
    running.work(grid, lambda text, cells=0: said.append(text))
    assert said == []


@pytest.fixture
def copied(complete, tmp_path):
    import shutil

    grid, _ = complete
    shutil.copytree(grid.results, tmp_path / "results")
    shutil.copytree(grid.models, tmp_path / "models")
    return make_grid(tmp_path)


def made_again(grid):
    said = []
    running.work(grid, lambda text, cells=0: said.append(text))
    return said


def test_what_is_missing_damaged_or_of_other_settings_is_made_again(complete, copied, monkeypatch):
    store = Store(copied.results)
    store.path(CLEAN.name, "clp").unlink()
    damaged = store.path(BADNETS.name, "short")
    damaged.write_text(
        re.sub(r'("acc": 0\.)(\d)', lambda m: m[1] + str((int(m[2]) + 1) % 10), damaged.read_text(), count=1)
    )
    assert made_again(copied) == [f"{CLEAN.name}: clp done", f"{BADNETS.name}: short done"]
    assert all_cells(copied) == all_cells(complete[0])
    changed = dataclasses.replace(ALL_DEFENCES["clp"], settings={"u": 2.5})
    monkeypatch.setitem(ALL_DEFENCES, "clp", changed)
    assert made_again(copied) == [f"{network.name}: clp done" for network in TINY.networks]
    assert store.read(BADNETS.name, "clp")["identity"]["settings"]["u"] == 2.5


def test_a_damaged_network_is_trained_again(complete, copied):
    path = model_path(copied.models, BADNETS)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    Store(copied.results).path(BADNETS.name, "clp").unlink()
    said = made_again(copied)
    assert said[0].startswith(f"{BADNETS.name}: trained again: ")
    assert sum("epoch" in text for text in said) == 4
    assert all_cells(copied) == all_cells(complete[0])


def test_models_that_are_lost_are_made_again_where_a_cell_needs_them(complete, copied):
    for network in (CLEAN, BADNETS):
        for path in model_path(copied.models, network).parent.glob(f"{network.name}.*"):
            path.unlink()
    Store(copied.results).path(BADNETS.name, "clp").unlink()
    said = made_again(copied)  # all cells of the clean network are there: nothing else would train it
    assert [text for text in said if text.endswith("done")] == [f"{BADNETS.name}: clp done"]
    assert sum(text.startswith(f"{CLEAN.name}: epoch") for text in said) == 4
    assert all_cells(copied) == all_cells(complete[0])


def test_a_network_trained_otherwise_is_trained_again(copied, monkeypatch):
    recipe = dataclasses.replace(TINY.recipes["digits"], epochs=2)
    monkeypatch.setitem(PROFILES, small_grid.NAME, dataclasses.replace(TINY, recipes={"digits": recipe}))
    grid = make_grid(copied.results.parent, [CLEAN], ["clp"])
    said = made_again(grid)
    assert said[0] == f"{CLEAN.name}: trained again: it was trained otherwise"
    assert [text for text in said if text.endswith("done")] == [f"{CLEAN.name}: {name} done" for name in grid.cells]


def test_two_workers_never_make_the_same_cell_and_make_the_same_cells(complete, tmp_path):
    command = [sys.executable, str(Path(small_grid.__file__)), str(tmp_path), "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(small_grid.ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.splitlines()
    done = [text for text in done if text.endswith(" done")]
    expected = [f"{net.name}: {name} done" for net in TINY.networks for name in (NETWORK_CELL, SCAN_CELL, *DEFENCES)]
    assert sorted(done) == sorted(expected)
    assert all_cells(make_grid(tmp_path)) == all_cells(complete[0])


def test_a_defence_that_fails_is_a_cell(copied, monkeypatch):
    def fail(self, *args, **kwargs):
        raise ValueError("no convergence")

    chosen = ALL_DEFENCES["clp"].make
    monkeypatch.setattr(chosen, "repair", fail)
    Store(copied.results).path(BADNETS.name, "clp").unlink()
    assert made_again(copied) == [f"{BADNETS.name}: clp done"]
    cell, about = (Store(copied.results).read(BADNETS.name, name) for name in ("clp", NETWORK_CELL))
    assert cell["error"] == "ValueError: no convergence"
    assert cell["after"] == about["before"]
    assert cell["der"] == 0.5


def test_a_network_that_cannot_be_trained_stops_no_other(tmp_path, monkeypatch):
    trojan = Network("digits", small_grid.ARCH, "trojannn", 0.1, 0)
    real = networks_module.train_plan

    def fail(plan, *args, **kwargs):
        if plan.attack is None:
            raise RuntimeError("no memory")
        return real(plan, *args, **kwargs)

    monkeypatch.setattr(networks_module, "train_plan", fail)
    grid, said = make_grid(tmp_path, [CLEAN, BADNETS, trojan], []), []
    with pytest.raises(RuntimeError, match=f"networks: 2 failed: {CLEAN.name}, {trojan.name}"):
        running.work(grid, lambda text, cells=0: said.append(text))
    assert f"{CLEAN.name}: failed: no memory" in said
    assert f"{BADNETS.name}: {NETWORK_CELL} done" in said


def test_a_full_disk_leaves_the_old_cells(copied, monkeypatch):
    store = Store(copied.results)
    before = store.path(BADNETS.name, "clp").read_bytes()
    monkeypatch.setitem(ALL_DEFENCES, "clp", dataclasses.replace(ALL_DEFENCES["clp"], settings={"u": 2.5}))

    def full(self, content):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left on device") as error:
        running.work(make_grid(copied.results.parent, [BADNETS]), say)
    assert str(store.path(BADNETS.name, "clp")) in str(error.value)
    assert store.path(BADNETS.name, "clp").read_bytes() == before
    assert not list(copied.results.rglob("*.tmp"))


# ---- profiles -------------------------------------------------------------------------------------------------


def test_the_order_of_networks_and_seeds_is_fixed():
    """Targets are drawn from the name alone, and every cell's identity can be written as JSON."""
    for profile in PROFILES.values():
        names = [network.name for network in profile.networks]
        assert len(names) == len(set(names))
        for network in profile.networks:
            assert network.target == dataclasses.replace(network).target
            for name in (NETWORK_CELL, *ALL_DEFENCES):
                found = identity(profile, network, name)
                assert json.loads(json.dumps(found, allow_nan=False))
    targets = {network.target for network in PROFILES["paper"].networks if network.data == "cifar10"}
    assert len(targets) > 5


def test_only_where_it_is_said_is_a_defence_told_the_class():
    for name, contender in ALL_DEFENCES.items():
        told = "targets" in contender.settings_for(BLENDED)
        assert told == contender.told == name.endswith("-told")


def test_cells_of_other_weights_are_made_again(copied):
    store = Store(copied.results)
    about = store.read(BADNETS.name, NETWORK_CELL)
    store.write(BADNETS.name, NETWORK_CELL, {**about, "weights": "other"})
    store.path(BADNETS.name, "clp").unlink()
    told = made_again(copied)
    assert [line for line in told if line.endswith("done")] == [f"{BADNETS.name}: {name} done" for name in copied.cells]
    assert {store.read(BADNETS.name, name)["weights"] for name in copied.cells} == {about["weights"]}
