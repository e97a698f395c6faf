"""What becomes of what shows through. Knows nothing of files or sizes."""

from __future__ import annotations

from PIL import Image

from textual_inversion.pictures.colours import on_colour


def settle(image: Image.Image, transparency: str, background: str) -> Image.Image:
    """RGB with what shows through laid on `background`; with `weight`, the alpha stays and says later how much each place counts."""
    return image if transparency == "weight" else on_colour(image, background)
