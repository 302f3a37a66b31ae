"""The settings `model.*` of the shipped pairs: a dataclass for each, with the pair's title."""

from __future__ import annotations

from dataclasses import dataclass

from pyro_seq.config.fields import above, between, described, one_of
from pyro_seq.nn.feedforward import ACTIVATIONS, POSITIVE
from pyro_seq.nn.recurrent import KINDS

MOST_UNITS = 65_536  # of a layer


@dataclass(frozen=True)
class ModelSettings:
    """Hold the settings of a pair.

    These are `name`, the pair's name, and one for each parameter of its model and its guide that
    the program does not give.
    """

    name: str = described("", "the pair")


@dataclass(frozen=True)
class RecurrentSettings(ModelSettings):
    """Settings that all pairs with recurrent networks have."""

    cell: str = one_of(sorted(KINDS), "lstm", "recurrent cell")
    hidden_size: int = between(1, MOST_UNITS, 256, "units of each recurrent layer")
    num_layers: int = between(1, 64, 1, "recurrent layers")
    dropout: float = between(0, 0.99, 0.0, "dropout between recurrent layers, in training")
    input_dropout: float = between(
        0,
        0.99,
        0.0,
        "dropout on what the recurrences see, the same features at all steps of a sequence",
    )
    output_dropout: float = between(0, 0.99, 0.0, "dropout on what the recurrences give, likewise")
    activation: str = one_of(sorted(ACTIVATIONS), "relu", "of hidden layers")
    layout: str = one_of(
        ("path", "steps"),
        "path",
        "path: one site for all steps, fast; steps: a site for each, as in Pyro's examples",
    )


@dataclass(frozen=True)
class DecodedSettings(RecurrentSettings):
    """Settings of pairs whose emission sees the recurrence through a network."""

    decoder_sizes: tuple[int, ...] = between(
        1, MOST_UNITS, (), "hidden layers between the recurrence and the emission"
    )


@dataclass(frozen=True)
class RNNSettings(DecodedSettings):
    """Settings of `models.RNN`."""

    name: str = one_of(("rnn",), "rnn", "RNN without latents (Graves, 2013)")
    skip: bool = described(False, "whether the emission sees the context beside the recurrence")


@dataclass(frozen=True)
class LatentSettings(DecodedSettings):
    """Settings of pairs with a recurrence and latents."""

    latent_size: int = between(1, MOST_UNITS, 16, "size of z_t")
    latent_sizes: tuple[int, ...] = between(
        1, MOST_UNITS, (64,), "hidden layers of the networks of z_t's prior and posterior"
    )
    positive: str = one_of(sorted(POSITIVE), "softplus", "how scales are kept positive")
    epsilon: float = above(0, 1e-4, "the smallest scale")


@dataclass(frozen=True)
class ISEQSettings(LatentSettings):
    """Settings of `models.ISEQ` and `guides.ISEQGuide`."""

    name: str = one_of(("iseq",), "iseq", "Sequential VAE, latents independent (VAE-Seq, 2018)")


@dataclass(frozen=True)
class SRNNSettings(LatentSettings):
    """Settings of `models.SRNN` and `guides.SRNNGuide`."""

    name: str = one_of(("srnn",), "srnn", "Stochastic RNN (Fraccaro et al., 2016)")
    guide_size: int | None = between(
        1, MOST_UNITS, None, "units of the guide's recurrence; none for hidden_size"
    )
    residual: bool = described(True, "the posterior's mean is the prior's plus a correction")


@dataclass(frozen=True)
class VRNNSettings(LatentSettings):
    """Settings of `models.VRNN` and `guides.VRNNGuide`."""

    name: str = one_of(("vrnn",), "vrnn", "Variational RNN (Chung et al., 2015)")
    feature_sizes: tuple[int, ...] = between(1, MOST_UNITS, (64,), "layers of the features of z_t")
    smoothing: bool = described(True, "whether the posterior of z_t sees what comes after step t")


@dataclass(frozen=True)
class DMMSettings(RecurrentSettings):
    """Settings of `models.DMM` and `guides.DMMGuide`."""

    name: str = one_of(("dmm",), "dmm", "Deep Markov model (Krishnan et al., 2017)")
    cell: str = one_of(sorted(KINDS), "relu", "recurrent cell")
    hidden_size: int = between(1, MOST_UNITS, 600, "units of each recurrent layer")
    guide_input_dropout: float = between(
        0, 0.99, 0.0, "dropout on what the guide's recurrence sees, likewise"
    )
    guide_output_dropout: float = between(
        0, 0.99, 0.0, "dropout on what the guide's recurrence gives, likewise"
    )
    hidden_dropout: float = between(
        0, 0.99, 0.0, "dropout on hidden units of transition and emission, others at each step"
    )
    guide_context: bool = described(False, "whether the guide sees what came before as well")
    latent_size: int = between(1, MOST_UNITS, 100, "size of z_t")
    transition_sizes: tuple[int, ...] = between(
        1, MOST_UNITS, (200,), "hidden layers of the transition's gate and proposal"
    )
    emission_sizes: tuple[int, ...] = between(
        1, MOST_UNITS, (100, 100), "hidden layers between z_t and the emission"
    )
    conditional: bool = described(False, "whether transition and emission see what came before")
    num_flows: int = between(0, 64, 0, "inverse autoregressive flows of the posterior")
    flow_sizes: tuple[int, ...] = between(1, MOST_UNITS, (100,), "hidden units of each flow")
    positive: str = one_of(sorted(POSITIVE), "softplus", "how scales are kept positive")
    epsilon: float = above(0, 1e-4, "the smallest scale")


@dataclass(frozen=True)
class HMMSettings(ModelSettings):
    """Settings of `models.HMM`."""

    name: str = one_of(("hmm",), "hmm", "Hidden Markov model, neural emissions (Rabiner, 1989)")
    emission_sizes: tuple[int, ...] = between(
        1, MOST_UNITS, (), "hidden layers between z_t and the emission"
    )
    num_states: int = between(1, MOST_UNITS, 16, "hidden states")
    embedding_size: int = between(1, MOST_UNITS, 64, "size of a hidden state's embedding")
    order: int = between(1, 16, 1, "states before that the next one depends on")
    max_duration: int = between(
        1, 65_536, 1, "most steps that a state lasts; 1: no durations, states drawn at each step"
    )
    autoregressive: bool = described(False, "whether the emission sees what came before")
    activation: str = one_of(sorted(ACTIVATIONS), "relu", "of hidden layers")
    layout: str = one_of(
        ("path", "steps"),
        "path",
        "path: one site for all steps, fast; steps: a site for each, as in Pyro's examples",
    )


@dataclass(frozen=True)
class LGSSMSettings(ModelSettings):
    """Settings of `models.LGSSM`."""

    name: str = one_of(("lgssm",), "lgssm", "Linear-Gaussian state space (Kalman, 1960)")
    seasons: tuple[int, ...] | None = between(
        2, 1_000_000, None, "steps of each season, as 24, 168; none for those of the data"
    )
    harmonics: int | None = between(
        1,
        MOST_UNITS,
        None,
        "harmonics of each season longer than 12 steps; a shorter one has all; none for 4, of many "
        "columns as many as leave at most 100 states",
    )
    trend: str = one_of(
        ("none", "damped", "linear"), "damped", "whether levels have slopes, and of which kind"
    )
    latent_size: int = between(0, MOST_UNITS, 4, "number of factors that the columns share")
    noise_rank: int | None = between(
        0, MOST_UNITS, None, "rank of what noise the columns share; none for any covariance"
    )
    scaled: bool = described(
        False, "whether the first side inputs are each column's location and scale"
    )
    layout: str = one_of(
        ("path", "steps"),
        "path",
        "path: one site for all steps, fast; steps: a site for each, as in Pyro's examples",
    )


@dataclass(frozen=True)
class SLDSSettings(ModelSettings):
    """Settings of `models.SLDS` and `guides.SLDSGuide`."""

    name: str = one_of(
        ("slds",), "slds", "Switching linear dynamical system (Ghahramani & Hinton, 2000)"
    )
    num_states: int = between(1, 256, 2, "regimes z_t")
    state_size: int = between(1, 256, 4, "size of the continuous state h_t")
    smoothing: bool = described(True, "whether the guide of z_t sees what comes after step t")
    scaled: bool = described(
        False, "whether the first side inputs are each column's location and scale"
    )
    layout: str = one_of(
        ("path", "steps"),
        "path",
        "path: one site for all steps, fast; steps: a site for each, as in Pyro's examples",
    )
