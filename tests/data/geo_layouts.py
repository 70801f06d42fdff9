"""Writers of tiny data sets in the layouts of CVUSA, CVACT, VIGOR and University-1652.

Every image has one colour of its own, by which tests tell what was read.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

CITIES = ("Chicago", "NewYork", "SanFrancisco", "Seattle")


def write_image(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> Path:
    """An image of one colour; size is width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 100, "subsampling": 0} if path.suffix != ".png" else {}
    Image.new("RGB", size, colour).save(path, **options)
    return path


def write_cvusa(root: Path, train: tuple[int, ...] = (9, 2, 12, 5, 7, 1), val: tuple[int, ...] = (3, 11, 4)) -> Path:
    """Tiles have red = 10 x place, panoramas green; place p lies at latitude 30 + p (tile 0.5 further), longitude -90 - p."""
    (root / "splits").mkdir(parents=True)
    for name, places in (("train", train), ("val", val)):
        lines = []
        for p in places:
            tile, ground = f"bingmap/19/{p:07d}.jpg", f"streetview/panos/{p:07d}.jpg"
            write_image(root / tile, (10 * p, 0, 0), (12, 12))
            write_image(root / ground, (0, 10 * p, 0), (22, 4))
            lines.append(f"{tile},{ground},streetview/annotations/{p:07d}.png")
        (root / "splits" / f"{name}-19zl.csv").write_text("\n".join(lines) + "\n")
    (root / "split_locations").mkdir()
    rows = [f"{30.5 + p},{-90.5 - p},{30 + p},{-90 - p},{0.1 * p}" for p in range(1, max(*train, *val) + 1)]
    (root / "split_locations" / "all.csv").write_text("\n".join(rows) + "\n")
    return root


def write_cvact(
    root: Path,
    train: tuple[int, ...] = (4, 0, 6, 2, 7),
    val: tuple[int, ...] = (5, 1, 3),
    test: tuple[int, ...] = (8, 9),
) -> Path:
    """Ids `pano0`, ...; number i lies at x = 100 i, y = -i. Tiles have red = 10 + 10 i, panoramas green."""
    n = max(*train, *val, *test) + 1
    ids = [f"pano{i}" for i in range(n)]
    for folder, numbers in (("ANU_data_small", (*train, *val)), ("ANU_data_test", test)):
        for i in numbers:
            write_image(root / folder / "streetview" / f"{ids[i]}_grdView.jpg", (0, 10 + 10 * i, 0), (16, 8))
            write_image(root / folder / "satview_polish" / f"{ids[i]}_satView_polish.jpg", (10 + 10 * i, 0, 0))

    def part(numbers):  # MATLAB counts from 1; the second field holds the indices
        return {"num": len(numbers), "ind": np.array(numbers)[:, None] + 1}

    mat = {
        "panoIds": np.array(ids),
        "utm": np.array([[100.0 * i, -float(i)] for i in range(n)]),
        "trainSet": part(train),
        "valSet": part(val),
        "valSetAll": part(test),
    }
    savemat(root / "ACT_data.mat", mat)
    return root


def write_vigor(root: Path, tree: str = "official", splits: str = "splits", views: int = 2) -> Path:
    """Four cities of six tiles in a row; panorama j of city c lies on tile 1 + j % 3 and its three right neighbours.

    City c has latitude 40 + c; tile t of it longitude -80 - t / 100, panoramas 0.001 further. Tile 0 has no panorama;
    tiles 1 to 3 have `views` in the training file and one in the test file. Tiles have red = 40 c + t, panoramas green.
    """
    suffix = splits.removeprefix("splits")
    for c, city in enumerate(CITIES):
        names = [f"satellite_{40 + c}.0_{-80 - t / 100:.2f}.png" for t in range(7)]
        panoramas, tiles = (
            (root / city / "panorama", root / city / "satellite")
            if tree == "official"
            else (root / "ground" / city, root / "satellite" / city)
        )
        for t, name in enumerate(names):
            write_image(tiles / name, (40 * c + t, 0, 0))
        lines = []
        for j in range(3 * views + 3):
            t = 1 + j % 3
            name = f"p{c}{j}-_x,{40 + c}.001,{-80 - t / 100 - 0.001:.3f},.jpg"
            write_image(panoramas / name, (0, 40 * c + j, 0), (16, 8))
            shown_in = [(names[t + k], 10.5 * j, -3.0 - 100 * k) for k in range(4)]
            lines.append(" ".join([name, *(f"{tile} {down} {left}" for tile, down, left in shown_in)]))
        folder = root / splits / city
        folder.mkdir(parents=True)
        (folder / "satellite_list.txt").write_text("\n".join(names) + "\n")
        (folder / f"same_area_balanced_train{suffix}.txt").write_text("\n".join(lines[: 3 * views]) + "\n")
        (folder / f"same_area_balanced_test{suffix}.txt").write_text("\n".join(lines[3 * views :]) + "\n")
        (folder / f"pano_label_balanced{suffix}.txt").write_text("\n".join(lines) + "\n")
    return root


def write_university(
    root: Path,
    train: tuple[int, ...] = (839, 842, 7, 12),
    test: tuple[int, ...] = (1, 25, 3),
    distractors: tuple[int, ...] = (2,),
    views: int = 3,
) -> Path:
    """Satellite images have red = building % 200, drone views blue and green = number of the view."""

    def satellite(folder, building):
        write_image(folder / f"{building:04d}" / f"{building:04d}.jpg", (building % 200, 0, 0))

    def drone(folder, building):
        for view in range(views):
            path = folder / f"{building:04d}" / f"image-{view + 1:02d}.jpeg"
            write_image(path, (0, 10 * view, building % 200))

    for building in train:
        satellite(root / "train" / "satellite", building)
        drone(root / "train" / "drone", building)
    for building in test:
        satellite(root / "test" / "query_satellite", building)
        drone(root / "test" / "query_drone", building)
    for building in (*test, *distractors):
        satellite(root / "test" / "gallery_satellite", building)
        drone(root / "test" / "gallery_drone", building)
    return root
