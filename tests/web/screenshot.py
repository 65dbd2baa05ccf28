"""Make images/web_page.png: the page with two runs of `make demo`, in a real browser.

python -m tests.web.screenshot [--run DIR --run DIR2] [--question TEXT] [--out PNG]
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from common.demo import DemoRun
from common.files import repository_root, write_bytes
from tests.web.browsing import WAIT, find_browser, open_browser

ROOT = repository_root()
RUNS = (DemoRun("lxmert", "SpotTune", "started"), DemoRun("vlbert", "SpotTune_Res", "started"))
QUESTION = "@ what color is the shape?"
EXAMPLE = 3
COLOURS = 256  # of the palette, so that the file stays small


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m tests.web.screenshot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--run", type=Path, action="append", default=[], metavar="DIR")
    made.add_argument("--question", default=QUESTION)
    made.add_argument("--width", type=int, default=1280, help="of the window, in pixels")
    made.add_argument("--out", type=Path, default=ROOT / "images" / "web_page.png")
    return made


def run_of(demo: DemoRun) -> Path:
    """The folder of a demo's run, which may be in one of its own in the one of its name."""
    found = [path.parent for path in sorted(demo.folder.rglob("BEST.safetensors"))]
    return found[0] if found else demo.folder


def photographed(url: str, question: str, width: int) -> bytes:
    """The whole page after an answer, as PNG."""
    program = find_browser()
    if program is None:
        raise SystemExit("no browser: apt-get install chromium")
    with open_browser(program) as browser:
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.goto(url)
        page.locator("#examples button").nth(EXAMPLE).click()
        page.wait_for_selector("#picture img", timeout=WAIT)
        page.fill("#question :is(input, textarea)", question)
        page.click("#ask")
        page.wait_for_selector("#right .reply", timeout=WAIT)
        page.mouse.move(0, 0)
        page.wait_for_timeout(1000)  # until what fades in or out has done so
        return page.screenshot(full_page=True)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    runs = args.run or [run_of(demo).relative_to(ROOT) for demo in RUNS]
    words = [word for run in runs for word in ("--run", str(run))]
    command = [sys.executable, "-m", "common.web", "--port", "0", *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            line = next((line for line in server.stdout if line.startswith("page ")), None)
            if line is None:
                raise SystemExit("the server has ended")
            shot = photographed(line.split()[1], args.question, args.width)
        finally:
            server.terminate()
            server.communicate()
    small = io.BytesIO()
    picture = (
        Image.open(io.BytesIO(shot))
        .convert("RGB")
        .quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    )
    picture.save(small, "PNG", optimize=True)
    write_bytes(args.out, small.getvalue())
    print(f"{args.out}: {picture.width} x {picture.height} pixels, {len(small.getvalue()):,} bytes")


if __name__ == "__main__":
    main()
