"""An encoder, attention and a decoder: numbers in figures become words, and the attention says which figure each word came from."""

import random
import tempfile
from pathlib import Path

import recurra
from recurra.tasks.looks import text_lines

TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()
ONES = "_ one two three four five six seven eight nine".split()


def spelled(number: int) -> str:
    return f"{ONES[number // 100]} hundred {TENS[number // 10 % 10]} {ONES[number % 10]}"


numbers = [n for n in range(100, 1000) if n % 10 and n // 10 % 10 > 1]
random.Random(0).shuffle(numbers)

with tempfile.TemporaryDirectory() as folder:
    data = Path(folder) / "numbers.tsv"
    data.write_text("figures\twords\n" + "".join(f"{number}\t{spelled(number)}\n" for number in numbers[50:]))
    settings = {
        "data": {"text": "figures", "label": "words"},
        "task": {"vocabulary": "separate"},
        "optimizer": {"rate": 1e-2, "warmup": 10},
        "train": {"rows": 32, "validations": 3},
    }
    task = recurra.train("seq2seq", data, out=Path(folder) / "run", hidden=48, steps=150, settings=settings)

right = sum(task.predict(str(number))["written"] == spelled(number) for number in numbers[:50])
print(f"{right} of 50 numbers that it has not seen are right")
answer = next(task.answers([str(numbers[0])], best=1, search=task.search(look=True)))
print(f"{answer['about']}: {answer['written']}")
print("\n".join(text_lines(answer["look"])[:12]))
