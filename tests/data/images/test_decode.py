"""Decoding of damaged, odd and hostile files: never a dead process, never memory that nobody wrote."""

import io
import os
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from ai.data.images.decode import Decoder
from ai.examples import picture_faults


def test_damaged_files_are_read_or_refused_alike_whatever_the_memory_held():
    figures = picture_faults.reproduce_damage(files=30, seed=7)
    for form in picture_faults.FORMS:  # of each format some are read, some refused
        assert 0 < figures[f"{form}_read"] < 30
    assert figures["dead_processes"] == figures["results_that_differ"] == 0


def decoded(tmp_path, image, name, mode="RGB", **options):
    image.save(tmp_path / name, **options)
    return Decoder((image.height, image.width), mode)(tmp_path / name).numpy().transpose(1, 2, 0)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("stored", ["1", "L", "LA", "P", "RGB", "RGBA", "P with alpha", "L with a clear grey"])
def test_png_of_every_kind_equals_pillows(tmp_path, stored, mode):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (7, 9, 4), np.uint8), "RGBA").convert(stored.split()[0])
    options = {"P with alpha": {"transparency": bytes(range(256))}, "L with a clear grey": {"transparency": 7}}
    ours = decoded(tmp_path, image, "a.png", mode, **options.get(stored, {}))
    theirs = Image.open(tmp_path / "a.png")
    theirs = np.asarray((theirs.convert("RGBA") if stored.startswith("P") else theirs).convert(mode))
    assert np.array_equal(ours, theirs.reshape(ours.shape))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "xmp.jpg", "magick.png"])
def test_images_are_turned_as_their_metadata_tell(tmp_path, orientation, name):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (2, 3, 3), np.uint8)).resize((24, 16), 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"exif": exif}
    if name == "xmp.jpg":
        tag = f'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}"/>'
        options = {"xmp": f'<x:xmpmeta xmlns:x="adobe:ns:meta/">{tag}</x:xmpmeta>'.encode()}
    elif name == "magick.png":
        from PIL.PngImagePlugin import PngInfo

        options = {"pnginfo": PngInfo()}
        profile = exif.tobytes()
        options["pnginfo"].add_text("Raw profile type exif", f"\nexif\n{len(profile):8}\n{profile.hex()}\n")
    image.save(tmp_path / name, **options)
    theirs = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / name)).convert("RGB"))
    if name.endswith("png"):
        assert (theirs.shape[0] == 24) == (orientation > 4)  # Pillow sees it too
    ours = Decoder(theirs.shape[:2])(tmp_path / name).numpy().transpose(1, 2, 0)
    assert np.abs(ours.astype(int) - theirs).max() <= (8 if "jp" in name else 0)


def png(width, height):
    def chunk(kind, content):
        crc = zlib.crc32(kind + content)
        return len(content).to_bytes(4, "big") + kind + content + crc.to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def enormous(form):
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, form)
    content = bytearray(small.getvalue())
    if form == "JPEG":
        at = content.index(b"\xff\xc0") + 5
        content[at : at + 4] = (20000).to_bytes(2, "big") * 2
    elif form == "BMP":
        content[18:26] = (20000).to_bytes(4, "little") * 2
    else:
        content[6:10] = (60000).to_bytes(2, "little") * 2
    return bytes(content)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "GIF"])
def test_a_few_bytes_that_declare_an_enormous_picture_are_refused(tmp_path, form):
    (tmp_path / "bomb").write_bytes(png(20000, 20000) if form == "PNG" else enormous(form))
    with pytest.raises(OSError, match=r"DecompressionBombError: Image size \(\d+ pixels\) exceeds limit"):
        Decoder((8, 8))(tmp_path / "bomb")


def test_pixels_of_unknown_range_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "f.tiff")
    with pytest.raises(OSError, match="its pixels are fractions"):
        Decoder((4, 4))(tmp_path / "f.tiff")
    Image.fromarray(np.full((4, 4), 1 << 20, np.int32)).save(tmp_path / "i.tiff")
    with pytest.raises(OSError, match="its pixels exceed 16 bits"):
        Decoder((4, 4))(tmp_path / "i.tiff")


def test_a_pipe_is_refused_without_being_opened(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(OSError, match="no regular file"):
        Decoder((4, 4))(tmp_path / "a.png")
