"""Train on a text from Python, keep the state yourself, one token at a time.

Run it with: python examples/write.py
"""

import tempfile
from pathlib import Path

import recurra

folder = Path(tempfile.mkdtemp())
(folder / "rhyme.txt").write_text("the cat sat on the mat and the rat sat on the cat\n" * 200, encoding="utf-8")
task = recurra.train("language", folder / "rhyme.txt", out=folder / "run", hidden=32, steps=150)
print("generated:", recurra.load(folder / "run").generate("the ", length=40, temperature=0.5, seed=1))

stream = task.stream()  # the model frozen; the state is a value that you keep
state = stream.initial_state()
for token in [task.tokens.end, *task.tokens.encode("the c").tolist()]:
    scores, state = stream.step(token, state)
print("after 'the c':", task.tokens.text(int(scores.argmax())))
