"""The sheet of a search as a page: strangers' text stays text, nothing is loaded."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import mmga
from mmga.pages.sheet import Sheet
from mmga.retrieval.reranking.ranked_lists import Search, search_features

HOSTILE = [
    "<script>window.hit=1<script>.png",
    '" onerror="window.hit=1.png',
    "'><b id=hit>.png",
    "a&lt;b&amp;.png",
    "{{ 7 * 7 }}.png",
    "line\u2028break \N{WAVING HAND SIGN}.png",
]


class Parsed(HTMLParser):
    """Elements with their attributes, and the text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def folder(tmp_path):
    for index, name in enumerate(HOSTILE):
        pixels = np.full((16, 8, 3), 40 * index, np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path


def page_of(folder, pids, gallery_pids, settings=None, most=9, camids=None):
    rows = np.random.default_rng(0).normal(size=(len(HOSTILE), 8)).astype(np.float32)
    query = mmga.Features(rows[:2], pids, paths=HOSTILE[:2])
    gallery = mmga.Features(rows, gallery_pids, camids, paths=HOSTILE)
    found = search_features(query, gallery, Search(4, "cosine"))
    files = [folder / name for name in HOSTILE]
    sheet = Sheet.of(found, (files[:2], files), settings or {}, most)
    sheet.write(folder / "sheet.html")
    return (folder / "sheet.html").read_text(encoding="utf-8"), found


def test_markup_in_names_is_text(folder):
    name = "<img src=x onerror=window.hit=1>"
    page, found = page_of(
        folder, [name, "b"], [name] * 6, {"network": "</style><script>alert(1)</script>"}
    )
    parsed = Parsed(page)
    assert not [tag for tag, _ in parsed.elements if tag in ("script", "b") and "hit" in tag]
    assert [tag for tag, _ in parsed.elements].count("script") == 0
    allowed = {"src", "alt", "class", "id", "aria-hidden", "aria-label", "aria-labelledby", "title"}
    allowed |= {"lang", "charset", "content", "http-equiv", "name", "rel", "href", "tabindex"}
    links = [attributes["href"] for _, attributes in parsed.elements if "href" in attributes]
    assert links == ["data:,", "#main"]
    assert {one for _, attributes in parsed.elements for one in attributes} <= allowed
    shown = " ".join(parsed.text.split())
    for text in (*HOSTILE[:2], name, "</style><script>alert(1)</script>"):
        assert text in shown
    alts = [attributes["alt"] for tag, attributes in parsed.elements if tag == "img"]
    assert alts[0] == f"Query: {HOSTILE[0]}" and alts[1].startswith("Rank 1: ")
    assert set(found.labels["path"].tolist()) >= {alt.partition(": ")[2] for alt in alts}


def test_nothing_is_loaded(folder):
    page, _ = page_of(folder, [0, 1], [0, 1, 2, 0, 1, 2])
    elements = Parsed(page).elements
    assert "http:" not in page and "https:" not in page and "url(" not in page
    assert all(
        attributes["src"].startswith("data:image/jpeg;base64,")
        for tag, attributes in elements
        if tag == "img"
    )
    (policy,) = [a["content"] for tag, a in elements if a.get("http-equiv")]
    assert "default-src 'none'" in policy and "script" not in policy


def test_right_and_wrong_are_said_by_more_than_colour(folder):
    page, found = page_of(folder, [0, -1], [0, 1, 2, 0, 1, -1])
    text = " ".join(Parsed(page).text.split())
    rights = [found.labels["pid"][index] == 0 for index in found.indices[0]]
    assert text.count("✓ same identity: id 0") == sum(rights) > 0
    assert text.count("✗ another identity: id") == 8 - sum(rights)  # none is junk's match
    assert len(re.findall(r'class="is-right"', page)) == sum(rights)


def test_unknown_identities_are_not_judged(folder):
    page, _ = page_of(folder, ["", "7"], ["x", "7.0", "", "", "", ""], camids=[1, 2, 3, 1, 2, 3])
    text = " ".join(Parsed(page).text.split())
    assert "✓ same identity: id 7" in text  # 7.0, as names are compared
    assert len(re.findall(r'class="is-unknown"', page)) >= 5
    assert "camera 1" in text


def test_long_searches_show_their_beginning(folder):
    page, _ = page_of(folder, [0, 1], [0, 1, 2, 0, 1, 2], most=1)
    assert "The first 1 of 2 queries" in page and page.count("<article") == 1


def test_shapes_follow_the_photographs(folder):
    assert "aspect-ratio: 0.5;" in page_of(folder, [0, 1], [0] * 6)[0]
    for name in HOSTILE:
        Image.new("RGB", (30, 20)).save(folder / name)
    assert "aspect-ratio: 1.5;" in page_of(folder, [0, 1], [0] * 6)[0]


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window, which may load files alone."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    found = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in found:
        pytest.skip("there is no chromium with chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(found[1]))
    yield driver
    driver.quit()


def test_the_page_in_a_browser(folder, browser):
    """In both schemes no layout breaks, nothing is asked for, nothing of a name runs."""
    page_of(folder, ["y" * 150, "b"], ["y" * 150] * 6, {"gallery": "z" * 300})
    backgrounds = set()
    for width in (1440, 768, 380):
        for scheme in ("light", "dark"):
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
            browser.get((folder / "sheet.html").as_uri())
            root = "document.documentElement"
            assert browser.execute_script("return innerWidth") == width
            assert browser.execute_script(f"return {root}.scrollWidth") <= width
            style = "return getComputedStyle(document.body).backgroundColor"
            backgrounds.add(browser.execute_script(style))
    sizes = browser.execute_script("return [...document.images].map(i => i.naturalWidth)")
    assert len(sizes) == 10 and min(sizes) > 0
    assert browser.execute_script("return window.hit") is None and len(backgrounds) == 2
    assert browser.get_log("browser") == []
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {
        one["params"]["request"]["url"].partition(":")[0]
        for one in sent
        if one["method"] == "Network.requestWillBeSent"
    }
    assert asked <= {"file", "data"}
