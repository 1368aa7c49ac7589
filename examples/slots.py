"""Slot filling: the same city is where one arrives or where one leaves from, by what stands before it."""

import random
import tempfile
from pathlib import Path

import recurra

some, lines = random.Random(0), []
for number in range(120):
    verb, kind = [("arrive at", "destination"), ("leave", "origin")][number % 2]
    city = some.choice([["Recife"], ["Natal"], ["Porto", "Alegre"], ["São", "Paulo"]])
    day = str(some.randint(1, 28))
    tags = ["O"] * len(verb.split()) + [f"B-{kind}"] + [f"I-{kind}"] * (len(city) - 1) + ["O", "B-date", "I-date"]
    lines.append(f"{verb.split()[0]}\t{verb} {' '.join(city)} on {day} November\t{' '.join(tags)}")

with tempfile.TemporaryDirectory() as folder:
    data = Path(folder) / "trips.tsv"  # intent, words, tags
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {"optimizer": {"rate": 1e-2, "warmup": 10}, "train": {"rows": 8, "validations": 4}}
    task = recurra.train("tag", data, out=Path(folder) / "run", hidden=24, steps=120, settings=settings)

for text in ("arrive at Recife on 2 November", "leave Recife on 2 November", "leave São Paulo on 31 November"):
    answer = task.predict(text)
    spans = ", ".join(f"{span['kind']} {span['text']!r}" for span in answer["spans"])
    print(f"{text}: {answer['intent']}; {spans}")
