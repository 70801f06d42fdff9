"""Tiny copies of ARO, SugarCrepe, Winoground and the order sets, in the layouts of their authors."""

import json

import numpy as np
from PIL import Image


def write_image(path, seed, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def write_json(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))


def aro(root):
    """Six relation cases and 29 attribution cases, of which 26 have one pair of attributes, on three images."""
    for i in range(3):
        write_image(root / "images" / f"{i}.png", i)
    box = {"bbox_x": 4, "bbox_y": 2, "bbox_w": 20, "bbox_h": 16}
    relations = [
        {
            "image_id": str(i), "image_path": f"{i % 3}.png", **box, "relation_name": ("on", "near", "in")[i % 3],
            "true_caption": f"the cup {i} is on the desk", "false_caption": f"the desk is on the cup {i}",
        }
        for i in range(6)
    ]  # fmt: skip
    attributes = [
        {
            "image_id": str(i), "image_path": f"{i % 3}.png", **box, "bbox_w": 10 + i,
            "attributes": ["red", "open"] if i < 26 else ["red", "tall"],
            "true_caption": f"the red cup and the open door {i}", "false_caption": f"the open cup and the red door {i}",
        }
        for i in range(29)
    ]  # fmt: skip
    write_json(root / "visual_genome_relation.json", relations)
    write_json(root / "visual_genome_attribution.json", attributes)
    return root


def sugarcrepe(root, images):
    """Three cases in each of the seven files, on two images."""
    for i in range(2):
        write_image(images / f"{i:012d}.jpg", i)
    for kind in ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj"):
        rows = {
            str(2 * i): {
                "filename": f"{i % 2:012d}.jpg", "caption": f"{kind} true {i}", "negative_caption": f"{kind} false {i}",
            }
            for i in range(3)
        }  # fmt: skip
        write_json(root / f"{kind}.json", rows)
    return root


def winoground(root, lines=True, suffix=""):
    """Four cases of two images."""
    rows = [
        {
            "id": i, "image_0": f"ex_{i}_img_0{suffix}", "image_1": f"ex_{i}_img_1{suffix}",
            "caption_0": f"some plants surrounding a lightbulb {i}", "caption_1": f"a lightbulb surrounding some plants {i}",
            "tag": "Scope", "secondary_tag": "", "num_main_preds": 1, "collapsed_tag": "Relation",
        }
        for i in range(4)
    ]  # fmt: skip
    for i in range(4):
        for k in range(2):
            write_image(root / "images" / f"ex_{i}_img_{k}.png", 10 * i + k)
    if lines:
        (root / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        write_json(root / "winoground.json", rows)
    return root


CAPTIONS = [
    "A brown dog chases the small white cat across a green lawn.",
    "Two men in red shirts are riding wooden boats near a stone bridge",
    "Dogs.",
]


def coco_order(root):
    """Two images with three captions and one."""
    rows = [{"image": "val2014/a.jpg", "caption": CAPTIONS}, {"image": "val2014/b.jpg", "caption": CAPTIONS[:1]}]
    for i, name in enumerate("ab"):
        write_image(root / "val2014" / f"{name}.jpg", i)
    write_json(root / "coco_karpathy_test.json", rows)
    return root
