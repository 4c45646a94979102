"""The page of a service in headless Chromium: draw, drop, choose, predict; by pen, keyboard and on a phone."""

from __future__ import annotations

import base64
import time

import numpy as np
import pytest

from browser import chromium, require_chromium
from served import encoded, predictor_of, served

pytest.importorskip("fastapi", reason="pip install 'distmeta[serve]'")

# A picture as a file that is dropped on an element.
DROP = """
const [node, name, data] = arguments;
const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
const transfer = new DataTransfer();
transfer.items.add(new File([bytes], name, {type: 'image/png'}));
for (const kind of ['dragover', 'drop'])
  node.dispatchEvent(new DragEvent(kind, {bubbles: true, cancelable: true, dataTransfer: transfer}));
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    require_chromium()
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def seen(browser):
    """The browser; afterwards no message on its console, and no request to anywhere but to the service."""
    browser.errors(), browser.requests()
    browser.resize(1000)
    browser.emulate()
    yield browser
    assert browser.errors() == []
    assert [one for one in browser.requests() if not one.startswith("http://127.0.0.1:")] == []


def wait(page, script, *arguments, seconds=20):
    """The first value of a script that is true."""
    end = time.monotonic() + seconds
    while not (value := page.run(script, *arguments)):
        assert time.monotonic() < end, page.run("return document.body.innerText")
        time.sleep(0.02)
    return value


def opened(page, web):
    page.open(f"{web.url}/")
    wait(page, "return !document.getElementById('task').hidden || !document.getElementById('notice').hidden")


def canvases(page):
    """Those of the examples, and of the query as the last one."""
    return page.run("return [...document.querySelectorAll('.cell canvas')]")


def draw(page, canvas, *points, kind="mouse"):
    """One stroke through points, from 0 to 1."""
    from selenium.webdriver.common.actions.action_builder import ActionBuilder
    from selenium.webdriver.common.actions.pointer_input import PointerInput

    page.run("arguments[0].scrollIntoView({block: 'center'})", canvas)
    left, top, width, height = page.run(
        "const b = arguments[0].getBoundingClientRect(); return [b.left, b.top, b.width, b.height]", canvas
    )
    at = [(int(left + x * width), int(top + y * height)) for x, y in points]
    actions = ActionBuilder(page.driver, mouse=PointerInput(kind, f"a {kind}"), duration=30)
    actions.pointer_action.move_to_location(*at[0])
    actions.pointer_action.pointer_down()
    for place in at[1:]:
        actions.pointer_action.move_to_location(*place)
    actions.pointer_action.pointer_up()
    actions.perform()


def predict(page):
    page.run("document.getElementById('predict').click()")
    wait(
        page,
        "return document.querySelector('.big') || !document.getElementById('trouble').hidden",
    )
    return page.run("return document.querySelector('.big')?.innerText ?? ''"), page.run(
        "return document.getElementById('trouble').innerText"
    )


LINES = {"|": [(0.5, 0.1), (0.5, 0.9)], "-": [(0.1, 0.5), (0.9, 0.5)], "/": [(0.2, 0.8), (0.8, 0.2)]}


@pytest.fixture(scope="module")
def ink():
    with served(predictor_of("protonet", shape=(1, 28, 28), ink=True)) as web:
        yield web


@pytest.mark.parametrize("kind", ["mouse", "touch", "pen"])
def test_drawn_examples_and_a_drawn_query(seen, ink, kind):
    opened(seen, ink)
    *examples, query = canvases(seen)
    assert len(examples) == 3
    for canvas, line in zip(examples, LINES.values(), strict=True):
        draw(seen, canvas, *line, kind=kind)
    draw(seen, query, (0.45, 0.2), (0.47, 0.8), kind=kind)
    answer, trouble = predict(seen)
    assert answer.startswith("A ")
    assert trouble == ""
    assert seen.run("return document.querySelectorAll('.bars li').length") == 3
    assert seen.run("return document.querySelector('.deciders .first').innerText").startswith("A ")
    assert seen.run("return document.getElementById('answer').getAttribute('aria-live')") == "polite"


def test_undo_clear_and_the_keyboard(seen, ink):
    from selenium.webdriver.common.keys import Keys

    opened(seen, ink)
    canvas = canvases(seen)[0]
    draw(seen, canvas, *LINES["|"])
    draw(seen, canvas, *LINES["-"])
    label = "return arguments[0].getAttribute('aria-label')"
    assert "a drawing of 2 strokes" in seen.run(label, canvas)
    seen.run("document.querySelector('[aria-label^=\"Undo: example 1 of A\"]').click()")
    assert "a drawing of 1 strokes" in seen.run(label, canvas)
    canvas.send_keys(Keys.CONTROL, "z")
    assert "empty" in seen.run(label, canvas)
    draw(seen, canvas, *LINES["|"])
    canvas.send_keys(Keys.DELETE)
    assert "empty" in seen.run(label, canvas)
    unnamed = seen.run(
        "return [...document.querySelectorAll('button, input, textarea, canvas')].filter(node => !("
        "node.closest('[hidden]') || node.textContent.trim().length > 1 || node.getAttribute('aria-label') "
        "|| node.labels?.length)).length"
    )
    assert unnamed == 0


def test_classes_are_added_named_and_removed(seen, ink):
    opened(seen, ink)
    count = "return document.querySelectorAll('.class').length"
    for _ in range(2):
        seen.run("document.getElementById('add').click()")
    assert seen.run(count) == 5
    name = seen.run("return document.querySelector('.class input')")
    name.clear()
    name.send_keys("<b>cat</b>")
    assert "<b>cat</b>" in seen.run("return document.querySelector('.class').getAttribute('aria-label')")
    for _ in range(3):
        seen.run("document.querySelectorAll('.class')[1].querySelector('.named button').click()")
    assert seen.run(count) == 2
    assert seen.run("return document.querySelector('.named button').disabled")
    *examples, query = canvases(seen)
    draw(seen, examples[0], *LINES["|"])
    draw(seen, examples[1], *LINES["-"])
    draw(seen, query, *LINES["|"])
    answer, _ = predict(seen)
    assert answer.startswith("<b>cat</b>")  # text, not markup


def test_files_are_dropped_and_chosen(seen, ink, tmp_path):
    opened(seen, ink)
    upright = np.full((40, 40), 255, np.uint8)
    upright[:, 18:22] = 0
    diagonal = np.where(np.eye(40) > 0, 0, 255).astype(np.uint8)
    *examples, query = canvases(seen)
    for canvas, picture in zip(examples, (upright, upright.T), strict=False):
        seen.run(DROP, canvas, "drawn.png", encoded(np.ascontiguousarray(picture)))
    path = tmp_path / "chosen.png"
    path.write_bytes(base64.b64decode(encoded(diagonal)))
    choosers = seen.run("return [...document.querySelectorAll('.cell input[type=file]')]")
    choosers[2].send_keys(str(path))
    choosers[3].send_keys(str(path))
    wait(seen, "return document.querySelectorAll('.cell.filled').length === 4")
    answer, trouble = predict(seen)
    assert (answer.split()[0], trouble) == ("C", "")
    seen.run(DROP, query, "no.png", base64.b64encode(b"no picture").decode())
    wait(seen, "return !document.getElementById('trouble').hidden")
    assert "no.png is no picture" in seen.run("return document.getElementById('trouble').innerText")


def test_several_files_at_once_become_several_examples(seen, ink, tmp_path):
    opened(seen, ink)
    paths = []
    for n in range(3):
        paths.append(tmp_path / f"{n}.png")
        paths[-1].write_bytes(base64.b64decode(encoded(np.full((9, 9), 255, np.uint8))))
    seen.run("return document.querySelector('.cell input[type=file]')").send_keys("\n".join(map(str, paths)))
    wait(seen, "return document.querySelectorAll('.class')[0].querySelectorAll('.cell.filled').length === 3")


def test_an_example_needs_no_drawing(seen, ink):
    opened(seen, ink)
    seen.run("document.getElementById('example').click()")
    wait(seen, "return document.querySelector('.big')")
    assert seen.run("return document.querySelectorAll('.class').length") == 5
    assert seen.run("return document.querySelectorAll('.deciders li').length") == 5


def test_inner_steps_of_a_gradient_learner(seen):
    with served(predictor_of("maml", shape=(1, 28, 28), ink=True)) as web:
        opened(seen, web)
        assert "at most 3 classes" in seen.run("return document.getElementById('about').innerText")
        assert seen.run("return document.getElementById('add').disabled")
        seen.run("document.getElementById('example').click()")
        wait(seen, "return document.querySelector('.big')")
        assert seen.run("return document.querySelectorAll('tbody tr').length") == 3  # before, and two steps
        assert seen.run("return document.querySelectorAll('thead th').length") == 4


def test_what_is_missing_is_told_in_place(seen, ink):
    opened(seen, ink)
    _, trouble = predict(seen)
    assert trouble == "Class A has no example. Draw or drop one, or remove the class."


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_of_400_pixels(seen, ink, dark):
    seen.resize(400, 800, mobile=True)
    seen.emulate(dark=dark)
    opened(seen, ink)
    seen.run("document.getElementById('example').click()")
    wait(seen, "return document.querySelector('.big')")
    assert seen.run("return document.scrollingElement.scrollWidth") == 400
    background = seen.run("return getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")


def test_photographs_are_dropped_not_drawn(seen):
    with served(predictor_of("protonet", shape=(3, 8, 8))) as web:
        opened(seen, web)
        *examples, query = canvases(seen)
        colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
        for canvas, colour in zip([*examples, query], [*colours, colours[1]], strict=True):
            seen.run(DROP, canvas, "one.png", encoded(np.full((20, 30, 3), colour, np.uint8)))
        wait(seen, "return document.querySelectorAll('.cell.filled').length === 4")
        answer, trouble = predict(seen)
        assert (answer.split()[0], trouble) == ("B", "")
        assert seen.run("return document.querySelectorAll('[aria-label^=Undo]').length") == 0


def test_vectors_are_rows_of_numbers(seen):
    with served(predictor_of("protonet", shape=(3,))) as web:
        opened(seen, web)
        rows = seen.run("return [...document.querySelectorAll('textarea')]")
        for area, text in zip(rows, ["0,0,0\n0 0 1", "5, 5, 5", "9;9;9", "5,5,6"], strict=True):
            area.send_keys(text)
        answer, trouble = predict(seen)
        assert (answer.split()[0], trouble) == ("B", "")
        rows[-1].send_keys(", 7")
        _, trouble = predict(seen)
        assert "has 4 entries; expected 3 numbers" in trouble
        seen.run("document.getElementById('example').click()")
        wait(seen, "return document.querySelector('.big')?.innerText.startsWith('B')")


def test_a_refusal_of_the_service_marks_its_picture(browser):
    with served(predictor_of("protonet", shape=(1, 28, 28), ink=True)) as web:
        browser.resize(1000)
        opened(browser, web)
        *examples, query = canvases(browser)
        for canvas in (examples[0], examples[2], query):
            draw(browser, canvas, *LINES["|"])
        browser.run(DROP, examples[1], "grey.png", encoded(np.full((30, 30), 128, np.uint8)))  # neither light nor dark
        wait(browser, "return document.querySelectorAll('.cell.filled').length === 4")
        _, trouble = predict(browser)
        assert trouble.startswith("Example 1 of B has a background of 128")
        assert browser.run("return [...document.querySelectorAll('.cell')].findIndex(c => c.matches('.bad'))") == 1
        assert all("422" in one for one in browser.errors())  # the browser's own line about the answer


def test_a_token_is_asked_for(browser):
    with served(predictor_of("protonet"), token="secret") as web:
        browser.open(f"{web.url}/")
        wait(browser, "return !document.getElementById('key').hidden")
        browser.run("return document.getElementById('token')").send_keys("secret")
        browser.run("document.querySelector('#key button').click()")
        wait(browser, "return !document.getElementById('task').hidden")
        assert all("401" in one for one in browser.errors())
