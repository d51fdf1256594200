"""The report in a headless browser: filters, threshold, keyboard, schemes, widths, no request."""

import numpy as np
import pytest
from browser import chromium, errors, paint, requests, resize
from test_report import draw_images, sides, words_of

from mmga import eval as command

WIDTHS = (380, 768, 1440)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with pictures, re-ranking and another run, of names that hold markup."""
    pytest.importorskip("bokeh", reason="the report's charts are drawn by bokeh")
    folder = tmp_path_factory.mktemp("page")
    for name, side in zip(("q.npz", "g.npz"), sides(), strict=True):
        side.paths = np.asarray([f"<img src=x onerror=caught()>/{path}" for path in side.paths])
        side.columns["<b>seen</b>"] = side.columns.pop("weather")
        draw_images(folder / "images", side)
        side.save(folder / name)
    given = ("--rerank", "--k1", "10", "--images", folder / "images")
    command.main([str(word) for word in words_of(folder, *given, "--json", folder / "a<b>.json")])
    command.main(
        [str(word) for word in words_of(folder, *given, "--compare", folder / "a<b>.json")]
    )
    return folder / "out.html"


@pytest.fixture(scope="module")
def opened_once(page):
    with chromium() as found:
        opened(found, page)
        yield found


@pytest.fixture
def driver(opened_once):
    """The page without filters."""
    opened_once.execute_script(
        "for (const one of document.querySelectorAll('#filters select, #filters input')) {"
        "  if (one.options) one.selectedIndex = 0; else one.value = '';"
        "  one.dispatchEvent(new Event(one.options ? 'change' : 'input')); }"
    )
    return opened_once


def opened(driver, page):
    from selenium.webdriver.support.ui import WebDriverWait

    driver.get(page.as_uri())
    ready = "return document.documentElement.dataset.ready"
    WebDriverWait(driver, 30).until(lambda one: one.execute_script(ready) == "charts")


def found(driver, css):
    return driver.find_elements("css selector", css)


def listed(driver):
    return found(driver, "#listing button")


def choose(driver, name, value):
    from selenium.webdriver.support.ui import Select

    Select(driver.find_element("id", name)).select_by_value(value)


def test_nothing_is_requested_and_the_console_is_silent(driver, page):
    assert requests(driver) == [page.as_uri()]
    # A way out, were there one, is closed by the page itself.
    driver.execute_script("const one = new Image(); one.src = 'http://127.0.0.1:9/x';")
    blocked = "Content Security Policy"
    said = errors(driver)
    assert len(said) == 1 and blocked in said[0]


def test_charts_are_drawn(driver):
    for chart in found(driver, "[data-chart]"):
        assert chart.find_elements("css selector", "div")
    sizes = driver.execute_script(
        "return [...document.querySelectorAll('[data-chart] > div > div')]"
        ".map(one => one.shadowRoot ? one.getBoundingClientRect().height : 0)"
    )
    assert len(sizes) == 4 and min(sizes) > 200


def test_filters(driver):
    every = len(listed(driver))
    assert every == 20
    choose(driver, "first", "wrong")
    wrong = len(listed(driver))
    choose(driver, "first", "right")
    assert 0 < wrong < every and wrong + len(listed(driver)) == every
    choose(driver, "first", "")
    choose(driver, "column-0", "=rain")
    assert len(listed(driver)) == 7
    counts = []
    for camera in ("=1", "=2", "=3"):
        choose(driver, "camera", camera)
        counts.append(len(listed(driver)))
    assert sum(counts) == 7 and max(counts) < 7
    assert f"{len(listed(driver))} quer" in driver.find_element("id", "found").text
    box = driver.find_element("id", "identity")
    box.send_keys("no such")
    assert not listed(driver) and "No query" in driver.find_element("id", "detail").text
    box.clear()
    choose(driver, "camera", "")
    choose(driver, "column-0", "")
    choose(driver, "sort", "easiest")
    shares = [float(one.text.split()[-1].rstrip("%")) for one in found(driver, "#listing .ap")]
    assert shares == sorted(shares, reverse=True)
    choose(driver, "sort", "hardest")
    assert len(listed(driver)) == every


def test_both_lists_say_what_moved(driver):
    listed(driver)[0].click()
    titles = [one.text for one in found(driver, "#detail h4")]
    assert titles == ["Before re-ranking", "After re-ranking"]
    assert len(found(driver, "#detail li.right, #detail li.wrong")) >= 20
    assert len(found(driver, "#detail img")) == len(found(driver, "#detail li")) + 1
    words = driver.find_element("id", "detail").text
    assert "after:" in words and ("▲" in words or "▼" in words)
    widths = driver.execute_script(
        "return [...document.querySelectorAll('#detail img')].map(one => one.naturalWidth)"
    )
    assert min(widths) > 20  # every picture could be decoded


def test_the_keyboard_alone(driver, page):
    from selenium.webdriver.common.keys import Keys

    first = listed(driver)[0]
    first.click()
    before = driver.find_element("css selector", "#detail h3").text
    first.send_keys(Keys.ARROW_DOWN)
    assert driver.switch_to.active_element == listed(driver)[1]
    assert listed(driver)[1].get_attribute("aria-current") == "true"
    driver.switch_to.active_element.send_keys(Keys.END)
    assert driver.switch_to.active_element == listed(driver)[-1]
    driver.switch_to.active_element.send_keys(Keys.HOME)
    driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert driver.find_element("css selector", "#detail h3").text == before
    opened(driver, page)
    driver.find_element("css selector", "body").send_keys(Keys.TAB)
    skip = driver.switch_to.active_element
    assert skip.get_attribute("class") == "skip"
    seen = set()
    for _ in range(90):
        active = driver.switch_to.active_element
        if active.tag_name == "body":  # past the end
            break
        seen.add(active.get_attribute("id") or active.get_attribute("name"))
        seen.add(active.get_attribute("data-query"))
        outline = driver.execute_script(
            "const s = getComputedStyle(arguments[0]); return s.outlineStyle", active
        )
        assert outline != "none", active.get_attribute("outerHTML")[:200]
        active.send_keys(Keys.TAB)
    assert {"threshold", "errors", "matrix", "first", "camera", "identity", "map"} <= seen
    assert "0" in seen


def test_the_threshold(driver):
    from selenium.webdriver.common.keys import Keys

    slider, readout = (driver.find_element("id", name) for name in ("threshold", "readout"))
    assert readout.get_attribute("aria-live") == "polite"

    def state():
        driver.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => setTimeout(done))"
        )
        samples = [len(found(driver, f"#{side}-{kind} .two")) for side in ("accepted", "rejected")
                   for kind in ("genuine", "impostor")]  # fmt: skip
        span = driver.execute_script(
            "return Bokeh.documents.map(one => one.get_model_by_name('threshold'))"
            ".filter(one => one).map(one => one.location)"
        )
        return readout.text, samples, span

    text, samples, span = state()
    assert "FPR" in text and "TPR" in text and samples == [4, 4, 4, 4]
    slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    after = state()
    assert after[0] != text and after[2][-1] > span[-1]
    assert slider.get_attribute("aria-valuetext") in after[0].replace("Distance", "distance")
    slider.send_keys(Keys.HOME)
    text, samples, _ = state()
    assert samples[2] == 4 and samples[3] == 4
    slider.send_keys(Keys.END)
    assert "FPR 100.00%" in state()[0] and "TPR 100.00%" in state()[0]
    button = driver.find_element("css selector", "[data-rate='equal']")
    button.send_keys(Keys.ENTER)
    assert state()[1] == [4, 4, 4, 4]


def test_choices_change_charts_and_tables(driver):
    from selenium.webdriver.support.ui import WebDriverWait

    matrices = found(driver, "[data-matrix]")
    assert [one.is_displayed() for one in matrices] == [True, False]
    driver.find_element("css selector", "input[name=matrix][value=map]").send_keys(" ")
    assert [one.is_displayed() for one in matrices] == [False, True]
    names = "return Bokeh.documents.map(one => one.get_model_by_name('det')).filter(one => one)"
    driver.find_element("css selector", "input[name=errors][value=det]").send_keys(" ")
    WebDriverWait(driver, 10).until(lambda one: one.execute_script(f"{names}.length") >= 1)
    driver.find_element("css selector", "input[name=map][value=map-camera]").send_keys(" ")
    chart = driver.find_element("id", "map-chart")
    WebDriverWait(driver, 10).until(lambda _: chart.find_elements("css selector", "div > div"))


def test_every_control_has_a_name(driver):
    unnamed = driver.execute_script(
        "return [...document.querySelectorAll('button, input, select, img, table, [tabindex]')]"
        ".filter(one => !(one.textContent.trim() || one.labels?.length || one.hasAttribute('alt')"
        " || one.getAttribute('aria-label') || one.getAttribute('aria-labelledby')))"
        ".map(one => one.outerHTML.slice(0, 80))"
    )
    assert unnamed == []
    headers = driver.execute_script(
        "return [...document.querySelectorAll('th')].filter(one => !one.scope).length"
    )
    assert headers == 0


def test_markup_of_strangers_did_not_become_markup(driver):
    caught = driver.execute_script(
        "return [window.caught, document.querySelectorAll('[onerror], #main b').length]"
    )
    assert caught == [None, 0]
    text = driver.find_element("id", "detail").text
    assert "<img src=x onerror=caught()>" in text and "<b>seen</b>" in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_width_in_both_schemes(driver, page, scheme):
    paint(driver, scheme)
    opened(driver, page)
    for width in WIDTHS:
        resize(driver, width)
        wide, there = driver.execute_script(
            "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        assert wide <= there, f"{width} px, {scheme}"
    ink, paper = driver.execute_script(
        "const s = getComputedStyle(document.querySelector('section')); "
        "return [getComputedStyle(document.body).color, s.backgroundColor]"
    )
    light = [sum(int(part) for part in one[4:-1].split(",")[:3]) for one in (ink, paper)]
    assert (light[0] < light[1]) == (scheme == "light")
    assert errors(driver) == []


def test_lists_are_drawn_before_the_script_of_the_charts_runs(page):
    seen = (
        "new MutationObserver(() => {"
        "  if (window.chartsThen === undefined && document.querySelector('#detail li'))"
        "    window.chartsThen = typeof window.Bokeh;"
        "}).observe(document, {subtree: true, childList: true});"
    )
    with chromium() as found:
        found.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": seen})
        opened(found, page)
        assert found.execute_script("return [window.chartsThen, typeof window.Bokeh]") == [
            "undefined",
            "object",
        ]
