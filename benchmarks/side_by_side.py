"""Small batches of work made large ones: what does not depend on each other, side by side.

- an own pair of plain functions that carries no state: 60,000 characters with 8 particles, in
  seconds of the processor, which are those of a quiet machine, and of the clock;
- the same one window at a time, long lines of a model that carries states one at a time, films or
  series of many lengths continued one at a time, and series looked through for anomalies one at a
  time: each over what is done now, in processor time.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
import pandas as pd
import torch

from pyro_seq import Pair, SequenceBatch, continuation
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions import Normal
from pyro_seq.encoders import Flatten
from pyro_seq.models import RNN
from pyro_seq.series.data.frames import from_frame
from pyro_seq.series.judging.anomalies import anomalies
from pyro_seq.series.model.model import SeriesModel, ids_of
from pyro_seq.series.model.model import new_pair as new_series_pair
from pyro_seq.series.model.settings import series_settings
from pyro_seq.text import scoring
from pyro_seq.text.training import TextModel, new_pair, text_settings
from pyro_seq.text.vocabulary import Vocabulary

OWN = """
import pyro
import pyro.distributions as dist
import torch


def topics(emission):
    k, size = emission.num_categories, 4

    def model(batch):
        table = pyro.param("table", lambda: 0.1 * torch.randn(k + 1, k))
        load = pyro.param("load", lambda: 0.1 * torch.randn(size, k))
        with batch.plate():
            z, last = torch.zeros(len(batch), size), torch.full((len(batch),), k)
            for t in pyro.markov(range(batch.num_steps)):
                with batch.active(t):
                    z = pyro.sample(f"z_{t}", dist.Normal(0.9 * z, 0.3).to_event(1))
                    law = dist.Categorical(logits=table[last] + z @ load)
                    last = pyro.sample(f"x_{t}", law, obs=batch.at(t))

    def guide(batch):
        shift = pyro.param("shift", lambda: 0.1 * torch.randn(k, size))
        with batch.plate():
            z = torch.zeros(len(batch), size)
            for t in pyro.markov(range(batch.num_steps)):
                with batch.active(t):
                    law = dist.Normal(0.9 * z + shift[batch.at(t)], 0.3).to_event(1)
                    z = pyro.sample(f"z_{t}", law)

    return model, guide
"""


def own_pair(folder: Path, characters: str) -> TextModel:
    """An untrained model of a user's own functions, in windows of 64 symbols."""
    (folder / "own.py").write_text(OWN)
    return text_model(characters, {"model.name": f"{folder / 'own.py'}:topics"})


def text_model(characters: str, words: dict[str, Any]) -> TextModel:
    """An untrained model of texts."""
    settings, vocabulary = text_settings(words), Vocabulary("char", characters, 1)
    pair = new_pair(settings, vocabulary)
    pair.train(False)
    return TextModel(pair, vocabulary, settings, torch.device("cpu"))


def processor_seconds(work: Callable[[], object]) -> float:
    """How much time of the processor some work takes."""
    started = time.process_time()
    work()
    return time.process_time() - started


def with_size(size: int, work: Callable[[], object]) -> Callable[[], object]:
    """The work with so many steps of texts side by side."""

    def sized() -> object:
        before, scoring.SIDE_BY_SIDE = scoring.SIDE_BY_SIDE, size
        try:
            return work()
        finally:
            scoring.SIDE_BY_SIDE = before

    return sized


def compare(name: str, apart: Callable[[], object], together: Callable[[], object]) -> None:
    """Print how much longer it takes one at a time."""
    together()
    ratio = processor_seconds(apart) / processor_seconds(together)
    common.report(f"{name}: one at a time over side by side", ratio)


def main() -> None:
    """The figures."""
    quick = common.parse_arguments(__doc__).quick
    length, many = (2_000, 4) if quick else (60_000, 32)
    text = common.text_by_rule(length)
    characters = "".join(sorted(set(text)))
    with tempfile.TemporaryDirectory() as folder:
        own = own_pair(Path(folder), characters)
    symbols = own.vocabulary.encode(text)

    def score(symbols: Any = symbols) -> object:
        return scoring.score_symbols(own, symbols, samples=8)

    started = time.perf_counter()
    spent = processor_seconds(score)
    wall = time.perf_counter() - started
    common.report(f"own pair, {length:,} characters, 8 particles: CPU seconds", spent, at_most=20)
    common.report("the same: seconds of the clock", wall)
    few = symbols[: length // 8]
    compare("an eighth of it", with_size(1, lambda: score(few)), lambda: score(few))

    carrying = text_model(characters, {"model.hidden_size": 256})
    lines = [(carrying.vocabulary.encode(text[:2_000]), text[:2_000])] * min(many, 16)

    def score_lines() -> object:
        return list(scoring.scored_sequences(carrying, lines))

    compare(f"{len(lines)} lines of 2,000 characters", with_size(1, score_lines), score_lines)

    rnn = Pair(RNN(Normal(), PreviousObservation(Flatten(())), hidden_size=32))
    past = [torch.randn(20 + i) for i in range(many)]

    def go_on(some: list[torch.Tensor]) -> object:
        return continuation(rnn, SequenceBatch.from_sequences(some), 48, draws=20)

    compare(f"{many} lengths continued", lambda: [go_on([x]) for x in past], lambda: go_on(past))

    frame = pd.DataFrame(
        {
            "id": np.repeat(np.arange(many), 200),
            "t": np.tile(np.arange(200), many),
            "y": np.random.default_rng(0).normal(size=200 * many),
        }
    )
    table = from_frame(frame)
    latent = {"model.name": "srnn", "model.hidden_size": 16, "model.latent_size": 4}
    settings = series_settings(latent)
    pair = new_series_pair(table.schema, settings, ids_of(table))
    model = SeriesModel(pair, table.schema, settings, ids_of(table), torch.device("cpu"))
    alone = [type(table)(table.schema, [one]) for one in table.series[:4]]
    whole = type(table)(table.schema, table.series[:4])
    compare(
        "anomalies of 4 series, SRNN",
        lambda: [anomalies(model, one) for one in alone],
        lambda: anomalies(model, whole),
    )


if __name__ == "__main__":
    main()
