# %% [markdown]
# # The collapsed program, drawn
#
# In two dimensions the quadratic program of a class can be seen whole: the samples, the shift that sends all of them
# to the class, and which of the n(C − 1) constraints matter. The proof is in [the mathematics](../mathematics.md).

# %%
import matplotlib.pyplot as plt
import torch

import tacfast

generator = torch.Generator().manual_seed(0)
W = torch.tensor([[1.0, 0.2], [-0.8, 0.9], [-0.3, -1.0]], dtype=torch.float64)
b = torch.zeros(3, dtype=torch.float64)
latents = torch.randn(60, 2, generator=generator, dtype=torch.float64)
k = 0
solution = tacfast.solve_tac(latents, W, b)
s = solution.perturbations[k]
print(f"shift towards class {k}: {s.tolist()}, norm {solution.norms[k]:.3f}")

# %% [markdown]
# ## The shift
#
# Colours are the regions of the three classes. One and the same shift is added to every sample, and it is the
# smallest that leaves none outside of class 0: some end on the border.

# %%
x, y = torch.meshgrid(torch.linspace(-3.5, 5, 300), torch.linspace(-4, 4, 300), indexing="xy")
regions = (torch.stack([x, y], -1).double() @ W.T + b).argmax(-1)
figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
axes[0].annotate("", s.tolist(), (0, 0), arrowprops={"color": "tab:red", "width": 2})
for cell, points, title in zip(axes, (latents, latents + s), ("as they are", "shifted by s"), strict=True):
    cell.contourf(x, y, regions, levels=[-0.5, 0.5, 1.5, 2.5], colors=["#9ecae1", "#fdd0a2", "#c7e9c0"])
    cell.plot(*points.T, "k.", markersize=4)
    cell.set(title=title, aspect="equal")

# %% [markdown]
# ## The constraints
#
# Now the plane of the shift itself. Each sample forbids a half-plane for each of the two other classes: 120 lines.
# For one class they are parallel, so only the outermost can matter: two lines, in red. The solution is the point
# beyond both of them that is nearest to the origin.

# %%
logits = latents @ W.T + b
figure, plane = plt.subplots(figsize=(6, 5), layout="constrained")
plane.plot(0, 0, "k+", markersize=10)
plane.plot(*s, "o", color="tab:red", zorder=3)
plane.annotate("s", s.tolist(), textcoords="offset points", xytext=(8, 4))
plane.set(xlim=(-3, 5), ylim=(-4, 4), aspect="equal", title=f"{2 * len(latents)} constraints, of which 2 can bind")
reach = torch.linspace(-6, 6, 2, dtype=torch.float64)
for j in (1, 2):
    normal = W[k] - W[j]
    along = torch.stack([-normal[1], normal[0]])
    for lead in [*(logits[:, j] - logits[:, k]), solution.gaps[k, j]]:
        line = lead * normal / normal.square().sum() + reach[:, None] * along
        binding = lead == solution.gaps[k, j]
        plane.plot(
            *line.T, color="tab:red" if binding else "lightgray", linewidth=2 if binding else 0.7, zorder=1 + binding
        )

# %% [markdown]
# All rows hold, and each of the two is attained:

# %%
rows = torch.stack([(W[k] - W[j]) @ s - (logits[:, j] - logits[:, k]) for j in (1, 2)])
print("smallest slack of each class:", rows.amin(1).tolist())
print("multipliers:", solution.duals[k].tolist())
print("bounds on the exact norm:", solution.certificate.lower[k].item(), solution.certificate.upper[k].item())

# %% [markdown]
# ## Trim
#
# The outermost lines are owed to one sample each. If a share q of each source class may stay behind, the shift is
# shorter:

# %%
shares = [0.0, 0.05, 0.1, 0.2, 0.3, 0.5]
norms = torch.stack([tacfast.solve_tac(latents, W, b, trim=q).norms for q in shares])
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot(shares, norms, marker="o", label=[f"class {j}" for j in range(3)])
axes.set(xlabel="trim", ylabel="norm of the shift", ylim=(0, None))
_ = axes.legend()
