"""Make the README's picture of a report: ``python .github/pictures.py RUN_DIR`` writes ``.github/report.png``.

Run by hand, with the ``dev`` extra and Chromium installed. The first part of RUN_DIR/report.html is taken as a browser
shows it, and its first two example tasks below: one picture of the result and of single answers.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
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
    """A PNG of the head of a run's report, at most :data:`MOST_BYTES`."""
    from PIL import Image

    page.resize(WIDTH, HEIGHT)
    page.emulate()
    page.open((run_dir / "report.html").resolve().as_uri())
    end = page.run(SHORTER, ["curves", "learning"])
    with tempfile.TemporaryDirectory() as folder:
        path = page.picture(Path(folder) / "page.png", height=min(HEIGHT, int(end) + 24))
        # A palette: flat colours and text lose nothing, and the file is a third.
        drawn = Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    content = io.BytesIO()
    drawn.save(content, "PNG", optimize=True)
    if len(content.getvalue()) > MOST_BYTES:
        raise SystemExit(f"The picture has {len(content.getvalue())} bytes; expected {MOST_BYTES} at most.")
    return content.getvalue()


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path, help="a finished run")
    run_dir = parser.parse_args().run_dir
    if not (run_dir / "report.html").is_file():
        raise SystemExit(f"{run_dir} has no report.html. Give a finished run, or make it: distmeta report {run_dir}")
    if find_chromium() is None:
        raise SystemExit("There is no chromium with chromedriver on the PATH; install both.")
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as page:
        target = HERE / "report.png"
        target.write_bytes(report_picture(page, run_dir))
    print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
