"""A stochastic recurrent network (SRNN) of polyphonic music, without the program for music.

python examples/srnn_polyphonic.py [--data jsb_chorales.npz] [--steps 300] [--sound sample.wav]

Frames are 88 keys, on or off. The data are the arrays of Boulanger-Lewandowski et al. (2012) as an
`.npz`, or else the dozen tunes that come with the package. The model is Fraccaro et al.'s (2016,
arXiv 1605.07571): d_t = GRU(d_{t-1}, x_{t-1}), z_t given d_t and z_{t-1}, x_t given d_t and z_t;
its guide reads backwards. Figures are nats a frame, of the kinds (a) and (b) of the literature.
"""

import argparse
from importlib.resources import files
from pathlib import Path

import torch

from pyro_seq import Pair, SequenceBatch, Trainer, TrainingSettings, sample, score
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions import Bernoulli, Factorised
from pyro_seq.encoders import Flatten, MLPEncoder, Sequential
from pyro_seq.guides import SRNNGuide
from pyro_seq.models import SRNN
from pyro_seq.music import music_settings, read_music, read_polyphonic
from pyro_seq.music.data.piano_rolls import Timing
from pyro_seq.music.render.samples import Rendered
from pyro_seq.train import Hooks, PieceBatches

KEYS, WINDOW = 88, 64


def pieces_of(path):
    """Rolls [T, 88] of 0 and 1 by split: train, valid and test."""
    if path is not None:
        found = read_polyphonic(path)
    else:
        demo = Path(str(files("pyro_seq.music.data") / "demo"))
        rolls = read_music([demo], "train", music_settings({"rolls.grid": 2}).rolls).pieces
        found = {"train": rolls[:8], "valid": rolls[8:10], "test": rolls[10:]}
    return {split: [roll.float() for roll in rolls] for split, rolls in found.items()}


def new_pair():
    """The parts and the pair: an encoder of a frame for the model, and another for the guide."""

    def encoder():
        return Sequential(Flatten(KEYS), MLPEncoder(KEYS, (32,)))

    model = SRNN(
        Factorised(Bernoulli(), KEYS),
        PreviousObservation(encoder()),
        hidden_size=64,
        latent_size=16,
    )
    return Pair(model, SRNNGuide(model, encoder(), hidden_size=64))


def nats_per_frame(pair, pieces, **options):
    """The nats of all frames over their number, and the error over pieces."""
    batch = SequenceBatch.from_sequences(pieces)
    found = score(pair, batch, **options)
    nats, frames = -found.total, batch.lengths
    mean = float(nats.sum() / frames.sum())
    spread = (nats - mean * frames).std() * len(nats) ** 0.5 / frames.sum()
    return mean, float(spread)


def independent_keys(train, test):
    """The same of keys that sound as often as in training, whatever went before."""
    often = torch.cat(train).mean(0).clamp(1e-3, 1 - 1e-3)
    frames = torch.cat(test)
    return -float((frames * often.log() + (1 - frames) * (-often).log1p()).sum(1).mean())


def learn(pieces, steps):
    torch.manual_seed(0)
    pair = new_pair()
    settings = TrainingSettings(
        num_steps=steps,
        learning_rate=5e-3,
        kl_schedule="linear",
        kl_steps=max(1, steps // 3),
        valid_every=max(1, steps // 4),
        precision="float32",
    )

    def validate():  # which weights are best, and how training goes
        return {"loss": nats_per_frame(pair, pieces["valid"], method="elbo", samples=4)[0]}

    batches = PieceBatches(pieces["train"], batch_size=16, window=WINDOW, transpose=3)
    Trainer(pair, batches, settings, hooks=Hooks(validate=validate, units="frames")).fit()
    return pair


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="an .npz of train, valid and test rolls")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--sound", type=Path, help="where to write eight seconds of a sample")
    options = parser.parse_args(words)

    pieces = pieces_of(options.data)
    print({split: len(rolls) for split, rolls in pieces.items()}, "pieces")
    pair = learn(pieces, options.steps)

    torch.manual_seed(0)
    test = [part for roll in pieces["test"] for part in roll.split(WINDOW)]
    print(f"independent keys: {independent_keys(pieces['train'], test):.2f} nats a frame")
    for kind, method in (("b, the bound", "elbo"), ("a, importance-weighted", "importance")):
        mean, error = nats_per_frame(pair, test, method=method, samples=24)
        print(f"SRNN ({kind}): {mean:.2f} ± {error:.2f} nats a frame")

    roll = sample(pair, 1, 32)[0]
    print(
        f"a sample sounds {roll.sum(1).mean():.1f} keys at once, music of the test "
        f"{torch.cat(test).sum(1).mean():.1f}"
    )
    if options.sound:
        options.sound.write_bytes(Rendered(roll, Timing(rate=4.0)).wav())


if __name__ == "__main__":
    main()
