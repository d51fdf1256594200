"""A headless Chromium for tests of pages, which has no network."""

import contextlib
import json
import shutil

import pytest


@contextlib.contextmanager
def chromium(width=1440, scheme="light"):
    """Yield a driver; the test is skipped where there is no browser or no selenium."""
    selenium = pytest.importorskip("selenium", reason="pages are tried in a browser by selenium")
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    service = shutil.which("chromedriver")
    if binary is None or service is None:
        pytest.skip("pages are tried in chromium with chromedriver, which are not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    assert selenium
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(service))
    try:
        driver.execute_cdp_cmd("Network.enable", {})
        driver.set_script_timeout(30)
        resize(driver, width)
        paint(driver, scheme)
        yield driver
    finally:
        driver.quit()


def resize(driver, width):
    """Give the page a width in pixels."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def paint(driver, scheme):
    """Prefer the light or the dark scheme, and no motion, which clicks would have to wait for."""
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def errors(driver):
    """Return what the console said that is no plain information."""
    return [one["message"] for one in driver.get_log("browser") if one["level"] != "INFO"]


def requests(driver):
    """Return the addresses that were asked for, but for data in the page itself."""
    found = []
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            found.append(message["params"]["request"]["url"])
    return [url for url in found if not url.startswith("data:")]
