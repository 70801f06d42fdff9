"""Data sets of which a file was damaged: read, refused with a ZooError, or with rows skipped; never anything else."""

import json
import random
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data import composition_layouts, geo_layouts
from tests.data.test_caption_files import write_coco, write_image, write_negclip
from tests.data.test_text_files import qrels
from zoo.data import (
    CVACT,
    CVUSA,
    VIGOR,
    Aro,
    BeirCollection,
    CocoCaptions,
    NegClipFile,
    PairFiles,
    SugarCrepe,
    University1652,
    Winoground,
)
from zoo.errors import ZooError

FEW = settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=60, derandomize=False)


def negclip(root):
    for name in "abc":
        write_image(root / "train2014" / f"{name}.jpg", 10)
    for name in ("train_neg_clip.tsv", "valid_neg_clip.tsv"):
        write_negclip(root, name=name)


def beir(root):
    for name, kind in (("corpus", "d"), ("queries", "q")):
        rows = [{"_id": f"{kind}{i}", "title": "", "text": f"{kind} {i}"} for i in range(30)]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "qrels").mkdir()
    for part, rows in (("train", range(20)), ("dev", range(20, 25)), ("test", range(25, 30))):
        qrels(root, part, [(f"q{i}", f"d{i}", 1) for i in rows])


def pair_rows(root):
    rows = [{"query": f"a{i}", "positive": f"p{i}", "negative": f"n{i}"} for i in range(20)]
    for part in ("train", "val", "test"):
        (root / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_source(source):
    def read(root):
        made = source()
        made.prepare(root)
        pairs = made.split("train", root)
        pairs.fetch(range(len(pairs)))
        made.retrieval("test", root)

    return read


def read_suite(suite):
    def read(root):
        for cases in suite(root).cases.values():
            cases.images.fetch(range(len(cases.images)))

    return read


LAYOUTS = {
    "cvusa": (geo_layouts.write_cvusa, read_source(lambda: CVUSA(8, 8))),
    "cvact": (geo_layouts.write_cvact, read_source(lambda: CVACT(8, 8))),
    "vigor": (geo_layouts.write_vigor, read_source(lambda: VIGOR(tile_size=8, ground_size=8))),
    "university": (
        geo_layouts.write_university,
        read_source(lambda: University1652(tile_size=8, drone_size=8, val_fraction=0.25)),
    ),
    "coco": (write_coco, read_source(lambda: CocoCaptions(size=8))),
    "negclip": (negclip, read_source(lambda: NegClipFile(size=8))),
    "beir": (beir, read_source(BeirCollection)),
    "pairs": (pair_rows, read_source(PairFiles)),
    "aro": (composition_layouts.aro, read_suite(lambda root: Aro(root, size=8))),
    "sugarcrepe": (
        lambda root: composition_layouts.sugarcrepe(root, root / "val2017"),
        read_suite(lambda root: SugarCrepe(root, images=root / "val2017", size=8)),
    ),
    "winoground": (composition_layouts.winoground, read_suite(lambda root: Winoground(root, size=8))),
}


@st.composite
def damages(draw):
    """What happens to a file: it goes, becomes empty, is cut off, or some of its bytes or words are others."""
    kind = draw(st.sampled_from(["remove", "empty", "cut", "bytes", "word", "line"]))
    return kind, draw(st.floats(0, 1)), draw(st.binary(min_size=1, max_size=6)), draw(st.integers(0, 2**16))


def damage(path, kind, share, new, seed):
    data = path.read_bytes()
    at = int(share * max(len(data) - 1, 0))
    if kind == "remove":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        path.write_bytes(data[:at])
    elif kind == "bytes":
        path.write_bytes(data[:at] + new + data[at + len(new) :])
    else:  # of texts: one word, or one line, for another of the file
        parts = data.split(b"\n" if kind == "line" else b'"')
        rng = random.Random(seed)
        parts[rng.randrange(len(parts))] = rng.choice([*parts, b"", b"null", b"-1", b"[]", b"1e400"])
        path.write_bytes((b"\n" if kind == "line" else b'"').join(parts))


def check(layout, examples, tmp_path, monkeypatch):
    write, read = LAYOUTS[layout]
    sound = tmp_path / "sound"
    sound.mkdir()
    write(sound)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    read(sound)
    files = sorted(p.relative_to(sound) for p in sound.rglob("*") if p.is_file())
    tables = [p for p in files if p.suffix not in (".jpg", ".png", ".jpeg")]
    number = iter(range(10**6))

    @examples
    @given(st.sampled_from(tables * 3 + files[:20]), damages())
    def spoiled(file, change):
        root = tmp_path / str(next(number))
        shutil.copytree(sound, root)
        damage(root / file, *change)
        refusal = None
        try:
            read(root)
        except ZooError as error:
            refusal = str(error)
        shutil.rmtree(root)
        assert refusal is None or ("\n" not in refusal and len(refusal) > 10)

    spoiled()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_damaged_file_is_read_or_refused(layout, tmp_path, monkeypatch):
    check(layout, FEW, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_much_damage_is_read_or_refused(layout, tmp_path, monkeypatch):
    check(layout, MANY, tmp_path, monkeypatch)
