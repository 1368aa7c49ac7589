"""Sound files -> samples -> log mel energies, the features that speech is commonly told by."""

import io
from pathlib import Path

import numpy as np

from recurra.data.read import blocks, shown
from recurra.errors import DataError, UsageError

QUIET = 1e-10  # energies below it count as this much, so that silence has a logarithm
TOGETHER = 1024  # frames transformed at a time


def read_sound(path: Path | str) -> tuple[np.ndarray, int]:
    """The samples of a recording, float32 [time] from -1 to 1, and their rate in Hz; several channels are averaged.

    WAV, FLAC and OGG, `.gz` and `.xz` around them. Raises DataError if the file is none of these, is shorter than it says
    or holds a sample that is not finite, UsageError if soundfile is not installed.
    """
    try:
        import soundfile
    except (ImportError, OSError):
        raise UsageError(
            "recordings are read by soundfile, which is not installed: pip install 'recurra[audio]'"
        ) from None
    content = b"".join(blocks(path))
    if _cut(content):
        raise DataError(f"{shown(path)} ends before the length that it states; it was cut, get it anew")
    try:
        samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except (RuntimeError, TypeError, ValueError, MemoryError) as error:
        raise DataError(
            f"{shown(path)} is no recording that can be read ({shown(str(error))}); wanted WAV, FLAC or OGG"
        ) from error
    mono = samples.mean(1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise DataError(f"{shown(path)}: sample {int(np.argmin(np.isfinite(mono))) + 1} is not finite; record it again")
    return mono, rate


def log_mel(
    samples: np.ndarray, rate: int, *, window_ms: float = 25.0, hop_ms: float = 10.0, bands: int = 40
) -> np.ndarray:
    """Log mel energies, float32 [frames, bands], of samples [time] at `rate` Hz.

    frames = 1 + (time - window) // hop, and samples after the last whole frame do not count; fewer samples than one window
    are filled up with zeros to one frame, none give no frame. A frame is weighted with the periodic Hann window (Harris
    1978) and filled up with zeros to a power of two; the squares of the magnitudes of its discrete Fourier transform are
    summed over triangles that are equally spaced and equally wide on the mel scale between 0 and rate / 2 Hz (Davis and
    Mermelstein 1980), and the natural logarithm is taken of what is at least 1e-10. The mel scale is HTK's,
    2595 log10(1 + f / 700) (Young et al., The HTK Book, 2006, section 5.4). Raises UsageError if a triangle holds no
    frequency of the transform.
    """
    window, hop = round(rate * window_ms / 1000), round(rate * hop_ms / 1000)
    if samples.ndim != 1 or min(window, hop, bands) < 1:
        raise UsageError(
            f"samples of shape {samples.shape}, windows of {window} samples every {hop} and {bands} bands were given; "
            "wanted samples [time] and at least 1 of each"
        )
    if not len(samples):
        return np.empty((0, bands), np.float32)
    size = 1 << (window - 1).bit_length()
    weights = _triangles(rate, size, bands)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    filled = np.pad(samples, (0, max(window - len(samples), 0)))
    frames = np.lib.stride_tricks.sliding_window_view(filled, window)[::hop]
    out = np.empty((len(frames), bands), np.float32)
    for begin in range(0, len(frames), TOGETHER):
        spectrum = np.fft.rfft(frames[begin : begin + TOGETHER] * hann, size)
        energies = (spectrum.real**2 + spectrum.imag**2) @ weights
        out[begin : begin + TOGETHER] = np.log(np.maximum(energies, QUIET))
    return out


def _cut(content: bytes) -> bool:
    """Whether a WAV or OGG file ends early, of which libsndfile says nothing. A stream that was written without knowing its
    length states one near 2 GiB or more."""
    if content.startswith(b"RIFF"):
        stated = int.from_bytes(content[4:8], "little")
        return len(content) < 8 + stated < 0x7FFF0000
    page = content.rfind(b"OggS") if content.startswith(b"OggS") else -1
    if page < 0:
        return False
    head = content[page : page + 27]
    sizes = content[page + 27 : page + 27 + head[-1]]
    return len(head) < 27 or len(content) < page + 27 + head[-1] + sum(sizes)


def _triangles(rate: int, size: int, bands: int) -> np.ndarray:
    """How much each frequency of a transform of `size` counts in each band [size // 2 + 1, bands]."""
    places = _mel(np.arange(size // 2 + 1) * rate / size)[:, None]
    edges = np.linspace(0, _mel(np.array(rate / 2)), bands + 2)
    rise = (places - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - places) / (edges[2:] - edges[1:-1])
    weights = np.maximum(np.minimum(rise, fall), 0)
    empty = int((weights.sum(0) == 0).sum())
    if empty:
        raise UsageError(
            f"{empty} of {bands} bands hold no frequency of windows of {size} samples at {rate} Hz: "
            "give fewer bands or longer windows"
        )
    return weights


def _mel(hertz: np.ndarray) -> np.ndarray:
    return 2595 * np.log10(1 + hertz / 700)
