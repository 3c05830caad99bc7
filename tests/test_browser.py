"""The page of a report in Chromium: it sorts, searches, opens users, and asks no host for anything.

Debian's Chromium is taken (`apt-get install chromium`); without it the tests are skipped.
"""

import shutil

import pytest
from test_page import HOSTILE, packed, user

from instructrec_jax.report import page
from instructrec_jax.report.tables import Document, Section, Table

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed (Debian: apt-get install chromium)"
)
WHY = {
    "template": "A1",
    "num_prompts": 3,
    "margin": 1.5,
    "log_likelihood": -2.0,
    "rank": 1,
    "reasoning": HOSTILE,
    "items": [
        {"title": HOSTILE, "margin": 0.5, "log_likelihood": 0.25, "rank": 2, "likeness": 0.9},
        {"title": "Kite 1", "margin": -0.5, "log_likelihood": 1.5, "rank": 1, "likeness": None},
    ],
}


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # As root, which containers of CI are, Chromium has no sandbox.
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    table = Table(
        title="Results",
        header=["system", "HR@1"],
        rows=[["model", ".484 .452-.516"], [HOSTILE, ".9 .8-1"], ["random", "-"]],
    )
    users = packed(
        user(1, prompts={"A1": HOSTILE}, explanation=WHY),
        user(2, HOSTILE, ranks=[list(range(10, 0, -1)), list(range(1, 11))]),
        user(3, "Doll"),
    )
    sections = [Section(title=HOSTILE, tables=[table])]
    path = tmp_path_factory.mktemp("page") / "report.html"
    made = page.as_html(Document(title=HOSTILE, sections=sections, users=users))
    path.write_text(made, encoding="utf-8")
    return path.as_uri()


@pytest.fixture(params=[(1280, "light"), (390, "dark")], ids=["wide", "phone"])
def shown(browser, address, request):
    """The page, and what it asked for and said."""
    width, scheme = request.param
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True
    )
    tab = context.new_page()
    asked, said = [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
    tab.goto(address)
    yield tab
    assert tab.evaluate("document.documentElement.scrollWidth") <= width, "nothing stands out"
    assert asked == [address], "no request left the page"
    assert said == []
    context.close()


def column(tab, table, number):
    return tab.locator(f"{table} tbody tr").evaluate_all(
        f"rows => rows.map(row => row.cells[{number}].textContent)"
    )


def test_tables_sort_and_users_are_searched_ordered_and_opened(shown):
    results = "#section-1 table"
    assert column(shown, results, 1)[0] == ".484 .452-.516"
    for expected in (".9 .8-1", ".484 .452-.516"):  # the largest first, then the smallest
        shown.locator(f"{results} th button", has_text="HR@1").click()
        assert column(shown, results, 1)[0] == expected
        assert column(shown, results, 1)[-1] == "-"
    assert column(shown, "#list", 0) == ["1:7", "2:7", "3:7"]
    shown.locator("#search").fill("doll 3")
    assert column(shown, "#list", 0) == ["3:7"]
    assert shown.locator("#found").inner_text() == "1 of the 3 users on this page"
    shown.locator("#search").fill("")
    shown.locator("#order").select_option(label="systems disagree most")
    assert column(shown, "#list", 0)[0] == "2:7"
    shown.locator("#list th button", has_text="rank by model").click()
    assert column(shown, "#list", 2) == sorted(column(shown, "#list", 2), key=int, reverse=True)


def test_a_user_opens_by_keyboard_with_candidates_and_an_explanation(shown):
    shown.locator("#list tbody button", has_text="1:7").focus()
    shown.keyboard.press("Enter")
    assert shown.evaluate("document.activeElement.id") == "one"
    tables = shown.locator("#one table")
    assert tables.count() == 2
    assert tables.nth(0).locator("tbody th").first.inner_text() == HOSTILE
    assert "3 prompts were scored" in shown.locator("#one").inner_text()
    tables.nth(0).locator("th button", has_text="log-likelihood").click()
    assert column(shown, "#one .scroll:first-of-type table", 2)[0] == "+1.500"
    assert shown.locator("#one tr.hit").count() == 1
    assert shown.locator("script").count() == 2, "titles with <script> stay text"
