"""The leaderboard as web pages: what stands in them, and how they behave in a browser."""

import re
import shutil
import subprocess
import sys
from itertools import pairwise

import pytest

from zoo.site import charts, evidence, pages


@pytest.fixture
def page(zoo, runs, tmp_path, capfd):
    folder = tmp_path / "page"
    assert zoo(["leaderboard", "--html", str(folder)]) == 0
    assert str(folder / "index.html") in capfd.readouterr().out
    return folder


def test_the_page_needs_nothing_else(page):
    for path in page.rglob("*.html"):
        text = path.read_text()
        assert not re.findall(r'(?:src|href)="(?:https?:)?//(?!arxiv)', text), path
        assert "<link" not in text.replace('<link rel="icon" href="data:,">', "") and "@import" not in text
        for target in re.findall(r'(?:src|href)="([^"#:]+)"', text):
            assert (path.parent / target).exists(), (path, target)


def test_what_the_leaderboard_says(page):
    text = (page / "index.html").read_text()
    (row,) = re.findall(r"<tr>.*?scores more.*?</tr>", text)
    assert 'href="recipes/better.html"' in row and "0.7600 ± 0.0248" in row and "+0.2500" in row
    assert "✓ confirmed" in row and ">20 s<" in row and ">3.0 GB<" in row and ">3<" in row
    assert 'class="reference">untrained encoder' in text
    assert "training time, s" in text and "peak memory, GB" in text and "Learning curves" in text
    assert "<title>positives: mean 0.625</title>" in text  # of the last epoch: a quarter at 0.25, the rest at 0.75


def test_what_the_page_of_a_recipe_says(page):
    text = (page / "recipes" / "better.html").read_text()
    assert "<h1>Better</h1>" in text and "arXiv 1234.5678, 2020" in text and 'href="base.html"' in text
    assert "<ins>+ model.bonus: 0.5</ins>" in text
    assert "loses much less" in text and "✗ refuted" in text
    assert "seed 2: 2.4 at step 7" in text
    assert (page / "pictures" / "better" / "0123abcd-s0-panel.png").exists()
    assert len(list((page / "pictures" / "better").iterdir())) == 1


def test_it_is_the_same_again_and_without_what_is_gone(zoo, page, runs):
    before = {path: path.read_bytes() for path in page.rglob("*") if path.is_file()}
    assert zoo(["leaderboard", "--html", str(page)]) == 0
    assert {path: path.read_bytes() for path in page.rglob("*") if path.is_file()} == before
    shutil.rmtree(runs / "better")
    (page / "notes.txt").write_text("mine")
    assert zoo(["leaderboard", "--html", str(page)]) == 0
    assert not list(page.glob("pictures/better/*")) and (page / "pictures" / "base").exists()
    assert (page / "notes.txt").exists()
    assert "not measured yet" in (page / "recipes" / "better.html").read_text().lower()


def test_a_folder_of_somebody_else_stays_as_it_is(zoo, runs, tmp_path, capfd):
    other = tmp_path / "other"
    other.mkdir()
    (other / "index.html").write_text("<p>mine")
    for target in (other, other / "index.html"):
        assert zoo(["leaderboard", "--html", str(target)]) == 2
        error = capfd.readouterr().err.strip()
        assert error.startswith("zoo: error: ") and "\n" not in error and "--html takes" in error
    assert (other / "index.html").read_text() == "<p>mine" and len(list(other.iterdir())) == 1


def test_committed_results_have_no_curves(zoo, page, runs, tmp_path):
    for path in runs.rglob("*"):
        if path.is_file() and path.name != "result.json":
            path.unlink()
    assert zoo(["leaderboard", "--html", str(page)]) == 0
    text = (page / "index.html").read_text()
    assert "Learning curves" not in text and "histograms" not in text and "✓ confirmed" in text


def test_no_results_at_all(zoo, only_toys, tmp_path):
    assert zoo(["leaderboard", "--html", str(tmp_path / "page")]) == 0
    assert "No results yet" in (tmp_path / "page" / "index.html").read_text()


def test_text_of_a_card_is_escaped(zoo, runs, tmp_path):
    path = tmp_path / "recipes" / "toy" / "better.yaml"
    path.write_text(path.read_text().replace("idea: a bonus", "idea: a <b>bonus</b> & more"))
    assert zoo(["leaderboard", "--html", str(tmp_path / "page")]) == 0
    text = (tmp_path / "page" / "recipes" / "better.html").read_text()
    assert "a &lt;b&gt;bonus&lt;/b&gt; &amp; more" in text and "<b>bonus" not in text


def test_without_torch_and_matplotlib(zoo, runs, tmp_path):
    code = (
        f"import sys; from zoo.__main__ import main; main(['leaderboard', '--html', {str(tmp_path / 'page')!r}]); "
        "print([m for m in ('torch', 'lightning', 'matplotlib', 'wandb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.03, 0.012), (217.0, 218.0), (0, 1e6), (-5, -4.999)])
def test_ticks_are_round_and_inside(low, high):
    found = charts.ticks(low, high)
    assert 2 <= len(found) <= 11 and low - 1e-9 <= found[0] and found[-1] <= high + 1e-9


def test_labels_of_lines_never_overlap():
    places = charts._spread([50.0, 51.0, 52.0, 300.0, 301.0], 0, 320)
    assert all(b - a >= charts.LINE - 1e-9 for a, b in pairwise(places)) and places[-1] <= 320


def test_a_broken_log_has_no_curves(runs):
    (runs / "base" / "0123abcd-s0" / "metrics.csv").write_text("step,eval/score\n1,many\n")
    (runs / "base" / "0123abcd-s0" / "score_histogram.npz").write_bytes(b"no")
    run = evidence.local_runs()["base", "0123abcd" * 8, 0]
    assert run.curves() == {} and run.histogram() is None


def test_mean_curves_have_the_steps_that_all_runs_have():
    assert evidence.mean_curve([[(1, 1.0), (2, 2.0)], [(1, 3.0), (2, 4.0), (3, 9.0)]]) == [(1, 2.0), (2, 3.0)]


FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if not all(programs):
        pytest.skip("no Chromium here")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()


def show(browser, path, width=1200, scheme="light"):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    scheme = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    browser.get(path.as_uri())


def test_sorting(browser, page):
    show(browser, page / "index.html")
    column = """return [...document.querySelectorAll("table")[0].tBodies[0].rows].map(r => r.cells[2].dataset.sort)"""
    head = browser.find_elements("css selector", "thead th")[2]
    button = head.find_element("css selector", "button")
    for direction in ("ascending", "descending"):
        button.send_keys("\n")  # by keyboard
        assert head.get_attribute("aria-sort") == direction
        means = [float(x) for x in browser.execute_script(column)]
        assert means == sorted(means, reverse=direction == "descending") and len(set(means)) > 2
    verdicts = browser.find_elements("css selector", "thead th button")[4]
    verdicts.click()
    texts = browser.execute_script(column.replace("cells[2].dataset.sort", "cells[4].textContent"))
    assert texts[-1] == "" and texts[0] != ""  # empty cells last
    assert head.get_attribute("aria-sort") == "none"


def test_links_keyboard_and_console(browser, page):
    show(browser, page / "index.html")
    browser.switch_to.active_element.send_keys("\t")
    assert browser.switch_to.active_element.get_attribute("class") == "skip"
    outline = browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    browser.find_element("link text", "better").click()
    assert browser.title == "Better · zoo"
    loaded = "return [...document.images].every(i => i.complete)"
    assert browser.execute_script(loaded)
    levels = browser.execute_script("return [...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    browser.find_element("link text", "zoo leaderboard").click()
    assert browser.title == "zoo leaderboard"
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("name", ["index.html", "recipes/better.html"])
def test_narrow_and_dark(browser, page, name):
    luminance = "return getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).slice(0, 3).map(Number)"
    show(browser, page / name, width=360)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    assert min(browser.execute_script(luminance)) > 200
    show(browser, page / name, scheme="dark")
    assert max(browser.execute_script(luminance)) < 60


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_of_texts(browser, page, scheme):
    """WCAG AA, 4.5 to 1, of what a style sheet can get wrong: verdicts, muted text, links."""
    show(browser, page / "index.html", scheme=scheme)
    colours = """
      const parse = text => text.match(/[0-9.]+/g).slice(0, 3).map(Number);
      const behind = e => { while (getComputedStyle(e).backgroundColor === "rgba(0, 0, 0, 0)") e = e.parentElement;
                            return parse(getComputedStyle(e).backgroundColor); };
      return ["body", ".lead", "a[href]", "td small", "figcaption", ".confirmed", ".refuted"].map(
        s => [s, parse(getComputedStyle(document.querySelector(s)).color), behind(document.querySelector(s))]);"""

    def light(rgb):
        r, g, b = (x / 255 / 12.92 if x <= 10 else ((x / 255 + 0.055) / 1.055) ** 2.4 for x in rgb)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    for selector, front, back in browser.execute_script(colours):
        low, high = sorted((light(front), light(back)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, selector


def test_marks_agree():
    assert pages.MARK in (pages.HERE / "page.html").read_text()
