"""Scenes in the files that real benchmarks are published in, so that their loaders can be tried on them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zoo.data.scene_cases import WINOGROUND, scene_pairs
from zoo.data.scene_edits import C0, C1, COLOURS, KINDS, RELATION, RELATIONS, caption, draw_scenes, edit, meaning
from zoo.data.scene_render import SIZE, render

_FULL = {"bbox_x": 0, "bbox_y": 0, "bbox_w": SIZE, "bbox_h": SIZE}


def write_layouts(folder: Path, n: int = 100, seed: int = 0) -> None:
    """Write ARO, SugarCrepe, Winoground and NegCLIP training files made of scenes, each in its own folder.

    | written under `folder` | what |
    |---|---|
    | `aro/visual_genome_relation.json`, `aro/visual_genome_attribution.json`, `aro/images/` | swapped objects, colours |
    | `sugarcrepe/{add,replace,swap}_*.json`, `sugarcrepe/val2017/` | one file for each kind of edit |
    | `winoground/examples.jsonl`, `winoground/images/` | both images and captions of swaps |
    | `negclip/{train,valid}_neg_clip.tsv`, `negclip/images/` | scenes with false captions and similar images |

    Args:
        folder: where to write.
        n: cases of each kind; rows of each training file.
        seed: of the scenes.
    """
    pairs = {k: scene_pairs(k, n, np.random.default_rng([seed, i]), held_out=False) for i, k in enumerate(KINDS)}
    _write_aro(folder / "aro", pairs, seed)
    _write_sugarcrepe(folder / "sugarcrepe", pairs, seed)
    _write_winoground(folder / "winoground", pairs, seed)
    for number, part in enumerate(("train", "valid")):
        _write_negclip(folder / "negclip", part, n, (seed, len(KINDS), number))


def _write_aro(folder: Path, pairs: dict[str, tuple[np.ndarray, np.ndarray]], seed: int) -> None:
    for kind, name in (("swap_obj", "relation"), ("swap_att", "attribution")):
        true, false = pairs[kind]
        rows: list[dict[str, Any]] = []
        for i, (right, wrong) in enumerate(zip(caption(true), caption(false), strict=True)):
            row = {"image_path": f"{name}_{i}.png", "true_caption": right, "false_caption": wrong, **_FULL}
            if name == "relation":
                row["relation_name"] = RELATIONS[true[i, RELATION]]
            else:
                row["attributes"] = [COLOURS[true[i, C0]], COLOURS[true[i, C1]]]
            rows.append(row)
        _write_images(folder / "images", [row["image_path"] for row in rows], render(true, seed))
        (folder / f"visual_genome_{name}.json").write_text(json.dumps(rows))


def _write_sugarcrepe(folder: Path, pairs: dict[str, tuple[np.ndarray, np.ndarray]], seed: int) -> None:
    for number, (kind, (true, false)) in enumerate(pairs.items()):
        names = [f"{number:04}{i:08}.png" for i in range(len(true))]
        texts = zip(names, caption(true), caption(false), strict=True)
        cases = [dict(zip(("filename", "caption", "negative_caption"), case, strict=True)) for case in texts]
        _write_images(folder / "val2017", names, render(true, seed))
        (folder / f"{kind}.json").write_text(json.dumps({str(i): case for i, case in enumerate(cases)}))


def _write_winoground(folder: Path, pairs: dict[str, tuple[np.ndarray, np.ndarray]], seed: int) -> None:
    lines = []
    for kind in WINOGROUND:
        first = len(lines)
        for c0, c1 in zip(*map(caption, pairs[kind]), strict=True):
            i = len(lines)
            sides = {"caption_0": c0, "caption_1": c1, "image_0": f"ex_{i}_img_0", "image_1": f"ex_{i}_img_1"}
            tags = {"tag": kind, "secondary_tag": "", "num_main_preds": 1, "collapsed_tag": kind.removeprefix("swap_")}
            lines.append({"id": i, **sides, **tags})
        for side, scenes in enumerate(pairs[kind]):
            names = [f"{line[f'image_{side}']}.png" for line in lines[first:]]
            _write_images(folder / "images", names, render(scenes, seed))
    (folder / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _write_negclip(folder: Path, part: str, n: int, seed: tuple[int, ...]) -> None:
    """Rows as NegCLIP trains on them: several false captions, and the numbers of the three most similar rows."""
    rng = np.random.default_rng(seed)
    scenes = draw_scenes(n, rng)
    false = [caption(edit(scenes, kind, rng)) for kind in ("swap_att", "swap_obj", "replace_rel")]
    alike = (scenes[:, None] == scenes).sum(2) - len(scenes[0]) * (meaning(scenes)[:, None] == meaning(scenes))
    near = np.argsort(-alike, axis=1, kind="stable")[:, :3]
    names = [f"{part}_{i}.png" for i in range(n)]
    _write_images(folder / "images", names, render(scenes, seed))
    with (folder / f"{part}_neg_clip.tsv").open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(["", "title", "filepath", "neg_caption", "neg_image"])
        for i, (title, *wrong) in enumerate(zip(caption(scenes), *false, strict=True)):
            table.writerow([i, title, f"images/{names[i]}", wrong, near[i].tolist()])


def _write_images(folder: Path, names: list[str], images: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / name)
