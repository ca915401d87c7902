"""Takes the pictures of the Dagster UI that the documentation shows.

Start the UI on a played round, then run this beside it:

    gen404 simulate --workdir .gen404/demo && gen404 ui --workdir .gen404/demo
    python docs/screenshots.py http://127.0.0.1:3000

Needs Chromium and the package `playwright`. Writes `lineage.png`, `match-matrix.png` and `audit.png` beside this file.
"""

import io
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import quote

from PIL import Image
from playwright.sync_api import Page, sync_playwright

FOLDER = Path(__file__).resolve().parent
CHROMIUM_ARGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
GROUPS = 5
MATRIX_WIDTH = 1980
"""Wide enough for the table beside the heat map."""
SELECTION = 'not group:"insights"'


def lineage(page: Page, base: str) -> bytes:
    """All assets of a round, groups expanded, without the frame of the page."""
    page.set_viewport_size({"width": 2960, "height": 1520})
    page.goto(f"{base}/asset-groups~{quote(SELECTION)}/")
    page.locator("foreignObject").filter(has_text="finale").first.wait_for()
    page.keyboard.press("Alt+e")  # expand all groups
    groups = page.locator("foreignObject.group")
    groups.nth(GROUPS - 1).wait_for()
    page.wait_for_timeout(4000)  # the graph is drawn, statuses arrive
    page.mouse.move(5, 5)
    boxes = [box for group in groups.all() if (box := group.bounding_box())]
    left, top = min(b["x"] for b in boxes) - 24, min(b["y"] for b in boxes) - 24
    right, bottom = max(b["x"] + b["width"] for b in boxes) + 24, max(b["y"] + b["height"] for b in boxes) + 24
    return page.screenshot(clip={"x": left, "y": top, "width": right - left, "height": bottom - top})


def match_matrix(page: Page, base: str, number: int) -> bytes:
    """Timeline, table and heat map of a round; the heat map's dialog is moved aside so that nothing is covered."""
    page.set_viewport_size({"width": MATRIX_WIDTH, "height": 1500})
    page.goto(f"{base}/assets/match_matrix?view=partitions&partition={number}")
    page.get_by_text("Hide navigation").click()
    page.get_by_text("[Show Markdown]").click()
    dialog = page.get_by_role("dialog")
    dialog.locator("img").evaluate("picture => picture.decode()")
    page.wait_for_timeout(1000)
    target = page.get_by_role("row").filter(has=page.get_by_text("heat_map", exact=True)).bounding_box()
    now = dialog.bounding_box()
    assert target
    assert now
    aside, below = MATRIX_WIDTH - 16 - now["width"] - now["x"], target["y"] + 40 - now["y"]
    dialog.evaluate(
        """(dialog, move) => {
            dialog.style.transform = `translate(${move[0]}px, ${move[1]}px)`;
            for (const cover of document.querySelectorAll('[class*=backdrop]')) cover.style.background = 'none';
        }""",
        [aside, below],
    )
    page.wait_for_timeout(500)
    return page.screenshot()


def audit(page: Page, base: str, number: int) -> bytes:
    """The first audited miner: verdict, worst prompts, pods."""
    page.set_viewport_size({"width": 1500, "height": 1500})
    page.goto(f"{base}/assets/generation_audits?view=partitions&partition={number}")
    page.get_by_role("row").filter(has_text=re.compile(r"^audit_.*\[Show Markdown\]")).first.get_by_text("Show").click()
    dialog = page.get_by_role("dialog")
    dialog.locator("img").evaluate("picture => picture.decode()")
    page.wait_for_timeout(1000)
    return dialog.screenshot()


def save(picture: bytes, name: str) -> None:
    """With a palette: a third of the bytes, and the same to the eye."""
    with Image.open(io.BytesIO(picture)) as image:
        image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(FOLDER / name, optimize=True)
    print(f"{FOLDER / name}  {(FOLDER / name).stat().st_size // 1000} kB")


def main(base: str, number: int) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("screenshots: Chromium is not installed: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGS)
        page = browser.new_page(device_scale_factor=1.4)
        save(lineage(page, base), "lineage.png")
        save(match_matrix(page, base, number), "match-matrix.png")
        save(audit(page, base, number), "audit.png")
        browser.close()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("screenshots: name the address of a running UI, for example http://127.0.0.1:3000")
    main(sys.argv[1].rstrip("/"), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
