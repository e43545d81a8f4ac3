"""The page in a real browser: nothing fetched, nothing complained of, nothing too wide, readable by all."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dfqs.records import parse_record, read_json
from dfqs.report import Report
from dfqs.report.comparison import ComparisonDocument
from dfqs.report.comparison_page import render_comparison
from dfqs.report.evidence import Evidence
from dfqs.report.page import render_page
from report_documents import report_document
from report_pages import EVIL, GOLDEN, answer, golden_companions

CHROMIUM = os.environ.get("DFQS_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here"),
    pytest.mark.thorough,
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    items = [answer("two apples", f"1024/{k}", "context", length_tokens=1024, depth=k / 9) for k in range(10)]
    items += [answer(f"{EVIL} {'long' * 500}"), answer("pears")]
    document = report_document()
    document["artifact"]["name"] = f"model-{'x' * 90}"
    path = tmp_path_factory.mktemp("page") / "report.html"
    report = parse_record(json.dumps(document), Report)
    path.write_text(
        render_page(report, Evidence(tuple(items), {("reasoning", "arithmetic-1-1"): EVIL}, golden_companions()))
    )
    return path


@pytest.fixture(scope="module")
def comparison_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("comparison") / "comparison.html"
    document = read_json(GOLDEN / "comparison-1.json", ComparisonDocument)
    path.write_text(render_comparison(document))
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("which", ["page_file", "comparison_file"])
def test_a_page_is_quiet_fits_and_is_accessible(
    which: str, width: int, scheme: Any, browser: Any, request: pytest.FixtureRequest
) -> None:
    page_file: Path = request.getfixturevalue(which)
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    said: list[str] = []
    fetched: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda request: fetched.append(request.url))

    page.goto(page_file.as_uri())
    if which == "page_file":
        page.locator("details").last.locator("summary").click()
    found = axe.run(page).response["violations"]

    assert said == []
    assert [url for url in fetched if not url.startswith(("file:", "data:"))] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in ("serious", "critical")] == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    context.close()


def test_answers_can_be_searched_by_words_set_and_verdict(browser: Any, page_file: Path) -> None:
    page = browser.new_page()
    page.goto(page_file.as_uri())
    shown = page.locator("#answers > details:not([hidden])")
    assert shown.count() == 12

    page.fill("#words", "APPLES two")
    assert shown.count() == 10
    assert page.inner_text("#count") == "10 of 12 shown"
    page.select_option("#stage", "reasoning")
    assert shown.count() == 0
    page.fill("#words", "")
    assert shown.count() == 2
    page.close()


def test_without_scripts_every_answer_is_there(browser: Any, page_file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_file.as_uri())

    assert page.locator("#answers > details").count() == 12
    assert not page.locator("#search").is_visible()
    context.close()
