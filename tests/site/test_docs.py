"""The documentation: what is read from the source, and that the committed pages are what would be written now."""

import ast
import re
from pathlib import Path

import pytest

from zoo import recipes, results
from zoo.site import docs, docstrings, evidence

FOLDER = Path(__file__).parents[2] / "docs"


def test_every_committed_metric_is_explained():
    names = {name for result in results.committed_results() for name in result.metrics}
    assert len(names) > 100
    assert not [name for name in sorted(names) if not evidence.explain(name)]


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("eval/recall@100", ["first k"]),
        ("test/mrr@10_dim32", ["reciprocal", "first dimensions"]),
        ("test/r@1%_reverse", ["among the first k", "search for queries"]),
        ("test/add_att_unseen_blind", ["further attribute", "never shows", "captions alone"]),
        ("vetting/removed_pp", ["filter drops"]),
    ],
)
def test_explanations_of_names_with_endings(metric, words):
    assert all(word in evidence.explain(metric) for word in words)


def test_a_name_that_nobody_explained():
    assert evidence.explain("test/unheard_of") == "" and evidence.explain("test/knn_sideways") == ""


@pytest.mark.parametrize(
    ("recipe", "part", "equation"),
    [
        ("dcl", "zoo.losses.DCL", r"\log \sum_m"),  # of the function that the class calls
        ("mochi", "zoo.negatives.HardNegativeMixing", r"h = \mathrm{norm}"),  # inline
        ("simclr", "zoo.SiameseContrast", None),  # without a baseline: the method and its loss
        ("basic_scaling", "zoo.DualEncoder", None),  # no part of its own, but other settings
        ("sample4geo", "zoo.data.NeighbourBatches", None),
    ],
)
def test_what_a_recipe_brings(recipe, part, equation):
    found = {p.path: p for p in evidence.parts(recipes.load_card(recipe))}
    assert part in found
    assert equation is None or any(equation in tex for _, tex in found[part].equations())
    assert not {"zoo.losses.InfoNCE"} & set(found) or recipe == "simclr"


def test_what_a_recipe_logs():
    def by(name):
        return {by for group in evidence.logged(name) for by in group.by}

    assert "zoo.callbacks.FinalProbes" in by("dcl") and "zoo.callbacks.RetrievalEvaluation" not in by("dcl")
    assert "vetting" in by("gistembed") and "vetting" not in by("infonce")


@pytest.mark.parametrize(
    ("code", "signature"),
    [
        ("class A:\n def __init__(self, x: int = 1, *, y: str | None = None) -> None: ...", "A(x: int=1, *, y: str | None=None)"),
        ("class A(NamedTuple):\n x: int\n y: float = 0.5", "A(x: int, y: float=0.5)"),
        ("def f(x: Float[Tensor, 'B D'], k=2) -> Tensor: ...", "f(x: Float[Tensor, 'B D'], k=2) -> Tensor"),
        ("class A(B): ...", "A()"),
    ],
)  # fmt: skip
def test_signatures(code, signature):
    node = ast.parse(code).body[0]
    found = docstrings.Part("zoo.losses.A", Path("zoo/losses/nce.py"), node).signature
    assert found.replace(" = ", "=") == signature


def test_methods_with_a_docstring_are_named():
    methods = dict(docstrings.find("zoo.losses.InfoNCE").methods())
    assert methods["clamp()"].startswith("Hold a learned temperature") and not any("forward" in m for m in methods)
    assert docstrings.find("torch.optim.AdamW") is None and docstrings.find("zoo.losses.Nothing") is None


def test_a_docstring_as_markdown():
    doc = (
        "Does it.\n\nMore `of` it.\n\nArgs:\n    a, b: the\n        two.\n    c: third: last.\n\nReturns:\n    A | B.\n"
    )
    expected = "Does it.\n\nMore `of` it.\n\nArgs:\n\n- `a, b`: the two.\n- `c`: third: last.\n\nReturns:\n\nA | B."
    assert docstrings.markdown(doc) == expected


def test_equations_of_a_docstring():
    doc = "Of $x$ and $y = 2$:\n\n$$z = x\n  + y$$\n\nand $w$."
    assert [" ".join(tex.split()) for tex in docstrings.equations(doc)] == ["y = 2", "z = x + y"]


def test_the_reference_has_every_public_name():
    text = docs._reference("zoo.losses")
    import zoo.losses

    assert re.findall(r"^## (\w+)$", text, re.M) == sorted(zoo.losses.__all__)
    assert docs.table(["a"], [["x | y"]]).endswith(r"| x \| y |")


def test_pages_of_toys(zoo, runs, tmp_path, monkeypatch, capfd):
    results.commit(results.local_results())
    folder, readme = tmp_path / "docs", tmp_path / "README.md"
    readme.write_text(f"before\n{docs.BEGIN}\nold\n{docs.END}\nafter\n")
    assert zoo(["docs", str(folder), "--readme", str(readme)]) == 0
    page = (folder / "methods" / "better.md").read_text()
    heads = ["Overview", "Usage", "What is logged", "Implementation details", "Results"]
    assert re.findall(r"^## (.+)$", page, re.M) == heads
    assert "| quality | scores more | `test/score` | 0.7600 ± 0.0248 | 3 | `base` | +0.2500" in page
    assert "python -m zoo verify better --seeds 3" in page and "`fit better long`" in page
    assert "| toy | 2 of 2 | 0 / 1 / 0 | 2 / 0 / 0 |" in readme.read_text() and "old" not in readme.read_text()
    assert (folder / "results.png").stat().st_size > 5000
    for path in folder.glob("**/*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            there = (path.parent / target).exists() or (FOLDER / path.relative_to(folder).parent / target).exists()
            assert there, (path, target)
    capfd.readouterr()
    assert zoo(["docs", str(folder)]) == 0
    assert capfd.readouterr().out.startswith("0 pages")
    (folder / "methods" / "gone.md").write_text(docs.MARK)
    (folder / "methods" / "base.md").write_text("mine")
    assert zoo(["docs", str(folder)]) == 2 and "was not written by" in capfd.readouterr().err
    assert (folder / "methods" / "base.md").read_text() == "mine"
    (folder / "methods" / "base.md").unlink()
    assert zoo(["docs", str(folder)]) == 0 and not (folder / "methods" / "gone.md").exists()


def test_mistakes_are_one_line(error_line, only_toys, tmp_path):
    assert "into which folder" in error_line("docs")
    (tmp_path / "README.md").write_text("no marks")
    assert docs.BEGIN in error_line("docs", str(tmp_path / "docs"), "--readme", str(tmp_path / "README.md"))
    assert not (tmp_path / "docs").exists()


def test_committed_pages_are_up_to_date():
    """Of the methods that docs/index.md lists; `make docs` writes them anew."""
    listed = re.findall(r"\(methods/(\w+)\.md\)", (FOLDER / "index.md").read_text())
    found = docs.committed()
    stale = [
        name
        for name in listed
        if (FOLDER / "methods" / f"{name}.md").read_text()
        != docs.MARK + docs.method(recipes.load_card(name), found).rstrip() + "\n"
    ]
    assert len(listed) >= 50 and not stale, f"run `make docs`: {stale}"


def test_links_of_committed_pages_lead_somewhere():
    for path in [*FOLDER.rglob("*.md"), FOLDER.parent / "README.md"]:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / target).exists(), (path, target)
