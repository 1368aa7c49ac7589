"""Sound: log mel energies are those of the formulas, worked out another way."""

import builtins
import gzip
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.data.sound import log_mel, read_sound
from recurra.errors import DataError, UsageError

RATE = 8000


def noise(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, length).astype(np.float32)


def slow(samples: np.ndarray, rate: int, window: int, hop: int, size: int, bands: int) -> np.ndarray:
    """The same numbers from sums over samples and frequencies, one frame, frequency and band at a time."""
    mel = lambda hertz: 2595 * math.log10(1 + hertz / 700)  # noqa: E731
    hertz = lambda mels: 700 * (10 ** (mels / 2595) - 1)  # noqa: E731
    step = mel(rate / 2) / (bands + 1)
    turn = np.exp(-2j * np.pi * np.outer(np.arange(size // 2 + 1), np.arange(window)) / size)
    rows = []
    for begin in range(0, len(samples) - window + 1, hop):
        frame = [samples[begin + n] * math.sin(math.pi * n / window) ** 2 for n in range(window)]
        power = np.abs(turn @ np.array(frame)) ** 2
        row = []
        for band in range(bands):
            low, centre, high = (hertz((band + edge) * step) for edge in range(3))
            total = 0.0
            for number, energy in enumerate(power):
                at = number * rate / size
                if low < at <= centre:
                    total += energy * (mel(at) - mel(low)) / (mel(centre) - mel(low))
                elif centre < at < high:
                    total += energy * (mel(high) - mel(at)) / (mel(high) - mel(centre))
            row.append(math.log(max(total, 1e-10)))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize(
    ("rate", "window", "hop", "size", "bands"), [(8000, 200, 80, 256, 40), (16000, 512, 99, 512, 13)]
)
def test_the_numbers_are_those_of_slow_sums(rate: int, window: int, hop: int, size: int, bands: int) -> None:
    samples = noise(window + 3 * hop + hop - 1)
    found = log_mel(samples, rate, window_ms=1000 * window / rate, hop_ms=1000 * hop / rate, bands=bands)
    assert found.dtype == np.float32
    assert found.shape == (4, bands)
    np.testing.assert_allclose(found, slow(samples, rate, window, hop, size, bands), rtol=0, atol=2e-6)


@settings(max_examples=40, deadline=None)
@given(band=st.integers(0, 39))
def test_a_tone_peaks_in_the_band_that_holds_it(band: int) -> None:
    mels = (band + 1) * 2595 * math.log10(1 + RATE / 2 / 700) / 41
    tone = np.sin(2 * np.pi * 700 * (10 ** (mels / 2595) - 1) * np.arange(4000) / RATE)
    # Four times the usual window: the transform's own steps are narrower than the lowest bands.
    assert set(log_mel(tone, RATE, window_ms=100).argmax(1)) == {band}


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), length=st.integers(1, 2000))
def test_twice_the_amplitude_is_four_times_the_energy(seed: int, length: int) -> None:
    samples = noise(length, seed)
    once, twice = log_mel(samples, RATE), log_mel(2 * samples, RATE)
    np.testing.assert_allclose((twice - once)[once > math.log(1e-9)], math.log(4), rtol=0, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), length=st.integers(280, 2000))
def test_a_shift_by_one_hop_shifts_the_frames(seed: int, length: int) -> None:
    samples = noise(length, seed)
    whole, later = log_mel(samples, RATE), log_mel(samples[80:], RATE)
    assert len(whole) == 1 + (length - 200) // 80
    np.testing.assert_allclose(later, whole[1:], rtol=0, atol=1e-5)


def test_long_recordings_are_those_of_their_parts() -> None:
    samples = noise(200 + 80 * 2500)
    whole = log_mel(samples, RATE)
    assert len(whole) == 2501
    for frame in (0, 1023, 1024, 2500):
        part = log_mel(samples[80 * frame : 80 * frame + 200], RATE)
        np.testing.assert_allclose(whole[frame], part[0], rtol=0, atol=1e-5)


def test_silence_nothing_and_too_little_have_numbers() -> None:
    np.testing.assert_allclose(log_mel(np.zeros(1000), RATE), math.log(1e-10))
    assert log_mel(np.zeros(0), RATE).shape == (0, 40)
    short = noise(50)
    np.testing.assert_array_equal(log_mel(short, RATE), log_mel(np.pad(short, (0, 150)), RATE))


def test_what_makes_no_features_is_refused() -> None:
    with pytest.raises(UsageError, match="of 400 bands hold no frequency of windows of 256 samples at 8000 Hz"):
        log_mel(noise(1000), RATE, bands=400)
    for wrong in ({"window_ms": 0}, {"hop_ms": 0.01}, {"bands": 0}):
        with pytest.raises(UsageError, match="at least 1 of each"):
            log_mel(noise(1000), RATE, **wrong)
    with pytest.raises(UsageError, match=r"shape \(10, 2\)"):
        log_mel(np.zeros((10, 2)), RATE)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.wav.gz"])
def test_a_recording_comes_out_as_it_was_written(tmp_path: Path, name: str) -> None:
    soundfile = pytest.importorskip("soundfile")
    samples = np.round(noise(500) * 32768).astype(np.int16)
    plain = tmp_path / name.removesuffix(".gz")
    soundfile.write(plain, samples, 11025)
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress(plain.read_bytes()))
    found, rate = read_sound(tmp_path / name)
    assert rate == 11025
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, samples / np.float32(32768))


def test_channels_are_averaged_and_ogg_is_near(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    left, right = np.sin(np.arange(8000) / 9), np.sin(np.arange(8000) / 14)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_sound(tmp_path / "a.wav")[0], (left + right) / 2, atol=1e-6)
    soundfile.write(tmp_path / "a.ogg", left / 2, RATE)
    assert np.abs(read_sound(tmp_path / "a.ogg")[0] - left / 2).mean() < 0.02


def test_what_is_no_recording_is_refused_by_name(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "bad.wav", np.array([0, 0, np.nan]), RATE, subtype="FLOAT")
    with pytest.raises(DataError, match=r"bad.wav: sample 3 is not finite"):
        read_sound(tmp_path / "bad.wav")
    whole = (tmp_path / "bad.wav").read_bytes()
    for content in (b"plain text", b"", whole[:20], b"OggS" + bytes(40), b"fLaC" + b"\xff" * 60):
        (tmp_path / "no.wav").write_bytes(content)
        with pytest.raises(DataError, match=r"no.wav (is no recording that can be read|ends before)"):
            read_sound(tmp_path / "no.wav")
    with pytest.raises(DataError, match=r"gone.wav cannot be read"):
        read_sound(tmp_path / "gone.wav")


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg"])
def test_a_recording_that_was_cut_is_refused_wherever_the_cut_is(tmp_path: Path, name: str) -> None:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / name, noise(20_000), RATE)
    whole = (tmp_path / name).read_bytes()
    for end in (len(whole) - 1, len(whole) // 2, 100):
        (tmp_path / name).write_bytes(whole[:end])
        with pytest.raises(DataError, match=rf"{name} (ends before|is no recording)"):
            read_sound(tmp_path / name)


def test_a_stream_that_states_no_length_is_read(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.wav", noise(500), RATE)
    whole = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(whole[:4] + b"\xff" * 4 + whole[8:])
    assert len(read_sound(tmp_path / "a.wav")[0]) == 500


def test_a_missing_soundfile_is_named_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = builtins.__import__

    def missing(name, *rest, **named):
        if name == "soundfile":
            raise ImportError(name)
        return whole(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UsageError, match=r"pip install 'recurra\[audio\]'"):
        read_sound(tmp_path / "a.wav")
