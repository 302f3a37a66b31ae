"""The oracle: its equations written out in NumPy, its own sentences' entropy, seeds, and files that
hold none.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.infer.likelihood.scoring import score
from pyro_seq.infer.sampling import sample_sequences
from pyro_seq.pairs.pair import Pair, no_guide
from pyro_seq.seqgan.tasks import oracle as module
from pyro_seq.seqgan.tasks.oracle import (
    nats_per_token,
    nll_oracle,
    oracle_from_file,
    oracle_from_seed,
    parameter_shapes,
)
from pyro_seq.testing import check_pair

V, E, H, T = 7, 3, 4, 5
Arrays = dict[str, NDArray[Any]]


@pytest.fixture
def arrays() -> Arrays:
    random = np.random.default_rng(0)
    return {
        name: random.standard_normal(shape) for name, shape in parameter_shapes(V, E, H).items()
    }


@pytest.fixture
def path(tmp_path: Path, arrays: Arrays) -> Path:
    np.savez(tmp_path / "oracle.npz", **arrays)
    return tmp_path / "oracle.npz"


def written_out(p: Arrays, sequence: list[int], start: int) -> float:
    """-(1/T) log p(x_{1:T}), symbol by symbol, by the equations of the data's description."""
    h, c, total, before = np.zeros(len(p["b_i"])), np.zeros(len(p["b_i"])), 0.0, start
    for symbol in sequence:
        x = p["embeddings"][before]
        i, f, o = (
            1 / (1 + np.exp(-(x @ p[f"W_{g}"] + h @ p[f"U_{g}"] + p[f"b_{g}"]))) for g in "ifo"
        )
        c = f * c + i * np.tanh(x @ p["W_c"] + h @ p["U_c"] + p["b_c"])
        h = o * np.tanh(c)
        logits = h @ p["W_out"] + p["b_out"]
        total += logits[symbol] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        before = symbol
    return -total / len(sequence)


@pytest.mark.parametrize("start", [0, V - 1])
@pytest.mark.parametrize("at_once", [1, 50, 2**20])
def test_the_equations_written_out(
    float64: None,
    path: Path,
    arrays: Arrays,
    start: int,
    at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CHUNK_NUMBERS", at_once)  # chunks of one, of a few and of all
    sequences = torch.randint(V, (9, T))
    expected = torch.tensor([written_out(arrays, row, start) for row in sequences.tolist()])
    oracle = oracle_from_file(path, start=start)
    torch.testing.assert_close(nats_per_token(oracle, sequences), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        -score(Pair(oracle), SequenceBatch(sequences)).total / T, expected, rtol=1e-12, atol=1e-12
    )
    figure = nll_oracle(oracle, sequences)
    assert figure.value == pytest.approx(float(expected.mean()), rel=1e-12)
    assert figure.standard_error == pytest.approx(float(expected.std()) / 3, rel=1e-12)


def test_the_probabilities_of_all_sequences_add_up_to_one(float64: None, path: Path) -> None:
    oracle, steps = oracle_from_file(path), 3
    everything = torch.cartesian_prod(*[torch.arange(V)] * steps)
    assert float((-steps * nats_per_token(oracle, everything)).exp().sum()) == pytest.approx(
        1, rel=1e-12
    )


def test_sampled_sentences_have_the_frequencies_that_it_says(float64: None, path: Path) -> None:
    oracle, steps, num = oracle_from_file(path), 2, 20_000
    everything = torch.cartesian_prod(*[torch.arange(V)] * steps)
    expected = num * (-steps * nats_per_token(oracle, everything)).exp()
    sampled = sample_sequences(oracle, steps, state=oracle.initial(num))
    counts = torch.bincount(sampled @ torch.tensor([V, 1]), minlength=V**steps)
    often = expected > 5
    statistic = float(((counts - expected).square() / expected)[often].sum())
    freedom = int(often.sum())
    assert abs(statistic - freedom) < 5 * math.sqrt(2 * freedom)


def test_the_papers_oracle(data_dir: Path) -> None:
    """Its own sentences score its entropy: 5.7533 nats a token, from 122,880 of them (standard
    error 0.0006, by the steps' entropies).

    The data's description says 5.745, give or take 0.005, which is the standard error of 10,000
    sentences.
    """
    oracle = oracle_from_file(data_dir / "seqgan" / "oracle_target_params.npz")
    figure = nll_oracle(oracle, sample_sequences(oracle, 20, state=oracle.initial(2_000)))
    assert figure.standard_error is not None and figure.standard_error < 0.02
    assert abs(figure.value - 5.7533) < 4 * figure.standard_error
    assert abs(figure.value - 5.745) < 0.005 + 4 * figure.standard_error


def test_it_is_a_pair_like_any_other() -> None:
    oracle = oracle_from_seed(0, num_symbols=6, embedding_size=3, hidden_size=4)
    assert not oracle.training and not any(p.requires_grad for p in oracle.parameters())
    oracle.requires_grad_(True)
    check_pair(oracle, no_guide, SequenceBatch(torch.randint(6, (3, 5)), [5, 2, 4]))


# seeds


def test_a_seed_says_all(float64: None) -> None:
    """In whatever state the global generator is, which is left as it was; and whatever the default
    type is.
    """
    sizes = {"num_symbols": 11, "embedding_size": 3, "hidden_size": 4}
    state = torch.get_rng_state()
    first = oracle_from_seed(5, **sizes).state_dict()
    assert torch.get_rng_state().equal(state)
    torch.rand(3)
    again, other = (
        oracle_from_seed(5, **sizes).state_dict(),
        oracle_from_seed(6, **sizes).state_dict(),
    )
    torch.set_default_dtype(torch.float32)
    single = oracle_from_seed(5, **sizes).state_dict()
    for name, value in first.items():
        assert (
            value.equal(again[name])
            and single[name].equal(value.float())
            and value.dtype == torch.double
        )
        assert name.endswith("bias_hh_l0") or not value.equal(other[name])
    generator = torch.Generator().manual_seed(5)
    assert single["context.encoder.table.weight"].equal(torch.randn(11, 3, generator=generator)), (
        "embeddings are drawn first"
    )
    assert (
        single["recurrence.rnn.weight_ih_l0"][:4].t().equal(torch.randn(3, 4, generator=generator))
    ), "then the input gate's weights"


@pytest.mark.parametrize("seed", [-1, 2**63, 2**80])
def test_seeds_that_cannot_be(seed: int) -> None:
    with pytest.raises(
        UserError, match=f"a seed must lie between 0 and 9223372036854775807, got {seed}"
    ):
        oracle_from_seed(seed, num_symbols=3)
    assert oracle_from_seed(2**63 - 1, num_symbols=3)


def test_parameters_are_standard_normal() -> None:
    oracle = oracle_from_seed(1)
    shapes = parameter_shapes(5_000, 32, 32)
    assert (
        sum(math.prod(shape) for shape in shapes.values())
        == 333_320
        == sum(p.numel() for p in oracle.parameters()) - 128
    )
    for name, parameter in oracle.named_parameters():
        if not name.endswith("bias_hh_l0"):  # which PyTorch has besides, and which is zero
            n, x = parameter.numel(), parameter.double()
            assert abs(float(x.mean())) < 5 / math.sqrt(n) and abs(
                float(x.square().mean()) - 1
            ) < 5 * math.sqrt(2 / n), name
        else:
            assert not parameter.any()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"num_symbols": 0},
            "at least 1 of everything, got 0 symbols, embeddings of 32 and 32 hidden units",
        ),
        ({"hidden_size": -1}, "at least 1 of everything"),
        (
            {"num_symbols": 10**9},
            "would have 65,000,008,320 parameters, and 67,108,864 are the most",
        ),
        (
            {"num_symbols": 3, "start": 3},
            "the oracle has symbols 0 to 2, and the start symbol must be one of them, got 3",
        ),
        ({"start": -1}, "got -1"),
    ],
)
def test_oracles_that_cannot_be(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        oracle_from_seed(0, **sizes)


# files


def refusal(path: Path) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(UserError) as refused:
        oracle_from_file(path)
    line = str(refused.value)
    assert str(path) in line and "\n" not in line
    return line


def test_files_of_any_floating_point_type(tmp_path: Path, arrays: Arrays) -> None:
    sequences = torch.randint(V, (4, T))
    for dtype, rel in (("<f8", 1e-5), (">f8", 1e-5), (">f4", 1e-5), ("<f2", 2e-2)):
        saved = {name: np.asfortranarray(array.astype(dtype)) for name, array in arrays.items()}
        np.savez_compressed(tmp_path / "oracle.npz", **saved)
        found = nats_per_token(oracle_from_file(tmp_path / "oracle.npz"), sequences)
        assert found.dtype == torch.float32
        assert found.tolist() == pytest.approx(
            [written_out(arrays, row, 0) for row in sequences.tolist()], rel=rel
        )


def object_array(_: NDArray[Any]) -> NDArray[Any]:
    return np.array([None, 1], dtype=object)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "U_f",
            lambda a: a[:, :3],
            r"U_f has shape \[4, 3\], and by embeddings and b_i it would be \[4, 4\]",
        ),
        (
            "b_out",
            lambda a: a[None],
            r"b_out has shape \[1, 7\], and by embeddings and b_i it would be \[7\]",
        ),
        ("W_out", lambda a: a.T, r"W_out has shape \[7, 4\]"),
        ("b_i", lambda a: a[:, None], r"b_i has shape \[4, 1\], where 1 sizes"),
        ("embeddings", lambda a: a[0], r"embeddings has shape \[3\], where 2 sizes"),
        (
            "embeddings",
            lambda a: a[:0],
            r"embeddings has shape \[0, 3\], where 2 sizes of at least 1",
        ),
        ("W_i", lambda a: a.astype(np.int64), "W_i is made of int64, and floating-point numbers"),
        ("W_i", lambda a: a.astype(complex), "W_i is made of complex128"),
        ("W_i", object_array, "W_i is made of object"),
        (
            "W_c",
            lambda a: np.where(a == a.max(), np.nan, a),
            "W_c holds numbers that are not finite",
        ),
        ("b_o", lambda a: a + 1e300, "b_o holds numbers that are not finite"),
    ],
)
def test_arrays_that_are_no_oracle(
    tmp_path: Path,
    arrays: Arrays,
    name: str,
    change: Callable[[NDArray[Any]], NDArray[Any]],
    message: str,
) -> None:
    path = tmp_path / "oracle.npz"
    np.savez(path, **(arrays | {name: change(arrays[name])}))
    with pytest.raises(UserError, match=message):
        oracle_from_file(path)
    refusal(path)


def test_names_that_are_missing_or_too_many(tmp_path: Path, arrays: Arrays) -> None:
    path = tmp_path / "oracle.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if name != "U_o"})
    assert "lacks the array 'U_o'" in refusal(path)
    np.savez(path, **arrays, extra=np.zeros(1))
    assert "it holds 'extra'" in refusal(path)
    np.savez(path)
    assert "lacks the array" in refusal(path)


def test_files_that_are_no_archive(tmp_path: Path, arrays: Arrays) -> None:
    path = tmp_path / "oracle.npz"
    assert refusal(path) == f"cannot read {path}: No such file or directory"
    for content in (b"", b"PK\x03\x04 not an archive", b"\x80\x04K\x01.", os.urandom(3_000)):
        path.write_bytes(content)
        assert "is no .npz file of an oracle's parameters, or is damaged" in refusal(path)
    np.save(tmp_path / "one.npy", arrays["W_i"])
    assert "is no .npz file" in refusal(tmp_path / "one.npy")
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path, tmp_path / "pipe"):
        assert "is a directory, a pipe or a device" in refusal(other)
    with pytest.raises(UserError, match=r"is no \.npz file"):
        oracle_from_file("a\0b")


def rewritten(path: Path, name: str, content: bytes) -> None:
    """The archive with another member of this name."""
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, old in members.items():
            archive.writestr(member, content if member == f"{name}.npy" else old)


def npy(shape: tuple[int, ...], data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    """An array's file whose header says what it likes."""
    opened = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": shape}
    write = (
        np.lib.format.write_array_header_1_0
        if version == (1, 0)
        else np.lib.format.write_array_header_2_0
    )
    write(opened, header)
    return opened.getvalue() + data


def header(words: bytes) -> bytes:
    """An array's file that has these words for a header, and no numbers."""
    return b"\x93NUMPY\x01\x00" + len(words).to_bytes(2, "little") + words


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "embeddings",
            npy((2**40, 2**20)),
            "W_i has shape [3, 4], and by embeddings and b_i it would be [1048576, 4]",
        ),
        ("W_i", npy((E, H), b"\0" * 8), "ValueError"),  # too short
        ("W_i", npy((E, H), b"\0" * (8 * E * H + 1)), "W_i goes on after its end"),
        ("W_i", npy((E, H), b"\0" * 8 * E * H, (2, 0)), "of version 2 of NumPy's format"),
        ("W_i", npy((-E, H)), "W_i has shape [-3, 4]"),
        ("W_i", b"", "ValueError"),
        ("W_i", b"PK\x05\x06" + b"\0" * 18, "ValueError"),
        ("W_i", b"\x80\x04K\x01.", "ValueError"),
        ("W_i", header(b"{" + b"(" * 60_000), "ValueError"),
        ("W_i", header(b"{'a': 1,        \n"), "TokenError"),
        ("W_i", header(b"-" * 9_000 + b"1\n"), "Error"),
        (
            "W_i",
            header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (True, 2.5)}\n"),
            "ValueError",
        ),
    ],
)
def test_members_that_are_no_array(path: Path, name: str, content: bytes, message: str) -> None:
    rewritten(path, name, content)
    assert message in refusal(path)


def test_sizes_are_looked_at_before_memory_is_taken(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of a few bytes can say that it holds terabytes."""
    big = 2**30
    for name, shape in parameter_shapes(big, E, H).items():
        if big in shape:
            rewritten(path, name, npy(shape))
    monkeypatch.setattr(np, "load", lambda *args, **kwargs: pytest.fail("nothing must be read"))
    assert "would have 8,589,934,720 parameters, and 67,108,864 are the most" in refusal(path)


def test_bytes_that_were_changed(path: Path) -> None:
    """Whatever happened to a file, it is read or refused in one line; where numbers have changed,
    the checksum tells.
    """
    whole, random = path.read_bytes(), np.random.default_rng(3)
    read = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for place in random.integers(len(whole), size=random.integers(1, 4)):
            damaged[place] = random.integers(256)
        if random.random() < 0.2:
            damaged = damaged[: random.integers(len(whole))]
        path.write_bytes(damaged)
        try:
            oracle_from_file(path)
            read += 1
        except UserError as error:
            assert "\n" not in str(error)
    assert read < 200


# sequences


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        (torch.tensor([[0, 7]]), "the oracle has symbols 0 to 6, and a sequence has symbol 7"),
        (torch.tensor([[0, -1]]), "a sequence has symbol -1"),
        (torch.zeros(2, 3), r"whole numbers \[n, T\], got float32 of shape \[2, 3\]"),
        (torch.zeros(0, 3).long(), r"got int64 of shape \[0, 3\]"),
        (torch.zeros(3, 0).long(), r"got int64 of shape \[3, 0\]"),
        (torch.zeros(3).long(), r"got int64 of shape \[3\]"),
    ],
)
def test_what_an_oracle_cannot_judge(path: Path, sequences: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        nll_oracle(oracle_from_file(path), sequences)


def test_symbols_of_any_type_of_whole_numbers(path: Path) -> None:
    oracle, sequences = oracle_from_file(path), torch.randint(V, (4, T))
    assert nats_per_token(oracle, sequences.to(torch.uint8)).equal(
        nats_per_token(oracle, sequences)
    )
    assert nll_oracle(oracle, sequences[:1]).standard_error is None
