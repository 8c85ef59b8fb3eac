"""What a folder of damaged and odd pictures does: never a dead process, never pixels that nobody wrote.

Run: `python -m ai.examples.reproduce picture-damage`, and with a checkout of Pillow
`python -m ai.examples.reproduce picture-table --folder Pillow/Tests/images`.
"""

import hashlib
import io
import os
import subprocess
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

# Format, and the mode that it is read in.
FORMS = {"PNG": "RGBA", "JPEG": "RGB", "GIF": "RGB", "WEBP": "RGB", "TIFF": "L", "BMP": "RGB"}
_RUN = "import sys; from ai.examples.picture_faults import _damage; _damage(int(sys.argv[1]), int(sys.argv[2]))"
# Two fills of the memory that is given out: pixels that nobody wrote differ between them.
_FILLS = ("85", "170")
_TIMEOUT_S = 3600
_CLOSE = 8  # levels of 255 that a JPEG may be off: another decoder's rounding


def reproduce_damage(*, files: int = 2000, seed: int = 0) -> dict[str, float]:
    """Damages `files` pictures of each format, reads each in two processes, and compares what they made of it.

    Raises:
        subprocess.TimeoutExpired: a process hangs.
    """
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", _RUN, str(files), str(seed)],
            env={**os.environ, "MALLOC_PERTURB_": fill, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what the C libraries say of each file
            text=True,
        )
        for fill in _FILLS
    ]
    try:
        first, second = (run.communicate(timeout=_TIMEOUT_S)[0].splitlines() for run in runs)
    finally:
        for run in runs:
            run.kill()
    figures = {"files_of_each": files, "dead_processes": sum(run.returncode != 0 for run in runs)}
    figures["results_that_differ"] = sum(a != b for a, b in zip(first, second, strict=False))
    for line in first:
        form, _digest, n_read = line.split()
        figures[f"{form}_read"] = int(n_read)
    return figures


def reproduce_table(*, folder: str = "Pillow/Tests/images", page: str | None = None, seed: int = 0) -> dict[str, float]:
    """Reads every picture of `folder` at its own size, by `ai.data` and by Pillow, and says where they differ.

    Args:
        folder: `Tests/images` of a checkout of Pillow.
        page: a Markdown file that is written, `docs/results/pictures.md` in a checkout.
        seed: of nothing: no number is drawn.
    """
    from ai.data.images.folder import find_images

    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"folder must be Tests/images of a checkout of Pillow, {folder} is no folder")
    found = find_images(root).files
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    reasons: dict[str, list[str]] = defaultdict(list)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in found:
            outcome, reason = _compared(root / name)
            outcomes[name.rpartition(".")[2].lower()][outcome] += 1
            if reason:
                reasons[f"{outcome}: {reason}"].append(name)
    table = _table(outcomes, reasons)
    print(table)
    if page is not None:
        Path(page).write_text(_PAGE + table, encoding="utf-8")
    total = sum(outcomes.values(), Counter())
    return {"pictures": len(found), **{kind.replace(" ", "_"): total[kind] for kind in _KINDS}}


_PAGE = (
    "# Odd pictures\n\n"
    "The test pictures of Pillow, most of them odd, broken or hostile on purpose, each read at its own size by "
    "`ImgDataset`'s decoder and by Pillow, as RGB. `equal` is to the byte; `close` a JPEG within 8 of 255; `upright` "
    "equal to Pillow's picture once that is turned as its metadata tell, which `ai.data` does by itself. Files of "
    "other endings do not count as pictures.\n\n"
    "`python -m ai.examples.reproduce picture-table --folder Pillow/Tests/images --page docs/results/pictures.md` "
    "makes this page.\n\n"
)
_KINDS = ("equal", "close", "upright", "refused by both", "refused here", "refused by Pillow", "different")


def _compared(path: Path) -> tuple[str, str]:
    """Returns how one picture came out, and why, where it is not equal to Pillow's."""
    from PIL import Image, ImageOps

    from ai.data.images.decode import Decoder

    theirs, upright = None, None
    try:
        with Image.open(path) as image:
            image.load()
            # Pillow asks for this way where a palette has clear colours.
            whole = image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image
            theirs = np.asarray(whole.convert("RGB"))
            upright = np.asarray(ImageOps.exif_transpose(whole).convert("RGB"))
            size, mode = image.size, image.mode
        failure = ""
    except Exception as error:  # whatever a plugin raises
        failure = type(error).__name__
        size, mode = (16, 16), ""
    shape = size[::-1] if upright is None else upright.shape[:2]
    try:
        ours = Decoder(shape)(path).numpy().transpose(1, 2, 0)
    except OSError as error:
        if theirs is None:
            return "refused by both", ""
        return "refused here", str(error).partition(",")[0].replace(str(path), path.name)
    if theirs is None or upright is None:
        return "refused by Pillow", failure
    apart = int(np.abs(ours.astype(int) - upright).max(initial=0))
    if apart == 0:
        return ("equal", "") if theirs.shape == upright.shape and np.array_equal(theirs, upright) else ("upright", "")
    if apart <= _CLOSE and path.suffix.lower() in (".jpg", ".jpeg", ".mpo"):
        return "close", ""
    return "different", _difference(mode, apart)


def _difference(mode: str, apart: int) -> str:
    if mode.startswith("I"):
        return "16 bits, of which the high byte is taken and Pillow cuts off at 255"
    return f"mode {mode}, up to {apart} of 255"


def _table(outcomes: dict[str, Counter[str]], reasons: dict[str, list[str]]) -> str:
    lines = [f"| ending | pictures | {' | '.join(_KINDS)} |", f"|---|---|{'---|' * len(_KINDS)}"]
    for ending in sorted(outcomes, key=lambda ending: (-outcomes[ending].total(), ending)):
        counts = outcomes[ending]
        lines.append(f"| {ending} | {counts.total()} | {' | '.join(str(counts[kind] or '') for kind in _KINDS)} |")
    total = sum(outcomes.values(), Counter())
    lines.append(f"| all | {total.total()} | {' | '.join(str(total[kind]) for kind in _KINDS)} |")
    lines += ["", "| what and why | pictures | such as |", "|---|---|---|"]
    for reason, names in sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0])):
        lines.append(f"| {reason} | {len(names)} | {', '.join(f'`{name}`' for name in names[:3])} |")
    return "\n".join(lines) + "\n"


def _damage(n_files: int, seed: int) -> None:
    """Runs in a process of its own: damages files of each format and prints a hash of all outcomes."""
    from PIL import Image

    from ai.data.images.decode import Decoder

    warnings.simplefilter("ignore")
    rng = np.random.default_rng(seed)
    picture = Image.fromarray(rng.integers(0, 256, (6, 5, 4), np.uint8), "RGBA").resize((40, 30), 3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "damaged")
        for form, mode in FORMS.items():
            whole = io.BytesIO()
            stored = picture.convert("P" if form in ("PNG", "GIF") else "RGB")
            stored.save(whole, form, **({"transparency": 3} if form == "PNG" else {}))
            digest, n_read = hashlib.sha256(), 0
            for number in range(n_files):
                path.write_bytes(_damaged(whole.getvalue(), number, rng))
                try:
                    digest.update(Decoder((16, 16), mode)(path).numpy().tobytes())  # type: ignore[arg-type]
                    n_read += 1
                except OSError:
                    digest.update(b"refused")
            print(form, digest.hexdigest(), n_read, flush=True)


def _damaged(content: bytes, number: int, rng: np.random.Generator) -> bytes:
    """Returns the file with one bit turned, eight bytes drawn anew, its end cut off, or a piece taken out."""
    damaged = bytearray(content)
    at = int(rng.integers(len(damaged)))
    if number % 4 == 0:
        damaged[at] ^= 1 << int(rng.integers(8))
    elif number % 4 == 1:
        damaged[at : at + 8] = rng.bytes(8)
    elif number % 4 == 2:
        del damaged[at:]
    else:
        del damaged[at : at + int(rng.integers(1, 9))]
    return bytes(damaged)
