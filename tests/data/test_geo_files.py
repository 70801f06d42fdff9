"""Geo-localisation data sets, read from tiny copies of their authentic layouts."""

import numpy as np
import pytest
import torch

from tests.data.geo_layouts import CITIES, write_cvact, write_cvusa, write_image, write_university, write_vigor
from zoo.data.cvusa import CVACT, CVUSA
from zoo.data.geo_files import held_out
from zoo.data.samplers import RandomBatches
from zoo.data.university import University1652, same_building
from zoo.data.vigor import VIGOR
from zoo.errors import ZooError
from zoo.negatives.miners import EmbeddingMiner


def _colour(images, channel):
    """Mean of a channel of each image, rounded: JPEG moves a colour by one at most."""
    return images[:, channel].float().mean((1, 2)).round().long()


def _one_line(call):
    with pytest.raises(ZooError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _cvusa(**options):
    return CVUSA(**{"tile_size": 8, "ground_size": (4, 16), "val_fraction": 0.34, **options})


def _cvact(**options):
    return CVACT(**{"tile_size": 8, "ground_size": (4, 16), "val_fraction": 0.4, **options})


def _vigor(**options):
    return VIGOR(**{"tile_size": 8, "ground_size": (4, 16), "val_fraction": 0.25, **options})


def _university(**options):
    return University1652(**{"tile_size": 8, "drone_size": 8, "val_fraction": 0.25, **options})


# What all four promise


@pytest.mark.parametrize(
    ("write", "source"),
    [
        (write_cvusa, _cvusa()),
        (write_cvact, _cvact()),
        (write_vigor, _vigor()),
        (write_vigor, _vigor(protocol="cross_area")),
        (write_university, _university()),
        (write_university, _university(task="satellite2drone")),
    ],
    ids=lambda x: getattr(x, "arena", None),
)
def test_contract_of_a_source(tmp_path, write, source):
    root = write(tmp_path)
    source.prepare(root)
    files = {}
    for split in ("train", "val", "test"):
        pairs, data = source.split(split, root), source.retrieval(split, root)
        assert len(pairs) > 0 and len(data.relevance) == len(data.queries)
        assert set(pairs.query_of) == set(range(len(pairs.queries)))  # every query has its document
        right = {(q, d) for q, row in enumerate(data.relevance) for d in row}
        assert right == set(zip(pairs.query_of.tolist(), pairs.document_of.tolist(), strict=True))
        anchor, positive = pairs.fetch([0, len(pairs) - 1])
        assert anchor.dtype == positive.dtype == torch.uint8
        assert torch.equal(pairs[0][0], anchor[0]) and torch.equal(pairs[len(pairs) - 1][1], positive[1])
        documents, queries = source.evaluation(split, root)
        assert (len(documents), len(queries)) == (len(data.documents), len(data.queries))
        assert documents.fetch([0])[0] is None and queries.fetch([0])[1] is None
        assert all(len(column) == len(pairs) for column in pairs.columns.values())
        files[split] = set(pairs.queries.paths)
    assert not files["train"] & files["val"] and not (files["train"] | files["val"]) & files["test"]
    train = source.split("train", root)
    again = type(source)(**{k: getattr(source, k) for k in ("protocol", "task") if hasattr(source, k)})
    again.val_fraction = source.val_fraction
    assert again.split("train", root).queries.paths == train.queries.paths  # the same split in every process
    held_tiles = {train.documents.paths[d] for d in train.document_of}
    val = source.split("val", root)
    assert not held_tiles & {val.documents.paths[d] for d in val.document_of}  # by place, not by view
    RandomBatches().bind(train, 2, seed=0)
    assert all(isinstance(n, int) for n in source.report.values())


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (CVUSA(), "train-19zl.csv is missing.*expected below.*bingmap/19"),
        (CVACT(), "ACT_data.mat is missing.*expected below.*satview_polish"),
        (VIGOR(), "Chicago are missing.*expected below.*<city>/\\{panorama,satellite\\}/ or in"),
        (University1652(), "expected below.*\\{satellite,drone\\}"),
    ],
    ids=["cvusa", "cvact", "vigor", "university"],
)
def test_an_empty_root_says_what_is_expected(tmp_path, source, expected):
    with pytest.raises(ZooError, match=expected):
        source.prepare(tmp_path)
    with pytest.raises(ZooError, match="--data.root"):
        source.prepare(None)


@pytest.mark.parametrize("make", [CVUSA, CVACT, VIGOR, University1652])
@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_a_fraction_that_empties_a_split_is_refused(make, fraction):
    with pytest.raises(ZooError, match="val_fraction"):
        make(val_fraction=fraction)


def test_held_out_places_take_all_their_rows():
    place = np.array([5, 9, 5, 2, 9, 7, 2, 5])
    cut = held_out(place, 0.5, "x")
    assert len(np.unique(place[cut])) == 2 and not np.intersect1d(place[cut], place[~cut]).size
    assert np.array_equal(held_out(place[::-1], 0.5, "x"), cut[::-1])  # whatever their order
    assert 0 < held_out(np.arange(3), 0.999, "x").sum() < 3
    with pytest.raises(ZooError, match="1 training places"):
        held_out(np.zeros(4, int), 0.5, "x")


@pytest.mark.parametrize(("write", "source"), [(write_cvusa, _cvusa()), (write_vigor, _vigor())])
def test_images_are_read_at_the_given_sizes(tmp_path, write, source):
    anchor, positive = source.split("test", write(tmp_path)).fetch([0, 1])
    assert anchor.shape == (2, 3, 4, 16) and positive.shape == (2, 3, 8, 8)


def test_defaults_are_the_papers_sizes():
    assert (CVUSA().tile_size, CVUSA().ground_size) == (384, (140, 768)) == (CVACT().tile_size, CVACT().ground_size)
    assert (VIGOR().tile_size, VIGOR().ground_size) == (384, (384, 768))
    assert University1652().sizes == {"satellite": 384, "drone": 384}


# CVUSA


def test_cvusa_pairs_and_positions(tmp_path):
    root = write_cvusa(tmp_path)
    pairs = _cvusa().split("test", root)
    assert pairs.columns["place"].tolist() == [3, 11, 4] and pairs.document_of.tolist() == [0, 1, 2]
    anchor, positive = pairs.fetch([0, 1, 2])
    assert (_colour(anchor, 1) - torch.tensor([30, 110, 40])).abs().max() <= 1
    assert (_colour(positive, 0) - torch.tensor([30, 110, 40])).abs().max() <= 1
    # ground latitude and longitude, by the place's number and not by the row of the split
    assert pairs.columns["coords"].tolist() == [[33, -93], [41, -101], [34, -94]]
    train, val = (_cvusa().split(split, root) for split in ("train", "val"))
    assert (len(train), len(val)) == (4, 2)
    assert sorted([*train.columns["place"], *val.columns["place"]]) == [1, 2, 5, 7, 9, 12]
    for split in (train, val):
        assert split.columns["coords"][:, 0].tolist() == (30 + split.columns["place"]).tolist()
        assert len(split.documents) == len(split) and (split.columns["positive_key"] == np.arange(len(split))).all()
    assert _cvusa().retrieval("test", root).coords.tolist() == pairs.columns["coords"].tolist()
    assert _cvusa().retrieval("test", root).ignored is None


@pytest.mark.parametrize(
    ("file", "line", "expected"),
    [
        ("splits/train-19zl.csv", "bingmap/19/0000001.jpg,streetview/panos/0000001.jpg", "2 columns instead of 3"),
        ("splits/val-19zl.csv", "a.jpg,b.jpg,c.jpg,d.jpg", "4 columns instead of 3"),
        ("splits/train-19zl.csv", "bingmap/19/x.jpg,a.jpg,b.png", "x.jpg is not named by a place's number"),
        ("splits/train-19zl.csv", "bingmap/19/0000000.jpg,a.jpg,b.png", "0000000.jpg is not named"),
        ("splits/train-19zl.csv", "bingmap/19/0000099.jpg,a.jpg,b.png", "ends with place 12, without place 0000099"),
        ("splits/train-19zl.csv", "bingmap/19/0000009.jpg,a.jpg,b.png", "place 0000009 is in line 1 already"),
        ("split_locations/all.csv", "1,2,3,4", "4 columns instead of 5"),
        ("split_locations/all.csv", "1,2,north,4,5", "north, 4 are not numbers"),
        ("split_locations/all.csv", "1,2,3,nan,5", "nan are not numbers"),
        ("splits/train-19zl.csv", b"\xff\xfe", "the line is no text"),
    ],
)
def test_cvusa_names_file_and_line(tmp_path, file, line, expected):
    path = write_cvusa(tmp_path) / file
    lines = path.read_bytes().splitlines()
    lines[2] = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(b"\n".join(lines))
    message = _one_line(lambda: _cvusa().prepare(tmp_path))
    assert message.startswith(f"{path}:3: ") and expected in message


def test_missing_and_truncated_images(tmp_path):
    root = write_cvusa(tmp_path)
    tile = root / "bingmap/19/0000011.jpg"
    content = tile.read_bytes()
    tile.write_bytes(content[: len(content) // 2])
    source = _cvusa()
    source.prepare(root)  # which does not decode
    pairs = source.split("test", root)
    assert str(tile) in _one_line(lambda: pairs.fetch([0, 1]))
    pairs.fetch([0, 2])
    tile.unlink()
    message = _one_line(lambda: _cvusa().prepare(root))
    assert message.startswith(f"{tile} is missing; expected below {root}") and "bingmap/19/<place>.jpg" in message
    (root / "streetview/panos/0000003.jpg").unlink()
    assert "and 1 more of 6 files" in _one_line(lambda: _cvusa().prepare(root))


# CVACT


def test_cvact_order_positions_and_skipped_places(tmp_path):
    root = write_cvact(tmp_path)
    pairs = _cvact().split("test", root)
    anchor, positive = pairs.fetch([0, 1, 2])
    assert (_colour(anchor, 1) - torch.tensor([60, 20, 40])).abs().max() <= 1  # the order of valSet: 5, 1, 3
    assert (_colour(positive, 0) - torch.tensor([60, 20, 40])).abs().max() <= 1
    assert pairs.columns["coords"].tolist() == [[500, -5], [100, -1], [300, -3]]
    (root / "ANU_data_small/streetview/pano1_grdView.jpg").unlink()
    (root / "ANU_data_small/satview_polish/pano6_satView_polish.jpg").unlink()
    source = _cvact()
    source.prepare(root)
    assert source.split("test", root).columns["coords"].tolist() == [[500, -5], [300, -3]]
    assert source.split("test", root).columns["positive_key"].tolist() == [0, 1]
    assert len(source.split("train", root)) + len(source.split("val", root)) == 4
    report = source.report
    assert (report["train_skipped"], report["test_skipped"]) == (1, 1)
    assert (report["train_views"], report["test_views"]) == (4, 2)


def test_cvact_full_test_is_the_intersection_sorted(tmp_path):
    root = write_cvact(tmp_path)
    write_image(root / "ANU_data_test/streetview/alone_grdView.jpg", (1, 1, 1))
    for folder, end in (("streetview", "grdView"), ("satview_polish", "satView_polish")):
        write_image(root / f"ANU_data_test/{folder}/a-new_one_{end}.jpg", (1, 1, 1))
    source = _cvact(full_test=True)
    source.prepare(root)
    sets = source.retrievals("test", root)
    assert list(sets) == ["", "full"] and list(source.retrievals("val", root)) == [""]
    names = [path.name.removesuffix("_grdView.jpg") for path in sets["full"].queries.paths]
    assert names == ["a-new_one", "pano8", "pano9"]
    assert sets["full"].relevance == [{0: 1}, {1: 1}, {2: 1}]
    assert np.isnan(sets["full"].coords[0]).all() and sets["full"].coords[1:].tolist() == [[800, -8], [900, -9]]
    assert len(source.evaluation("test", root)) == 4
    assert list(_cvact().retrievals("test", root)) == [""]
    for path in (root / "ANU_data_test/streetview").iterdir():
        path.unlink()
    assert "ANU_data_test" in _one_line(lambda: _cvact(full_test=True).prepare(root))


def test_cvact_refuses_another_mat_file(tmp_path):
    from scipy.io import loadmat, savemat

    root = write_cvact(tmp_path)
    path = root / "ACT_data.mat"
    mat = {k: v for k, v in loadmat(path).items() if not k.startswith("_")}
    for change in ({"utm": mat["utm"][:-1]}, {"valSet": {"num": 1, "ind": 99}}, {"trainSet": np.arange(3)}):
        savemat(path, {**mat, **change})
        assert "trainSet and valSet" in _one_line(lambda: _cvact().prepare(root))
    savemat(path, {k: v for k, v in mat.items() if k != "panoIds"})
    assert "panoIds" in _one_line(lambda: _cvact().prepare(root))
    path.write_bytes(b"no mat file")
    assert "cannot be read as a MATLAB file" in _one_line(lambda: _cvact().prepare(root))
    for image in (root / "ANU_data_small/streetview").iterdir():
        image.unlink()
    write_cvact(root)
    for image in (root / "ANU_data_small/satview_polish").iterdir():
        image.unlink()
    assert "no train place with both its files" in _one_line(lambda: _cvact().prepare(root))


# VIGOR


@pytest.mark.parametrize("tree", ["official", "sample4geo"])
def test_vigor_test_split(tmp_path, tree):
    root = write_vigor(tmp_path, tree)
    source = _vigor()
    source.prepare(root)
    data, pairs = source.retrieval("test", root), source.split("test", root)
    assert len(data.documents) == 28  # all tiles, in the order of the concatenated lists
    assert _colour(data.documents.fetch(range(28)), 0).tolist() == [40 * c + t for c in range(4) for t in range(7)]
    assert len(data.queries) == 12
    for q in range(12):
        city, tile = q // 3, 7 * (q // 3) + 1 + q % 3
        assert data.relevance[q] == {tile: 1} and data.ignored[q] == {tile + 1, tile + 2, tile + 3}
        assert pairs.columns["semi_positive"][q].tolist() == [tile + 1, tile + 2, tile + 3]
        assert pairs.columns["group"][q] == city
        assert pairs.columns["coords"][q] == pytest.approx([40 + city, -80 - (1 + q % 3) / 100])
        assert data.coords[q] == pytest.approx([40 + city + 0.001, -80 - (1 + q % 3) / 100 - 0.001])
        assert pairs.columns["offset"][q].tolist() == [10.5 * (6 + q % 3), 3.0]
    green = _colour(data.queries.fetch(range(12)), 1)
    assert (green - torch.tensor([40 * c + 6 + j for c in range(4) for j in range(3)])).abs().max() <= 1


def test_vigor_training_documents_are_places_only(tmp_path):
    root = write_vigor(tmp_path)
    source = _vigor()
    train, val, data = source.split("train", root), source.split("val", root), source.retrieval("val", root)
    assert len(train) == 18 and len(train.documents) == 9  # 12 places with two views each, three held out
    assert len(val) == 6 and len(data.documents) == 28
    assert sorted(np.bincount(train.columns["positive_key"])) == [2] * 9
    tiles = [path.name for path in train.documents.paths]
    every = [path.name for path in data.documents.paths]
    assert tiles == [name for name in every if name in set(tiles)]
    for row in range(len(train)):  # semi-positives by name: the next three tiles, where they are places in training
        place = every.index(tiles[train.document_of[row]])
        expected = [tiles.index(every[place + k]) if every[place + k] in tiles else -1 for k in (1, 2, 3)]
        assert train.columns["semi_positive"][row].tolist() == expected
    assert (train.columns["semi_positive"] == -1).any() and (train.columns["semi_positive"] >= 0).any()
    assert {len(ignored) for ignored in data.ignored} == {3}


def test_vigor_cross_area_cities(tmp_path):
    root = write_vigor(tmp_path)
    source = _vigor(protocol="cross_area")
    cities = {
        split: {path.parts[-3] for path in source.split(split, root).queries.paths} for split in ("train", "test")
    }
    assert cities == {"train": {"NewYork", "Seattle"}, "test": {"Chicago", "SanFrancisco"}}
    assert set(source.split("test", root).columns["group"]) == {CITIES.index("Chicago"), CITIES.index("SanFrancisco")}
    data = source.retrieval("test", root)
    assert len(data.queries) == 18 and len(data.documents) == 14  # pano_label_balanced: all panoramas
    assert len(source.split("train", root)) + len(source.split("val", root)) == 18


def test_vigor_corrected_labels(tmp_path):
    write_vigor(tmp_path)
    source = _vigor(corrected=True)
    assert "splits__corrected" in _one_line(lambda: source.prepare(tmp_path))
    write_vigor(tmp_path, splits="splits__corrected")
    path = tmp_path / "splits__corrected/Chicago/same_area_balanced_test__corrected.txt"
    path.write_text(path.read_text().replace(" 63.0 ", " 64.5 "))
    assert source.split("test", tmp_path).columns["offset"][0].tolist() == [64.5, 3.0]
    assert _vigor().split("test", tmp_path).columns["offset"][0].tolist() == [63.0, 3.0]
    path.rename(path.with_name("same_area_balanced_test.txt"))  # as some rename them
    assert _vigor(corrected=True).split("test", tmp_path).columns["offset"][0].tolist() == [64.5, 3.0]
    arenas = [_vigor(protocol=p, corrected=c).arena for p in ("same_area", "cross_area") for c in (False, True)]
    assert len(set(arenas)) == 4 and arenas[1] == "vigor-same_area-corrected"


@pytest.mark.parametrize(
    ("file", "edit", "expected"),
    [
        ("same_area_balanced_train.txt", lambda x: x.rsplit(" ", 1)[0], "12 columns instead of 13"),
        (
            "same_area_balanced_train.txt",
            lambda x: x.replace("satellite_41.0_-80.02.png", "no.png"),
            "no.png is not in",
        ),
        ("same_area_balanced_train.txt", lambda x: x.replace("-103.0", "left"), "are not numbers"),
        ("same_area_balanced_train.txt", lambda x: x.replace(",", ";"), "states no position"),
        ("satellite_list.txt", lambda x: "satellite_41.0.png", "satellite_41.0.png states no position"),
        ("satellite_list.txt", lambda x: f"{x} {x}", "2 columns instead of 1"),
    ],
)
def test_vigor_names_file_and_line(tmp_path, file, edit, expected):
    path = write_vigor(tmp_path) / "splits/NewYork" / file
    lines = path.read_text().splitlines()
    lines[1] = edit(lines[1])
    path.write_text("\n".join(lines))
    message = _one_line(lambda: _vigor().prepare(tmp_path))
    assert message.startswith(f"{path}:2: ") and expected in message


def test_vigor_missing_files(tmp_path):
    root = write_vigor(tmp_path)
    tile = root / "Seattle/satellite/satellite_43.0_-80.00.png"
    tile.unlink()
    assert str(tile) in _one_line(lambda: _vigor().prepare(root))
    write_image(tile, (0, 0, 0))
    path = root / "splits/Seattle/same_area_balanced_test.txt"
    path.unlink()
    assert f"{path} is missing" in _one_line(lambda: _vigor().prepare(root))
    for city in CITIES:
        (root / "splits" / city / "same_area_balanced_train.txt").write_text("\n")
    assert "lists no panoramas" in _one_line(lambda: _vigor().prepare(root))


# University-1652


def _files_of_pairs(pairs, *sides):
    number = {"queries": pairs.query_of, "documents": pairs.document_of}
    return [[getattr(pairs, side).paths[i] for i in number[side]] for side in sides]


def test_university_trains_on_every_drone_view(tmp_path):
    root = write_university(tmp_path)
    extra = write_image(root / "train/satellite/0839/9999.jpg", (0, 0, 0))  # not its first satellite image
    source = _university()
    train, val = source.split("train", root), source.split("val", root)
    assert (len(train), len(val)) == (9, 3) and extra not in train.documents.paths
    anchor, positive = train.fetch(range(9))
    assert (_colour(anchor, 2) - _colour(positive, 0)).abs().max() <= 2
    assert sorted({*train.columns["label"], *val.columns["label"]}) == [7, 12, 839, 842]
    assert (_colour(positive, 0) - torch.tensor(train.columns["label"] % 200)).abs().max() <= 1
    other = _university(task="satellite2drone").split("train", root)
    assert len(other) == 9 and len(other.queries) == 3 and len(other.documents) == 9
    files = [(train, "queries", "documents"), (other, "documents", "queries")]  # the same images, sides swapped
    drones, satellites = zip(*(_files_of_pairs(*x) for x in files), strict=True)
    assert sorted(zip(drones[0], satellites[0], strict=True)) == sorted(zip(drones[1], satellites[1], strict=True))


@pytest.mark.parametrize("task", ["drone2satellite", "satellite2drone"])
def test_university_pairs_are_identified_by_their_building(tmp_path, task):
    pairs = _university(task=task).split("train", write_university(tmp_path))
    label = pairs.columns["label"]
    assert np.array_equal(pairs.keys("positive", np.arange(9)).numpy(), label)
    assert np.array_equal(pairs.document_keys(pairs.document_of).numpy(), label)
    assert np.array_equal(pairs.columns["known"][:, 0], label)


@pytest.mark.parametrize("task", ["drone2satellite", "satellite2drone"])
def test_no_view_of_a_building_is_mined_as_its_negative(tmp_path, task):
    pairs = _university(task=task).split("train", write_university(tmp_path))
    rng = np.random.default_rng(0)
    sides = {"query": pairs.queries, "document": pairs.documents}
    table = EmbeddingMiner(depth=9).mine(pairs, lambda side: torch.from_numpy(rng.normal(size=(len(sides[side]), 4))))
    label = pairs.columns["label"]
    for row, ids in zip(label, table.ids, strict=True):
        kept = ids[ids >= 0]
        assert set(pairs.document_keys(kept).tolist()) == set(label) - {row}
        assert len(kept) == len(pairs.documents) * 2 // 3  # those of the other two buildings


def test_university_test_has_distractors_and_no_junk(tmp_path):
    root = write_university(tmp_path)
    write_image(root / "test/gallery_satellite/-1/a.jpg", (0, 0, 0))
    write_image(root / "test/gallery_drone/-1/a.jpeg", (0, 0, 0))
    (root / "test/gallery_drone/0001/notes.txt").write_text("no image")
    (root / "test/gallery_drone/readme.txt").write_text("no building")
    drone, satellite = _university(), _university(task="satellite2drone")
    data = drone.retrieval("test", root)
    assert len(data.queries) == 9 and len(data.documents) == 4 and data.ignored is None
    for q, (building,) in enumerate(list(row) for row in data.relevance):
        assert data.queries.paths[q].parent.name == data.documents.paths[building].parent.name
    assert {"0002"} == {p.parent.name for p in data.documents.paths} - {p.parent.name for p in data.queries.paths}
    data = satellite.retrieval("test", root)
    assert len(data.queries) == 3 and len(data.documents) == 12
    for q, row in enumerate(data.relevance):
        assert len(row) == 3
        assert {data.documents.paths[d].parent.name for d in row} == {data.queries.paths[q].parent.name}
    assert drone.report["skipped_junk"] == satellite.report["skipped_junk"] == 1
    assert drone.report["test_gallery_satellite"] == 4
    assert drone.arena != satellite.arena


def test_university_incomplete_buildings_are_reported(tmp_path):
    root = write_university(tmp_path)
    for path in (root / "train/drone/0012").iterdir():
        path.unlink()
    for task in ("drone2satellite", "satellite2drone"):
        assert "1, the first is 0012" in _one_line(lambda task=task: _university(task=task).prepare(root))
    write_university(root)
    (root / "test/gallery_satellite/0025/0025.jpg").unlink()
    assert "the first is 0025" in _one_line(lambda: _university().prepare(root))
    (root / "train/satellite/house").mkdir()
    assert "house is not named" in _one_line(lambda: _university().prepare(root))


def test_same_building_lists_all_matches():
    rng = np.random.default_rng(0)
    queries, documents = rng.integers(0, 9, 20), rng.integers(0, 9, 30)
    expected = [(q, d) for q in range(20) for d in range(30) if queries[q] == documents[d]]
    found = np.stack(same_building(queries, documents), 1)
    assert found.tolist() == [list(pair) for pair in expected]
