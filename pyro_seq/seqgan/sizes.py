"""Check how much memory a run's settings need, before any is taken.

Each setting by itself has a range; here are the products of several, which the ranges do not bound.
"""

from __future__ import annotations

from pyro_seq.errors import UserError
from pyro_seq.seqgan.settings import SeqGANSettings

# of all sequences that are held at once, 8 bytes each: 537 MB, and a copy as they are drawn
MOST_SYMBOLS = 2**26
# of an update's largest tensor, 4 bytes each: 268 MB, a few times that with gradients
MOST_NUMBERS = 2**26


def check_sizes(settings: SeqGANSettings) -> None:
    """Raise `UserError` where sequences or minibatches would take gigabytes.

    The message has names and sizes.
    """
    task = settings.task
    game = settings.adversarial
    judge = settings.discriminator
    length = settings.length
    if task.kind == "oracle":
        check_sequences(task.num_train, length, "task.num_train")
        check_sequences(task.num_held_out, length, "task.num_held_out")
        batches = {"task": min(task.batch_size, task.num_train), "adversarial": game.batch_size}
        for part, rows in batches.items():
            what = (
                f"{part}.batch_size={rows}, task.length={length}, "
                f"task.oracle_symbols={task.oracle_symbols}"
            )
            _check(rows * length * task.oracle_symbols, what)
    check_sequences(game.valid_samples, length, "adversarial.valid_samples")
    check_sequences(judge.samples, length, "discriminator.samples")
    layers = judge.num_filters if judge.kind == "cnn" else (8 * judge.hidden_size,)
    widest = max(judge.embedding_size, *layers)
    what = (
        f"discriminator.batch_size={judge.batch_size}, task.length={length}, its widest "
        f"layer={widest}"
    )
    _check(judge.batch_size * length * widest, what)
    if game.rollouts:
        alive = min(game.rollout_batch, game.batch_size * game.rollouts * length)
        width = task.embedding_size + 4 * getattr(settings.model, "hidden_size", 1)
        _check(
            alive * width,
            f"adversarial.rollout_batch={alive} completions at once, each of {width} numbers,",
        )


def check_sequences(number: int, length: int, name: str) -> None:
    """Raise `UserError` for more sequences than fit; `name` is the setting of the number."""
    if number * length > MOST_SYMBOLS:
        most = f"{MOST_SYMBOLS:,} are the most: {MOST_SYMBOLS // length:,} sequences of this length"
        size = f"{number * length:,} symbols, {_gigabytes(number * length * 8)}"
        raise UserError(
            f"{name}={number} sequences of {length} symbols are {size} at once, and {most}"
        )


def _check(numbers: int, what: str) -> None:
    if numbers > MOST_NUMBERS:
        size = f"{numbers:,} numbers, {_gigabytes(numbers * 4)}"
        most = f"{MOST_NUMBERS:,} numbers are the most: lower one of them"
        raise UserError(f"{what} make a tensor of {size}, and {most}")


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
