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
# # Bring your own data
#
# A folder of images and a table of texts, both made on the spot; put yours in their place. Each is trained on with one call, and the
# trained model is then used to search. Other layouts (BEIR collections, captions, places, a class of your own) are in
# `docs/howto/own_data.md`.

# %%
import itertools
import json
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.utils.capture import capture_output
from PIL import Image, ImageDraw

import zoo

folder = Path(tempfile.mkdtemp())
os.environ["WANDB_MODE"] = "disabled"
os.environ["ZOO_RUNS"] = str(folder / "runs")
plt.rcParams.update({"figure.dpi": 80, "figure.constrained_layout.use": True, "image.interpolation": "nearest"})

# %% [markdown]
# ## Images in class folders
#
# `train/<class>/*` and `val/<class>/*`, as ImageNet has them. Here: doodles of four things, in colours that say nothing of the class.


# %%
def doodle(kind, rng):
    """A house, a tree, a fish or a face, 40 pixels wide."""
    ground, first, second = (tuple(int(c) for c in rng.integers(0, 256, 3)) for _ in range(3))
    image = Image.new("RGB", (40, 40), ground)
    draw = ImageDraw.Draw(image)
    x, y, s = rng.integers(12, 28), rng.integers(14, 26), rng.integers(8, 12)
    if kind == "house":
        draw.rectangle((x - s, y, x + s, y + s), first)
        draw.polygon([(x - s - 2, y), (x, y - s), (x + s + 2, y)], second)
    elif kind == "tree":
        draw.rectangle((x - 2, y, x + 2, y + s + 2), first)
        draw.ellipse((x - s, y - s, x + s, y + s // 2), second)
    elif kind == "fish":
        draw.ellipse((x - s, y - s // 2, x + s, y + s // 2), first)
        draw.polygon([(x + s - 2, y), (x + s + 7, y - s // 2), (x + s + 7, y + s // 2)], second)
    else:
        draw.ellipse((x - s, y - s, x + s, y + s), first)
        for side in (-1, 1):
            draw.ellipse((x + side * s // 2 - 2, y - 5, x + side * s // 2 + 2, y - 1), second)
        draw.line((x - s // 2, y + s // 2, x + s // 2, y + s // 2), second, 2)
    return image


rng = np.random.default_rng(0)
kinds = ["face", "fish", "house", "tree"]
for split, n in (("train", 100), ("val", 20)):
    for kind in kinds:
        where = folder / "doodles" / split / kind
        where.mkdir(parents=True)
        for number in range(n):
            doodle(kind, rng).save(where / f"{number:03}.png")

files = sorted((folder / "doodles" / "val").rglob("*.png"))
print(len(files), "test images, such as", *(file.relative_to(folder) for file in files[:2]))

# %% [markdown]
# SimCLR on this folder. The family's defaults are for 32 pixels and a small network on a CPU; `imagenet100` is the overlay for 224
# pixels and a ResNet-50, `python -m zoo fit simclr imagenet100 --data.root DIR --data.source.name NAME`.

# %%
with capture_output():
    run = zoo.fit(
        "simclr",
        seed=0,
        max_epochs=40,
        check_val_every_n_epoch=40,
        enable_progress_bar=False,
        **{
            "recipe.arena": "doodles",  # so that these results stand in no table with others
            "data.root": folder / "doodles",
            "data.source": "zoo.data.ImageFolder",
            "data.source.name": "doodles",
            "data.source.decode_size": 32,
            "data.source.val_fraction": 0.1,
            "data.batch_size": 48,
            "data.num_workers": 0,
        },
    )
pd.Series(run.metrics)[["test/knn_pixels", "test/knn_random", "test/knn"]].round(3).to_frame(
    "test images of the right class"
)

# %% [markdown]
# The trained model searches: which of the test images are most like new ones? `embed` takes files, PIL images or arrays. No label was
# read in training.

# %%
trained = zoo.load(run.path)
new = [doodle(kind, np.random.default_rng(100 + i)) for i, kind in enumerate(kinds)]
library = trained.embed(files, normalize=True)
nearest = (trained.embed(new, normalize=True) @ library.T).topk(6)

figure, axes = plt.subplots(len(new), 7, figsize=(7, 4.4))
for row, image, found, scores in zip(axes, new, nearest.indices.tolist(), nearest.values.tolist(), strict=True):
    shown = [image, *(Image.open(files[i]) for i in found)]
    titles = ["new", *(f"{files[i].parent.name} {score:.2f}" for i, score in zip(found, scores, strict=True))]
    for axis, picture, title in zip(row, shown, titles, strict=True):
        axis.imshow(picture)
        axis.set_title(title, fontsize=8)
        axis.axis("off")
plt.show()

# %% [markdown]
# ## A table of pairs
#
# `train.jsonl` and `test.jsonl`, a query and its answer in a line. Here: questions about household things, and the paragraphs of a
# manual that answer them. People and manuals have different words for the same thing, so a search for words does badly. Test
# questions are about things and problems that training has not seen together.

# %%
things = {
    "fridge": "refrigerator", "telly": "television set", "hoover": "vacuum cleaner", "washer": "laundry machine",
    "kettle": "water boiler", "cooker": "electric oven", "phone": "mobile handset", "laptop": "portable computer",
    "heater": "convection radiator", "fan": "ventilation unit",
}  # fmt: skip
problems = {
    "loud": (["why is my {} so loud", "{} makes a terrible racket"], "Operating sound of the {}: check that it stands level."),
    "dead": (["my {} does nothing at all", "{} is completely dead"], "Power supply of the {}: inspect socket and fuse."),
    "dirty": (["how do i wash my {}", "what gets stains off the {}"], "Cleaning the {}: use a damp cloth and no solvent."),
    "hot": (["the {} gets really hot", "is a burning {} dangerous"], "Overheating of the {}: keep the vents unobstructed."),
    "money": (["can i get my cash back for the {}", "{} came broken, who pays"], "Warranty for the {}: present the receipt."),
    "old": (["where do i throw away the {}", "getting rid of an old {}"], "Disposal of the {}: return it to a collection point."),
    "move": (["taking my {} to a new flat", "can i carry the {} lying down"], "Transport of the {}: keep it upright and secured."),
    "bill": (["does the {} eat much electricity", "{} drives up my bill"], "Energy consumption of the {}: see the rating plate."),
}  # fmt: skip

combinations = list(itertools.product(things, problems))
held_out = {combinations[i] for i in np.random.default_rng(0).permutation(len(combinations))[:20]}
table = {"train": [], "test": []}
for thing, problem in combinations:
    questions, answer = problems[problem]
    for question in questions:
        pair = {"query": question.format(thing), "positive": answer.format(things[thing])}
        table["test" if (thing, problem) in held_out else "train"].append(pair)

(folder / "manual").mkdir()
for split, pairs in table.items():
    (folder / "manual" / f"{split}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
print({split: len(pairs) for split, pairs in table.items()})
print(json.dumps(table["test"][0]))

# %% [markdown]
# InfoNCE with the overlay `pairs`. BM25, a search for words, and the untrained encoder are measured with every run of the family.

# %%
with capture_output():
    run = zoo.fit(
        "infonce",
        "pairs",
        seed=0,
        max_epochs=20,
        check_val_every_n_epoch=20,
        enable_progress_bar=False,
        **{"data.root": folder / "manual", "data.source.name": "manual", "data.batch_size": 16},
    )
pd.Series(run.metrics)[["test/mrr@10_bm25", "test/mrr@10_random", "test/mrr@10"]].round(3).to_frame(
    "mean reciprocal rank"
)

# %% [markdown]
# And in use. Queries and documents have towers of their own, which may differ in what they read.

# %%
trained = zoo.load(run.path)
paragraphs = sorted({pair["positive"] for pairs in table.values() for pair in pairs})
asked = [pair["query"] for pair in table["test"][::8]]
scores = (
    trained.embed(asked, tower="query", normalize=True) @ trained.embed(paragraphs, tower="document", normalize=True).T
)
right = {pair["query"]: pair["positive"] for pair in table["test"]}
pd.DataFrame(
    {
        "question": asked,
        "best paragraph": [paragraphs[i] for i in scores.argmax(1)],
        "score": scores.max(1).values.numpy().round(2),
        "right": [paragraphs[i] == right[query] for i, query in zip(scores.argmax(1), asked, strict=True)],
    }
).style.hide()
