# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What is a hard negative?
#
# InfoNCE pushes a query away from each negative in proportion to the softmax weight that the negative has. A negative is
# hard if that weight is large: its score is close to the positive's, or above it. Three methods that differ in nothing but
# what they do about it:
#
# - **MoCo** takes what its queue holds.
# - **MoCHi** mixes the hardest of these with each other, and with the query, into negatives that are harder still.
# - **Feature transformation** makes both sides harder: positives are extrapolated apart, negatives interpolated.
#
# What do the scores look like while they train? And which pictures are the hard ones?
#
# The budget here is a tenth of the recipes' and one seed, enough to see what the scores do and not to rank methods. The full
# runs are `python -m zoo verify mochi` and `python -m zoo verify feature_transformation`; the last section reads their results.

# %%
import os
import tempfile

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from IPython.utils.capture import capture_output

import zoo
from zoo.data.shapes import Shapes

os.environ["WANDB_MODE"] = "disabled"
os.environ["ZOO_RUNS"] = tempfile.mkdtemp()
plt.rcParams.update({"figure.dpi": 80, "figure.constrained_layout.use": True, "image.interpolation": "nearest"})

START = 4  # MoCHi and feature transformation begin in this epoch, counted from 0, as in the recipes after some warm-up
budget = {
    "max_epochs": 10,
    "check_val_every_n_epoch": 10,
    "enable_progress_bar": False,
    "data.batch_size": 64,
    "data.source.n_train": 1280,
    "data.source.n_val": 200,
    "data.source.n_test": 500,
}

# %% [markdown]
# ## Three runs
#
# A run's folder holds `score_histogram.npz`: for each epoch, how the scores of positives and negatives were distributed as the
# loss saw them, synthetic negatives included.

# %%
names = {"moco": "MoCo", "mochi": "MoCHi", "feature_transformation": "Feature transformation"}
runs = {}
for recipe in names:
    late = {} if recipe == "moco" else {"model.negatives.start_epoch": START}
    with capture_output():
        runs[recipe] = zoo.fit(recipe, seed=0, **budget, **late)
histograms = {recipe: np.load(run.path / "score_histogram.npz") for recipe, run in runs.items()}

# %%
shades = plt.get_cmap("Blues", 16)
figure, axes = plt.subplots(2, 3, figsize=(10, 5), sharex=True, sharey=True)
for column, (recipe, name) in enumerate(names.items()):
    edges = histograms[recipe]["edges"]
    centres = (edges[1:] + edges[:-1]) / 2
    for axis, side in zip(axes[:, column], ("positives", "negatives"), strict=True):
        counts = histograms[recipe][side]
        density = counts / counts.sum(1, keepdims=True)
        extent = (0.5, len(counts) + 0.5, edges[0], edges[-1])
        axis.imshow(np.sqrt(density.T / density.max()), origin="lower", aspect="auto", extent=extent, cmap=shades)
        axis.plot(np.arange(1, len(counts) + 1), density @ centres, color="#b3261e", label="mean")
        if recipe != "moco":
            axis.axvline(START + 0.5, color="black", linestyle=":", label="method begins")
        axis.set(title=f"{name}: {side}", ylim=(-1, 1.1))
for axis in axes[1]:
    axis.set_xlabel("epoch")
for axis in axes[:, 0]:
    axis.set_ylabel("score")
axes[1, 1].legend(loc="lower right", fontsize="small")
plt.show()

# %% [markdown]
# Left of the dotted line all three are the same run. At the line feature transformation takes the positives down at once, and
# then the encoder answers: it draws the two views of an image closer, so that what is left of them after the transformation is
# again what it was (compare the two positive scores in the table below). What MoCHi adds is few against the whole queue, but
# it stands at the upper edge.
#
# The same in the last epoch alone:

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharex=True)
for recipe, name in names.items():
    for axis, side in zip(axes, ("positives", "negatives"), strict=True):
        counts = histograms[recipe][side][-1]
        axis.stairs(counts / counts.sum(), histograms[recipe]["edges"], label=name, linewidth=1.5)
        axis.set(title=f"{side}, last epoch", xlabel="score", ylabel="share of scores", xlim=(-0.3, 1.1))
axes[0].legend(fontsize="small", loc="upper left")
plt.show()

# %%
rows = {
    "negatives/effective": "negatives of a query",
    "scores/positive": "positive score, as the loss sees it",
    "scores/raw_positive": "positive score, before any transformation",
    "scores/negative": "negative score",
    "scores/negative_variance": "variance of negative scores",
    "train/proxy_accuracy": "positive beats all negatives",
    "train/uniformity": "uniformity (lower: more of the sphere is used)",
}
pd.DataFrame(
    {name: [runs[recipe].metrics[row] for row in rows] for recipe, name in names.items()}, list(rows.values())
).round(3)

# %% [markdown]
# ## Few negatives do the pushing
#
# Take MoCo's encoder and test images that it has not seen, every image a negative of every other. The gradient on a negative is
# its weight in the softmax. How many negatives carry it?

# %%
test = Shapes(n_test=500).split("test", None)
embeddings = runs["moco"].embed(np.array(test.images), normalize=True)
scores = (embeddings @ embeddings.T).fill_diagonal_(-torch.inf)
temperature = runs["moco"].config["model"]["init_args"]["loss"]["init_args"]["temperature"]

weights = (scores / temperature).softmax(1).sort(1, descending=True).values[:, :-1]
carried = weights.cumsum(1).mean(0).numpy()
share = np.arange(1, len(carried) + 1) / len(carried)

figure, axis = plt.subplots(figsize=(5, 3))
axis.plot(share, carried)
axis.plot(share, share, color="grey", linestyle=":", label="if all were equally hard")
axis.set(xlabel="share of the negatives, hardest first", ylabel="share of the gradient", xlim=(0, 1), ylim=(0, 1))
axis.legend(fontsize="small", loc="lower right")
plt.show()
half = share[np.searchsorted(carried, 0.5)]
display(
    Markdown(f"Half of the gradient falls on the hardest **{half:.1%}** of the negatives (temperature {temperature}).")
)

# %% [markdown]
# ## What they look like
#
# Queries on the left, then their five hardest and two of their easiest negatives. A red frame marks a negative of the query's own
# class: by the labels, which training never sees, it should not have been pushed away at all.

# %%
label = test.columns["label"]
queries = np.random.default_rng(1).permutation(len(test))[:5]
order = scores.argsort(1, descending=True)[:, :-1].numpy()  # the last one is the query itself

figure, axes = plt.subplots(len(queries), 8, figsize=(8.5, 5.6))
for row, query in zip(axes, queries, strict=True):
    shown = [query, *order[query, :5], *order[query, -2:]]
    titles = ["query", *(f"{scores[query, other]:.2f}" for other in shown[1:])]
    for axis, image, title in zip(row, shown, titles, strict=True):
        axis.imshow(test.images[image].transpose(1, 2, 0))
        axis.set_title(title, fontsize=8)
        axis.set(xticks=[], yticks=[])
        false = image != query and label[image] == label[query]
        for spine in axis.spines.values():
            spine.set(visible=bool(false), color="#b3261e", linewidth=3)
plt.show()

# %%
same = label[order] == label[:, None]
hardest = same[:, :5].mean()
display(
    Markdown(
        f"Of the five hardest negatives of an image **{hardest:.0%}** are of its own class, of all negatives "
        f"**{same.mean():.0%}**: {hardest / same.mean():.1f} times as many."
    )
)

# %% [markdown]
# Hard and false negatives are found in the same place: a method that looks for hard ones has to say what it does about false
# ones. `false_negatives.ipynb` goes on from here.
#
# ## Does harder mean better?
#
# The recipes' own budget, five seeds, each method against MoCo with the same seeds: the results committed in the zoo.

# %%
board = zoo.leaderboard()
claimed = board[board.recipe.isin(["mochi", "feature_transformation"]) & (board.seeds > 1) & board.verdict.notna()]
claimed[["recipe", "part", "statement", "delta", "delta_ci95", "verdict"]].round(3)
