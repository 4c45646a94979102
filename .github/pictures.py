"""Make the README's pictures: ``python .github/pictures.py RUN_DIR`` writes ``report.png`` and ``page.png``.

Run by hand, with the ``dev`` extra and Chromium installed. RUN_DIR is a finished run of ``jobs/maml_glyphs.py``. Of its
report the first part is taken as a browser shows it, and the first two example tasks below; of the page of ``distmeta
serve RUN_DIR`` an example that was answered.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from browser import Page, chromium, find_chromium  # noqa: E402

WIDTH, HEIGHT = 1000, 1400
MOST_BYTES = 300_000

# What the picture leaves out, and where it ends: it is read in a README, where a page is as wide as a column.
SHORTER = """
for (const id of arguments[0]) {
  const heading = document.getElementById(id);
  if (heading) heading.closest('section').remove();
}
const tasks = [...document.querySelectorAll('.task')].slice(0, 2);
return Math.max(...tasks.map(one => one.getBoundingClientRect().bottom)) + scrollY;
"""


def report_picture(page: Page, run_dir: Path) -> bytes:
    """A PNG of the head of a run's report."""
    page.resize(WIDTH, HEIGHT)
    page.emulate()
    page.open((run_dir / "report.html").resolve().as_uri())
    end = page.run(SHORTER, ["curves", "learning"])
    with tempfile.TemporaryDirectory() as folder:
        return _small(page.picture(Path(folder) / "page.png", height=min(HEIGHT, int(end) + 24)))


def page_picture(page: Page, run_dir: Path) -> bytes:
    """A PNG of the page of ``distmeta serve RUN_DIR`` with an answered example."""
    import distmeta
    from served import served

    with served(distmeta.load(run_dir)) as web, tempfile.TemporaryDirectory() as folder:
        page.resize(WIDTH)
        page.emulate()
        page.open(f"{web.url}/")
        # The same picture each time: the page draws lots which of its characters it asks about.
        page.run("Math.random = () => 0.3")
        _wait(lambda: bool(page.run("return !document.getElementById('task').hidden")))
        page.run("document.getElementById('example').click()")
        _wait(lambda: bool(page.run("return !!document.querySelector('.big')")))
        time.sleep(0.5)  # the bars grow
        return _small(page.picture(Path(folder) / "page.png", whole=True))


def _small(path: Path) -> bytes:
    """The same picture with a palette, at most :data:`MOST_BYTES`: flat colours and text lose nothing by it."""
    from PIL import Image

    content = io.BytesIO()
    drawn = Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    drawn.save(content, "PNG", optimize=True)
    if len(content.getvalue()) > MOST_BYTES:
        raise SystemExit(f"The picture has {len(content.getvalue())} bytes; expected {MOST_BYTES} at most.")
    return content.getvalue()


def _wait(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not ready():
        if time.monotonic() > end:
            raise SystemExit("The page does not answer.")
        time.sleep(0.05)


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path, help="a finished run")
    run_dir = parser.parse_args().run_dir
    if not (run_dir / "report.html").is_file():
        raise SystemExit(f"{run_dir} has no report.html. Give a finished run, or make it: distmeta report {run_dir}")
    if find_chromium() is None:
        raise SystemExit("There is no chromium with chromedriver on the PATH; install both.")
    for name, make in (("report", report_picture), ("page", page_picture)):
        with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as page:
            target = HERE / f"{name}.png"
            target.write_bytes(make(page, run_dir))
        print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
