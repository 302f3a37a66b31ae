"""The bundled settings of runs on films."""

from __future__ import annotations

from typing import Any

LATENT: dict[str, Any] = {
    "model.latent_size": 16,
    "model.latent_sizes": (32,),
    "model.feature_sizes": (32,),
    "training.kl_schedule": "linear",
    "training.kl_start": 0.02,
    "training.precision": "float32",
}
SMALL: dict[str, Any] = {
    "frames.map_channels": (),
    "frames.features": 32,
    "frames.encoder_channels": (8, 8, 8),
    "frames.encoder_features": 32,
}
# a bound by one draw would rather have half a square between two directions than a border between
# them that a draw of the guide may cross; by a few draws that are weighed, borders become sharp
WEIGHED: dict[str, Any] = {"training.objective": "fivo", "training.num_particles": 4}

# the next frame lies near the last one: hidden units know no places but by that
SQUARES: dict[str, Any] = (
    LATENT
    | SMALL
    | WEIGHED
    | {
        "frames.wraps": True,
        "frames.kernel_sizes": (7, 3),  # as far as a square's pixels and those around them move
        "frames.noise": 0.2,
        "frames.batch_size": 8,
        "model.hidden_size": 32,
        "training.learning_rate": 5e-3,
        "training.kl_steps": 500,
        "training.num_steps": 4_500,
        "training.valid_every": 100,
        "training.sample_every": 500,
    }
)

MOVING: dict[str, Any] = LATENT | SMALL | {"frames.history": 3, "frames.kernel_sizes": (7, 3, 1)}

# settings that differ from the defaults, by dotted name; what each reaches is in docs/frames.md
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "demo": SQUARES | {"training.num_steps": 1_200},
    "squares": SQUARES,  # for frames_turns
    # no latents: the pixels of the next frame are independent given the last ones
    "average": SMALL
    | {
        "model.name": "rnn",
        "frames.wraps": True,
        "model.hidden_size": 32,
        "training.precision": "float32",
        "training.num_steps": 500,
        "training.valid_every": 100,
    },
    "balls": MOVING
    | {
        "frames.batch_size": 8,
        "training.learning_rate": 6e-3,
        "training.kl_steps": 500,
        "training.num_steps": 1_500,
        "training.valid_every": 100,
    },
    # a latent is a velocity, and what it was tells what it will be: the last frame says the rest
    "digits": LATENT
    | SMALL
    | WEIGHED
    | {
        "frames.kernel_sizes": (5, 3),
        "frames.batch_size": 8,
        "model.hidden_size": 64,
        "training.learning_rate": 5e-3,
        "training.kl_steps": 300,
        "training.num_steps": 6_500,
        "training.valid_every": 100,
        "training.sample_every": 500,
    },
}
