"""The shared data sets in the formats that users have, one folder a set, for benchmarks and trials by hand.

    python benchmarks/prepare.py DATA OUT [NAME ...]

DATA is the folder of the shared sets, each with its SOURCE.md. What is in OUT already is left as it is; a set is complete or
absent. Sets that come as plain copies are decompressed and called train, valid and test.
"""

import argparse
import csv
import gzip
import io
import json
import lzma
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"sets to prepare (all): {', '.join(SETS)}")
    given = parser.parse_args()
    for name in given.names or SETS:
        if name not in SETS:
            parser.error(f"there is no set {name!r}; there are {', '.join(SETS)}")
        folder = given.out / name
        if not folder.exists():
            part = given.out / f".{name}.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            SETS[name](given.data, part)
            part.rename(folder)
        print(folder)


def text(path: Path) -> str:
    return content(path).decode()


def content(path: Path) -> bytes:
    return (lzma.open if path.suffix == ".xz" else gzip.open)(path).read()


def table(path: Path, names: list[str], rows: Iterable[Iterable[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([names, *rows])


def copies(**files: str) -> Callable[[Path, Path], None]:
    """A set that is copied: what it will be called -> where it lies."""

    def prepare(data: Path, out: Path) -> None:
        for name, source in files.items():
            path = data / source
            (out / f"{name}{Path(path.stem).suffix}").write_bytes(content(path))

    return prepare


def mr(data: Path, out: Path) -> None:
    _, *rows = [line.split("\t") for line in text(data / "mr" / "mr.tsv.gz").splitlines()]
    whole = [(words, label, fold) for label, fold, words in rows]
    table(out / "mr.csv", ["text", "label", "fold"], whole)
    for fold in range(10):
        table(out / f"train-{fold}.csv", ["text", "label"], [row[:2] for row in whole if row[2] != str(fold)])
        table(out / f"test-{fold}.csv", ["text", "label"], [row[:2] for row in whole if row[2] == str(fold)])


def sst(kind: str) -> Callable[[Path, Path], None]:
    def prepare(data: Path, out: Path) -> None:
        for name, source in {"train": "train", "valid": "dev", "test": "test"}.items():
            (out / f"{name}.tsv").write_text("label\ttext\n" + text(data / "sst" / f"{kind}.{source}.tsv.gz"))

    return prepare


def trec_questions(data: Path, out: Path) -> None:
    for name in ("train", "test"):
        rows = [line.split("\t") for line in text(data / "trec-questions" / f"{name}.tsv.gz").splitlines()]
        table(out / f"{name}.csv", ["text", "label"], [(words, coarse) for coarse, _, words in rows])


def restaurant8k(shared: Path, out: Path) -> None:
    """What the system had asked for stands before the answer: `people? 4`, where `4` alone could be a time."""
    for part in ("train", "test"):
        with (
            gzip.open(shared / f"restaurant8k/{part}.jsonl.gz", "rt") as lines,
            (out / f"{part}.jsonl").open("w") as file,
        ):
            for line in lines:
                one = json.loads(line)
                asked = "".join(f"{slot}? " for slot in one["requested"])
                labels = [[slot, begin + len(asked), end + len(asked)] for slot, begin, end in one["labels"]]
                file.write(json.dumps({"text": asked + one["text"], "labels": labels}) + "\n")


def portuguese_text(data: Path, out: Path) -> None:
    """Novels and the training sentences of lener-br, for `recurra embed train`."""
    words = [line.split(" ")[0] for line in text(data / "lener-br/train.conll.gz").split("\n")]
    (out / "lener.txt").write_text(" ".join(word or "\n" for word in words), encoding="utf-8")
    (out / "machado.txt").write_text(text(data / "machado-pt/train.txt.gz"), encoding="utf-8")


def spoken_digits(data: Path, out: Path) -> None:
    import soundfile

    for name in ("train", "test"):
        found = np.load(data / "spoken-digits" / f"{name}.npz")
        samples = np.split(found["audio"], found["offsets"][1:-1])
        for part, label, speaker, index in zip(samples, found["label"], found["speaker"], found["index"], strict=True):
            folder = out / name / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / f"{found['speakers'][speaker]}-{index}.wav", part, 8000)


def m4_hourly(data: Path, out: Path) -> None:
    seen: dict[str, int] = {}
    for name in ("train", "test"):
        rows = []
        for series, *cells in list(csv.reader(io.StringIO(text(data / "m4-hourly" / f"Hourly-{name}.csv.gz"))))[1:]:
            values = [cell for cell in cells if cell]
            begin = seen.get(series, 0)
            rows += [(series, begin + step, value) for step, value in enumerate(values, 1)]
            seen[series] = begin + len(values)
        table(out / f"{name}.csv", ["unique_id", "ds", "y"], rows)


def polyphonic_music(data: Path, out: Path) -> None:
    for folder, source in {"jsb": "JSB_Chorales", "piano-midi": "Piano_midi"}.items():
        (out / folder).mkdir()
        for name, sequences in json.loads(text(data / "polyphonic-music" / f"{source}.json.gz")).items():
            steps = [notes for sequence in sequences for notes in sequence]
            values = np.zeros((len(steps), 88), np.uint8)
            for row, notes in enumerate(steps):
                values[row, np.array(notes, int) - 21] = 1
            np.savez(out / folder / f"{name}.npz", values=values, bounds=np.cumsum([0, *map(len, sequences)]))


def mnist(data: Path, out: Path, shape: tuple[int, int] = (28, 28)) -> None:
    """A picture is a sequence of its rows, or with the shape (784, 1) of its pixels."""
    for name in ("train", "test"):
        pictures, labels = (
            np.load(io.BytesIO(content(data / "mnist" / f"{name}-{kind}.npy.xz"))) for kind in ("images", "labels")
        )
        steps = pictures.reshape(-1, *shape).astype(np.float32) / 255
        np.savez(out / f"{name}.npz", x=steps, y=labels.astype(np.int64))


def glove(data: Path, out: Path) -> None:
    (out / "words.txt").write_bytes(content(data / "glove-100d" / "words.txt.gz"))
    values = np.load(io.BytesIO(content(data / "glove-100d" / "vectors.npy.xz")))
    np.save(out / "vectors.npy", values.astype(np.float32))


def multi30k(data: Path, out: Path) -> None:
    for name, source in {"train": "train", "valid": "val", "test": "test_2016_flickr"}.items():
        for side in ("en", "de"):
            (out / f"{name}.{side}").write_bytes(content(data / "multi30k-en-de" / f"{source}.{side}.gz"))


def sgd_dialogues(data: Path, out: Path) -> None:
    """The first dialogues of the parts that are judged: 100 and 200 of them are 2,000 and 4,000 turns."""
    for name, source, count in (("train", "train", None), ("valid", "dev", 100), ("test", "test", 200)):
        lines = text(data / "sgd-dialogues" / f"{source}.jsonl.gz").splitlines(keepends=True)
        (out / f"{name}.jsonl").write_text("".join(lines[:count]), encoding="utf-8")


def nlvr_captions(data: Path, out: Path) -> None:
    """The sentences that are true of their picture; every tenth picture of the training is for validation."""
    for source in ("dev", "test"):
        shutil.copy(data / "nlvr-captions" / f"{source}-images.zip", out)
        rows = [json.loads(line) for line in text(data / "nlvr-captions" / f"{source}.jsonl.gz").splitlines()]
        rows = [(row["image"], row["sentence"]) for row in rows if row["label"] in (True, "true")]
        if source == "test":
            table(out / "test.csv", ["image", "sentence"], rows)
            continue
        held = set(sorted({image for image, _ in rows})[::10])
        table(out / "train.csv", ["image", "sentence"], [row for row in rows if row[0] not in held])
        table(out / "valid.csv", ["image", "sentence"], [row for row in rows if row[0] in held])


def emoji_captions(data: Path, out: Path) -> None:
    names, *rows = [line.split("\t") for line in text(data / "emoji-captions" / "captions.tsv.gz").splitlines()]
    features = np.load(io.BytesIO(content(data / "emoji-captions" / "effnetlite0-pooled.npy.xz")))
    split = names.index("split")
    for part in ("train", "valid", "test"):
        own = [at for at, row in enumerate(rows) if row[split] == part]
        table(out / f"{part}.csv", names, [rows[at] for at in own])
        np.save(out / f"{part}.npy", features[own])


SETS: dict[str, Callable[[Path, Path], None]] = {
    "mr": mr,
    "sst": sst("binary"),
    "sst-fine": sst("fine"),
    "trec-questions": trec_questions,
    "mtod-slots": copies(
        train="mtod-slots/es.train.tsv.gz", valid="mtod-slots/es.eval.tsv.gz", test="mtod-slots/es.test.tsv.gz"
    ),
    "lener-br": copies(train="lener-br/train.conll.gz", valid="lener-br/dev.conll.gz", test="lener-br/test.conll.gz"),
    "portuguese-text": portuguese_text,
    "restaurant8k": restaurant8k,
    "ucr": copies(
        **{
            f"{name}_{part}": f"ucr/{name}_{part}.ts.gz"
            for name in ("JapaneseVowels", "GunPoint")
            for part in ("TRAIN", "TEST")
        }
    ),
    "spoken-digits": spoken_digits,
    "ett-h1": copies(ETTh1="ett-h1/ETTh1.csv.gz"),
    "m4-hourly": m4_hourly,
    "polyphonic-music": polyphonic_music,
    "mnist": mnist,
    "mnist-pixels": partial(mnist, shape=(784, 1)),
    "tinyshakespeare": copies(input="tinyshakespeare/input.txt.gz"),
    "multi30k-en-de": multi30k,
    "tatoeba-en-es": copies(**{part: f"tatoeba-en-es/{part}.tsv.gz" for part in ("train", "valid", "test")}),
    "debian-summaries": copies(
        **{part: f"debian-descriptions/summary-en.{part}.tsv.gz" for part in ("train", "valid", "test")}
    ),
    "sgd-dialogues": sgd_dialogues,
    "nlvr-captions": nlvr_captions,
    "emoji-captions": emoji_captions,
    "glove-100d": glove,
}

if __name__ == "__main__":
    main()
