"""SeqGAN on lines: sentences of several lengths, each of which ends by itself."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.elementary import Categorical
from pyro_seq.encoders import OneHot
from pyro_seq.errors import UserError
from pyro_seq.models import RNN
from pyro_seq.pairs.pair import Pair
from pyro_seq.poutine.step_densities import log_weights
from pyro_seq.reinforce.objective import Reinforce
from pyro_seq.reinforce.rollouts import Rollouts
from pyro_seq.seqgan.adversary.discriminators import RecurrentDiscriminator
from pyro_seq.seqgan.lengths import SampledToTheEnd, batch_of, ended, lengths_of, symbols_of
from pyro_seq.seqgan.metrics.bleu import References, bleu, bleu_figures, self_bleu
from pyro_seq.seqgan.metrics.quality import generated, likelihood
from pyro_seq.seqgan.program import seqgan_program
from pyro_seq.seqgan.tasks.base import Measurement
from pyro_seq.seqgan.tasks.text_task import TextRendering, read_text_task

pytestmark = pytest.mark.usefixtures("sketched")

END, T = 2, 4  # symbols 0 and 1, and the end
CORPUS = "".join(f"{'ab ' * (1 + i % 3)}{'c' * (i % 4)}.\n\n" for i in range(60))


def make_pair() -> Pair:
    torch.manual_seed(4)
    rnn = RNN(Categorical(3), PreviousObservation(OneHot(3)), hidden_size=4).eval()
    with torch.no_grad():
        for parameter in rnn.parameters():
            parameter.mul_(2.0)
    return Pair(rnn)


def all_sequences() -> Tensor:
    """Every sequence of at most T steps, filled up with the end symbol."""
    rows = {
        tuple(ended(torch.tensor(row), END).tolist())
        for row in itertools.product(range(3), repeat=T)
    }
    return torch.tensor(sorted(rows))


def log_probs(pair: Pair, sequences: Tensor) -> Tensor:
    """log p of each, with gradients, its end counted as one observation."""
    batch = batch_of(sequences, END)
    with pair.scope():
        trace = pyro.poutine.trace(pair.model).get_trace(batch)
    return log_weights(trace, trace, torch.zeros(sequences.shape))[0].sum(-1)


def test_lengths_are_told_by_the_first_end() -> None:
    x = torch.tensor([[0, 2, 1, 2], [2, 0, 0, 0], [0, 1, 0, 1], [0, 1, 0, 2]])
    assert lengths_of(x, END).tolist() == [2, 1, 4, 4] and lengths_of(x, None).tolist() == [4] * 4
    assert ended(x, END).tolist() == [[0, 2, 2, 2], [2, 2, 2, 2], [0, 1, 0, 1], [0, 1, 0, 2]]
    assert ended(x, None).equal(x) and symbols_of(batch_of(x, END), END).equal(ended(x, END))
    assert lengths_of(x.view(2, 2, 4), END).tolist() == [[2, 1], [4, 4]]


def test_probabilities_of_all_sequences_add_up_to_1_and_are_those_of_the_samples() -> None:
    pair, n = make_pair(), 20_000
    sequences = all_sequences()
    p = log_probs(pair, sequences).exp().detach().double()
    assert float(p.sum()) == pytest.approx(1, abs=1e-5)
    drawn = generated(pair, n, T, end=END)
    counts = (drawn.unsqueeze(1) == sequences).all(-1).sum(0)
    assert int(counts.sum()) == n
    assert float(((counts - n * p) ** 2 / (n * p)).sum()) < len(p) + 5 * math.sqrt(2 * len(p))
    nll, _ = likelihood(pair, sequences, end=END)
    assert nll.value == pytest.approx(
        float(-p.log().sum() / lengths_of(sequences, END).sum()), rel=1e-5
    )
    assert not (generated(pair, 500, T, end=END, never=[1]) == 1).any()


def test_a_ratio_has_the_error_of_a_ratio() -> None:
    torch.manual_seed(0)
    equal = torch.randn(50)
    one, other = Measurement.ratio(equal * 7, torch.full((50,), 7)), Measurement.mean(equal)
    assert one == pytest.approx(other, rel=1e-6)
    lengths = torch.randint(1, 9, (400, 60))
    totals = 2.0 * lengths + torch.randn(400, 60) * lengths.sqrt()
    figures = [Measurement.ratio(t, n) for t, n in zip(totals, lengths, strict=True)]
    spread = torch.tensor([figure.value for figure in figures]).std()
    said = torch.tensor([figure.standard_error or 0.0 for figure in figures]).mean()
    assert 0.9 < float(said / spread) < 1.1


@pytest.mark.parametrize("rollouts", [False, True])
def test_the_gradient_is_that_of_the_expected_reward(rollouts: bool) -> None:
    """By enumeration of all sequences; the reward knows how long each is."""
    pair, n = make_pair(), 20_000

    def reward(batch: SequenceBatch) -> Tensor:
        symbols = symbols_of(batch, END)
        return (symbols == 1).float().sum(-1) + 3.0 * (batch.lengths == 2) - 0.5 * batch.lengths

    sequences = all_sequences()
    parameters = [p for p in pair.model.parameters() if p.requires_grad]  # type: ignore[union-attr]
    expected = (log_probs(pair, sequences).exp() * reward(batch_of(sequences, END))).sum()
    exact = torch.autograd.grad(-expected, parameters, allow_unused=True)
    earned: dict[str, Any] = (
        {"action_values": Rollouts(pair, reward, num_rollouts=2, end=END)}
        if rollouts
        else {"reward": reward}
    )
    objective = Reinforce(**earned, sample=SampledToTheEnd(END))
    estimates = []
    with pair.scope():
        for _ in range(20):
            loss = objective.differentiable_loss(
                pair.model, pair.guide, SequenceBatch(None, [T] * (n // 20))
            )
            grads = torch.autograd.grad(loss * 20 / n, parameters, allow_unused=True)
            estimates.append(torch.cat([g.flatten() for g in grads if g is not None]))
    found, truth = torch.stack(estimates), torch.cat([g.flatten() for g in exact if g is not None])
    errors = (found.mean(0) - truth) / (found.std(0) / 20**0.5 + 1e-4)
    assert (
        errors.abs().max() < 5
        and float(torch.nn.functional.cosine_similarity(found.mean(0), truth, dim=0)) > 0.95
    )
    assert (
        objective.latest is not None and 1 < objective.latest.sequences.lengths.float().mean() < T
    )


def test_bleu_of_sequences_of_several_lengths() -> None:
    """Against each sequence cut to its own length; the closest reference's length counts."""
    end = 9
    real = torch.tensor([[1, 2, 3, 9, 9, 9], [1, 2, 3, 4, 5, 9], [2, 2, 9, 9, 9, 9]])
    new = torch.tensor(
        [[1, 2, 3, 4, 9, 9], [5, 9, 9, 9, 9, 9], [9, 9, 9, 9, 9, 9], [1, 2, 3, 4, 5, 9]]
    )
    references = References(real, 2, end=end)
    assert references.closest(torch.tensor([4, 1, 0, 5]).numpy()).tolist() == [3, 2, 2, 5]
    # by hand: 4/4 and 3/3 of [1 2 3 4]; of [5] its symbol, no pair (0.1 of 1), and a brevity of
    # exp(1 - 2 / 1)
    scores = [1.0, math.exp(-1) * math.sqrt(1.0 * 0.1), 0.0, 1.0]
    assert bleu(new, references, 2).value == pytest.approx(sum(scores) / 4)
    assert self_bleu(new[:, :5], 2).value >= 0
    figures = bleu_figures(new, real, end=end)
    assert all(math.isfinite(figure.value) for figure in figures.values())
    wider = [torch.nn.functional.pad(x, (0, 3), value=end) for x in (new, real)]
    assert bleu_figures(*wider, end=end) == figures, "how far sequences are filled up says nothing"


def test_a_recurrent_discriminator_reads_up_to_the_end() -> None:
    torch.manual_seed(1)
    discriminator = RecurrentDiscriminator(3, embedding_size=3, hidden_size=4, end=END).eval()
    whole = RecurrentDiscriminator(3, embedding_size=3, hidden_size=4).eval()
    whole.load_state_dict(discriminator.state_dict())
    x = ended(torch.tensor([[0, 2, 0, 0, 0], [1, 0, 1, 2, 0], [1, 0, 1, 1, 0]]), END)
    for row, length in zip(x, lengths_of(x, END).tolist(), strict=True):
        torch.testing.assert_close(
            discriminator(row.unsqueeze(0)), whole(row[:length].unsqueeze(0))
        )


@pytest.mark.parametrize("level", ["char", "word"])
def test_lines_of_a_file(tmp_path: Path, level: str) -> None:
    path = tmp_path / "t"
    path.write_bytes(b"\xef\xbb\xbfa b\r\n\r\n\nbb a!\rb\n" * 10)
    task = read_text_task(path, level=level, unit="line", length=6)
    both = torch.cat([task.sequences.train, task.sequences.valid, task.sequences.test])
    assert [task.rendering.text(row) for row in both[:3]] == ["a b", "bb a!", "b"] and len(
        both
    ) == 30
    assert task.rendering.end == task.rendering.num_symbols - 1 and not task.rendering.never
    assert lengths_of(both, task.rendering.end).tolist()[:3] == (
        [4, 6, 2] if level == "char" else [3, 4, 2]
    )
    again = TextRendering.from_json(json.loads(json.dumps(task.rendering.to_json())), path)
    assert (again.end, again.num_symbols) == (task.rendering.end, task.rendering.num_symbols)
    task.rendering.write(both[:2], tmp_path / "out")
    assert (tmp_path / "out" / "samples.txt").read_text() == "a b\nbb a!\n"
    path.write_text("a b\nthis is a line that is much too long, isn't it\n" * 10)
    with pytest.raises(
        UserError,
        match=(
            r"t:2: the line has \d+ (characters|words), .* task\.length=6 are learnt: raise it "
            r"to (47|13) or more"
        ),
    ):
        read_text_task(path, level=level, unit="line", length=6)
    path.write_text("ab\nb\n")
    with pytest.raises(UserError, match=r"2 lines with anything in them.*too few"):
        read_text_task(path, level=level, unit="line", length=6)
    with pytest.raises(
        UserError, match="unit must be window or line, got 'lines'; did you mean 'line'"
    ):
        read_text_task(path, level=level, unit="lines")


@pytest.mark.parametrize(
    ("kind", "baseline", "level"), [("cnn", "leave_one_out", "char"), ("rnn", "critic", "word")]
)
def test_from_lines_to_lines(
    pyroseq: Callable[..., int],
    seqgan_words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    baseline: str,
    level: str,
) -> None:
    path, run = tmp_path / "t.txt", tmp_path / "run"
    path.write_text(CORPUS)
    words = [
        *seqgan_words,
        "--set",
        "task.unit=line",
        "--set",
        "task.length=16",
        "--set",
        f"task.level={level}",
    ]
    words += ["--set", f"discriminator.kind={kind}", "--set", f"adversarial.baseline={baseline}"]
    assert (
        pyroseq(
            "seqgan",
            "train",
            "--task",
            "text",
            "--corpus",
            path,
            "--run-dir",
            run,
            "--quiet",
            *words,
        )
        == 0
    )
    assert (
        pyroseq(
            "seqgan", "train", "--run-dir", run, "--resume", "--quiet", "--adversarial-steps", 5
        )
        == 0
    )
    capsys.readouterr()
    assert pyroseq("seqgan", "generate", "--run-dir", run, "--num-samples", 40, "--json") == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    end = seqgan_program.load(run).rendering.end
    assert (
        end is not None
        and len({lengths_of(torch.tensor(entry["symbols"]), end).item() for entry in found}) > 1
    )
    assert all("\n" not in entry["text"] for entry in found)
    assert pyroseq("seqgan", "evaluate", "--run-dir", run, "--num-samples", 30, "--json") == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert all(
        0 <= figures[name]["bleu_4"]["value"] <= 1 for name in ("best", "pretrained", "real")
    )
    sample = (run / "samples" / "step-00002" / "samples.txt").read_text()
    assert len(sample.splitlines()) == 16
