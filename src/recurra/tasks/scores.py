"""How well labels were guessed."""

import numpy as np

BINS = 10  # of the expected calibration error


def of_labels(truth: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Of one label for each example: int64 `[examples]`, -1 for one that could not be guessed, and probabilities
    `[examples, labels]`. The nats are those of the others."""
    guesses = probabilities.argmax(1)
    return {
        "accuracy": float((guesses == truth).mean()),
        "macro_f1": macro_f1(truth, guesses, probabilities.shape[1]),
        "nats": _surprise(truth, probabilities),
        "calibration_error": calibration_error(probabilities.max(1), guesses == truth),
    }


def of_several_labels(truth: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Of any number of labels for each example: 0 or 1 `[examples, labels]`, probabilities of the same shape."""
    guesses = (probabilities > 0.5).astype(np.float32)
    there = np.flatnonzero((truth > 0).any(0) | (guesses > 0).any(0))
    each = [_f1(truth[:, at] > 0, guesses[:, at] > 0) for at in there]
    return {
        "micro_f1": micro_f1(truth, guesses),
        "macro_f1": float(np.mean(each)) if each else 0.0,
        "exact": float((guesses == truth).all(1).mean()),
        "calibration_error": calibration_error(
            np.maximum(probabilities, 1 - probabilities).ravel(), (guesses == truth).ravel()
        ),
    }


def macro_f1(truth: np.ndarray, guesses: np.ndarray, labels: int) -> float:
    """The mean of the F1 of each label that occurs or is guessed."""
    there = [label for label in range(labels) if (truth == label).any() or (guesses == label).any()]
    return float(np.mean([_f1(truth == label, guesses == label) for label in there])) if there else 0.0


def micro_f1(truth: np.ndarray, guesses: np.ndarray) -> float:
    """F1 over all labels of all examples."""
    return _f1(truth.ravel() > 0, guesses.ravel() > 0)


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """The expected calibration error: over ten bins of confidence, the mean distance between the confidence and the share that
    was right, weighted by how many fall into each (Guo et al. 2017, arXiv:1706.04599)."""
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    error = 0.0
    for bin_ in range(BINS):
        inside = place == bin_
        if inside.any():
            error += inside.mean() * abs(float(confidence[inside].mean()) - float(right[inside].mean()))
    return float(error)


def confusion(truth: np.ndarray, guesses: np.ndarray, labels: int) -> list[list[int]]:
    """How often label i was guessed to be j, row i, column j; examples of an unknown label (-1) are left out."""
    truth, guesses = truth[truth >= 0], guesses[truth >= 0]
    return np.bincount(truth * labels + guesses, minlength=labels * labels).reshape(labels, labels).tolist()


def table(matrix: list[list[int]], names: list[str]) -> list[str]:
    """A confusion matrix as lines: truth down, guess across."""
    short = [name[:9] for name in names]
    head = "  truth \\ guess " + "".join(f"{name:>10}" for name in short)
    rows = (
        f"  {name:<14.14}" + "".join(f"{count:>10,}" for count in row) for name, row in zip(names, matrix, strict=True)
    )
    return [head, *rows]


def _surprise(truth: np.ndarray, probabilities: np.ndarray) -> float:
    known = np.flatnonzero(truth >= 0)
    chances = probabilities[known, truth[known]]
    return float(-np.log(np.maximum(chances, 1e-12)).mean()) if len(known) else 0.0


def _f1(truth: np.ndarray, guesses: np.ndarray) -> float:
    both, either = int((truth & guesses).sum()), int(truth.sum()) + int(guesses.sum())
    return 2 * both / either if either else 0.0
