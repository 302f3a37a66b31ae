"""The oracle of SeqGAN's synthetic task (arXiv 1609.05473, sec. 4), an untrained LSTM.

A generator is to learn its sentences.

With an embedding e(x) of the symbols, x_0 the start symbol, h_0 = c_0 = 0, and s the logistic
function:

    i, f, o = s(e(x_{t-1}) W_g + h_{t-1} U_g + b_g) for g in i, f, o        k = tanh(e(x_{t-1}) W_c
    + h_{t-1} U_c + b_c)
    c_t = f * c_{t-1} + i * k        h_t = o * tanh(c_t)        p(x_t) = softmax(h_t W_out + b_out)

It is `models.RNN` with weights that are given, so that all that is done with a model is done with
it: sampled, scored, continued.
"""

from __future__ import annotations

import stat
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions.elementary import Categorical
from pyro_seq.encoders import Embedding
from pyro_seq.errors import UserError
from pyro_seq.models import RNN
from pyro_seq.seqgan.tasks.base import Measurement

GATES = "ifoc"  # input, forget and output, and the candidate
TORCH_GATES = "ifco"  # in the order of `torch.nn.LSTM`, which calls the candidate g
MOST_NUMBERS = 2**26  # in all of an oracle's parameters: 256 MB
# logits that a score holds at once, with their softmax 8 MB: more are not faster, since they leave
# the cache
CHUNK_NUMBERS = 2**20
# what the parsers of archives and of arrays' headers, which are Python's literals, make of bytes
# that are none
DAMAGED = (
    *(
        EOFError,
        LookupError,
        MemoryError,
        NotImplementedError,
        OverflowError,
        RuntimeError,
        SyntaxError,
        TypeError,
        ValueError,
    ),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)


def parameter_shapes(
    num_symbols: int, embedding_size: int, hidden_size: int
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of an oracle's parameters by name, in the order of drawing."""
    v, e, h = num_symbols, embedding_size, hidden_size
    shapes: dict[str, tuple[int, ...]] = {"embeddings": (v, e)}
    for gate in GATES:
        shapes |= {f"W_{gate}": (e, h), f"U_{gate}": (h, h), f"b_{gate}": (h,)}
    return shapes | {"W_out": (h, v), "b_out": (v,)}


def oracle_from_seed(
    seed: int,
    *,
    num_symbols: int = 5000,
    embedding_size: int = 32,
    hidden_size: int = 32,
    start: int = 0,
) -> RNN:
    """Make an oracle with standard normal parameters, as the paper's are.

    It is in evaluation mode and without gradients.

    They are drawn one after the other, as `parameter_shapes` has them, by `torch.randn` in float32
    from a generator of their own. So a seed gives the same oracle on any machine, and nothing is
    taken from the global random state.

    Args:
        seed: of the generator.
        num_symbols: V.
        embedding_size: of a symbol's vector.
        hidden_size: of h_t and c_t.
        start: the symbol that stands before the first.

    Raises `UserError` for sizes below 1 or too large, for a start that is no symbol, and for a seed
    that none can be.
    """
    if min(num_symbols, embedding_size, hidden_size) < 1:
        sizes = (
            f"{num_symbols} symbols, embeddings of {embedding_size} and {hidden_size} hidden units"
        )
        raise UserError(f"an oracle has at least 1 of everything, got {sizes}")
    shapes = parameter_shapes(num_symbols, embedding_size, hidden_size)
    _check_size("the oracle", shapes)
    _check_start("the oracle", start, num_symbols)
    generator = seeded(seed)
    return _oracle(
        {
            name: torch.randn(shape, generator=generator, dtype=torch.float32)
            for name, shape in shapes.items()
        },
        start,
    )


def oracle_from_file(path: Path | str, *, start: int = 0) -> RNN:
    """Read the oracle of an `.npz` file of arrays as in `parameter_shapes`.

    It is in evaluation mode and without gradients.

    `start` is the symbol that stands before the first. Names, types and shapes are looked at before
    memory is taken for the arrays, and nothing is unpickled. Raises `UserError` if the file cannot
    be read, is anything else, or holds a number that is not finite.
    """
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(
                f"{path} is a directory, a pipe or a device, not an .npz file of an oracle's "
                "parameters"
            )
        with zipfile.ZipFile(path) as archive:
            shapes = _checked_shapes(path, archive)
            _check_start(path, start, shapes["embeddings"][0])
            parameters = {name: _parameter(path, archive, name) for name in shapes}
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except DAMAGED as error:
        why = " ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise UserError(
            f"{path} is no .npz file of an oracle's parameters, or is damaged: {why}"
        ) from None
    return _oracle(parameters, start)


def _checked_shapes(path: Path, archive: zipfile.ZipFile) -> dict[str, tuple[int, ...]]:
    """The shapes of a file's arrays, which are those of an oracle, from their headers alone."""
    wanted = {f"{name}.npy" for name in parameter_shapes(1, 1, 1)}
    for member in sorted(wanted ^ set(archive.namelist())):
        what = "lacks the array" if member in wanted else "is no oracle: it holds"
        raise UserError(f"{path} {what} {member.removesuffix('.npy')!r}")
    found = {name: _header(path, archive, name) for name in parameter_shapes(1, 1, 1)}
    for name, dimensions in (("embeddings", 2), ("b_i", 1)):
        if len(found[name]) != dimensions or 0 in found[name]:
            raise UserError(
                f"{path}: {name} has shape {list(found[name])}, where {dimensions} sizes of at "
                "least 1 are wanted"
            )
    shapes = parameter_shapes(*found["embeddings"], *found["b_i"])
    for name, shape in shapes.items():
        if found[name] != shape:
            raise UserError(
                f"{path}: {name} has shape {list(found[name])}, and by embeddings and b_i it would "
                f"be {list(shape)}"
            )
    _check_size(path, shapes)
    return shapes


def _header(path: Path, archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    """The shape of an array of floating-point numbers; of the format's versions only the first,
    whose headers are short.
    """
    with archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        if version != (1, 0):
            raise ValueError(f"{name} is of version {version[0]} of NumPy's format, not 1")
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise UserError(
            f"{path}: {name} is made of {dtype}, and floating-point numbers of at most 64 bits are "
            "wanted"
        )
    return shape


def _parameter(path: Path, archive: zipfile.ZipFile, name: str) -> Tensor:
    """A file's array, of the default type."""
    with archive.open(f"{name}.npy") as member:
        array = np.load(member, allow_pickle=False)
        if member.read(1):  # which also has the checksum compared
            raise ValueError(f"{name} goes on after its end")
    values = torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))).to(
        torch.get_default_dtype()
    )
    if not values.isfinite().all():
        raise UserError(f"{path}: {name} holds numbers that are not finite")
    return values


def seeded(seed: int) -> torch.Generator:
    """Return a torch generator; raise `UserError` for a seed outside 0 … 2^63 - 1."""
    if not 0 <= seed < 2**63:
        raise UserError(f"a seed must lie between 0 and {2**63 - 1}, got {seed}")
    return torch.Generator().manual_seed(seed)


def _check_size(where: object, shapes: Mapping[str, tuple[int, ...]]) -> None:
    numbers = sum(int(np.prod(shape, dtype=object)) for shape in shapes.values())
    if numbers > MOST_NUMBERS:
        raise UserError(
            f"{where} would have {numbers:,} parameters, and {MOST_NUMBERS:,} are the most"
        )


def _check_start(where: object, start: int, num_symbols: int) -> None:
    if not 0 <= start < num_symbols:
        raise UserError(
            f"{where} has symbols 0 to {num_symbols - 1:,}, and the start symbol must be one of "
            f"them, got {start}"
        )


def _oracle(parameters: Mapping[str, Tensor], start: int) -> RNN:
    """The model whose parameters these are: PyTorch's LSTM has two biases, of which one is all and
    the other zero.
    """
    (num_symbols, embedding_size) = parameters["embeddings"].shape
    hidden_size = len(parameters["b_i"])
    # what it is initialised by is overwritten, and must not be missed elsewhere
    with torch.random.fork_rng(devices=[]):
        context = PreviousObservation(Embedding(num_symbols, embedding_size), before=start)
        model = RNN(Categorical(num_symbols), context, cell="lstm", hidden_size=hidden_size)
    bias = torch.cat([parameters[f"b_{gate}"] for gate in TORCH_GATES])
    weights: dict[str, Any] = {
        "context.encoder.table.weight": parameters["embeddings"],
        "recurrence.rnn.weight_ih_l0": torch.cat(
            [parameters[f"W_{gate}"] for gate in TORCH_GATES], 1
        ).t(),
        "recurrence.rnn.weight_hh_l0": torch.cat(
            [parameters[f"U_{gate}"] for gate in TORCH_GATES], 1
        ).t(),
        "recurrence.rnn.bias_ih_l0": bias,
        "recurrence.rnn.bias_hh_l0": torch.zeros_like(bias),
        "decoder.0.weight": parameters["W_out"].t(),
        "decoder.0.bias": parameters["b_out"],
    }
    model.load_state_dict(weights)
    return model.requires_grad_(False).eval()


def nll_oracle(oracle: RNN, sequences: Tensor) -> Measurement:
    """Return NLL_oracle of sequences `[n, T]`: the mean of `nats_per_token`, with its error."""
    return Measurement.mean(nats_per_token(oracle, sequences))


@torch.no_grad()
def nats_per_token(oracle: RNN, sequences: Tensor) -> Tensor:
    """Return -(1/T) log p(x_{1:T}) `[n]` of sequences `[n, T]` under an oracle, in nats.

    All steps are taken at once, teacher-forced, and the softmax over the vocabulary of so many
    steps at a time that memory is bounded. The work is done where the oracle lies. Raises
    `UserError` for what are no sequences, and for a symbol that the oracle does not have.
    """
    check_symbols(sequences, oracle.emission.num_features)
    device, (_, num_steps) = oracle.context.device, sequences.shape
    rows = max(
        1,
        CHUNK_NUMBERS
        // (8 * num_steps * max(oracle.recurrence.hidden_size, oracle.recurrence.input_size)),
    )
    steps = max(1, CHUNK_NUMBERS // oracle.emission.num_features)
    # now: small results between large ones that are freed would leave holes
    found = torch.empty(sequences.shape, device=device)
    # the symbols were looked at, and the logits would be once more for each of the chunks
    with pyro.validation_enabled(False):
        for part, into in zip(sequences.to(device).split(rows), found.split(rows), strict=True):
            h, _ = oracle.hidden_states(SequenceBatch(part))
            chunks = (
                h.flatten(0, 1).split(steps),
                part.flatten().split(steps),
                into.view(-1).split(steps),
            )
            for states, symbols, log_prob in zip(*chunks, strict=True):
                features, _ = oracle.decode(states, None, ())
                log_prob.copy_(oracle.emission(features).log_prob(symbols))
    return -found.mean(-1)


def check_symbols(sequences: Tensor, num_symbols: int) -> None:
    """Raise `UserError` unless these are sequences `[n, T]` of the oracle's symbols.

    There must be a sequence and a step.
    """
    if (
        sequences.dim() != 2
        or not sequences.numel()
        or sequences.is_floating_point()
        or sequences.is_complex()
    ):
        what = f"{sequences.dtype} of shape {list(sequences.shape)}".removeprefix("torch.")
        raise UserError(f"the oracle judges sequences of whole numbers [n, T], got {what}")
    low, high = int(sequences.min()), int(sequences.max())
    if low < 0 or high >= num_symbols:
        wrong = low if low < 0 else high
        raise UserError(
            f"the oracle has symbols 0 to {num_symbols - 1:,}, and a sequence has symbol {wrong:,}"
        )
