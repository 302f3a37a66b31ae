"""Train the discriminator in epochs over equally many real and generated sequences."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pyro_seq._rng import describe_generator_state, generator, generator_state, load_generator_state
from pyro_seq._schema import Fields, Kind
from pyro_seq.errors import UserError
from pyro_seq.seqgan.adversary.discriminators import Discriminator, check_symbols
from pyro_seq.seqgan.settings import DiscriminatorSettings
from pyro_seq.train.optimizer import JointOptimiser, NonFiniteValue

ADVICE = "a lower discriminator.learning_rate may help"


class DiscriminatorFigures(NamedTuple):
    """Means over an epoch, of sequences as they were judged in training.

    They are judged with dropout, and before the step that they take part in.

    Attributes:
        loss: binary cross entropy in nats, without the penalty; log 2 = 0.69 for one who cannot
            tell.
        accuracy: the share of sequences that are told right.
        real_probability: of D(x) of real sequences.
        generated_probability: of D(x) of generated ones.
    """

    loss: float
    accuracy: float
    real_probability: float
    generated_probability: float


class DiscriminatorTraining:
    """Train a discriminator by binary cross entropy (SeqGAN, arXiv 1609.05473, eq. 5).

    A minibatch minimises its mean of -log D(x) over real and -log(1 - D(x)) over generated
    sequences, plus l2/2 (|w|² + b²) of the output layer, by Adam. Equal seeds give equal epochs;
    dropout draws from torch's own generator, whose state is the caller's to keep
    (`random_state.random_state`).

    Args:
        discriminator: to be trained, where it lies.
        learning_rate: Adam's.
        batch_size: sequences of a minibatch at most, half of them real on average.
        l2: the penalty on the output layer. SeqGAN's authors have 0.2 on both columns of a softmax
            over two; these are w/2 and -w/2 where the penalty is least, so that theirs is 0.1 here.
        seed: of the order of sequences.
    """

    def __init__(
        self,
        discriminator: Discriminator,
        *,
        learning_rate: float = 1e-4,
        batch_size: int = 64,
        l2: float = 0.1,
        seed: int = 0,
    ) -> None:
        self.discriminator, self.batch_size, self.l2 = discriminator, batch_size, l2
        # the gradient's norm has no limit, as with the authors
        self.optimiser = JointOptimiser(
            dict(discriminator.named_parameters()), learning_rate=learning_rate, clip_norm=0.0
        )
        self.random = generator(seed)

    @classmethod
    def of(
        cls, discriminator: Discriminator, settings: DiscriminatorSettings, *, seed: int
    ) -> DiscriminatorTraining:
        """Return the training that the settings describe."""
        s = settings
        return cls(
            discriminator,
            learning_rate=s.learning_rate,
            batch_size=s.batch_size,
            l2=s.l2,
            seed=seed,
        )

    def epoch(self, real: Tensor, generated: Tensor) -> DiscriminatorFigures:
        """Make one pass over real `[M, T]` and generated sequences `[M', T]`, in random order.

        If there are more of one kind, it is a random selection of them, as many as there are of the
        other. The minibatches are of one size, give or take a sequence. Raises `UserError` for
        sequences that do not fit the discriminator, and where the loss or its gradient is not
        finite; the weights are then those of the step before.
        """
        symbols, labels = self._shuffled(real, generated)
        num_batches = math.ceil(len(symbols) / self.batch_size)
        training = self.discriminator.training
        self.discriminator.train()
        try:
            batches = zip(
                symbols.tensor_split(num_batches), labels.tensor_split(num_batches), strict=True
            )
            logits = torch.cat([self._step(*batch) for batch in batches])
        finally:
            self.discriminator.train(training)
        return _figures(logits, labels)

    def _shuffled(self, real: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
        """Sequences of both kinds in random order, and 1 for the real ones."""
        for name, sequences in (("real", real), ("generated", generated)):
            check_symbols(sequences, self.discriminator.num_symbols)
            if sequences.dim() != 2 or not sequences.numel() or sequences.shape[1] != real.shape[1]:
                shapes = f"{list(real.shape)} and {list(generated.shape)}"
                raise UserError(
                    f"there are no {name} sequences of the others' length: real and generated "
                    f"ones are {shapes}"
                )
        num = min(len(real), len(generated))
        chosen = [self.random.permutation(len(sequences))[:num] for sequences in (real, generated)]
        order = torch.from_numpy(self.random.permutation(2 * num)).to(real.device)
        both = [
            sequences[torch.from_numpy(rows).to(real.device)]
            for sequences, rows in zip((real, generated), chosen, strict=True)
        ]
        dtype = self.discriminator.output.weight.dtype
        return torch.cat(both)[order], (order < num).to(dtype)

    def _step(self, symbols: Tensor, labels: Tensor) -> Tensor:
        """A step of the optimiser; the logits `[n]` before it."""
        logits = self.discriminator(symbols)
        loss = functional.binary_cross_entropy_with_logits(logits, labels)
        if self.l2:
            output = self.discriminator.output
            loss = loss + self.l2 / 2 * (output.weight.square().sum() + output.bias.square().sum())
        if not math.isfinite(loss.item()):
            raise UserError(f"the discriminator's loss is not finite; {ADVICE}")
        loss.backward()
        try:
            self.optimiser(self.optimiser.parameters.values())
        except NonFiniteValue as error:
            raise UserError(f"the discriminator: {error} is not finite; {ADVICE}") from None
        return logits.detach()

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs besides the weights.

        The state is a tree of tensors, words and numbers.
        """
        return {"optimiser": self.optimiser.state_dict(), "random": generator_state(self.random)}

    def describe_state(self) -> Kind:
        """Return the kind of a `state_dict()`."""
        return Fields(
            {"optimiser": self.optimiser.describe_state(), "random": describe_generator_state()}
        )

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on from a `state_dict()`; raises `ValueError`, and changes nothing, for another."""
        self.describe_state().check(state, "the discriminator's training")
        self.optimiser.load_state_dict(state["optimiser"])
        load_generator_state(self.random, state["random"])


def _figures(logits: Tensor, labels: Tensor) -> DiscriminatorFigures:
    probability, is_real = logits.sigmoid(), labels > 0
    loss = functional.binary_cross_entropy_with_logits(logits, labels)
    accuracy = ((logits > 0) == is_real).to(logits.dtype).mean()
    return DiscriminatorFigures(
        *(
            float(x)
            for x in (loss, accuracy, probability[is_real].mean(), probability[~is_real].mean())
        )
    )
