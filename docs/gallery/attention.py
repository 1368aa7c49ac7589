"""Where a network looks while it translates: adjectives change places between Spanish and English.

Run it with: python docs/gallery/attention.py [PAIRS.tsv "one sentence"]     a table of sentences, source and target, of your own
"""

import itertools
import sys
import tempfile
from pathlib import Path

import recurra
from recurra import probe
from recurra.probe.figures import Section, attention_section, text_section

NOUNS = {"casa": "house", "mesa": "table", "puerta": "door", "flor": "flower", "silla": "chair", "camisa": "shirt"}
ADJECTIVES = {
    "roja": "red",
    "blanca": "white",
    "pequeña": "small",
    "vieja": "old",
    "bonita": "pretty",
    "negra": "black",
}
VERBS = {"veo": "i see", "quiero": "i want", "tengo": "i have", "vendo": "i sell"}
FORMULA = """\
e_tj = score(s_t, h_j)      a_tj = softmax_j(e_tj)      c_t = sum over j of a_tj h_j

entropy of a look   H_t = - sum over j of a_tj log2 a_tj
coverage of a word  sum over t of a_tj"""


def pairs() -> list[tuple[str, str]]:
    """Every sentence of the little grammar, with its translation."""
    return [
        (f"{verb} la {noun} {adjective}", f"{says} the {ADJECTIVES[adjective]} {NOUNS[noun]}")
        for (verb, says), noun, adjective in itertools.product(VERBS.items(), NOUNS, ADJECTIVES)
    ]


def sections(table: Path | None = None, sentence: str = "tengo la flor blanca") -> list[Section]:
    """The look of one sentence that was not among those learnt."""
    folder = Path(tempfile.mkdtemp())
    if table is None:
        table = folder / "pairs.tsv"
        rows = [f"{source}\t{target}" for source, target in pairs() if source != sentence]
        table.write_text("\n".join(["source\ttarget", *rows]) + "\n", encoding="utf-8")
    settings = {"tokens": {"kind": "words"}, "task": {"attention": "general"}, "model": {"dropout": 0.2}}
    task = recurra.train(
        "seq2seq", table, out=folder / "run", hidden=48, steps=250, seed=1, threads=1, settings=settings
    )
    look = next(iter(task.answers([sentence], 1, task.search(look=True))))["look"]
    found = probe.attention(look.weights)
    said = f"{sentence}  ->  {' '.join(word for word in look.written[:-1])}"
    return [
        text_section("Attention on a translated sentence", [FORMULA, "", said]),
        attention_section(found, look.source, look.written),
    ]


if __name__ == "__main__":
    made = sections(Path(sys.argv[1]), sys.argv[2]) if len(sys.argv) > 2 else sections()
    print("\n".join([*made[0].words, *(word for one in made for word in one.words)]))
