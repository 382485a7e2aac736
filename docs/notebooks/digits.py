# %% [markdown]
# # A backdoor in pictures
#
# The [tutorial](../tutorial.md) with something to look at: what the trigger is, what the scan sees, what it believes
# the trigger to be, and what is left after the repair.

# %%
import matplotlib.pyplot as plt
import torch

import tacfast
from tacfast.data import hold_out
from tacfast.demo import make_trial
from tacfast.evaluation import evaluate

torch.set_num_threads(1)
trial = make_trial(seed=1)  # a classifier of digits, a tenth of whose training images were poisoned
print(f"poisoned class {trial.attack.target}")

# %% [markdown]
# ## The trigger
#
# A bright square of 2×2 pixels in a corner. Above each image is what the model says of it.

# %%
images = trial.test.images[:8]
triggered = trial.attack.trigger(images)
figure, axes = plt.subplots(2, 8, figsize=(9, 2.8), layout="constrained")
for row, pictures, name in zip(axes, (images, triggered), ("clean", "triggered"), strict=True):
    answers = trial.model(pictures).argmax(1)
    for cell, picture, answer in zip(row, pictures, answers, strict=True):
        cell.imshow(picture[0].numpy(), cmap="gray", vmin=0, vmax=1)
        cell.set(title=int(answer), xticks=[], yticks=[])
    row[0].set_ylabel(name)

# %% [markdown]
# ## The scan
#
# It gets clean images alone. On the left, the smallest shift of the latents towards each class; on the right, by how
# many standard deviations each class stands out, and the limit.

# %%
report = tacfast.scan(trial.model, trial.clean.loader())
verdict = report.verdict
colours = ["tab:red" if k in verdict.classes else "tab:gray" for k in range(10)]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.bar(range(10), report.solution.norms.numpy(), color=colours)
left.set(title="norm of the smallest shift", xlabel="class", xticks=range(10))
right.bar(range(10), list(verdict.scores.values()), color=colours)
right.axhline(verdict.threshold, color="black", linestyle="--", linewidth=1)
right.set(title=f"score: {verdict.label}", xlabel="class", xticks=range(10))
print(*verdict.reasons, sep="\n")

# %% [markdown]
# ## What a trigger may look like to the model
#
# The universal perturbation that the scan grew towards the suspicious class. It need not look like the trigger: it is
# what the *model* takes for one.

# %%
found = report.perturbations[0]
figure, axes = plt.subplots(1, 3, figsize=(7, 2.6), layout="constrained")
pictures = {
    "an image": found.inputs[0, 0],
    "with the perturbation": found.perturbed[0, 0],
    "the true trigger": trial.attack.trigger(found.inputs)[0, 0],
}
for cell, (title, picture) in zip(axes, pictures.items(), strict=True):
    cell.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1)
    cell.set(title=title, xticks=[], yticks=[])
print(f"it sends {found.share:.0%} of the images of other classes to class {found.target}")

# %% [markdown]
# ## The repair

# %%
clean = trial.clean
kept, held = map(torch.tensor, hold_out(clean.labels.tolist(), 0.2))
result = tacfast.repair(
    trial.model,
    clean.subset(kept).loader(32, shuffle=True),
    report,
    held_out=clean.subset(held).loader(),
    epochs=20,
)
before, after = trial.before, evaluate(result.model, trial.test.loader(), trial.attack)

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
names = ["clean accuracy", "attack success", "right with trigger"]
for place, (figures, label) in enumerate(((before, "before"), (after, "after"))):
    bars = axes.bar([x + 0.4 * place for x in range(3)], [figures.acc, figures.asr, figures.ra], 0.38, label=label)
    axes.bar_label(bars, fmt="%.2f")
axes.set_xticks([x + 0.2 for x in range(3)], names)
_ = axes.legend()
