"""COCO's and NegCLIP's files in their authentic layouts, whole and broken."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.data.caption_files import CocoCaptions
from zoo.data.collections import CollectionPairs
from zoo.data.negclip_files import NamedCaptions, NegClipFile
from zoo.errors import ZooError
from zoo.negatives.caption_edits import CaptionEdits
from zoo.negatives.image_neighbours import NamedNeighbours

INIT = "--data.source.init_args"


def write_image(path, shade):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((12, 16, 3), shade, np.uint8)).save(path)


def one_line(error):
    return "\n" not in str(error.value)


def write_coco(root):
    """40 training and 3 validation images with two captions each, listed out of order; one caption occurs twice."""
    (root / "annotations").mkdir()
    for part, n in (("train", 40), ("val", 3)):
        content = {"images": [], "annotations": []}
        for i in reversed(range(n)):
            content["images"].append({"id": i, "file_name": f"{i:012d}.jpg"})
            content["annotations"] += [
                {"id": 2 * i, "image_id": i, "caption": f"A dog number {i} chases a cat.\n"},
                {"id": 2 * i + 1, "image_id": i, "caption": "A dog and a cat."},
            ]
            write_image(root / f"{part}2017" / f"{i:012d}.jpg", i)
        (root / "annotations" / f"captions_{part}2017.json").write_text(json.dumps(content))


@pytest.fixture
def coco(tmp_path):
    write_coco(tmp_path)
    return tmp_path


def rewrite(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def shade(pairs, index):
    image, caption = pairs[index]
    return round(image.float().mean().item()), caption


def test_coco_pairs_images_with_their_captions(coco):
    source = CocoCaptions(size=8)
    source.prepare(coco)
    train, val, test = (source.split(s, coco) for s in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (76, 4, 6)
    shades = set()
    for pairs in (train, val):
        for i in range(len(pairs)):
            value, caption = shade(pairs, i)
            assert caption in ("A dog and a cat.", f"A dog number {value} chases a cat.")
            shades.add((value, caption))
    assert len(shades) == 80  # no image in both
    images, captions = train.fetch([0, 5])
    assert images.dtype == torch.uint8 and images.shape == (2, 3, 8, 8) and len(captions) == 2
    assert source.report == {"images": 43, "pairs": 76}


def test_coco_equal_captions_are_one_document_in_training_only(coco):
    source = CocoCaptions(size=8)
    train, test = source.split("train", coco), source.retrieval("test", coco)
    shared = train.documents.index("A dog and a cat.")
    assert len(set(train.documents)) == len(train.documents) == 39
    assert (train.columns["known"] == shared).any(1).all()
    assert len(test.queries) == 3 and len(test.documents) == 6
    for query, relevant in enumerate(test.relevance):
        value = round(test.queries[query].float().mean().item())
        assert sorted(test.documents[d] for d in relevant) == [
            "A dog and a cat.",
            f"A dog number {value} chases a cat.",
        ]
    assert sorted(d for relevant in test.relevance for d in relevant) == list(range(6))


def test_coco_without_captions_that_cannot_be_edited(coco):
    source = CocoCaptions(size=8, edits=CaptionEdits(kinds=["nouns"]))
    train = source.split("train", coco)
    assert len(train) == 38 and "A dog and a cat." not in {train[i][1] for i in range(38)}
    assert (train.columns["known"] == train.documents.index("A dog and a cat.")).any(1).all()
    assert source.report["skipped_not_editable"] == source.report["pairs"] == 38
    assert len(source.split("test", coco)) == 6
    with pytest.raises(ZooError, match="no caption can be edited"):
        CocoCaptions(edits=CaptionEdits(kinds=["adverbs"])).split("train", coco)


def test_coco_missing_images_are_counted_up_to_a_share(coco):
    for i in (3, 30):
        (coco / "train2017" / f"{i:012d}.jpg").unlink()
    with pytest.raises(
        ZooError, match=rf"2 of 40 images are missing \(.*000000000003.jpg\).*{INIT}.max_missing"
    ) as error:
        CocoCaptions().prepare(coco)
    assert one_line(error)
    source = CocoCaptions(max_missing=0.05)
    source.prepare(coco)
    assert source.report["skipped_missing"] == 2
    assert len(source.split("train", coco)) + len(source.split("val", coco)) == 76


def test_coco_damaged_image_is_named_when_read(coco):
    path = coco / "val2017" / "000000000001.jpg"
    path.write_bytes(path.read_bytes()[:200])
    pairs = CocoCaptions(size=8).split("test", coco)
    with pytest.raises(ZooError, match=path.name) as error:
        pairs.fetch(range(6))
    assert one_line(error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), r"captions_val2017.json: the file has no list 'images'"),
        (lambda c: c["annotations"][2].pop("caption"), r"annotations\[2\] has no str 'caption'"),
        (lambda c: c["annotations"][1].update(image_id=77), r"annotations\[1\] names an unknown image 77"),
        (lambda c: c["images"][0].update(id="0"), r"images\[0\] has no int 'id'"),
    ],
)
def test_coco_broken_annotations(coco, change, message):
    rewrite(coco / "annotations" / "captions_val2017.json", change)
    with pytest.raises(ZooError, match=message) as error:
        CocoCaptions().prepare(coco)
    assert one_line(error)


def test_coco_absent_files(coco):
    with pytest.raises(ZooError, match=r"pass --data.root, a folder that holds annotations/"):
        CocoCaptions().prepare(None)
    path = coco / "annotations" / "captions_train2017.json"
    for spoil in (lambda: path.write_text('{"images": ['), path.unlink):
        spoil()
        with pytest.raises(ZooError, match=r"captions_train2017.json cannot be read as JSON") as error:
            CocoCaptions().prepare(coco)
        assert one_line(error)


def test_coco_image_without_caption_is_counted(coco):
    rewrite(
        coco / "annotations" / "captions_val2017.json", lambda c: c["images"].append({"id": 9, "file_name": "9.jpg"})
    )
    write_image(coco / "val2017" / "9.jpg", 9)
    source = CocoCaptions()
    assert len(source.split("test", coco)) == 6
    assert source.report["skipped_no_caption"] == 1


def test_karpathy_splits_with_folders_of_2014_or_2017(coco):
    def row(i, split, sentences=1):
        name = f"COCO_val2014_{i:012d}.jpg"
        raw = [{"raw": f"A cat {i} {n}"} for n in range(sentences)]
        return {"filepath": "val2014", "filename": name, "cocoid": i, "split": split, "sentences": raw}

    rows = [row(0, "train"), row(39, "restval"), row(2, "val", 5), row(50, "test", 2)]
    write_image(coco / "val2014" / "COCO_val2014_000000000050.jpg", 50)  # the others lie in train2017
    (coco / "annotations" / "dataset_coco.json").write_text(json.dumps({"images": rows}))
    source = CocoCaptions(splits="karpathy", size=8)
    source.prepare(coco)
    assert source.arena == "coco-karpathy" != CocoCaptions().arena
    train = source.split("train", coco)
    assert [shade(train, i) for i in range(2)] == [(0, "A cat 0 0"), (39, "A cat 39 0")]
    assert source.retrieval("val", coco).relevance == [dict.fromkeys(range(5), 1)]
    assert shade(source.split("test", coco), 1) == (50, "A cat 50 1")
    rewrite(coco / "annotations" / "dataset_coco.json", lambda c: c["images"][1].update(split="rest"))
    with pytest.raises(ZooError, match=r"images\[1\] has the split 'rest'"):
        CocoCaptions(splits="karpathy").prepare(coco)


# NegCLIP's file

HEADER = ["", "title", "filepath", "neg_caption", "neg_image"]
ROWS = [
    [0, 'A "red" cat on a mat', "train2014/a.jpg", str(['A "red" mat on a cat', "It's a mat"]), "[1, 3]"],
    [1, "A dog", "/elsewhere/coco/train2014/b.jpg", str(["A god"]), "[0, 2]"],
    [2, "A dog", "train2014/a.jpg", str(["A dog", "No dog"]), "[1, 0, 3]"],
    [3, "A bird", "train2014/c.jpg", str(["A word", "B", "C"]), "[2]"],
]


def write_negclip(root, rows=ROWS, name="train_neg_clip.tsv", header=HEADER):
    with (root / name).open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([header, *rows])


@pytest.fixture
def negclip(tmp_path):
    for name, value in (("a", 10), ("b", 20), ("c", 30)):
        write_image(tmp_path / "train2014" / f"{name}.jpg", value)
    for name in ("train_neg_clip.tsv", "valid_neg_clip.tsv"):
        write_negclip(tmp_path, name=name)
    return tmp_path


def test_negclip_rows_are_pairs_and_documents(negclip):
    source = NegClipFile(size=8)
    source.prepare(negclip)
    pairs = source.split("train", negclip)
    assert [shade(pairs, i) for i in range(4)] == [
        (10, 'A "red" cat on a mat'), (20, "A dog"), (10, "A dog"), (30, "A bird"),
    ]  # fmt: skip
    assert pairs.document_of.tolist() == [0, 1, 2, 3] and pairs.query_of.tolist() == [0, 1, 0, 2]
    known = [{k for k in row if k >= 0} for row in pairs.columns["known"].tolist()]
    assert known == [{0, 1, 2}, {1, 2}, {0, 1, 2}, {3}]  # both rows that read "A dog" are true of both images
    assert source.retrieval("val", negclip).relevance == [{0: 1, 2: 1}, {1: 1}, {3: 1}]
    assert source.report == {"pairs": 8}


def test_negclip_neighbours_become_a_table_without_the_image_itself(negclip):
    table = NamedNeighbours().mine(NegClipFile().split("train", negclip))
    assert table.ids.tolist() == [[3, -1, -1], [0, -1, -1], [3, -1, -1], [2, -1, -1]]


def test_negclip_captions_are_drawn_anew_and_are_never_true(negclip):
    pairs, generator = NegClipFile().split("train", negclip), NamedCaptions(2)
    made = [generator.generate(pairs, np.array([2, 3]), np.random.default_rng(seed)) for seed in range(60)]
    for one in made:
        assert one.mask.tolist() == [[True, False], [True, True]]
        assert one.documents[0] == "No dog" and len(set(one.documents[2:])) == 2
        assert (one.keys[one.mask] > 2**40).all() and (one.keys[~one.mask] == -1).all()
    seen = [text for one in made for text in one.documents[2:]]
    assert min(seen.count(text) for text in ("A word", "B", "C")) > 20
    with pytest.raises(ZooError, match="NegClipFile"):
        generator.generate(
            CollectionPairs(["q"], ["d"], np.zeros(1), np.zeros(1)), np.array([0]), np.random.default_rng(0)
        )


def test_negclip_rows_without_their_image_leave_numbers_alone(negclip):
    (negclip / "train2014" / "b.jpg").unlink()
    with pytest.raises(ZooError, match=rf"1 of 4 rows are missing .*{INIT}.max_missing") as error:
        NegClipFile().split("train", negclip)
    assert one_line(error)
    source = NegClipFile(max_missing=0.3)
    pairs = source.split("train", negclip)
    assert pairs.document_of.tolist() == [0, 2, 3] and pairs.documents[1] == "A dog"
    assert pairs.table().ids.tolist() == [[3, -1], [3, -1], [2, -1]]
    assert source.report == {"pairs": 3, "skipped_missing": 1}


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (3, "[]", r"tsv:4: neg_caption is empty"),
        (4, "[]", r"tsv:4: neg_image is empty"),
        (3, "['a', 3]", r"tsv:4: neg_caption is no Python list of texts"),
        (3, "['a'", r"tsv:4: neg_caption is no Python list of texts"),
        (3, "__import__('os')", r"tsv:4: neg_caption is no Python list of texts"),
        (4, "['1']", r"tsv:4: neg_image is no Python list of row numbers"),
        (4, "[4]", r"tsv:4: neg_image names row 4 of 4"),
        (4, "[-1]", r"tsv:4: neg_image names row -1 of 4"),
        (1, " ", r"tsv:4: the field 'title' is empty"),
    ],
)
def test_negclip_bad_rows_are_rejected_when_the_file_is_read(negclip, column, value, message):
    rows = [list(row) for row in ROWS]
    rows[2][column] = value
    write_negclip(negclip, rows)
    with pytest.raises(ZooError, match=message) as error:
        NegClipFile().prepare(negclip)
    assert one_line(error)


def test_negclip_bad_files(negclip):
    write_negclip(negclip, [row[:4] for row in ROWS], header=HEADER[:4])
    with pytest.raises(ZooError, match=r"tsv:1: no column 'neg_image'"):
        NegClipFile().prepare(negclip)
    write_negclip(negclip, [ROWS[0], ROWS[1][:3]])
    with pytest.raises(ZooError, match=r"tsv:3: 3 columns where the header has 5"):
        NegClipFile().prepare(negclip)
    path = negclip / "train_neg_clip.tsv"
    path.write_text(path.read_text() + '4\t"open')
    with pytest.raises(ZooError, match=r"tsv:3: "):
        NegClipFile().prepare(negclip)
    path.unlink()
    with pytest.raises(ZooError, match=r"train_neg_clip.tsv:1: cannot be read"):
        NegClipFile().prepare(negclip)
    with pytest.raises(ZooError, match=r"pass --data.root"):
        NegClipFile().prepare(None)
