"""The table of odd pictures: what counts as what."""

import numpy as np
from PIL import Image

from ai.examples import picture_faults


def test_the_table_tells_what_differs_and_why(tmp_path, capsys):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (12, 8, 3), np.uint8))
    picture.save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    Image.fromarray(rng.integers(0, 65536, (6, 6)).astype(np.uint16)).save(tmp_path / "deep.tif")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "f.tif")
    page = tmp_path / "page.md"
    figures = picture_faults.reproduce_table(folder=str(tmp_path), page=str(page))
    counts = {"equal": 1, "upright": 1, "refused_by_both": 1, "refused_here": 1, "different": 1}
    assert figures == {"pictures": 5, "close": 0, "refused_by_Pillow": 0, **counts}
    assert "| different: 16 bits, of which the high byte is taken and Pillow cuts off at 255 | 1 | `deep.tif` |" in (
        page.read_text()
    )
    assert "| png | 3 | 1 |  | 1 | 1 |  |  |  |" in capsys.readouterr().out
