"""Headless Chromium for tests of pages: skipped where it is absent, and every request and console message is seen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_INSIDE = ("data:", "about:", "chrome:", "chrome-untrusted:")  # the browser's own first tab, among others
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # a container's root has no sandbox; only pages of the tests are opened
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


def find_chromium() -> tuple[str, str] | None:
    """Paths of the browser and of its driver; ``None`` where one of them is absent."""
    browser = next((path for name in _CHROMIUM if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


def require_chromium() -> None:
    """Skip the test, with the reason, where selenium, the browser or its driver is absent."""
    pytest.importorskip("selenium", reason="selenium is not installed: pip install -e '.[dev]'")
    if find_chromium() is None:
        pytest.skip("no chromium with chromedriver on the PATH; on Debian: apt-get install chromium chromium-driver")


@dataclass
class Page:
    """A browser with one page open.

    Args:
        driver: selenium's.
    """

    driver: Any

    def open(self, address: str) -> None:
        """Load a page."""
        self.driver.get(address)

    def resize(self, width: int, height: int = 900, *, scale: float = 1.0, mobile: bool = False) -> None:
        """Give the page a size in CSS pixels, as of a phone where ``mobile``."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def emulate(self, media: str = "", *, dark: bool = False) -> None:
        """Show the page as on another medium (``"print"``), or in the dark."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of a script, ``return ...``."""
        return self.driver.execute_script(script, *arguments)

    def pdf(self) -> bytes:
        """The page as it is printed, on A4."""
        import base64

        paper = {"paperWidth": 8.27, "paperHeight": 11.69, "preferCSSPageSize": True, "printBackground": False}
        return base64.b64decode(self.driver.execute_cdp_cmd("Page.printToPDF", paper)["data"])

    def picture(self, path: Path, *, whole: bool = False, height: int | None = None) -> Path:
        """Write a PNG of what is seen, or of the whole page, or of its first ``height`` pixels."""
        import base64

        options: dict[str, Any] = {"captureBeyondViewport": whole or height is not None}
        if options["captureBeyondViewport"]:
            width, full = self.run("const d = document.scrollingElement; return [innerWidth, d.scrollHeight]")
            options["clip"] = {"x": 0, "y": 0, "width": width, "height": min(full, height or full), "scale": 1}
        path.write_bytes(base64.b64decode(self.driver.execute_cdp_cmd("Page.captureScreenshot", options)["data"]))
        return path

    def errors(self) -> list[str]:
        """Messages of the console since the last call that are warnings or errors."""
        return [f"{one['level']}: {one['message']}" for one in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses asked for since the last call, in order; what is inside the page or the browser is left out."""
        messages = (json.loads(one["message"])["message"] for one in self.driver.get_log("performance"))
        sent = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
        return [address for address in sent if not address.startswith(_INSIDE)]


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """A browser of its own.

    Args:
        profile: a new folder for what it writes.
    """
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    found = find_chromium()
    assert found is not None, "call require_chromium() first"
    browser, driver = found
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "WARNING", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    page = Page(started)
    try:
        page.open("about:blank")
        page.requests()  # those of the browser's own first tab
        yield page
    finally:
        started.quit()
