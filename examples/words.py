"""How words become numbers: one-hot, bag of words, n-grams, and vectors, with what each of them loses."""

from collections import Counter
from itertools import product

import numpy as np

from recurra.embed.vectors import Vectors

# One-hot: every word is as far from every other one.
words = ["king", "queen", "cat"]
one_hot = np.eye(3)
distances = {
    f"{a}-{b}": float(np.linalg.norm(one_hot[i] - one_hot[j]))
    for i, a in enumerate(words)
    for j, b in enumerate(words)
    if i < j
}
print("one-hot distances:", {pair: round(distance, 2) for pair, distance in distances.items()})

# A bag of words forgets the order, and with it what was not cooked.
one = "the chicken crossed the road because it was not cooked"
other = "the chicken was cooked because it crossed not the road"
print(f"the same bag: {Counter(one.split()) == Counter(other.split())}\n   {one}\n   {other}")

# n-grams keep some of the order, and there are more and more of them.
people, doings, places = (
    ["king", "queen", "man", "woman"],
    ["rules", "walks", "sleeps", "sings"],
    ["here", "there", "at home"],
)
facts = {"king": "rules he", "queen": "rules she", "man": "works he", "woman": "works she"}
text = [f"the {who} {does} {where} and the {who} {facts[who]}" for who, does, where in product(people, doings, places)]
for n in range(1, 6):
    grams = {tuple(line.split()[at : at + n]) for line in text for at in range(len(line.split()) - n + 1)}
    print(f"{n}-grams in {len(text)} sentences: {len(grams)}")

# Vectors: how often each word stands near each other one, in few numbers. Like words come to lie near each other, and
# differences between them mean something. (`recurra embed train` learns them from real text.)
vocabulary = sorted({word for line in text for word in line.split()})
near = np.zeros((len(vocabulary), len(vocabulary)))
for line in text:
    places_of = [vocabulary.index(word) for word in line.split()]
    for at, word in enumerate(places_of):
        for by in places_of[max(0, at - 2) : at] + places_of[at + 1 : at + 3]:
            near[word, by] += 1
chance = near.sum(1, keepdims=True) * near.sum(0) / near.sum()
left, spread, _ = np.linalg.svd(np.log1p(near / chance))
vectors = Vectors(vocabulary, (left[:, :8] * spread[:8]).astype(np.float32))
print("near king:", ", ".join(f"{word} {value:.2f}" for word, value in vectors.near("king", 3)))
print("king - man + woman:", vectors.analogy(["king", "woman"], ["man"], 1)[0].word)
