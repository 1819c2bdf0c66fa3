"""A real browser without a network, where one is installed (Debian: packages chromium and
chromium-driver).
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--hide-scrollbars",
)


@contextmanager
def opened(page: Path | str, profile: Path, width: int, dark: bool = False) -> Iterator[Any]:
    """A page as somebody sees it who has no network, on a screen of this width; it has drawn what
    it shows. An address must be one of this machine.
    """
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.support.ui import WebDriverWait

    options = Options()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        browser.execute_cdp_cmd("Network.enable", {})
        offline = {
            "offline": isinstance(page, Path),
            "latency": 0,
            "downloadThroughput": -1,
            "uploadThroughput": -1,
        }
        browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        browser.get(page.resolve().as_uri() if isinstance(page, Path) else page)
        WebDriverWait(browser, 120).until(
            lambda b: b.execute_script("return document.documentElement.dataset.drawn")
        )
        yield browser
    finally:
        browser.quit()


def requests(browser: Any) -> set[str]:
    """Addresses that the page asked for. (What the browser's own first tab shows is not the
    page's.)
    """
    events = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return {one["request"]["url"] for one in sent if one["documentURL"] == browser.current_url}


def complaints(browser: Any) -> list[str]:
    """What the console has of errors and warnings."""
    return [
        entry["message"]
        for entry in browser.get_log("browser")
        if entry["level"] in ("SEVERE", "WARNING")
    ]
