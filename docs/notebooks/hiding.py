# %% [markdown]
# # Hiding from the norm
#
# The norms of `tacfast.solve_tac` have gradients. An attacker who knows the scan can train against it: keep the norm
# of the poisoned class from standing out. This is how, and what the scan says then. `python benchmarks/adaptive.py`
# does it in earnest, with several attackers and seeds.

# %%
import copy

import matplotlib.pyplot as plt
import torch
from torch.nn import functional as F

import tacfast
from tacfast.attacks import poison
from tacfast.demo import make_trial
from tacfast.evaluation import evaluate

torch.set_num_threads(1)
trial = make_trial(seed=1)
target = trial.attack.target

# %% [markdown]
# ## The penalty
#
# By how much the norm of the poisoned class lies below the mean of the others, on the clean samples of the batch. Its
# gradient flows through the solution of the quadratic program into the latents, and from there into every layer.


# %%
def conspicuous(model, images):
    """Zero where the norm of the target is as large as the others are on average."""
    norms = tacfast.solve_tac(model.features(images), model.linear.weight, model.linear.bias).norms
    others = torch.cat([norms[:target], norms[target + 1 :]]).mean().detach()
    return F.relu(others - norms[target]) / others


def hide(model, weight, epochs=10):
    """Go on with the attacker's training, with the penalty."""
    model = copy.deepcopy(model).train()
    train = trial.data.subset(trial.splits.train)
    stained = poison(train, trial.attack, 0.1, seed=1)  # the same images as in its training
    carries = torch.zeros(len(train), dtype=torch.bool)
    carries[stained.indices] = True
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    torch.manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(train)).split(64):
            images, labels = stained.data.batch(rows)
            loss = F.cross_entropy(model(images), labels)
            loss = loss + weight * conspicuous(model, images[~carries[rows]])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


suspects = {"as trained": trial.model, "hidden": hide(trial.model, weight=2.0)}

# %% [markdown]
# ## What the scan says
#
# The penalty has raised the norm. Whether that hides the class from the whole scan is another matter: it looks at the
# pixels and at an early layer as well.

# %%
shares = {}  # norm of the poisoned class over the median of all
figure, axes = plt.subplots(2, 2, figsize=(9, 5), layout="constrained", sharex=True)
colours = ["tab:red" if k == target else "tab:gray" for k in range(10)]
for (top, bottom), (name, model) in zip(axes.T, suspects.items(), strict=True):
    report = tacfast.scan(model, trial.clean.loader())
    figures = evaluate(model, trial.test.loader(), trial.attack)
    norms = (report.solution.norms / report.solution.norms.median()).numpy()
    shares[name] = norms[target]
    top.bar(range(10), norms, color=colours)
    top.set(title=f"{name}: norm over the median")
    bottom.bar(range(10), list(report.verdict.scores.values()), color=colours)
    bottom.axhline(report.verdict.threshold, color="black", linestyle="--", linewidth=1)
    bottom.set(title=f"score: {report.verdict.label}", xlabel="class", xticks=range(10))
    print(f"{name}: clean accuracy {figures.acc:.3f}, attack success {figures.asr:.3f}")
