import copy

import pytest
import torch
from backdoored import TARGET, loader_of, same, weights
from torch import nn

from tacfast import extract_latents, repair, scan, solve_tac
from tacfast.defenses import held_out as rules
from tacfast.defenses import prune
from tacfast.models import Head

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def held_out(trial):
    return trial.data.subset(trial.splits.train[:200])


def accuracy_with_columns_zeroed(model, columns, data):
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        model[5].weight[:, columns] = 0
        return int((model(data.images).argmax(1) == data.labels).sum())


def test_the_largest_count_within_the_drop_is_pruned(trial, report, held_out):
    """Against one whole network per count, pruned by hand."""
    result = repair(
        trial.model, loader_of(trial), report, mode="prune", held_out=held_out.loader(), epochs=1, max_drop=0.01
    )
    latents = extract_latents(trial.model, trial.clean.loader()).latents
    weight, bias = (part.detach() for part in trial.model[5].parameters())
    shift = solve_tac(latents, weight, bias, classes=[TARGET]).perturbations[0]
    ranking = shift.abs().argsort(descending=True)
    right = [accuracy_with_columns_zeroed(trial.model, ranking[:count], held_out) for count in range(49)]
    count = max(i for i, n in enumerate(right) if n >= right[0] - 2)  # 0.01 of 200
    assert 0 < count < 48
    assert result.pruned == tuple(sorted(ranking[:count].tolist()))
    assert sum(result.before.correct) == right[0]
    assert (result.mode, result.targets) == ("prune", (TARGET,))


def test_pruned_columns_stay_zero_and_the_layer_is_an_ordinary_one(trial, report, held_out):
    model = copy.deepcopy(trial.model)
    model[5].weight.requires_grad_(False)
    result = repair(model, loader_of(trial), report, mode="prune", held_out=held_out.loader(), epochs=10)
    layer, pruned = result.model[5], torch.tensor(result.pruned)
    assert result.epoch > 0
    assert torch.equal((layer.weight == 0).all(0).nonzero().flatten(), pruned)
    assert not same(weights(model[5]), weights(layer))
    assert type(layer) is nn.Linear
    assert isinstance(layer.weight, nn.Parameter)
    assert not layer.weight.requires_grad
    assert list(result.model.state_dict()) == list(model.state_dict())
    assert [name for name, _ in result.model.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert not layer._forward_pre_hooks
    assert same(weights(model), weights(trial.model))
    assert scan(result.model, trial.clean.loader()).solution.norms.isfinite().all()


def test_one_step_of_fine_tuning_is_that_of_the_masked_network(trial, report, held_out):
    x, y = trial.clean.images[:60], trial.clean.labels[:60]
    model = copy.deepcopy(trial.model)
    model[4].p = 0.0
    settings = {"mode": "prune", "epochs": 1, "lr": 0.2, "weight_decay": 0.1, "max_drop": 0.2}
    result = repair(model, [(x, y)], report, held_out=held_out.loader(), **settings)
    assert result.epoch == 1
    mine = copy.deepcopy(model).train()
    mask = torch.ones(48)
    mask[list(result.pruned)] = 0
    loss = nn.functional.cross_entropy(mine[:5](x) @ (mask * mine[5].weight).T + mine[5].bias, y)
    loss.backward()
    dummy = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    rate = torch.optim.lr_scheduler.OneCycleLR(dummy, 0.2, total_steps=2, cycle_momentum=False).get_last_lr()[0]
    assert result.history[0].loss == pytest.approx(float(loss.detach()), rel=1e-5)
    for (name, new), old in zip(result.model.named_parameters(), mine.parameters(), strict=True):
        expected = old.detach() - rate * (old.grad + 0.1 * old.detach())
        assert torch.allclose(new.detach(), expected * mask if name == "5.weight" else expected, atol=1e-6)


def test_where_no_epoch_is_good_enough_the_pruned_network_comes_back(trial, report, held_out):
    x, y = trial.clean.images[:60], trial.clean.labels[:60]
    wrong = [(x, (y + 1) % 6)] * 3
    result = repair(
        trial.model, wrong, report, mode="prune", held_out=held_out.loader(), epochs=10, lr=1.0, targets=[TARGET]
    )
    assert (result.epoch, result.rolled_back) == (0, False)
    assert result.pruned
    expected = weights(trial.model)
    expected["5.weight"][:, list(result.pruned)] = 0
    assert same(expected, weights(result.model))
    assert sum(result.after.correct) == accuracy_with_columns_zeroed(trial.model, list(result.pruned), held_out)


def test_latents_are_ranked_by_the_largest_share_of_any_shift():
    shifts = torch.tensor([[30.0, 0.0, -40.0, 0.0], [0.0, 0.28, 0.0, -0.96], [0.0, 0.0, 0.0, 0.0]])
    assert prune.rank_latents(shifts).tolist() == [3, 2, 0, 1]  # .96, .8, .6, .28
    assert prune.rank_latents(shifts[:1]).tolist() == [2, 0, 1, 3]


def test_counts_are_those_of_whole_networks():
    torch.manual_seed(0)
    layer, latents, labels = nn.Linear(30, 7), torch.randn(500, 30), torch.randint(7, (500,))
    ranking = torch.randperm(30)
    found = prune.correct_after_pruning(Head("", layer), latents, labels, ranking)
    for count in range(31):
        kept = torch.ones(30)
        kept[ranking[:count]] = 0
        assert int(found[count]) == int((layer(latents * kept).argmax(1) == labels).sum())


def test_a_parametrised_head_is_refused(trial, held_out):
    model = copy.deepcopy(trial.model)
    nn.utils.parametrizations.weight_norm(model[5])
    with pytest.raises(ValueError, match="a head with a plain weight to prune, got the parametrised '5'"):
        repair(
            model,
            loader_of(trial),
            scan(model, trial.clean.loader()),
            mode="prune",
            held_out=held_out.loader(),
            targets=[TARGET],
        )


def test_after_an_exception_the_layer_is_an_ordinary_one():
    layer = nn.Linear(3, 2)
    before = weights(layer)

    def fail():
        with prune.masked_columns(Head("", layer), torch.tensor([1])):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    before["weight"][:, 1] = 0
    assert same(before, weights(layer))
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_nothing_is_pruned_where_nothing_may_be(trial, report, held_out, monkeypatch):
    monkeypatch.setattr(prune, "correct_after_pruning", lambda *_: torch.tensor([0, 0, 0]))
    assert rules.fewest_correct is prune.fewest_correct
    x, y = trial.clean.images[:60], trial.clean.labels[:60]
    wrong = [(x, (y + 1) % 6)] * 3
    result = repair(trial.model, wrong, report, mode="prune", held_out=held_out.loader(), epochs=5, lr=1.0)
    assert (result.pruned, result.epoch, result.rolled_back) == ((), 0, True)
    assert same(weights(trial.model), weights(result.model))
