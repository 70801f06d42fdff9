"""Finding, layering, merging and fingerprinting recipes."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from zoo import recipes
from zoo.errors import ZooError


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_RECIPES", str(tmp_path))
    (tmp_path / "_defaults.yaml").write_text("trainer: {callbacks: [a], max_epochs: 1}")

    def write(name, text):
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_layers_from_the_root_down(write, tmp_path):
    write("fam/_defaults", "trainer: {max_epochs: 2, callbacks+: [b]}")
    write("fam/toy", "trainer: {callbacks+: [c]}")
    write("_with/x", "trainer: {max_epochs: 3}")
    write("fam/_with/x", "trainer: {max_epochs: 4}")
    write("fam/_with/x/toy", "trainer: {max_epochs: 5}")
    paths = recipes.layers("toy", ["x"])
    names = ["_defaults", "fam/_defaults", "fam/toy", "_with/x", "fam/_with/x", "fam/_with/x/toy"]
    assert [str(p.relative_to(tmp_path)) for p in paths] == [f"{n}.yaml" for n in names]
    assert recipes.merge(paths)["trainer"] == {"callbacks": ["a", "b", "c"], "max_epochs": 5}
    assert recipes.overlay_names("toy") == ["x"] or "x" in recipes.overlay_names("toy")


def test_lists_are_replaced_and_appended(write):
    paths = [write("a", "x: [1]\ny: [1]"), write("b", "x: [2]\ny+: [2]\nz+: [3]")]
    assert recipes.merge(paths) == {"x": [2], "y": [1, 2], "z": [3]}
    with pytest.raises(ZooError, match="appends a list"):
        recipes.merge([write("a", "x: 1"), write("b", "x+: [2]")])


def test_another_class_starts_from_its_own_defaults(write):
    paths = [write("a", "m: {class_path: A, init_args: {p: 1}}"), write("b", "m: {class_path: B, init_args: {q: 2}}")]
    assert recipes.merge(paths) == {"m": {"class_path": "B", "init_args": {"q": 2}}}
    paths = [write("a", "m: {class_path: A, init_args: {p: 1}}"), write("b", "m: {class_path: A, init_args: {q: 2}}")]
    assert recipes.merge(paths) == {"m": {"class_path": "A", "init_args": {"p": 1, "q": 2}}}


def test_numbers_in_scientific_notation(write):
    assert recipes.read_yaml(write("a", "x: [1e-3, -2E4, 1.5e3, 12, '1e-3', e3]")) == {
        "x": [0.001, -2e4, 1500.0, 12, "1e-3", "e3"]
    }


tree = st.recursive(
    st.integers() | st.text("ab", max_size=2) | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    max_leaves=8,
)
config = st.dictionaries(st.sampled_from("xyz"), tree, max_size=3)


@given(config, config, config)
def test_merge_is_associative_and_idempotent(a, b, c):
    merged = recipes._merged
    assert merged(a, a) == a
    assert merged(a, {}) == a and merged({}, a) == a
    assert merged(merged(a, b), b) == merged(a, b)
    if all(type(x.get(k)) is type(y.get(k)) for x, y in ((a, b), (b, c)) for k in x | y):
        flat = [recipes.flatten(x) for x in (a, b, c)]
        if all(not isinstance(v, dict) for f in flat for v in f.values()) and not _clash(a, b, c):
            assert merged(merged(a, b), c) == merged(a, merged(b, c))


def _clash(*configs):
    """Does a mapping meet something else anywhere?"""
    paths = {}
    for one in configs:
        stack = [("", one)]
        while stack:
            path, node = stack.pop()
            if paths.setdefault(path, isinstance(node, dict)) != isinstance(node, dict):
                return True
            stack += [(f"{path}.{k}", v) for k, v in node.items()] if isinstance(node, dict) else []
    return False


def test_names_are_unique(write):
    write("fam/toy", "")
    write("other/toy", "")
    with pytest.raises(ZooError, match="two recipes are named 'toy'"):
        recipes.names()


def test_card_takes_name_and_family_from_the_file(write):
    write("fam/toy", "recipe: {title: Toy}")
    card = recipes.load_card("toy")
    assert (card.name, card.family, card.title, card.baseline, card.claim) == ("toy", "fam", "Toy", None, [])


def test_own_folder_borrows_the_rest_from_the_zoo(write):
    write("ssl/mine", "recipe: {baseline: simclr, claim: [{part: quality, metric: test/knn}]}")
    assert {"mine", "simclr"} <= set(recipes.names())
    assert recipes.load_card("mine").arena == recipes.load_card("simclr").arena != ""


def test_fingerprint_sees_what_matters_and_nothing_else(write):
    write(
        "fam/toy", "recipe: {title: A, arena: x}\nmodel: {class_path: M, init_args: {a: 1, b: 2}}\nseed_everything: 3"
    )
    first = recipes.fingerprint("toy")
    write(
        "fam/toy",
        "# words\nseed_everything: 4\nmodel: {init_args: {b: 2, a: 1}, class_path: M}\nrecipe: {arena: x, title: B}",
    )
    assert recipes.fingerprint("toy") == first
    harmless = [
        "--seed_everything",
        "5",
        "--ckpt_path=last",
        "--data.root",
        "/x",
        "--trainer.logger=false",
        "--trainer.default_root_dir=y",
    ]
    assert recipes.fingerprint("toy", [], harmless) == first
    assert (
        recipes.fingerprint("toy", [], ["--model.a", "2"]) == recipes.fingerprint("toy", [], ["--model.a=2"]) != first
    )
    assert recipes.fingerprint("toy", [], ["--x=1", "--y=2"]) == recipes.fingerprint("toy", [], ["--y=2", "--x", "1"])
    write("fam/toy", "recipe: {arena: z}\nmodel: {class_path: M, init_args: {a: 1, b: 2}}")
    assert recipes.fingerprint("toy") != first


def test_fingerprint_reads_config_files(write, tmp_path):
    write("fam/toy", "model: {class_path: M}")
    extra = write("extra", "model: {init_args: {a: 1}}")
    first = recipes.fingerprint("toy", [], ["--config", str(extra)])
    extra.rename(tmp_path / "moved.yaml")
    assert recipes.fingerprint("toy", [], ["--config", str(tmp_path / "moved.yaml")]) == first
    (tmp_path / "moved.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"a": 2}}}))
    assert recipes.fingerprint("toy", [], ["--config", str(tmp_path / "moved.yaml")]) != first


def test_overrides_take_negative_numbers():
    assert recipes.parse_overrides(["--a", "-1e-3", "--b=-2", "--c+=X", "--d"]) == [
        ("--a", "-1e-3"),
        ("--b", "-2"),
        ("--c+", "X"),
        ("--d", ""),
    ]
    with pytest.raises(ZooError, match="belongs to no option"):
        recipes.parse_overrides(["stray"])


@pytest.mark.parametrize("name", recipes.names())
def test_shipped_cards_are_valid(name):
    card = recipes.load_card(name)
    assert card.arena and card.primary and card.claim
    assert card.baseline is None or card.baseline in recipes.names()
