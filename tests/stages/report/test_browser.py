"""The page in a real browser: nothing of a document runs, and people can find their way about.

Needs Chromium and its driver (`apt install chromium chromium-driver`); skipped where they are not.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from foresift.pipeline.run import Run
from foresift.stages.report import page
from tests.runs import go
from tests.stages.report.conftest import LETTERS, NASTY, TOP, WRONG, recipe, write_lines

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROME = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
if not CHROME or not DRIVER:
    pytest.skip("needs Chromium and chromedriver", allow_module_level=True)

PARTS = "tests.stages.report.parts"
HOSTILE = [
    "<script>document.title = 'taken over'</script> w w",
    "<img src=x onerror=\"document.title='taken over'\"> w",
    "</script><script>document.title = 'taken over'</script> w",
    "مرحبا بالعالم هذا نص من اليمين إلى اليسار w",
    "\u202eturned\u202c bell \u0007 nul \u0000 del \u007f escape \u001b[31m w",
    "line \u2028 and paragraph \u2029 ends ]]> --> <!-- w",
]

CONTRAST = Path(__file__).with_name("contrast.js").read_text(encoding="utf-8")

OPEN = "document.querySelectorAll('details').forEach((each) => { each.open = true; })"

FAULTS = Path(__file__).with_name("faults.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run over text that would like to run, of two sources, with findings and empty scores."""
    out = tmp_path_factory.mktemp("hostile")
    kinds = ("oven sugar butter flour", "goal match striker league", "court judge ruling appeal")
    rows = [{"text": t, "at": "<i>bad</i>/one"} for t in [*HOSTILE, *NASTY]]
    rows += [
        {"text": f"{kinds[n % 3]} number {n} " + "w " * (n % 40), "at": f"good{n % 2}/{n}"}
        for n in range(240)
    ]
    data = write_lines(out / "data.jsonl", rows)
    marks = {"score": f"{PARTS}:Marks", "as": "marks"}
    gaps = {"score": f"{PARTS}:Gaps", "as": "gaps"}
    steps = [{"dedup": "exact"}, LETTERS, WRONG, marks, gaps, TOP, {"order": "shuffle"}]
    return go(recipe(data, steps, source="at", holdout=0.02), out / "out")


@pytest.fixture(scope="module")
def address(hostile: Run) -> str:
    return page.write(hostile).as_uri()


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROME
    for option in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{option}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    from selenium.webdriver.chrome.service import Service

    found = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield found
    found.quit()


@pytest.fixture
def show(chrome: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Open the page anew, at a width and in a scheme; nothing may be complained of at the end."""

    def opened(width: int = 1280, scheme: str = "light", url: str = address) -> Any:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        wanted = [{"name": "prefers-color-scheme", "value": scheme}]
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": wanted})
        chrome.get(url)
        return chrome

    yield opened
    assert chrome.get_log("browser") == []
    assert "foresift report" in chrome.title


def rows(browser: Any) -> list[Any]:
    found: list[Any] = browser.find_elements(By.CSS_SELECTOR, "#table tbody tr")
    return found


def matches(browser: Any) -> str:
    return str(browser.find_element(By.ID, "matches").text)


def column(browser: Any, number: int) -> list[str]:
    query = f"#table tbody td:nth-child({number})"
    return [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, query)]


def sort_by(browser: Any, key: str) -> Any:
    head = browser.find_element(By.CSS_SELECTOR, f"#table th[data-key={key}]")
    head.find_element(By.TAG_NAME, "button").click()
    return head


def test_nothing_of_a_document_runs_and_nothing_is_loaded(show: Any) -> None:
    browser = show()
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert len(browser.find_elements(By.CSS_SELECTOR, "main img, main i, main b, main iframe")) == 0
    words = browser.find_element(By.ID, "words")
    words.send_keys("taken over")
    assert "<script>document.title = 'taken over'</script> w w" in "".join(column(browser, 1))
    words.clear()
    words.send_keys("مرحبا")
    [first, *_] = rows(browser)
    text = first.find_element(By.CSS_SELECTOR, "p.text")
    assert browser.execute_script("return arguments[0].matches(':dir(rtl)')", text)


def test_a_script_put_into_the_page_does_not_run(show: Any, hostile: Run, tmp_path: Path) -> None:
    """Were something not escaped, the page's policy would still stop it."""
    html = (hostile.path / "report" / "index.html").read_text(encoding="utf-8")
    bad = tmp_path / "bad.html"
    bad.write_text(html.replace("</main>", "<script>document.title='taken'</script></main>", 1))
    browser = show(url=bad.as_uri())
    assert "foresift report" in browser.title
    [complaint] = browser.get_log("browser")
    assert "Content Security Policy" in complaint["message"]
    assert matches(browser)  # while our own script runs


def test_search_and_filters_find_what_they_say(show: Any) -> None:
    browser = show()
    total = matches(browser)
    browser.find_element(By.ID, "words").send_keys("Striker GOOD1/")
    many = int(matches(browser).split()[0])
    assert 0 < many < int(total.split()[0])
    assert all("striker" in cell for cell in column(browser, 1))
    assert all(cell.startswith("good1/") for cell in column(browser, 2))
    assert browser.find_element(By.CSS_SELECTOR, "#table mark").text.lower() == "striker"
    off = browser.find_elements(By.CSS_SELECTOR, "#map .dot.off")
    dots = browser.find_elements(By.CSS_SELECTOR, "#map circle.dot")
    assert len(dots) - len(off) == many
    browser.find_element(By.ID, "words").send_keys(" nowhere")
    assert matches(browser).startswith("0 of")
    assert "Nothing matches" in rows(browser)[0].text
    browser.find_element(By.ID, "reset").click()
    assert matches(browser) == total
    browser.find_element(By.XPATH, "//*[@id='status']/option[.='kept']").click()
    assert set(column(browser, 3)) == {"kept"}
    browser.find_element(By.ID, "reset").click()
    browser.find_element(By.XPATH, "//*[@id='why']//option[.='marks: single <w>']").click()
    assert all("marks: single <w>" in cell for cell in column(browser, 1))
    browser.find_element(By.XPATH, "//*[@id='why']//option[.='over budget']").click()
    assert all("over budget" in cell for cell in column(browser, 3))


def test_sorting_by_any_score_puts_missing_ones_last(show: Any) -> None:
    browser = show()
    plain = [row.text for row in rows(browser)]
    browser.find_element(By.XPATH, "//*[@id='score']/option[.='gaps.some']").click()
    head = sort_by(browser, "score")
    assert head.text.startswith("gaps.some")
    assert head.get_attribute("aria-sort") == "ascending"
    up = column(browser, 5)
    assert [float(v) for v in up] == sorted(float(v) for v in up)
    sort_by(browser, "score")
    assert head.get_attribute("aria-sort") == "descending"
    down = column(browser, 5)
    assert [float(v) for v in down] == sorted((float(v) for v in down), reverse=True)
    assert float(down[0]) > float(up[-1])
    for _ in range(30):
        after = browser.find_element(By.ID, "after")
        if not after.is_enabled():
            break
        after.click()
    assert column(browser, 5)[-1] == "–"
    sort_by(browser, "score")
    browser.find_element(By.XPATH, "//*[@id='score']/option[.='letters.count']").click()
    assert head.get_attribute("aria-sort") is None
    assert [row.text for row in rows(browser)] == plain
    tokens = sort_by(browser, "tokens")
    assert tokens.get_attribute("aria-sort") == "ascending"
    values = [int(v.replace(",", "")) for v in column(browser, 4)]
    assert values == sorted(values)


def test_pages_hold_every_document_once(show: Any) -> None:
    browser = show()
    total, seen = int(matches(browser).split()[0]), []
    assert not browser.find_element(By.ID, "before").is_enabled()
    while True:
        seen += [c.text for c in browser.find_elements(By.CSS_SELECTOR, "#table tbody code")]
        if not browser.find_element(By.ID, "after").is_enabled():
            break
        browser.find_element(By.ID, "after").click()
    ids = "return JSON.parse(document.getElementById('data').textContent).id"
    assert len(seen) == total
    assert seen == browser.execute_script(ids)
    assert (
        browser.find_element(By.ID, "page").text == f"Page {-(-total // 25)} of {-(-total // 25)}"
    )


def test_all_scores_of_a_document_can_be_opened(show: Any) -> None:
    browser = show()
    button = browser.find_element(By.CSS_SELECTOR, "#table button.more")
    assert button.get_attribute("aria-expanded") == "false"
    button.click()
    assert button.get_attribute("aria-expanded") == "true"
    names = [n.text for n in browser.find_elements(By.CSS_SELECTOR, "#table .numbers dt") if n.text]
    assert {"n_tokens", "letters.count", "letters.share", "wrong.nan", "gaps.some"} <= set(names)


def test_pointing_at_the_map_tells_and_clicking_shows_the_row(show: Any) -> None:
    browser = show()
    dot = browser.find_elements(By.CSS_SELECTOR, "#map circle.dot")[40]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", dot)
    ActionChains(browser).move_to_element(dot).perform()
    readout = browser.find_element(By.ID, "readout")
    told = readout.find_element(By.CSS_SELECTOR, "p.text").text
    assert told
    ActionChains(browser).click().perform()
    picked = browser.find_element(By.CSS_SELECTOR, "#table tr.picked")
    assert picked.find_element(By.CSS_SELECTOR, "p.text").text == told
    assert browser.switch_to.active_element == picked
    ring = browser.find_element(By.CSS_SELECTOR, "#map .ring")
    assert ring.get_attribute("visibility") == "visible"


def test_the_map_by_keyboard(show: Any) -> None:
    browser = show()
    atlas = browser.find_element(By.ID, "map")
    browser.find_element(By.ID, "words").send_keys("oven")
    browser.execute_script("arguments[0].focus()", atlas)
    readout = browser.find_element(By.ID, "readout")
    assert readout.get_attribute("aria-live") == "polite"
    told = set()
    for key in [Keys.ARROW_RIGHT, Keys.ARROW_DOWN, Keys.ARROW_LEFT, Keys.ARROW_UP] * 3:
        atlas.send_keys(key)
        told.add(readout.find_element(By.CSS_SELECTOR, "p.text").text)
    assert len(told) >= 3
    assert all("oven" in text for text in told)  # only what the search has found
    last = readout.find_element(By.CSS_SELECTOR, "p.text").text
    atlas.send_keys(Keys.ENTER)
    picked = browser.find_element(By.CSS_SELECTOR, "#table tr.picked p.text")
    assert picked.text == last


def test_every_way_to_colour_the_map_has_a_legend_that_adds_up(show: Any) -> None:
    browser = show()
    names = [o.text for o in browser.find_elements(By.CSS_SELECTOR, "#colour option")]
    assert names[:3] == ["group (k-means)", "kept or left", "source"]
    assert {"n_tokens", "letters.share", "wrong.nan", "wrong.same"} <= set(names)
    dots = len(browser.find_elements(By.CSS_SELECTOR, "#map circle.dot"))
    legends = set()
    for option in browser.find_elements(By.CSS_SELECTOR, "#colour option"):
        option.click()
        legends.add(browser.find_element(By.ID, "legend").text)
        counts = browser.find_elements(By.CSS_SELECTOR, "#legend .soft")
        assert sum(int(c.text.replace(",", "")) for c in counts) == dots
    assert len(legends) >= 6
    browser.find_elements(By.CSS_SELECTOR, "#colour option")[1].click()
    [kept, _] = browser.find_elements(By.CSS_SELECTOR, "#legend button")
    kept.click()
    assert kept.get_attribute("aria-pressed") == "true"
    lit = browser.find_elements(By.CSS_SELECTOR, "#map .dot:not(.off)")
    assert len(lit) == int(kept.find_element(By.CSS_SELECTOR, ".soft").text)
    kept.click()
    assert not browser.find_elements(By.CSS_SELECTOR, "#map .dot.off")


def ground(browser: Any) -> str:
    return str(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))


def test_the_theme_follows_the_system_until_it_is_chosen(show: Any) -> None:
    light, dark = "rgb(255, 255, 255)", "rgb(18, 21, 27)"
    browser = show(scheme="dark")
    toggle = browser.find_element(By.ID, "theme")
    assert (toggle.text, ground(browser)) == ("Theme: system", dark)
    for label, colour in (("light", light), ("dark", dark), ("system", dark)):
        toggle.click()
        assert (toggle.text, ground(browser)) == (f"Theme: {label}", colour)
    assert ground(show(scheme="light")) == light


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read_on_its_ground(show: Any, scheme: str) -> None:
    browser = show(scheme=scheme)
    browser.execute_script(OPEN)
    browser.find_element(By.ID, "words").send_keys("oven")
    for option in (0, -1):
        browser.find_elements(By.CSS_SELECTOR, "#colour option")[option].click()
        assert browser.find_elements(By.CSS_SELECTOR, "#table mark")
        seen, poor = browser.execute_script(CONTRAST)
        assert seen > 200
        assert poor == []


def test_the_check_of_contrast_sees_grey_on_grey(show: Any) -> None:
    browser = show()
    browser.execute_script("document.querySelector('h1').style.color = '#bbb'")
    assert browser.execute_script(CONTRAST)[1]


def test_controls_have_names_and_tables_headings(show: Any) -> None:
    browser = show()
    assert browser.execute_script(FAULTS) == []
    assert show(width=375).execute_script(FAULTS) == []


def test_the_check_of_names_sees_a_nameless_button(show: Any) -> None:
    browser = show()
    browser.execute_script("document.querySelector('#reset').textContent = ''")
    assert browser.execute_script(FAULTS)


@pytest.mark.parametrize("width", [320, 375, 768, 1280])
def test_no_width_scrolls_sideways(show: Any, width: int) -> None:
    browser = show(width=width)
    browser.find_element(By.CSS_SELECTOR, "#table button.more").click()
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_the_keyboard_gets_past_the_head_and_sees_where_it_is(show: Any) -> None:
    browser = show()
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    skip = browser.switch_to.active_element
    assert skip.text.startswith("Skip")
    assert skip.rect["y"] >= 0
    assert skip.value_of_css_property("outline-style") == "solid"
    assert skip.value_of_css_property("outline-width") == "2px"
    skip.send_keys(Keys.ENTER)
    target = skip.get_attribute("href").rpartition("#")[2]
    top = "return document.getElementById(arguments[0]).getBoundingClientRect().top"
    assert abs(browser.execute_script(top, target)) < 60


def test_without_javascript_there_are_documents_and_a_word_about_it(show: Any, chrome: Any) -> None:
    chrome.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser = show(width=375)
        assert len(rows(browser)) == 25
        assert "need JavaScript" in browser.find_element(By.CSS_SELECTOR, "#documents").text
        for hidden in ("find", "theme", "map"):
            assert not browser.find_element(By.ID, hidden).is_displayed()
    finally:
        chrome.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_print_is_light_and_leaves_controls_out(show: Any) -> None:
    browser = show(scheme="dark")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    browser.find_element(By.TAG_NAME, "body")
    assert ground(browser) == "rgb(255, 255, 255)"
    for hidden in ("find", "theme", "readout"):
        assert not browser.find_element(By.ID, hidden).is_displayed()
    assert browser.find_element(By.ID, "map").is_displayed()


def test_one_document(show: Any, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "d.jsonl", [{"text": "only <b>one</b>"}])
    run = go(recipe(data, [LETTERS, WRONG], holdout=0), tmp_path / "out")
    browser = show(url=page.write(run).as_uri())
    assert matches(browser) == "1 of 1 document matches"
    assert len(browser.find_elements(By.CSS_SELECTOR, "#map circle.dot")) == 1
    assert browser.execute_script(FAULTS) == []
