"""Takes the picture of a run's page that the README shows: `python scripts/report_picture.py runs/mine`.

Of `report.html` in Chromium: what it says at the top, and below it the first curves; with few colours, so
that the picture stays small. Left out on purpose: the table between the two, and the rest, which says more in
a browser.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

OUT = Path(__file__).resolve().parents[1] / "docs" / "images" / "report.png"
WIDTH, HEIGHT = 1200, 1200
COLOURS = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run that has its report")
    parser.add_argument("--out", type=Path, default=OUT, help="the picture")
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    args = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        size = {"width": WIDTH, "height": HEIGHT}
        page = browser.new_page(viewport=size, color_scheme=args.scheme)
        page.goto((args.run / "report.html").resolve().as_uri())
        page.add_style_tag(content="#worries { display: none; }")
        taken = page.screenshot()
        browser.close()
    Image.open(io.BytesIO(taken)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(
        args.out, optimize=True
    )
    print(f"{args.out}: {args.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
