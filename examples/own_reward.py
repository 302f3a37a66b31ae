"""An own reward: words that a network learns from a book, then bends to a rule.

python examples/own_reward.py [--steps 400] [--reward-steps 60]

First a generator learns by likelihood, from the words of the bundled fables, what five letters of a
word look like. Then `Reinforce` teaches it a rule that no data says: vowels and consonants take
turns. An anchor, the pretrained generator's own log-likelihood, keeps it near English.
"""

import argparse
import copy
import re
from importlib.resources import files

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_seq import Pair, Reinforce, Rollouts, SequenceBatch, no_guide, sample, score
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions import Categorical
from pyro_seq.encoders import Embedding
from pyro_seq.models import RNN
from pyro_seq.reinforce.baselines import LeaveOneOut

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOWELS = torch.tensor([LETTERS.index(letter) for letter in "aeiou"])
LENGTH = 5
ANCHOR = 0.15  # reward for each nat of the pretrained generator


def book_words():
    """All distinct five letters in a row of a word, [N, 5]: to learn from, and held out."""
    book = (files("pyro_seq.text.data") / "fable.txt").read_text(encoding="utf-8").lower()
    words = sorted(set(re.findall(rf"(?=([a-z]{{{LENGTH}}}))", book)))
    numbers = torch.tensor([[LETTERS.index(letter) for letter in word] for word in words])
    numbers = numbers[torch.randperm(len(numbers), generator=torch.Generator().manual_seed(0))]
    return numbers[len(words) // 10 :], numbers[: len(words) // 10]


def spelled(words):
    return " ".join("".join(LETTERS[i] for i in word) for word in words.tolist())


def alternating(batch):
    """1 for each letter that is a vowel where the one before it was none, or the other way, [N]."""
    vowels = torch.isin(batch.values, VOWELS)
    return (vowels[:, 1:] != vowels[:, :-1]).float().sum(1)


def pretrain(words, steps):
    """Maximum likelihood: stock SVI with Trace_ELBO, as for any model without latents."""
    generator = RNN(Categorical(26), PreviousObservation(Embedding(26, 16)), hidden_size=48)
    svi = SVI(generator, no_guide, pyro.optim.ClippedAdam({"lr": 5e-3}), Trace_ELBO())
    for _ in range(steps):
        svi.step(SequenceBatch(words[torch.randint(len(words), (64,))]))
    return generator


def bend(generator, steps):
    """REINFORCE: each prefix is worth what its completions earn, on average (`Rollouts`)."""
    pretrained = Pair(copy.deepcopy(generator))

    def reward(batch):
        return alternating(batch) + ANCHOR * score(pretrained, batch).total

    rollouts = Rollouts(Pair(generator), reward, num_rollouts=4)
    loss = Reinforce(action_values=rollouts, baseline=LeaveOneOut(), entropy_bonus=0.05)
    svi = SVI(generator, no_guide, pyro.optim.Adam({"lr": 5e-3}), loss=loss)
    for step in range(steps):
        svi.step(SequenceBatch(None, [LENGTH] * 64))
        rollouts.follow(Pair(generator))  # the policy of the completions comes after
        if step % 20 == 0:
            print(f"  step {step}: {alternating(loss.latest.sequences).mean():.2f} of 4 turns")


def report(name, generator, held_out):
    torch.manual_seed(1)
    pair = Pair(generator)
    drawn = sample(pair, 1000, LENGTH)
    turns, nats = alternating(SequenceBatch(drawn)), -score(pair, SequenceBatch(held_out)).total
    print(
        f"{name}: {turns.mean():.2f} ± {turns.std() / len(turns) ** 0.5:.2f} of 4 turns; "
        f"held-out words {nats.mean():.2f} ± {nats.std() / len(nats) ** 0.5:.2f} nats; "
        f"{len(set(map(tuple, drawn.tolist()))) / 10:.0f} % distinct"
    )
    print("  " + spelled(drawn[:10]))


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400, help="of likelihood")
    parser.add_argument("--reward-steps", type=int, default=60)
    options = parser.parse_args(words)

    train, held_out = book_words()
    print(f"{len(train)} words to learn from: {spelled(train[:8])} …")
    pyro.set_rng_seed(0)
    generator = pretrain(train, options.steps)
    report("by likelihood", generator, held_out)
    bend(generator, options.reward_steps)
    report("by reward", generator, held_out)


if __name__ == "__main__":
    main()
