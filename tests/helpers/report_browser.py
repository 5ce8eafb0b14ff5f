"""A real browser for the tests of a report: headless Chromium, driven by selenium."""

import shutil
import time

import pytest

from helpers.report_pairs import AT, META
from resque_ext.report.page import make_report, write_report

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
)
# Runs before the page: what its policy would refuse is noted, and whatever a name would start.
WATCH = """
window.violations = [];
addEventListener("securitypolicyviolation", (e) => window.violations.push(e.violatedDirective));
window.alert = () => { window.fired = 1; };
"""


def start_browser(profile):
    """A driver, or why there is none."""
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ModuleNotFoundError:
        return None, "selenium is not installed"
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        return None, "no chromium and chromedriver on the PATH"
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(driver)), None


class Page:
    """The browser with a report opened."""

    def __init__(self, driver, folder):
        self.driver, self.folder = driver, folder
        self.js = driver.execute_script
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
        driver.execute_cdp_cmd(
            "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)}
        )

    def write(self, pairs, meta=META, name="report.html"):
        path = self.folder / name
        write_report(path, make_report(pairs, meta, AT))
        return path

    def open(self, path):
        self.size(1280, 900)
        self.media("light")
        self.driver.get(path.as_uri())
        self.until("document.documentElement.dataset.ready === 'true'")

    def size(self, width, height, mobile=False):
        values = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", values)

    def media(self, scheme):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def until(self, condition):
        for _ in range(200):
            if self.js(f"return {condition}"):
                return
            time.sleep(0.05)
        pytest.fail(f"not so after 10 s: {condition}; the page says: {self.text('#count')}")

    def frames(self):
        """Waits until what a change asks for is drawn."""
        self.driver.execute_async_script(
            "const done = arguments[0];"
            "requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done)));"
        )

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def text(self, selector):
        return self.js("return document.querySelector(arguments[0]).textContent", selector)

    def texts(self, selector):
        script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"
        return self.js(script, selector)

    def column(self, label):
        """Cells of the ranking below the head that begins so."""
        heads = self.texts("#ranking thead th")
        place = next(i for i, head in enumerate(heads) if head.startswith(label))
        return self.texts(f"#ranking tbody td:nth-child({place + 1})")

    def shown(self):
        return list(zip(self.column("Model"), self.column("Candidate"), strict=True))

    def sort_by(self, column):
        self.find(f'#ranking [data-column="{column}"] button').click()

    def all_rows(self):
        if self.find("#more").is_displayed():
            self.find("#more").click()

    def set(self, field, value):
        self.js(
            "const f = document.getElementById(arguments[0]); f.value = arguments[1];"
            "for (const kind of ['input', 'change'])"
            "  f.dispatchEvent(new Event(kind, { bubbles: true }));",
            field,
            value,
        )

    def press(self, *keys, with_shift=False):
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        chain = ActionChains(self.driver)
        if with_shift:
            chain = chain.key_down(Keys.SHIFT)
        chain = chain.send_keys(*keys)
        if with_shift:
            chain = chain.key_up(Keys.SHIFT)
        chain.perform()

    def complaints(self):
        console = [e["message"] for e in self.driver.get_log("browser") if e["level"] != "INFO"]
        return console + self.js("return window.violations")
