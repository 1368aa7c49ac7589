"""Word vectors: what a training on books comes to, what published ones come to, and how fast files are read.

    python benchmarks/words.py DATA [--train] > benchmarks/words.md

DATA is a folder with books-en/books.txt.xz, glove-100d and word-similarity. gensim (`pip install 'recurra[embed]'`) trains, and
reads the same files for comparison. The training (`--train`) takes some minutes.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from recurra.embed.evaluate import evaluate
from recurra.embed.vectors import Vectors, load

READ = """
import sys, time
began = time.perf_counter()
if sys.argv[1] == "recurra":
    from recurra.embed.vectors import load
    ready = time.perf_counter()
    found = load(sys.argv[2], only=sys.argv[3].split(",") if len(sys.argv) > 3 else None)
else:
    from gensim.models import KeyedVectors
    ready = time.perf_counter()
    found = KeyedVectors.load_word2vec_format(sys.argv[2], binary=sys.argv[2].endswith(".bin"))
seconds = time.perf_counter() - ready
most = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(seconds, int(most.split()[1]) / 1024, len(found))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--train", action="store_true")
    given = parser.parse_args()
    judged = [
        given.data / "word-similarity" / name
        for name in ("questions-words.txt.gz", "wordsim353.tsv.gz", "simlex999.txt.gz")
    ]
    print("# Word vectors\n\nMade by `benchmarks/words.py`.")
    print("\n## Published: GloVe, 100 numbers, 20,143 words\n")
    report(load(given.data / "glove-100d"), judged)
    if given.train:
        books(given.data / "books-en" / "books.txt.xz", judged)
    reading()


def report(vectors: Vectors, judged: list[Path]) -> None:
    line(["test", "score", "asked", "given"])
    line(["---"] * 4)
    for path in judged:
        found = evaluate(vectors, path)
        score = f"{found['accuracy']:.1%} right" if "accuracy" in found else f"Spearman {found['spearman']:.3f}"
        line([path.name, score, f"{found['asked']:,}", f"{found['given']:,}"])
    answers = vectors.analogy(["king", "woman"], ["man"], 3)
    print("\nking - man + woman: " + ", ".join(f"{one.word} {one.value:.2f}" for one in answers))


def books(text: Path, judged: list[Path]) -> None:
    from recurra.embed.train import train

    print("\n## Learnt: skip-gram on books, 100 numbers, window 5, 10 negative, 8 passes, words that occur 10 times\n")
    began = time.perf_counter()
    vectors = train([text], size=100, window=5, negative=10, epochs=8, least=10, seed=1)
    seconds = time.perf_counter() - began
    report(vectors, judged)
    print(f"\n{len(vectors):,} words, {seconds:.0f} s on all cores.")


def reading(words: int = 100_000, size: int = 100) -> None:
    """Random vectors as word2vec writes them, read by each side in a process of its own, in turns."""
    values = np.random.default_rng(0).normal(size=(words, size)).astype(np.float32)
    print(f"\n## Reading {words:,} words of {size} numbers: median of three, in turns\n")
    line(["file", "MB", "recurra", "memory", "gensim", "memory", "ratio", "recurra, three words of it", "memory"])
    line(["---"] * 9)
    with tempfile.TemporaryDirectory() as folder:
        text, binary = Path(folder) / "vectors.txt", Path(folder) / "vectors.bin"
        with text.open("w") as file:
            file.write(f"{words} {size}\n")
            for number, row in enumerate(values):
                file.write(f"word{number} {' '.join(f'{x:.6f}' for x in row)}" + chr(10))
        with binary.open("wb") as file:
            file.write(f"{words} {size}".encode() + b"\n")
            for number, row in enumerate(values):
                file.write(f"word{number} ".encode() + row.tobytes() + b"\n")
        own = Path(folder) / "vectors"
        load(binary).save(own)
        for path in (text, binary, own):
            rounds = [
                [one_read(side, path) for side in ("recurra", "gensim") if path != own or side == "recurra"]
                for _ in range(3)
            ]
            some = [one_read("recurra", path, "word7,word70000,word99999") for _ in range(3)]
            bytes_of = sum(part.stat().st_size for part in ([path] if path.is_file() else path.iterdir()))
            cells = [path.name, f"{bytes_of / 1e6:.0f}"]
            middle = [
                [median(each[side][what] for each in rounds) for what in (0, 1)] for side in range(len(rounds[0]))
            ]
            for seconds, memory in middle:
                cells += [f"{seconds:.3f} s", f"{memory:.0f} MB"]
            cells += ["", "", ""] if len(middle) == 1 else [f"{middle[1][0] / middle[0][0]:.1f}"]
            line([*cells, f"{median(each[0] for each in some):.3f} s", f"{median(each[1] for each in some):.0f} MB"])


def one_read(side: str, path: Path, *only: str) -> tuple[float, float]:
    """Seconds, and the largest memory of the process in MiB, Python and imports included."""
    done = subprocess.run([sys.executable, "-c", READ, side, path, *only], capture_output=True, text=True, check=True)
    seconds, memory, _ = map(float, done.stdout.split())
    return seconds, memory


def line(cells: list[str]) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
