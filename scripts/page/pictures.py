"""Pictures of the page, in few colours so that they are small."""

from io import BytesIO
from pathlib import Path

from PIL import Image

from scripts.page.browser import chromium

ROOT = Path(__file__).parents[2]
PAGES, TARGET = ROOT / ".venv-page" / "pages", ROOT / "onnxpart" / "page"
PICTURES = {"lenet": (1040, 640), "resnet50": (1280, 760), "gpt": (1280, 760), "unet": (1280, 760)}
"""Name of the example: width and height."""
COLOURS = 48


def main() -> None:
    """Write the pictures into the package's folder."""
    with chromium() as browser:
        for name, (width, height) in PICTURES.items():
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
            page.goto((PAGES / f"{name}.html").as_uri())
            page.wait_for_selector(".card")
            image = Image.open(BytesIO(page.screenshot())).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
            image.save(TARGET / f"{name}.png", optimize=True)
            page.close()


if __name__ == "__main__":
    main()
