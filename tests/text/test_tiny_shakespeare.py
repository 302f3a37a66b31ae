"""Real text, where it is to be had: the corpus as it is described, and a first minute of learning
on it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_seq.programs.program import Request
from pyro_seq.runs.folder import RunFolder
from pyro_seq.text.program import text_program
from pyro_seq.text.training import Corpora, evaluate, text_settings
from pyro_seq.text.vocabulary import Vocabulary


@pytest.fixture
def corpus(data_dir: Path) -> Path:
    path = data_dir / "text" / "tinyshakespeare.txt"
    if not path.is_file():
        pytest.skip(f"needs the real data: {path.name} is missing")
    return path


def test_every_character_has_its_symbol(corpus: Path) -> None:
    vocabulary = Vocabulary.of_file(corpus, oov_buckets=0)
    symbols, unknown = vocabulary.encode_file(corpus)
    assert (len(vocabulary), len(symbols), unknown, symbols.dtype) == (65, 1_115_394, 0, np.uint8)
    assert vocabulary.decode(symbols[:1_000]) == corpus.read_text(encoding="utf-8")[:1_000]


@pytest.mark.slow
def test_a_short_training_beats_counting_pairs(corpus: Path, tmp_path: Path) -> None:
    """A hundred steps of a small model, on text that it has not seen, against a bigram model fitted
    on all of the training text.
    """
    vocabulary = Vocabulary.of_file(corpus, oov_buckets=0)
    symbols, _ = vocabulary.encode_file(corpus)
    learnt, held_out = symbols[:1_003_854], symbols[1_003_854:1_023_854]
    counts = torch.ones(65, 65).index_put_(
        (torch.tensor(learnt[:-1]).long(), torch.tensor(learnt[1:]).long()),
        torch.ones(()),
        accumulate=True,
    )
    pairs = (counts / counts.sum(-1, keepdim=True)).log()
    bigram = -float(
        pairs[torch.tensor(held_out[:-1]).long(), torch.tensor(held_out[1:]).long()].mean()
    )
    assert 2.4 < bigram < 2.55

    changes = {
        "model.hidden_size": 128,
        "model.output_dropout": 0.0,
        "training.num_steps": 200,
        "training.learning_rate": 1e-2,
    }
    settings = text_settings(changes | {"text.batch_size": 32, "training.sample_every": 0})
    run = RunFolder(tmp_path / "run", "text")
    with run.locked():
        text = text_program.train(
            Corpora(vocabulary, learnt, held_out), Request(settings, {}, run, quiet=True)
        )
    (tmp_path / "held_out.txt").write_text(vocabulary.decode(held_out), encoding="utf-8")
    assert evaluate(text, tmp_path / "held_out.txt").nats_per_character < bigram - 0.2
