"""The bundled settings of music runs, for MIDI files and two data sets of the literature."""

from __future__ import annotations

from typing import Any

# frames are quarter notes in JSB chorales and eighths in Nottingham, as Boulanger-Lewandowski's
# files have them
JSB: dict[str, Any] = {
    "frames.emission": "bernoulli",
    "rolls.grid": 1,
    "rolls.window": 0,
    "rolls.batch_size": 20,
    "training.precision": "float32",
}
JSB_RNN: dict[str, Any] = JSB | {
    "model.name": "rnn",
    "model.skip": False,
    "model.hidden_size": 128,
    "model.input_dropout": 0.3,
    "model.output_dropout": 0.5,
    "training.learning_rate": 5e-3,
    "training.weight_decay": 0.1,
    "training.ema_decay": 0.99,
    "training.num_steps": 900,
    "training.valid_every": 100,
}
NOTTINGHAM: dict[str, Any] = {
    "frames.emission": "bernoulli",
    "rolls.grid": 2,
    "rolls.window": 160,
    "rolls.batch_size": 20,
    "training.precision": "float32",
}

# settings that differ from the defaults, by dotted name; what each reaches is in
# benchmarks/README.md
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "demo": {  # for the dozen tunes that come with the package: half a minute
        "frames.emission": "autoregressive_convolution",
        "frames.hidden_size": 48,
        "frames.dropout": 0.3,
        "rolls.grid": 4,
        "rolls.transpose": 3,
        "rolls.batch_size": 8,
        "model.hidden_size": 128,
        "model.input_dropout": 0.2,
        "model.output_dropout": 0.4,
        "training.learning_rate": 1e-2,
        "training.num_steps": 300,
        "training.valid_every": 50,
        "training.sample_every": 150,
    },
    "quick": {  # for a few minutes
        "frames.hidden_size": 64,
        "model.hidden_size": 128,
        "training.learning_rate": 1e-2,
        "training.valid_every": 200,
    },
    "best": {  # music that is heard by the beat
        "rolls.grid": 4,
        "rolls.transpose": 5,
        "model.hidden_size": 512,
        "model.input_dropout": 0.1,
        "model.output_dropout": 0.3,
        "training.learning_rate": 4e-3,
        "training.ema_decay": 0.999,
    },
    "jsb-best": JSB
    | {
        "frames.emission": "convolution",
        "frames.hidden_size": 48,
        "frames.history": 4,
        "frames.dropout": 0.4,
        "model.name": "dmm",
        "model.conditional": True,
        "model.cell": "gru",
        "model.hidden_size": 200,
        "model.latent_size": 64,
        "model.transition_sizes": (150,),
        "model.input_dropout": 0.4,
        "model.hidden_dropout": 0.1,
        "model.guide_context": True,
        "model.guide_input_dropout": 0.2,
        "model.guide_output_dropout": 0.3,
        "training.objective": "mean_field",
        "training.learning_rate": 3e-3,
        "training.weight_decay": 0.1,
        "training.ema_decay": 0.9995,
        "training.kl_schedule": "linear",
        "training.kl_start": 0.05,
        "training.kl_steps": 4_000,
        "training.num_steps": 14_000,
        "training.valid_every": 600,
    },
    # of the sizes of Pyro's example: latent 100, emission 100, transition 200, recurrence 600,
    # minibatches of 20
    "jsb-dmm": JSB
    | {
        "model.name": "dmm",
        "model.cell": "relu",
        "model.guide_output_dropout": 0.1,
        "training.learning_rate": 1e-3,
        "training.objective": "mean_field",
        "training.l2": 3e-3,
        "training.penalty_steps": 20_000,
        "training.beta1": 0.96,
        "training.beta2": 0.999,
        "training.ema_decay": 0.9995,
        "training.kl_schedule": "linear",
        "training.kl_start": 0.2,
        "training.kl_steps": 11_500,  # 1,000 passes, as in the example
        "training.num_steps": 25_000,
        "training.valid_every": 1_000,
        "training.valid_particles": 4,
    },
    "jsb-rnn": JSB_RNN
    | {"frames.emission": "convolution", "frames.hidden_size": 96, "frames.dropout": 0.5},
    "jsb-chords": JSB_RNN
    | {
        "frames.emission": "autoregressive_convolution",
        "frames.hidden_size": 96,
        "frames.num_layers": 3,
        "frames.dropout": 0.4,
    },
    # filtered: the posterior of z_t sees the frames up to x_t, as in arXiv 1705.09279
    "jsb-vrnn-fivo": JSB
    | {
        "model.name": "vrnn",
        "model.smoothing": False,
        "model.hidden_size": 128,
        "model.latent_size": 32,
        "model.input_dropout": 0.3,
        "model.output_dropout": 0.5,
        "training.objective": "fivo",
        "training.num_particles": 16,
        "training.learning_rate": 5e-3,
        "training.weight_decay": 0.1,
        "training.ema_decay": 0.995,
        "training.kl_schedule": "linear",
        "training.kl_start": 0.2,
        "training.kl_steps": 300,
        "training.num_steps": 2_400,
        "training.valid_every": 100,
    },
    "nottingham-best": NOTTINGHAM
    | {
        "model.name": "srnn",
        "model.hidden_size": 400,
        "model.guide_size": 256,
        "model.latent_size": 48,
        "model.latent_sizes": (160,),
        "model.input_dropout": 0.1,
        "model.output_dropout": 0.4,
        "training.learning_rate": 4e-3,
        "training.weight_decay": 0.05,
        "training.ema_decay": 0.999,
        "training.kl_schedule": "linear",
        "training.kl_start": 0.2,
        "training.kl_steps": 1_000,
        "training.num_steps": 6_000,
        "training.valid_every": 500,
    },
    "nottingham-vrnn-fivo": NOTTINGHAM
    | {
        "rolls.batch_size": 16,
        "model.name": "vrnn",
        "model.smoothing": False,
        "model.hidden_size": 256,
        "model.latent_size": 48,
        "model.input_dropout": 0.1,
        "model.output_dropout": 0.4,
        "training.objective": "fivo",
        "training.num_particles": 16,
        "training.learning_rate": 3e-3,
        "training.weight_decay": 0.05,
        "training.ema_decay": 0.999,
        "training.num_steps": 6_000,
        "training.valid_every": 500,
    },
    # the same with keys that are given those below
    "nottingham-chords-fivo": NOTTINGHAM
    | {
        "frames.emission": "nade",
        "frames.hidden_size": 64,
        "rolls.window": 80,
        "model.name": "vrnn",
        "model.smoothing": False,
        "model.hidden_size": 200,
        "model.latent_size": 48,
        "model.input_dropout": 0.1,
        "model.output_dropout": 0.2,
        "training.objective": "fivo",
        "training.num_particles": 4,
        "training.learning_rate": 5e-3,
        "training.weight_decay": 0.05,
        "training.ema_decay": 0.995,
        "training.kl_schedule": "linear",
        "training.kl_start": 0.2,
        "training.kl_steps": 200,
        "training.num_steps": 1_300,
        "training.valid_every": 100,
    },
    "nottingham-rnn": NOTTINGHAM
    | {
        "model.name": "rnn",
        "model.skip": False,
        "model.hidden_size": 400,
        "model.input_dropout": 0.1,
        "model.output_dropout": 0.5,
        "training.learning_rate": 4e-3,
        "training.weight_decay": 0.05,
        "training.ema_decay": 0.998,
        "training.num_steps": 2_600,
        "training.valid_every": 400,
    },
}
