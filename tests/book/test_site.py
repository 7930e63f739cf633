"""The website as a reader meets it: built at toy size, opened in a browser."""

import ast
import collections
import functools
import html.parser
import http.server
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from bs4 import BeautifulSoup
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from selenium_axe_python import Axe
from sphinx.util.inventory import InventoryFile

from gradleak_lib.book import chapters, claims, execution, planning, studies

ROOT = Path(__file__).resolve().parents[2]
BINARIES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
EXPLORER = ".gradleak-explorer"
# What is on view, of all the pictures that an explorer holds.
SHOWN = f"""
return [...document.querySelectorAll('{EXPLORER} img')]
  .filter(image => image.checkVisibility()).map(image => image.src);
"""
READY = f"""
const views = document.querySelectorAll('script[type="application/vnd.jupyter.widget-view+json"]').length;
const shown = document.querySelectorAll('{EXPLORER} .noUi-handle').length;
const leaves = document.querySelector('meta[http-equiv="refresh" i]');
return document.readyState === "complete" && !leaves && (views === 0 || shown > 0)
  && [...document.images].every(image => image.complete);
"""
TOO_WIDE = """
const width = arguments[0];
const sticksOut = (element) => element.getBoundingClientRect().right > width + 1;
const inItsOwnBox = (element) => {
  for (let box = element.parentElement; box !== document.body; box = box.parentElement)
    if (getComputedStyle(box).overflowX !== "visible" && !sticksOut(box)) return true;
  return false;
};
if (document.documentElement.scrollWidth <= width) return [];
return [...document.querySelectorAll("main *")]
  .filter(element => sticksOut(element) && !inItsOwnBox(element)).slice(0, 5)
  .map(element => `${element.tagName}.${element.className}: ${element.textContent.trim().slice(0, 40)}`)
  .concat(`${document.documentElement.scrollWidth} pixels`);
"""
# Displayed formulas: text, and the width on view and in all.
FORMULAS = """
return [...document.querySelectorAll("div.math mjx-container")]
  .map(formula => [formula.textContent.slice(0, 40), formula.clientWidth, formula.scrollWidth]);
"""
# A file name is no description; myst-nb writes one where a cell gives none.
WITHOUT_TEXT = r"""
return [...document.images].filter(i => !i.alt.trim() || /_images\/|\.(png|svg|jpe?g|webp)$/.test(i.alt))
  .map(i => `${i.alt} ${i.src.slice(0, 80)}`);
"""

ACCESSIBILITY = Path(__file__).with_name("accessibility.js").read_text(encoding="utf-8")
FAULTS = """
document.querySelector("main").insertAdjacentHTML("afterbegin", `
  <p id="grey" style="color: #888; background: #999">Grey</p> <p id="pale" style="color: #ddd">Pale on white</p>
  <input type="text"> <a href="#x"></a> <img src="data:,"> <div role="list"><p>No item</p></div>
  <div style="width: 9em; height: 9em; overflow: auto"><p style="width: 99em; height: 99em">Scrolls</p></div>`);
"""
# Which handles the tab key reached, and whether each looks different then.
LISTEN = f"""
const style = (element) => {{
  const {{outline, boxShadow}} = getComputedStyle(element);
  return `${{outline}} ${{boxShadow}}`;
}};
const before = new Map([...document.querySelectorAll("{EXPLORER} .noUi-handle")].map(e => [e, style(e)]));
window.reached = {{}};
document.addEventListener("focusin", ({{target}}) => {{
  if (before.has(target)) window.reached[target.ariaLabel] = style(target) !== before.get(target);
}});
const main = document.querySelector("main");
main.tabIndex = -1;
main.focus();
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The website, built as `make book` builds it but from the chapters' smoke profile."""
    clone = tmp_path_factory.mktemp("book") / "a clone"
    clone.mkdir()
    for name in ("benchmarks", "book", "gradleak_lib", "notebooks", "results", "studies"):
        if (ROOT / name).exists():
            made = shutil.ignore_patterns("chapters", "__pycache__", ".venv*")
            unwanted = made if name in ("benchmarks", "book") else None
            shutil.copytree(ROOT / name, clone / name, ignore=unwanted)
    for name in ("_config.yml", "_toc.yml", "constraints.txt", "CHANGELOG.md"):
        shutil.copy(ROOT / name, clone)
    outcomes = execution.run_all(planning.plan([], {}, profile="smoke", root=clone), jobs=2)
    assert not [outcome for outcome in outcomes if outcome.error]
    subprocess.run([sys.executable, clone / "book" / "vendor.py"], check=True)
    command = Path(sys.executable).with_name("jupyter-book")
    build = subprocess.run(
        [command, "build", ".", "-n", "-W", "--keep-going", "--quiet"],
        cwd=clone,
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stdout[-3000:] + build.stderr[-3000:]
    return clone / "_build" / "html"


@pytest.fixture(scope="module")
def address(site):
    """Where the website is served: in a folder, as its page for wrong addresses expects."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def translate_path(self, path):
            return super().translate_path(path.removeprefix("/gradleak"))

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/gradleak/"
    server.shutdown()


@pytest.fixture(scope="module")
def chromium():
    """Chromium, the width of a phone."""
    browser = next(filter(None, map(shutil.which, BINARIES)), None)
    driver = shutil.which("chromedriver")
    if not browser or not driver:
        reason = "no Chromium with its driver; install chromium and chromium-driver"
        if os.environ.get("GRADLEAK_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        chrome = webdriver.Chrome(options=options, service=Service(driver))
        chrome.set_page_load_timeout(60)
        chrome.set_script_timeout(120)
        resize(chrome, 390)
        chrome.get("about:blank")
        logs(chrome)
        yield chrome
        chrome.quit()


def resize(chrome, width: int) -> None:
    screen = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)


def logs(chrome) -> tuple[list[str], set[str]]:
    """Console errors, and the addresses asked for, since the last call."""
    errors = [entry["message"] for entry in chrome.get_log("browser") if entry["level"] == "SEVERE"]
    messages = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    sent = [message for message in messages if message["method"] == "Network.requestWillBeSent"]
    urls = {message["params"]["request"]["url"] for message in sent}
    return errors, urls


def visit(chrome, url: str, allowed: tuple[str, ...]) -> list[str]:
    """Open a page; return what is wrong with it."""
    chrome.get(url)
    WebDriverWait(chrome, 60).until(lambda driver: driver.execute_script(READY), f"{url} does not get ready")
    if chrome.execute_script("return typeof MathJax !== 'undefined' && !!MathJax.startup"):
        chrome.execute_async_script("MathJax.startup.promise.then(arguments[arguments.length - 1])")
    errors, requests = logs(chrome)
    wrong = [f"console: {error}" for error in errors]
    wrong += [f"asks for {request}" for request in requests if not request.startswith(allowed)]
    wrong += [f"wider than a phone: {what}" for what in chrome.execute_script(TOO_WIDE, 390)]
    wrong += [f"picture without a text: {what}" for what in chrome.execute_script(WITHOUT_TEXT)]
    return wrong


def barriers(chrome) -> list[str]:
    """What axe finds serious or critical on the open page, light and dark; the page is of no use afterwards."""
    Axe(chrome).inject()
    looked_at, found = chrome.execute_async_script(ACCESSIBILITY)
    assert looked_at > 3
    return found


def pages(site: Path) -> list[str]:
    names = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    return [name for name in names if not name.startswith(("_static/", "_sources/"))]


def explorer_pages(site: Path) -> list[str]:
    view = "application/vnd.jupyter.widget-view+json"
    return [name for name in pages(site) if view in (site / name).read_text(encoding="utf-8")]


class Page(html.parser.HTMLParser):
    """Names and references of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.names: set[str] = set()
        self.references: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        fields = dict(attrs)
        self.names |= {fields[key] for key in ("id", "name") if fields.get(key)}
        self.references |= {fields[key] for key in ("href", "src") if fields.get(key)}
        if fields.get("http-equiv", "").lower() == "refresh":
            self.references.add(fields["content"].partition("url=")[2])


def dead_links(site: Path) -> tuple[list[str], collections.Counter]:
    """References that lead nowhere; how many there are within pages, to files, and to other hosts."""
    found, counts = {name: Page(site / name) for name in pages(site)}, collections.Counter()
    dead = []
    for name, page in found.items():
        for reference in page.references:
            url = urlsplit(reference)
            if url.scheme == "data":  # a picture within the page
                continue
            if url.scheme or url.netloc:
                counts["outside"] += 1
                good = url.scheme == "https" and "." in url.netloc
            else:
                # The page for wrong addresses names the folder in which the site is served.
                folder = site if url.path.startswith("/gradleak/") else (site / name).parent
                path = folder / unquote(url.path).removeprefix("/gradleak/") if url.path else site / name
                target = os.path.relpath(path, site)
                counts["fragment" if url.fragment else "file"] += 1
                good = path.is_file() and not target.startswith("..")
                if good and url.fragment:
                    good = target in found and unquote(url.fragment) in found[target].names
            dead += [] if good else [f"{name}: {reference}"]
    return dead, counts


def test_every_link_leads_somewhere(site):
    dead, counts = dead_links(site)
    assert not dead, json.dumps(dead, indent=1)
    assert counts["file"] > 1000
    assert counts["fragment"] > 500
    assert counts["outside"] > 50


def test_no_formula_is_shown_as_its_source(site):
    """A dollar sign in the text: a line that begins with a minus sign has ended the formula, for instance."""
    for page in pages(site):
        body = BeautifulSoup((site / page).read_text(encoding="utf-8"), "html.parser").article
        for part in body.select("pre, code, script, style, .math") if body else ():
            part.decompose()
        assert body is None or "$" not in body.text, page


def test_dead_links_are_found(tmp_path):
    links = ("a.html", "a.html#here", "/gradleak/a.html", "#here", "https://a.org/b")
    dead = ("b.html", "a.html#gone", "/a.html", "#gone", "http://a.org/b", "https://a", "../a.html", "c.js#x")
    text = "".join(f"<a href='{link}'>x</a>" for link in (*links, *dead))
    (tmp_path / "a.html").write_text(
        f"<p id=here>{text}<img src=no.png><meta http-equiv=Refresh content='0; url=no.html'>"
    )
    (tmp_path / "c.js").touch()
    expected = {f"a.html: {link}" for link in (*dead, "no.png", "no.html")}
    assert set(dead_links(tmp_path)[0]) == expected


@pytest.mark.browser
def test_every_page_is_whole_and_open_to_all_and_loads_nothing_from_elsewhere(site, address, chromium):
    found = pages(site)
    assert len(found) > 10
    allowed = (address, "data:", "blob:")
    wrong = {
        name: problems
        for name in found
        if (problems := visit(chromium, address + name, allowed) + barriers(chromium))
    }
    assert not wrong, json.dumps(wrong, indent=1)


@pytest.mark.browser
def test_every_formula_is_seen_whole_on_a_wide_page(site, address, chromium):
    resize(chromium, 1280)
    try:
        seen, cut = 0, []
        for name in pages(site):
            if '<div class="math' in (site / name).read_text(encoding="utf-8"):
                visit(chromium, address + name, (address,))
                formulas = chromium.execute_script(FORMULAS)
                seen += len(formulas)
                cut += [f"{name}: {text}" for text, shown, needed in formulas if needed > shown + 1]
        assert seen > 10
        assert cut == []
    finally:
        resize(chromium, 390)


@pytest.mark.browser
def test_the_wide_page_is_open_to_all(site, address, chromium):
    resize(chromium, 1280)
    try:
        for name in ("book/index.html", explorer_pages(site)[0]):
            chromium.get(address + name)
            WebDriverWait(chromium, 60).until(lambda driver: driver.execute_script(READY))
            assert barriers(chromium) == []
    finally:
        resize(chromium, 390)


@pytest.mark.browser
def test_barriers_are_found(address, chromium):
    visit(chromium, address + "book/scorecard.html", (address,))
    chromium.execute_script(FAULTS)
    found = barriers(chromium)
    rules = {line.removeprefix("light: ").removeprefix("dark: ").partition(":")[0] for line in found}
    assert {"color-contrast", "label", "link-name", "image-alt", "aria-required-children"} <= rules
    assert "scrollable-region-focusable" in rules
    assert [line.partition("(")[0] for line in found if "#grey" in line or "#pale" in line] == [
        "light: color-contrast: #grey ",
        "light: color-contrast: #pale ",
        "dark: color-contrast: #grey ",
    ]


@pytest.mark.browser
def test_the_front_page_needs_no_network(site, address, chromium):
    ask = "fetch(location, {cache: 'no-store'}).then(() => arguments[0](true), () => arguments[0](false))"
    chromium.get(address + "search.html")
    assert chromium.execute_async_script(ask)
    network = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    chromium.execute_cdp_cmd("Network.emulateNetworkConditions", network)
    try:
        assert not chromium.execute_async_script(ask)
        logs(chromium)
        base = site.as_uri() + "/"
        for name in ("index.html", "book/index.html"):
            assert visit(chromium, base + name, (base, "data:")) == []
            assert chromium.current_url == base + "book/index.html"
            buttons = chromium.find_elements(By.CSS_SELECTOR, "button[aria-label=Search]")
            next(button for button in buttons if button.is_displayed()).click()
            assert chromium.find_element(By.CSS_SELECTOR, "input[type=search]").is_displayed()
            assert logs(chromium)[0] == []
    finally:
        chromium.execute_cdp_cmd("Network.emulateNetworkConditions", network | {"offline": False})


@pytest.mark.browser
def test_every_explorer_is_reached_and_moved_by_keys_alone(site, address, chromium):
    names = explorer_pages(site)
    assert names
    for name in names:
        visit(chromium, address + name, (address,))
        handles = chromium.find_elements(By.CSS_SELECTOR, f"{EXPLORER} .noUi-handle")
        labels = {handle.get_attribute("aria-label") for handle in handles}
        chromium.execute_script(LISTEN)
        reached: dict[str, bool] = {}
        for _ in range(40):
            ActionChains(chromium, duration=0).send_keys(Keys.TAB * 40).perform()
            reached = chromium.execute_script("return window.reached")
            if set(reached) == labels or not chromium.execute_script(
                "return document.querySelector('main').contains(document.activeElement)"
            ):
                break
        assert reached == dict.fromkeys(labels, True), name
        for handle in handles:
            ends = {Keys.HOME: "aria-valuemin", Keys.END: "aria-valuemax"}
            for key, end in ends.items():
                handle.send_keys(key)
                assert float(handle.get_attribute("aria-valuenow")) == float(handle.get_attribute(end)), name


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["http", "file"])
def test_sliders_change_the_picture(site, address, chromium, scheme):
    names = explorer_pages(site)
    assert names, "no page has an explorer"
    base = address if scheme == "http" else site.as_uri() + "/"
    for name in names:
        assert visit(chromium, base + name, (base, "data:", "blob:")) == []
        handles = chromium.find_elements(By.CSS_SELECTOR, f"{EXPLORER} .noUi-handle")
        labels = [handle.get_attribute("aria-label") for handle in handles]
        assert all(labels)
        assert len(set(labels)) == len(labels)
        for handle in handles:
            before, value = chromium.execute_script(SHOWN), handle.get_attribute("aria-valuetext")
            assert len(before) == 1
            # Whichever end it stands at, one of the two moves it.
            for key in (Keys.ARROW_RIGHT, Keys.ARROW_LEFT):
                handle.send_keys(key)
                if chromium.execute_script(SHOWN) != before:
                    break
            WebDriverWait(chromium, 10).until(
                lambda driver, before=before: driver.execute_script(SHOWN) != before,
                f"{name}: {handle.get_attribute('aria-label')} changes no picture",
            )
            WebDriverWait(chromium, 10).until(
                lambda _, handle=handle, value=value: handle.get_attribute("aria-valuetext") != value
            )
        assert logs(chromium)[0] == []


@pytest.mark.browser
def test_pictures_are_as_bright_in_the_dark(site, address, chromium):
    media = [{"name": "prefers-color-scheme", "value": "dark"}]
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    [name, *_] = explorer_pages(site)
    visit(chromium, address + name, (address,))
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    filters = "return [...document.querySelectorAll('main img')].map(image => getComputedStyle(image).filter)"
    assert set(chromium.execute_script(filters)) == {"none"}


def test_every_claim_has_a_row_with_a_verdict_and_a_link(site):
    page = BeautifulSoup((site / "book" / "scorecard.html").read_text(encoding="utf-8"), "html.parser")
    rows = page.select("table.scorecard tbody tr")
    assert [row.strong.text for row in rows] == list(claims.load_claims())
    for row in rows:
        *_, last = row.find_all("td")
        assert last.select_one(".sd-badge").text in claims.VERDICTS
        assert "chapters/" in last.a["href"]
        assert "#" in last.a["href"]


def test_every_page_says_where_it_comes_from(site):
    for name in pages(site):
        page = BeautifulSoup((site / name).read_text(encoding="utf-8"), "html.parser")
        if name.startswith("book/"):
            facts = {line.text for line in page.select("details.provenance dt")}
            computed = {"device", "parameters", "seconds"} if name.startswith("book/chapters/") else set()
            assert facts == {"date", "commit", "versions", "command"} | computed, name


def test_pages_say_that_their_numbers_are_not_those_of_the_defaults(site):
    # A replication page draws what is recorded, at any profile.
    stems = [source.stem for source in chapters.chapter_sources(ROOT)]
    names = [stem for stem in stems if not stem.endswith(chapters.REPLICATION)]
    decided = {study.chapter for study in studies.load_studies()}
    for page in pages(site):
        body = BeautifulSoup((site / page).read_text(encoding="utf-8"), "html.parser").article
        said = body and body.select_one(".admonition.note > p.admonition-title:-soup-contains(default)")
        # The last two, on a reader's own pictures and on costs, check no claim, nor does a chapter that has studies.
        shown = names[:-2] if page in ("book/index.html", "book/scorecard.html", "book/findings.html") else []
        if page != "book/index.html":  # which shows numbers of all five
            shown = [name for name in shown if name not in decided]
        shown = [name for name in names if page == f"book/chapters/{name}.html"] or shown
        assert bool(said) == bool(shown), page
        assert not said or said.parent.text.count("--profile smoke") == len(shown)
        for name in shown:
            assert f"gradleak run {name} --profile smoke" in said.parent.text
            assert f"gradleak run {name})" in said.parent.text


def test_the_front_page_shows_what_this_build_recovered(site):
    page = BeautifulSoup((site / "book" / "index.html").read_text(encoding="utf-8"), "html.parser")
    pictures = [image["src"].split("/")[-1] for image in page.select(".cover img")]
    assert pictures == ["cover-private.jpg", "cover-recovered.jpg"]
    made = site.parents[1] / "book" / "chapters"
    for picture in pictures:
        assert (site / "_images" / picture).read_bytes() == (made / picture).read_bytes()


def test_every_public_module_has_its_place_in_the_api_pages():
    modules = set()
    for path in (ROOT / "gradleak_lib").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if not any(part.startswith("_") and part != "__init__" for part in parts):
            modules.add(".".join(part for part in parts if part != "__init__"))
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "book" / "api").glob("*.md"))
    documented = {line.split()[-1] for line in text.splitlines() if line.startswith(".. automodule::")}
    assert documented == modules - {"gradleak_lib"}


def test_every_public_function_and_class_is_described(site):
    with (site / "objects.inv").open("rb") as stream:
        inventory = InventoryFile.load(stream, "", lambda base, path: path)
    described = {name for kind in ("function", "class", "exception") for name in inventory[f"py:{kind}"]}
    defined = {}
    for path in (ROOT / "gradleak_lib").rglob("*.py"):
        parts = [part for part in path.relative_to(ROOT).with_suffix("").parts if part != "__init__"]
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
            if isinstance(node, kinds) and not any(part.startswith("_") for part in (*parts, node.name)):
                defined[".".join([*parts, node.name])] = ast.get_docstring(node)
    assert len(defined) > 200
    assert set(defined) <= described
    assert all(defined.values())


def test_every_chapter_is_in_the_table_of_contents():
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    named = [chapter for part in contents["parts"] for chapter in part["chapters"]]
    files = {page["file"] for chapter in named for page in (chapter, *chapter.get("sections", ()))}
    assert {f"book/chapters/{source.stem}" for source in chapters.chapter_sources(ROOT)} <= files


@pytest.mark.parametrize("source", chapters.chapter_sources(ROOT), ids=lambda source: source.stem)
def test_no_line_of_prose_is_lost(source):
    """MyST takes a line that begins with a percent sign for a comment, and the text breaks off."""
    outside, code = [], False
    for line in source.read_text(encoding="utf-8").splitlines():
        code = not code if line.startswith("```") and (code or "{code-cell}" in line) else code
        outside += [line] if not code else []
    assert not [line for line in outside if line.lstrip().startswith("%")]
    # And one that begins with "1)" within a paragraph for a list, in which the text goes on.
    pairs = itertools.pairwise(outside)
    assert not [line for before, line in pairs if before.strip() and line.startswith(("1) ", "1. "))]


def test_the_site_is_light(site):
    sizes = {path: path.stat().st_size for path in site.rglob("*") if path.is_file()}
    assert sum(sizes.values()) < 25_000_000
    assert not {
        path.name: size for path, size in sizes.items() if path.suffix == ".html" and size >= 3_000_000
    }
