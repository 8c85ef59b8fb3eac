import io
import wave

import numpy as np
import pytest
import torch
from PIL import Image

from ai.lab import Audio, Trial, Video

HOW = {"system_interval_s": None, "capture": False}


@pytest.mark.parametrize("samples", [[0.0, 1.0, -1.0, 2.0], torch.tensor([0.0, 1.0, -1.0, 2.0], requires_grad=True)])
def test_a_sound_is_a_wave_file_of_16_bits(samples):
    values = np.array(samples) if isinstance(samples, list) else samples
    suffix, data = Audio(values, 8000).to_file()
    with wave.open(io.BytesIO(data)) as file:
        assert (suffix, file.getparams()[:4]) == (".wav", (1, 2, 8000, 4))
        assert np.frombuffer(file.readframes(4), "<i2").tolist() == [0, 32767, -32767, 32767]


def test_channels_are_woven_sample_by_sample():
    _, data = Audio(np.array([[1, 2, 3], [4, 5, 6]], np.int16), 10).to_file()
    with wave.open(io.BytesIO(data)) as file:
        assert np.frombuffer(file.readframes(3), "<i2").tolist() == [1, 4, 2, 5, 3, 6]


@pytest.mark.parametrize("layout", ["HWC", "CHW"])
def test_a_video_has_its_frames_in_order_at_its_pace(layout):
    frames = np.zeros((3, 8, 6, 3), np.uint8)
    for index in range(3):
        frames[index, ..., index] = 255
    given = frames if layout == "HWC" else frames.transpose(0, 3, 1, 2)
    suffix, data = Video(given, fps=20, layout=layout).to_file()
    with Image.open(io.BytesIO(data)) as video:
        assert (suffix, video.size, video.n_frames) == (".webp", (6, 8), 3)
        for index in range(3):
            video.seek(index)
            video.load()
            assert video.info["duration"] == 50
            assert np.asarray(video.convert("RGB"))[4, 3].argmax() == index


def test_a_single_pixel_is_a_video_too():
    _, data = Video(np.full((2, 1, 1), 255, np.uint8)).to_file()
    with Image.open(io.BytesIO(data)) as video:
        assert video.size == (1, 1)


def test_files_are_kept_as_they_are_and_found_by_name(tmp_path):
    (tmp_path / "game.MP4").write_bytes(b"a film")
    (tmp_path / "page.svg").write_bytes(b"<svg onload='x'/>")
    with Trial(tmp_path / "t", **HOW) as trial:
        trial.keep(3, "game", tmp_path / "game.MP4")
        trial.keep(3, "voice", Audio(np.zeros(4), 8000))
        with pytest.raises(ValueError, match=r"a file to keep must be of \.png, .*\.webm, got 'page\.svg'"):
            trial.keep(3, "page", tmp_path / "page.svg")
        with pytest.raises(FileNotFoundError):
            trial.keep(3, "none", tmp_path / "none.png")
    kept = {name: [path.name for path in steps.values()] for name, steps in trial.record.media().items()}
    assert kept == {"game": ["game.mp4"], "voice": ["voice.wav"]}
    assert trial.record.media()["game"][3].read_bytes() == b"a film"


@pytest.mark.parametrize(("value", "kind", "said"), [
    (Audio(np.zeros((9, 4)), 1), ValueError, r"at most 8 channels, got shape \(9, 4\)"),
    (Audio(np.zeros(4), 0), ValueError, "rate must be a whole number from 1 .*, got 0"),
    (Audio(np.zeros(4), 8000.5), ValueError, "rate must be a whole number from 1 .*, got 8000.5"),
    (Audio(np.zeros(4), float("nan")), ValueError, "rate must be a whole number from 1 .*, got nan"),
    (Video(np.zeros((1, 20000, 8), np.uint8)), ValueError, r"at most 16383 pixels wide and high, got \(20000, 8\)"),
    (Audio(np.array([np.nan]), 1), ValueError, "samples must be finite"),
    (Audio(np.zeros(4, np.uint8), 1), TypeError, "floating point in .* or int16, got uint8"),
    (Video(np.zeros((2, 2), np.uint8)), ValueError, r"frames must be 1 to 2000 images, got shape \(2, 2\)"),
    (Video(np.zeros((0, 2, 2), np.uint8)), ValueError, "frames must be 1 to 2000"),
    (Video(np.zeros((1, 2, 2), np.uint8), fps=0), ValueError, "fps must be above 0 and at most 1000, got 0"),
    (Video(np.zeros((1, 2, 2), np.int32)), TypeError, "got int32"),
])  # fmt: skip
def test_what_is_no_sound_or_video_is_refused_and_nothing_is_kept(tmp_path, value, kind, said):
    with Trial(tmp_path / "t", **HOW) as trial:
        with pytest.raises(kind, match=said):
            trial.keep(1, "x", value)
    assert trial.record.media() == {}
