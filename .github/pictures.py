"""Make the README's picture of the page: ``python .github/pictures.py RUN_DIR`` writes ``.github/page.png``.

Run by hand, with the ``dev`` extra and Chromium installed. RUN_DIR is a run of ``jobs/maml_glyphs.py``.
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

WIDTH, MOST_BYTES = 1000, 300_000


def page_picture(run_dir: Path, out: Path) -> Path:
    """Write a PNG of the page of `distmeta serve RUN_DIR` with an answered example, at most :data:`MOST_BYTES`."""
    from PIL import Image

    import distmeta
    from browser import chromium
    from served import served

    with served(distmeta.load(run_dir)) as web, tempfile.TemporaryDirectory() as folder:
        with chromium(Path(folder) / "profile") as page:
            page.resize(WIDTH)
            page.emulate()
            page.open(f"{web.url}/")
            # The same picture each time: the page draws lots which of its characters it asks about.
            page.run("Math.random = () => 0.3")
            _wait(lambda: page.run("return !document.getElementById('task').hidden"))
            page.run("document.getElementById('example').click()")
            _wait(lambda: page.run("return !!document.querySelector('.big')"))
            time.sleep(0.5)  # the bars grow
            path = page.picture(Path(folder) / "page.png", whole=True)
        # A palette: flat colours and text lose nothing, and the file is a third.
        drawn = Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    content = io.BytesIO()
    drawn.save(content, "PNG", optimize=True)
    if len(content.getvalue()) > MOST_BYTES:
        raise SystemExit(f"The picture has {len(content.getvalue())} bytes; expected {MOST_BYTES} at most.")
    out.write_bytes(content.getvalue())
    return out


def _wait(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not ready():
        if time.monotonic() > end:
            raise SystemExit("The page does not answer.")
        time.sleep(0.05)


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path, help="a finished run of jobs/maml_glyphs.py")
    target = page_picture(parser.parse_args().run_dir, HERE / "page.png")
    print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
