"""JoeyNMT's recurrent model (Kreutzer, Bastings & Riezler 2019, arXiv:1907.12484) beside the same encoder-decoder of ours:
target tokens per second in training and in beam search, in turns in one process, on the texts of `recurra bench seq2seq`.

    python -m venv joey
    joey/bin/pip install -c constraints.txt torch
    joey/bin/pip install -c constraints.txt . importlib_metadata matplotlib sentencepiece subword-nmt tensorboard tqdm
    joey/bin/pip install --no-deps joeynmt==2.3.0
    OMP_NUM_THREADS=1 joey/bin/python benchmarks/joey.py --seconds 30 --threads 1

JoeyNMT 2.3.0 wants protobuf below 3.21, which is older than tensorboard of today needs, and tools for its own development: so
it is installed without what it asks for. This file is not called joeynmt.py, or it would be imported in place of JoeyNMT.

Both have the same weights, sizes and batches, and the same loss before anything is timed. JoeyNMT's own code does the rest: its
trainer's step with its AdamW (not fused), its label smoothing and its beam search. That one leaves hypotheses that have ended in
the beam and goes on until all of a row end in the same step, so it may find other texts; tokens are counted of the texts that
each side found.
"""

import argparse
import logging
from collections.abc import Callable, Sequence
from statistics import median
from types import SimpleNamespace

import torch
from joeynmt.batch import Batch
from joeynmt.builders import build_gradient_clipper, build_optimizer
from joeynmt.model import Model, build_model
from joeynmt.search import search
from joeynmt.vocabulary import Vocabulary

from recurra.bench import seq2seq
from recurra.bench.seq2seq import BEGIN, END, LENGTH_PENALTY, LIMIT, SMOOTHING, VOCABULARY, WIDTH, Found, Plain, Texts
from recurra.state import within

UNKNOWN, PAD = 0, 1  # JoeyNMT's, beside BEGIN and END


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=30.0, help="for each side of each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--smoothing", type=float, default=SMOOTHING, help="of labels, in training; without, JoeyNMT is quicker"
    )
    given = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    batches = seq2seq.made_up()
    plain, writer = (alike_halves(Plain(VOCABULARY, given.hidden)) for _ in range(2))
    seq2seq.lifelike(writer)
    ours, our_writer = seq2seq.like(plain), seq2seq.like(writer)
    joey, joeys_writer = (model_of(one) for one in (plain, writer))
    check_losses(joey, plain, batches)
    joey.loss_function = ("crossentropy", given.smoothing)
    print(f"{given.hidden} units, threads {given.threads}, torch {torch.__version__}; recurra / JoeyNMT")
    report(
        "training",
        seq2seq.updates(ours, lambda texts: seq2seq.our_loss(ours, texts, given.smoothing), batches),
        updates(joey, batches),
        given,
    )
    report(
        "beam search",
        seq2seq.searches(lambda texts: seq2seq.our_search(our_writer, texts), batches),
        seq2seq.searches(lambda texts: joeys_search(joeys_writer, texts), batches),
        given,
    )
    found = [
        (own.score, other.score)
        for texts in batches
        for own, other in zip(seq2seq.our_search(our_writer, texts), joeys_search(joeys_writer, texts), strict=True)
    ]
    better, worse = (sum(sign * (own - other) > 1e-3 for own, other in found) for sign in (1, -1))
    print(f"best texts: recurra's score is higher in {better} of {len(found)} rows and lower in {worse}")


def report(what: str, ours: Callable[[], int], joeys: Callable[[], int], given: argparse.Namespace) -> None:
    mine, theirs = seq2seq.turns([ours, joeys], given.seconds / given.rounds, given.rounds)
    ratio = median(a / b for a, b in zip(mine, theirs, strict=True))
    print(f"{what:>11}: {median(mine):,.0f} / {median(theirs):,.0f} target tokens/s   ratio {ratio:.2f}", flush=True)


def alike_halves(plain: Plain) -> Plain:
    """JoeyNMT starts both parts of the decoder's state from the same numbers."""
    with torch.no_grad():
        for one in (plain.bridge.weight, plain.bridge.bias):
            one[: len(one) // 2] = one[len(one) // 2 :]
        plain.readout.bias.zero_()  # it has none
    return plain


def model_of(plain: Plain) -> Model:
    """JoeyNMT's model with these weights."""
    vocabulary, hidden = plain.readout.weight.shape
    words = Vocabulary(
        [f"w{number}" for number in range(seq2seq.WORDS, vocabulary)],
        SimpleNamespace(
            unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>", sep_token=None, lang_tags=[],
            unk_id=UNKNOWN, pad_id=PAD, bos_id=BEGIN, eos_id=END,
        ),
    )  # fmt: skip
    part = {
        "type": "recurrent",
        "rnn_type": "lstm",
        "hidden_size": hidden,
        "num_layers": 1,
        "embeddings": {"embedding_dim": hidden},
    }
    decoder = {**part, "attention": "luong", "init_hidden": "bridge", "input_feeding": False}
    model = build_model(
        {"tied_softmax": True, "encoder": {**part, "bidirectional": True}, "decoder": decoder}, words, words
    )
    seen, own = plain.together.weight.split([2 * hidden, hidden], 1)
    weights = {
        "src_embed.lut.weight": plain.source.weight,
        "trg_embed.lut.weight": plain.target.weight,
        "decoder.output_layer.weight": plain.target.weight,
        **{f"encoder.rnn.{name}": one for name, one in plain.encoder.named_parameters()},
        **{f"decoder.rnn.{name}": one for name, one in plain.decoder.named_parameters()},
        "decoder.bridge_layer.weight": plain.bridge.weight[hidden:],
        "decoder.bridge_layer.bias": plain.bridge.bias[hidden:],
        "decoder.attention.key_layer.weight": plain.keys.weight,
        "decoder.att_vector_layer.weight": torch.cat([own, seen], 1),
        "decoder.att_vector_layer.bias": plain.together.bias,
    }
    model.load_state_dict(weights)
    model.loss_function = ("crossentropy", 0.0)
    return model


def batch_of(texts: Texts, written: bool) -> Batch:
    """As JoeyNMT's loader makes it and its trainer and its prediction sort it."""
    source = texts.source.masked_fill(~within(texts.places, texts.source.shape[1]), PAD)
    target = texts.wanted.masked_fill(~within(texts.steps, texts.wanted.shape[1]), PAD)
    target = torch.cat([texts.read[:, :1], target], 1) if written else None
    indices = torch.arange(len(source))
    return Batch(source, texts.places, None, target, None, indices, torch.device("cpu"), PAD, END, is_train=written)


def loss(model: Model, texts: Texts) -> torch.Tensor:
    """The first half of `joeynmt.training.TrainManager._train_step`, for one processor."""
    model.train()
    batch = batch_of(texts, written=True)
    batch.sort_by_src_length()
    total, *_ = model(return_type="loss", **vars(batch))
    return batch.normalize(total, normalization="tokens")


def updates(model: Model, batches: Sequence[Texts]) -> Callable[[], int]:
    optimizer = build_optimizer({"optimizer": "adamw", "learning_rate": 1e-3}, model.parameters())
    clip = build_gradient_clipper({"clip_grad_norm": 1.0, "clip_grad_val": None})

    def work() -> int:
        for texts in batches:
            loss(model, texts).backward()
            clip(parameters=model.parameters())
            optimizer.step()
            model.zero_grad()
        return sum(texts.tokens for texts in batches)

    return work


def joeys_search(model: Model, texts: Texts) -> list[Found]:
    model.eval()
    batch = batch_of(texts, written=False)
    places = batch.sort_by_src_length()
    settings = {"max_output_length": LIMIT, "beam_size": WIDTH, "beam_alpha": LENGTH_PENALTY, "return_prob": "hyp"}
    tokens, scores, _ = search(model, batch, **settings)
    rows = [[int(token) for token in row if token not in (PAD, END)] for row in tokens]
    return [Found(rows[place], float(scores[place, 0])) for place in places]


def check_losses(joey: Model, plain: Plain, batches: Sequence[Texts]) -> None:
    for texts in batches:
        theirs, wanted = loss(joey, texts).item(), seq2seq.plain_loss(plain, texts, 0.0).item()
        if not abs(theirs - wanted) < 1e-4:
            raise SystemExit(f"JoeyNMT's loss was {theirs}, wanted {wanted}")


if __name__ == "__main__":
    main()
