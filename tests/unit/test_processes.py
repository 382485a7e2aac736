"""Two processes that share a scan or a training come to what one comes to."""

import contextlib
import dataclasses
import functools
import logging
import tempfile

import backdoored
import pytest
import torch
import torch.distributed.nn.functional  # before there is a group, which it would keep: see tacfast.commands.work.joined
from torch import nn
from trained import make_dataset

from tacfast import find_head, repair, scan
from tacfast._processes import ProcessError, Processes, lost
from tacfast.attacks import BadNets, choose_rows
from tacfast.training import Recipe
from tacfast.training.loop import TrainingData, train

if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
    pytest.skip("needs gloo", allow_module_level=True)


def _run(rank, work, folder):
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    torch.save(work(rank, torch.distributed.group.WORLD), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture
def by_two(tmp_path, one_thread):
    """What each of two processes gets of ``work(rank, group)``, a function of a module."""

    def run(work):
        torch.multiprocessing.spawn(_run, (work, tmp_path), nprocs=2)
        return [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]

    return run


# ---- what processes tell one another ------------------------------------------------------------------------------


def _talk(rank, group):
    processes = Processes(group)
    layer = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 2).requires_grad_(False)).double()
    layer.load_state_dict({name: torch.full_like(value, rank) for name, value in layer.state_dict().items()})
    layer[1].running_mean += 3.0
    layer[0](torch.full((1, 3), rank + 1.0, dtype=torch.float64)).sum().backward()
    processes.add_gradients(layer)
    found = {
        "gathered": processes.gather({"rank": rank}),
        "first": processes.first(f"of {rank}"),
        "totals": processes.totals(rank, 0.5),
        "shares": [range(count)[processes.share(count)] for count in (0, 1, 5)],
        "gradients": [None if each.grad is None else each.grad.flatten().tolist() for each in layer.parameters()],
        "mean": layer[1].running_mean.tolist(),
        "weight": layer[0].weight[0, 0].item(),
    }
    for name, failing in (("one", (1,)), ("both", (0, 1)), ("none", ())):
        try:
            with processes.together():
                if rank in failing:
                    raise KeyError(f"in {rank}")
        except Exception as error:
            found[name] = type(error), str(error)
    return found


def test_what_processes_tell_one_another(by_two):
    found = by_two(_talk)
    for rank, each in enumerate(found):
        assert each["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert each["first"] == "of 0"
        assert each["totals"] == (1, 1.0)
        assert each["gradients"] == [[3.0] * 6, [2.0] * 2, None, None, None, None]
        assert each["mean"] == [3.0, 3.0]
        assert each["weight"] == rank
        assert each["both"] == (KeyError, f"'in {rank}'")
        assert "none" not in each
    assert found[0]["one"] == (ProcessError, "process 1 failed: KeyError: 'in 1'")
    assert found[1]["one"] == (KeyError, "'in 1'")
    assert [list(part) for each in found for part in each["shares"]] == [[], [], [0, 1], [], [0], [2, 3, 4]]


def test_one_process_needs_no_group():
    alone = Processes()
    assert (alone.rank, alone.size, alone.gather(3), alone.first(3), alone.totals(3)) == (0, 1, [3], 3, (3,))
    assert range(5)[alone.share(5)] == range(5)
    with pytest.raises(KeyError, match="mine"), alone.together():
        raise KeyError("mine")


def test_what_a_backend_says_is_told_in_plain_words_and_logged(caplog):
    caplog.set_level(logging.DEBUG, "tacfast")
    with pytest.raises(ProcessError) as failure, lost():
        raise RuntimeError("[pair.cc:561] Connection closed by peer. GLHF! 🏖️")
    assert str(failure.value) == "another process is gone, or did not answer in time; if it said why, that is above"
    assert "[pair.cc:561] Connection closed by peer" in caplog.text


def test_a_gpu_that_is_full_is_no_process_that_is_gone():
    with pytest.raises(torch.OutOfMemoryError, match="of 7 GiB"), lost():
        raise torch.OutOfMemoryError("of 7 GiB")


# ---- scan ---------------------------------------------------------------------------------------------------------


def classifier():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 6))


def samples(seed=0, n=900):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 4, 4, generator=generator), torch.randint(6, (n,), generator=generator)


def batches(size=20, **options):
    return [*zip(*(part.split(size) for part in samples(**options)), strict=True)]


def of(report):
    """All that is found, in words, because NaN is not equal to itself."""
    solution = {name: value for name, value in vars(report.solution).items() if isinstance(value, torch.Tensor)}
    found = {
        "verdict": dataclasses.asdict(report.verdict),
        "accuracy": (report.accuracy, report.class_accuracy.tolist()),
        "solution": {name: tensor.tolist() for name, tensor in solution.items()},
        "stability": [dataclasses.asdict(run) for run in report.stability.runs],
        "perturbations": [(each.target, each.change.tolist()) for each in report.perturbations],
    }
    return {name: repr(value) for name, value in found.items()}


def _scan(rank, group):
    model = classifier()
    head = find_head(model, samples()[0][:2])
    shares = {"uneven": (slice(0, 10), slice(10, 45)), "all in one": (slice(0), slice(45))}
    found = {name: of(scan(model, batches()[both[rank]], head=head, group=group)) for name, both in shares.items()}
    # As a DistributedSampler deals them: every other sample.
    inputs, labels = (part[rank::2] for part in samples())
    found["dealt"] = of(scan(model, list(zip(inputs.split(20), labels.split(20), strict=True)), group=group))
    wrong = {"nothing": [], "other weights": batches()[:2]}
    for name, given in wrong.items():
        if name == "other weights":
            with torch.no_grad():
                model[-1].bias += rank
        try:
            scan(model, given, head=head, group=group)
        except ValueError as error:
            found[name] = str(error)
    return found


def test_a_scan_by_two_says_what_that_by_one_says(by_two):
    expected = of(scan(classifier(), batches()))
    for found in by_two(_scan):
        assert found["uneven"] == expected
        assert found["all in one"] == expected
        # In another order some last bits differ, but not in what no order matters for.
        assert all(found["dealt"][name] == expected[name] for name in ("accuracy", "solution"))
        assert found["nothing"] == "loader: expected at least one batch, got none"
        assert found["other weights"].startswith("state: expected a gap matrix of the same W and b")


# ---- train --------------------------------------------------------------------------------------------------------

RECIPE = Recipe(epochs=3, batch_size=15, lr=0.05, precision="float32", seed=3)


def training_data(attack=None):
    dataset = make_dataset()
    rows = torch.arange(130)
    poisoned = None if attack is None else choose_rows(dataset.data.labels[rows], attack, 0.25, seed=0)
    return TrainingData(dataset.data, rows, padding=1, flip=True, attack=attack, poisoned=poisoned)


def network(norm=False):
    torch.manual_seed(0)
    middle = [nn.BatchNorm2d(4)] if norm else []
    return nn.Sequential(nn.Conv2d(1, 4, 3), *middle, nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)).double()


class Doubled(nn.Module):
    """So exact that rounding does not hide anything."""

    def __init__(self, norm=False):
        super().__init__()
        self.net = network(norm)

    def forward(self, x):
        return self.net(x.double())


def trained(*, norm=False, **options):
    model = Doubled(norm)
    history = train(model, training_data(BadNets(1, size=1)), RECIPE, **options)
    records = [dataclasses.replace(epoch, seconds=0) for epoch in history]
    return model.state_dict(), records


def _train(rank, group):
    return [trained(norm=norm, group=group) for norm in (False, True)]


def test_a_training_by_two_comes_to_the_weights_of_one(by_two):
    plain, normed = zip(*by_two(_train), strict=True)
    for (weights, history), ((alone, expected), rtol) in zip(
        (plain[0], normed[0]), ((trained(), 1e-6), (trained(norm=True), 0.2)), strict=True
    ):
        assert [epoch.accuracy for epoch in history] == pytest.approx([epoch.accuracy for epoch in expected], abs=rtol)
        assert [epoch.loss for epoch in history] == pytest.approx([epoch.loss for epoch in expected], rel=rtol)
        for name, tensor in alone.items():
            if tensor.is_floating_point():
                torch.testing.assert_close(weights[name], tensor, rtol=rtol, atol=rtol)
    for one, other in (plain, normed):
        assert one[1] == other[1]
        assert all(torch.equal(tensor, other[0][name]) for name, tensor in one[0].items())


class Stop(Exception):
    pass


def _resume(rank, group):
    # The second has no such file, nor a folder to put it in, as on another machine.
    path = "/nowhere/state" if rank else f"{tempfile.mkdtemp()}/state"

    def stop(epoch):
        if epoch.epoch == 2:
            raise Stop

    with contextlib.suppress(Stop):
        trained(group=group, resume=path, on_epoch=stop)
    seen = []
    return trained(group=group, resume=path, on_epoch=lambda epoch: seen.append(epoch.epoch)), seen


def test_a_training_goes_on_from_the_file_of_the_first(by_two):
    expected = trained()
    for (weights, history), seen in by_two(_resume):
        assert seen == [3]
        assert len(history) == 3
        for name, tensor in expected[0].items():
            torch.testing.assert_close(weights[name], tensor, rtol=1e-6, atol=1e-6)


def _small(rank, group):
    try:
        train(network(), training_data(), dataclasses.replace(RECIPE, batch_size=3), group=group)
    except ValueError as error:
        return str(error)


def test_every_process_needs_two_images(by_two):
    assert by_two(_small) == ["batch_size: expected at least 4, two images for each process, got 3"] * 2


# ---- repair -------------------------------------------------------------------------------------------------------

MODES = {
    "universal": {"epochs": 3, "shift": 0.3},
    "calm": {"epochs": 3, "lr": 0.5, "max_drop": 0.0},  # it goes through both trainings
    "latent": {"epochs": 6, "lr": 0.05, "trim": 0.1},
    "prune": {"epochs": 3},
}
CLEAN = backdoored.make_data(500)


class Plain(nn.Module):
    """So exact that rounding does not hide anything."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 6)).double()

    def forward(self, x):
        return self.net(x.double())


@functools.cache
def suspect():
    model = Plain()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(CLEAN.images), CLEAN.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, scan(model, CLEAN.subset(torch.arange(300)).loader())


def repaired(name, **options):
    model, report = suspect()
    rows = torch.arange(500)
    mode = "universal" if name == "calm" else name
    settings = {"targets": (2,), "max_drop": 1.0, **MODES[name]}
    loader, held_out = CLEAN.subset(rows[:300]).loader(31, shuffle=True), CLEAN.subset(rows[300:]).loader(40)
    result = repair(model, loader, report, mode=mode, held_out=held_out, **settings, **options)
    history = [(each.loss, each.accuracy, each.held_out) for each in result.history]
    told = (result.epoch, result.rolled_back, result.before, result.after, result.pruned, result.blend)
    return result.model.state_dict(), history, told


def _repair(rank, group):
    found = {name: repaired(name, group=group) for name in MODES}
    # The second has no such file, nor a folder to put it in, as on another machine.
    path = "/nowhere/state" if rank else f"{tempfile.mkdtemp()}/state"

    def stop(record):
        if record.epoch == 4:
            raise Stop

    with contextlib.suppress(Stop):
        repaired("latent", group=group, resume=path, on_epoch=stop)
    seen = []
    found["resumed"] = repaired("latent", group=group, resume=path, on_epoch=lambda record: seen.append(record.epoch))
    return found, seen


def test_a_repair_by_two_comes_to_the_weights_of_one(by_two):
    alone = {name: repaired(name) for name in MODES}
    assert len(alone["latent"][1]) == 6
    alone["resumed"] = alone["latent"]
    one, other = by_two(_repair)
    for found, seen in (one, other):
        assert seen == [5, 6]
        for name, (weights, history, told) in alone.items():
            assert found[name][2] == told, name
            torch.testing.assert_close(torch.tensor(found[name][1]), torch.tensor(history), rtol=1e-5, atol=1e-7)
            for key, tensor in weights.items():
                torch.testing.assert_close(found[name][0][key], tensor, rtol=1e-5, atol=1e-6, msg=name)
    for name in alone:
        assert all(torch.equal(tensor, other[0][name][0][key]) for key, tensor in one[0][name][0].items())


def _drawn(rank, group):
    """What the loader gave, where parts of batches are not equal and so dropout draws more in one of them."""
    model, given = Plain(), []
    model.net.insert(3, nn.Dropout(0.5))
    data = torch.utils.data.TensorDataset(CLEAN.images[:93], CLEAN.labels[:93])

    def collate(rows):
        batch = torch.utils.data.default_collate(rows)
        given.append(batch[1].tolist())
        return batch

    loader = torch.utils.data.DataLoader(data, 31, shuffle=True, collate_fn=collate)
    repair(model, loader, scan(model, loader), mode="latent", targets=(2,), epochs=3, lr=0.01, group=group)
    return given


def test_every_process_is_given_the_same_batches(by_two):
    one, other = by_two(_drawn)
    assert one == other
    assert len({str(batch) for batch in one}) > 18


def _wrong(rank, group):
    model, report = suspect()
    found = []
    for mode, size, settings in (("anp", 50, {}), ("latent", 71, {"targets": (2,)})):
        data = torch.utils.data.TensorDataset(CLEAN.images, CLEAN.labels)
        loader = torch.utils.data.DataLoader(data, size, shuffle=True)
        try:
            repair(model, loader, report, mode=mode, held_out=loader, group=group, **settings)
        except ValueError as error:
            found.append(str(error))
    return found


def test_what_several_processes_cannot_share(by_two):
    assert (
        by_two(_wrong)
        == [
            [
                "group: expected one of the modes auto, latent, prune, universal, got AdversarialNeuronPruning",
                "loader: expected batches of at least 4 samples, two for each process, got one of 3",
            ]
        ]
        * 2
    )
