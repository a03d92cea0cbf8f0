"""Takes the pictures of the README anew from a live run: page.png by Debian's chromium, top.svg by rich.

    python docs/images/take.py runs/demo

Wants `playwright` (extra `dev`) and `chromium`. The run should be in the midst of PPO.
"""

import io
import re
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright
from rich.console import Console

from deploy.control.target import find_run
from deploy.run_folder.address import read_address
from deploy.top.top import print_once

HERE = Path(__file__).parent
WIDTH, HEIGHT = 1280, 900
COLOURS = 256
"""Of the picture: fewer bytes, and nobody sees it."""
SETTLE_MS = 2500
"""Until the page has asked for all that it shows."""


def take_page(folder: Path, target: Path) -> None:
    """The whole page, in light colours."""
    address = read_address(folder)
    if address is None or address.control_url is None:
        sys.exit(f"{folder} does not run, or has no control channel")
    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(address.control_url)
        page.wait_for_selector("#curve-reward path.line")
        page.wait_for_timeout(SETTLE_MS)
        page.screenshot(path=target, full_page=True)
        browser.close()
    Image.open(target).convert("RGB").quantize(COLOURS, kmeans=3).save(target, optimize=True)


def take_top(folder: Path, target: Path) -> None:
    """One frame of `minichatgpt top`."""
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    with find_run(str(folder), folder.parent) as client:
        print_once(client, console)
    drawn = console.export_svg(title=f"minichatgpt top {folder.name}")
    without_fonts = re.sub(
        r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL
    )  # they would come from a stranger's server
    target.write_text(re.sub(r"[ \t]+$", "", without_fonts, flags=re.MULTILINE))


if __name__ == "__main__":
    take_page(Path(sys.argv[1]), HERE / "page.png")
    take_top(Path(sys.argv[1]), HERE / "top.svg")
