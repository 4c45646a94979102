"""The report in a real browser, opened from a file: nothing is asked for, nothing overflows, everything is printed."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import distmeta
from browser import Page, chromium, require_chromium
from distmeta.run.reporting import report

HOSTILE = "<script>console.error('ran'); fetch('http://127.0.0.1:9/')</script>" + "W" * 90


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Page]:
    require_chromium()
    with chromium(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture(scope="module")
def pages(digits_dir, tmp_path_factory) -> dict[str, Path]:
    """A report of one run and one of three, of runs with a hostile name, in a folder whose name needs quoting."""
    require_chromium()
    folder = tmp_path_factory.mktemp("reports") / "a folder #1"
    runs = []
    for name, learner in (
        ("maml", distmeta.MAML(distmeta.conv4(width=4), inner_lr=0.1)),
        ("protonet", distmeta.ProtoNet(distmeta.conv4(width=4, head=False))),
        ("matching", distmeta.MatchingNet(distmeta.conv4(width=4, head=False))),
    ):
        experiment = distmeta.Experiment(
            learner=learner,
            tasks=distmeta.FewShot(data=digits_dir, ways=3, shots=2, queries=4),
            outer=distmeta.Outer(iterations=3, meta_batch_size=2),
            evaluation=distmeta.Evaluation(every=1, validation_tasks=4, test_tasks=12),
            name=HOSTILE,
        )
        runs.append(distmeta.meta_train(experiment, run_dir=folder / name).run_dir)
    return {"one": runs[0] / "report.html", "three": report(runs, folder / "three.html").path}


@pytest.fixture(params=["one", "three"])
def page(browser, pages, request) -> Page:
    browser.errors(), browser.requests()
    browser.emulate()
    browser.resize(1100)
    browser.open(pages[request.param].as_uri())
    return browser


def test_it_opens_from_a_file_without_a_request_or_a_message(page):
    (asked,) = page.requests()
    assert asked.startswith("file://")
    assert page.errors() == []
    assert page.run("return document.scripts.length") == 0
    assert "<script>console.error" in page.run("return document.querySelector('h1').textContent")
    assert page.run("return document.documentElement.lang") == "en"
    assert page.run("return document.title").endswith(("report", "comparison"))


@pytest.mark.parametrize("width", [320, 400, 1100])
def test_nothing_scrolls_sideways_but_tables_in_their_own_box(page, width):
    page.resize(width, 800, mobile=width < 500)
    assert page.run("return document.scrollingElement.scrollWidth") <= width
    page.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.run("return document.scrollingElement.scrollWidth") <= width


def test_every_picture_is_drawn_and_has_a_text(page):
    page.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    drawn = page.run("return [...document.images].map(one => [one.alt, one.naturalWidth])")
    assert len(drawn) > 20
    assert all(text and width for text, width in drawn)


def test_text_can_be_read_in_the_light_and_in_the_dark(page):
    """At least the contrast of 4.5 that accessibility guidelines ask for, of each of the page's colours for text."""
    contrast = """
      const light = c => { const v = c.match(/[0-9.]+/g).slice(0, 3).map(x => x / 255)
        .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
        return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2] };
      const back = light(getComputedStyle(document.body).backgroundColor);
      return [...document.querySelectorAll('h1, h2, p, th, td, dt, figcaption, summary, .big')].map(one => {
        const own = light(getComputedStyle(one).color);
        return (Math.max(own, back) + 0.05) / (Math.min(own, back) + 0.05) });
    """
    backgrounds = []
    for dark in (False, True):
        page.emulate(dark=dark)
        assert min(page.run(contrast)) >= 4.5
        backgrounds.append(page.run("return getComputedStyle(document.body).backgroundColor"))
    assert len(set(backgrounds)) == 2


def test_what_is_folded_is_printed_and_the_pdf_has_text(page):
    folded = (
        "return [...document.querySelectorAll('details > :not(summary)')].map(one => one.getClientRects().length && "
    )
    folded += "one.checkVisibility({contentVisibilityAuto: true}) ? one.getBoundingClientRect().height : 0)"
    assert not any(page.run(folded))
    page.emulate("print")
    heights = page.run(folded)
    assert heights
    assert all(height > 0 for height in heights)
    page.emulate()
    pdf = page.pdf()
    assert pdf.startswith(b"%PDF")
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL)
    shown = 0
    for stream in streams:
        try:
            shown += len(re.findall(rb"\bT[jJ]\b", zlib.decompress(stream)))
        except zlib.error:  # a picture
            continue
    assert shown > 100
    assert re.findall(rb"/Type\s*/Page\b", pdf)
