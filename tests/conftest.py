"""What holds for every test: a clean Pyro, a fixed seed, one thread, and warnings that fail."""

from __future__ import annotations

import importlib.util
import itertools
import os
import resource
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import PIL.Image
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import settings
from matplotlib.figure import Figure
from torch import Tensor

from pyro_seq.batch import SequenceBatch
from pyro_seq.cli import main
from pyro_seq.config.build import PairComponents, make_pair, model_settings
from pyro_seq.contexts import SideInputs
from pyro_seq.emissions.elementary import Normal
from pyro_seq.pairs.guide import SequenceGuide
from pyro_seq.pairs.model import SequenceModel
from pyro_seq.pairs.pair import Pair

ROOT = Path(__file__).parent.parent

# The same examples on every run: a test that fails does so for everyone.
settings.register_profile("house", deadline=None, derandomize=True)
settings.load_profile("house")

# Tests run side by side, each in one thread; so do the commands that they start.
os.environ["OMP_NUM_THREADS"] = "1"


TINY: dict[str, Any] = {
    "hidden_size": 4,
    "latent_size": 2,
    "latent_sizes": (5,),
    "activation": "tanh",
}
DEEP: dict[str, Any] = {
    "latent_size": 6,
    "transition_sizes": (5,),
    "emission_sizes": (5,),
    "conditional": True,
    "cell": "gru",
}


def shipped_pair(kind: str, **settings: Any) -> Callable[[PairComponents, str], Pair]:
    return lambda parts, layout: make_pair(
        model_settings(kind, TINY | settings | {"layout": layout}), parts
    )


# Every shipped pair, small: a test that takes `shipped` runs for each of them, as `shipped(parts,
# layout)`.
SHIPPED: dict[str, Callable[[PairComponents, str], Pair]] = {
    "rnn": shipped_pair("rnn"),
    "rnn_skip": shipped_pair("rnn", skip=True),
    "iseq": shipped_pair("iseq"),
    "srnn": shipped_pair("srnn"),
    "srnn_plain": shipped_pair("srnn", residual=False),
    "vrnn": shipped_pair("vrnn"),
    "dmm": shipped_pair("dmm", **DEEP),
    "dmm_flows": shipped_pair("dmm", num_flows=2, flow_sizes=(6,), **DEEP),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "shipped" in metafunc.fixturenames:
        metafunc.parametrize("shipped", SHIPPED.values(), ids=SHIPPED)


@pytest.hookimpl(tryfirst=True)  # before those that are slow are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as slow what `@pytest.mark.one_in(n)` leaves out: all cases of a test but every n-th.

    An n that has no factor in common with the numbers of values that a test is given mixes them.
    """
    counted: Counter[str] = Counter()
    for item in items:
        mark = item.get_closest_marker("one_in")
        name = item.nodeid.partition("[")[0]
        if mark is not None and counted[name] % mark.args[0]:
            item.add_marker(pytest.mark.slow)
        counted[name] += 1


@pytest.fixture(autouse=True)
def clean_pyro() -> Iterator[None]:
    """An empty parameter store, seed 0, validation on; the default dtype is what it was when the
    test is over.
    """
    dtype = torch.get_default_dtype()
    torch.set_num_threads(1)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    with pyro.validation_enabled():
        yield
    torch.set_default_dtype(dtype)
    pyro.clear_param_store()


@pytest.fixture(scope="module")
def sketched() -> Iterator[None]:
    """Figures are made and not drawn, which takes longer than the training they are of: each is
    saved as a picture of one pixel, no two of them equal.
    """
    shades = itertools.count(1)

    def save(figure: Figure, opened: BinaryIO, **options: Any) -> None:
        PIL.Image.new("RGB", (1, 1), next(shades)).save(opened, "PNG")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save)
        yield


@pytest.fixture(scope="module")
def short_previews() -> Iterator[None]:
    """Trainings show samples of 20 symbols: 400 take longer to draw than all the training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro_seq.text.training.PREVIEWED_SYMBOLS", 20)
        yield


@pytest.fixture
def float64(clean_pyro: None) -> None:
    """New tensors are float64, so that two ways to compute the same density can be told equal."""
    torch.set_default_dtype(torch.float64)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data: `PYRO_SEQ_DATA`, or `../shared/data` beside the checkout; tests are
    skipped without it.
    """
    named = os.environ.get("PYRO_SEQ_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        where = (
            f"PYRO_SEQ_DATA={named} is not a folder" if named else "set PYRO_SEQ_DATA to its folder"
        )
        pytest.skip(f"needs the real data: {where}")
    return folder


@pytest.fixture(scope="session")
def pyroseq() -> Callable[..., int]:
    """Runs the command with these words: its exit code."""

    def command(*words: object) -> int:
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return command


@pytest.fixture(scope="session")
def toys() -> Any:
    """The module of small environments (`toy_games.py`), which are registered with gymnasium."""
    spec = importlib.util.spec_from_file_location(
        "toy_games", Path(__file__).parent / "helpers" / "toy_games.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.register()
    return module


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Options of `pyroseq text train` that make a training of a few milliseconds."""
    sizes = ["model.hidden_size=8", "text.embedding_size=4", "text.batch_size=4", "text.window=12"]
    length = ["training.num_steps=4", "training.valid_every=2", "training.precision=float32"]
    return [word for setting in sizes + length for word in ("--set", setting)]


@pytest.fixture(scope="session")
def tiny_seqgan() -> dict[str, Any]:
    """Settings of an adversarial training of a few tenths of a second, whatever the task; the
    oracle has seven symbols.
    """
    sizes = {
        "length": 6,
        "batch_size": 8,
        "embedding_size": 3,
        "oracle_symbols": 7,
        "oracle_size": 3,
        "num_train": 24,
        "num_held_out": 12,
    }
    pretraining = {"num_steps": 4, "valid_every": 2, "log_every": 2, "sample_every": 0}
    discriminator = {
        "embedding_size": 3,
        "filter_sizes": (2, 3),
        "num_filters": (3, 3),
        "pretrain_rounds": 2,
        "pretrain_epochs": 1,
    }
    adversarial = {
        "num_steps": 4,
        "rollouts": 2,
        "discriminator_rounds": 1,
        "discriminator_epochs": 1,
    }
    adversarial |= {"valid_every": 2, "valid_samples": 12, "sample_every": 2}
    parts = {
        "task": sizes,
        "training": pretraining,
        "discriminator": discriminator,
        "adversarial": adversarial,
    }
    return {"model.hidden_size": 6} | {
        f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()
    }


@pytest.fixture(scope="session")
def seqgan_run(tmp_path_factory: pytest.TempPathFactory, tiny_seqgan: dict[str, Any]) -> Path:
    """The folder of a finished adversarial training on an oracle's sentences, to be read only."""
    from pyro_seq.seqgan.program import seqgan_program

    folder = tmp_path_factory.mktemp("seqgan") / "run"
    torch.set_num_threads(1)
    settings = seqgan_program.settings(tiny_seqgan)
    seqgan_program.start(folder, settings, {}, seed=0, device="cpu", quiet=True)
    return folder


@pytest.fixture(scope="session")
def seqgan_words(tiny_seqgan: dict[str, Any]) -> list[str]:
    """The same as options of `pyroseq seqgan train`."""
    shown = {
        name: ",".join(map(str, value)) if isinstance(value, tuple) else value
        for name, value in tiny_seqgan.items()
    }
    return [word for name, value in shown.items() for word in ("--set", f"{name}={value}")]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of 480 characters."""
    path = tmp_path_factory.mktemp("corpus") / "cat.txt"
    path.write_text("the cat sat on the mat; " * 20)
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, corpus: Path, tiny: list[str]) -> Path:
    """The folder of a finished run, to be read only."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    torch.set_num_threads(1)
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "text",
                "train",
                "--quiet",
                "--train-corpus",
                str(corpus),
                "--run-dir",
                str(folder),
                *tiny,
            ]
        )
    assert ended.value.code == 0
    return folder


@pytest.fixture
def spoilt(trained: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be spoilt."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def commands() -> Callable[[Path, Path], dict[str, list[Any]]]:
    """Every command that uses a run."""
    return lambda run, corpus: {
        "generate": ["text", "generate", "--run-dir", run, "--length", 3],
        "evaluate": ["text", "evaluate", "--run-dir", run, "--eval-corpus", corpus],
        "resume": ["text", "train", "--run-dir", run, "--resume", "--num-steps", 6],
    }


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must be refused with exit code 2: the one line that it says, without the
    program's name.
    """

    def command(*words: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        *progress, line = err.splitlines()
        assert ended.value.code == 2, err
        assert line.startswith("pyroseq: ") and out == "" and "Traceback" not in err
        assert all(
            " to train on, " in shown or shown.startswith(("step ", "going on"))
            for shown in progress
        ), err
        return line.removeprefix("pyroseq: ")

    return command


@pytest.fixture
def file_size_limit() -> Callable[[int], AbstractContextManager[None]]:
    """Inside `file_size_limit(size)` no file can grow beyond `size` bytes: writes fail as on a full
    disk.
    """

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


class LinearGaussian(SequenceModel):
    """z_t ~ N(A z_{t-1}, Q^2), z_0 = 0; x_t ~ N(z_t, R^2): a model whose every question has an
    answer in closed form.
    """

    latent_size = 1
    A, Q, R = 0.8, 0.6, 0.7

    def __init__(self, layout: Any = "path") -> None:
        super().__init__(Normal(positive="exp", epsilon=0.0), SideInputs(0), layout=layout)
        self.scale = torch.nn.Parameter(torch.tensor(float(self.R)).log())

    def transition(self, h: Tensor, previous: Tensor) -> dist.Normal:
        return dist.Normal(self.A * previous, torch.full_like(previous, self.Q))

    def decode(self, h: Tensor, latents: Tensor | None, rnn_state: Any) -> tuple[Tensor, Any]:
        assert latents is not None
        return torch.cat([latents, self.scale.expand_as(latents)], -1), rnn_state

    def batch(self, values: Tensor, lengths: list[int] | None = None) -> SequenceBatch:
        return SequenceBatch(values, lengths, inputs=torch.zeros(*values.shape[:2], 0))

    def covariance(self, steps: int) -> Tensor:
        """Of z_{1:T}."""
        impulse = torch.tensor(
            [
                [self.Q * self.A ** (t - s) if s <= t else 0.0 for s in range(steps)]
                for t in range(steps)
            ]
        )
        return impulse @ impulse.t()

    def log_likelihood(self, x: Tensor, known: Tensor | None = None) -> Tensor:
        """log p of the known x_t, `[N]` of `[N, T]`, from their joint normal."""
        index = torch.arange(x.shape[-1]) if known is None else known.nonzero().flatten()
        z = self.covariance(x.shape[-1])[index][:, index]
        law = dist.MultivariateNormal(
            torch.zeros(len(index)), z + self.R**2 * torch.eye(len(index))
        )
        return law.log_prob(x[..., index])

    def posterior(self, x: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean `[N, T]` and covariance `[T, T]` of z_{1:T} given the known x_t."""
        index = torch.arange(x.shape[-1]) if known is None else known.nonzero().flatten()
        z = self.covariance(x.shape[-1])
        gain = z[:, index] @ torch.linalg.inv(
            z[index][:, index] + self.R**2 * torch.eye(len(index))
        )
        return x[..., index] @ gain.t(), z - gain @ z[index]


class LinearGaussianGuide(SequenceGuide):
    """q(z_t | z_{t-1}, x_{1:T}): the exact posterior, moved and widened by what it is made with; of
    full sequences only.
    """

    def __init__(self, model: LinearGaussian, shift: float = 0.0, widen: float = 1.0) -> None:
        super().__init__(model)
        self.shift, self.widen = shift, widen
        self.place = torch.nn.Parameter(torch.zeros(()))

    def encode(self, batch: SequenceBatch, rnn_state: Any) -> tuple[tuple[Tensor, ...], Any]:
        assert isinstance(batch.values, Tensor) and isinstance(self.model, LinearGaussian)
        mean, s = self.model.posterior(batch.values)
        slope = torch.tensor(
            [0.0] + [float(s[t, t - 1] / s[t - 1, t - 1]) for t in range(1, len(s))]
        )
        before = torch.cat([torch.zeros_like(mean[:, :1]), mean[:, :-1]], -1)
        variance = s.diagonal() - slope**2 * torch.cat([torch.zeros(1), s.diagonal()[:-1]])
        parts = torch.stack(
            [
                mean - slope * before + self.shift,
                slope.expand_as(mean),
                variance.sqrt().expand_as(mean) * self.widen,
            ],
            -1,
        )
        return (parts,), rnn_state

    def posterior(self, evidence: tuple[Tensor, ...], previous: Tensor) -> dist.Normal:
        loc, slope, scale = evidence[0].split(1, -1)
        return dist.Normal(
            loc + slope * previous,
            scale.expand(torch.broadcast_shapes(scale.shape, previous.shape)),
        )


def by_steps(batch: SequenceBatch) -> None:
    """The linear-Gaussian model as a function."""
    with batch.plate():
        z: Any = torch.zeros(())
        for t in batch.steps():
            with batch.active(t):
                z = pyro.sample(f"z_{t}", dist.Normal(LinearGaussian.A * z, LinearGaussian.Q))
                pyro.sample(f"x_{t}", dist.Normal(z, LinearGaussian.R), obs=batch.at(t))


def guide_by_steps(batch: SequenceBatch) -> None:
    with batch.plate():
        z: Any = torch.zeros(())
        for t in batch.steps():
            with batch.active(t):
                z = pyro.sample(f"z_{t}", dist.Normal(0.4 * z + 0.4 * batch.at(t), 0.6))


@pytest.fixture
def written() -> Pair:
    """The linear-Gaussian model and a guide, which is not the exact posterior, as functions."""
    return Pair(by_steps, guide_by_steps)


@pytest.fixture
def linear_gaussian(float64: None) -> Callable[..., Pair]:
    """Makes a linear-Gaussian pair; its guide is the exact posterior, moved by `shift` and widened
    by `widen`.
    """

    def make(layout: str = "path", **options: float) -> Pair:
        model = LinearGaussian(layout)
        return Pair(model, LinearGaussianGuide(model, **options))

    return make
