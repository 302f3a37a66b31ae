"""Films: nats a frame of latent pairs and of averages, valid frames, and a step's speed.

python benchmarks/frames.py turns|digits|balls [--seeds 0 1] [--minutes 20] [--set KEY=VALUE]
python benchmarks/frames.py speed
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from common import data_file, in_turns, kept_in, medians, parsed, parser_of_runs

import torch  # isort: skip
from torch import nn

from pyro_seq.config.fields import parse_words
from pyro_seq.config.model_settings import Layer
from pyro_seq.frames import evaluate, frame_program, read_films
from pyro_seq.frames.scoring import FilmScore

# file, preset, first frames that are not counted, rule, presets beside it
SETS: dict[str, tuple[str, str, int, str | None, tuple[str, ...]]] = {
    "turns": ("frames_turns.npz", "squares", 1, "square", ("average",)),
    "digits": ("wandering_digits.npz", "digits", 2, None, ()),
    "balls": ("bouncing_balls.npz", "balls", 2, None, ()),
}
SAMPLES = 16


def learnt(name: str, preset: str, seed: int, folder: Path, options: Any) -> FilmScore:
    """Train by a preset, and return the figures of the test films."""
    file, _, skip, rule, _ = SETS[name]
    path = data_file(f"series/{file}")
    settings = frame_program.settings(
        Layer(frame_program.presets[preset], preset, lenient=True),
        {"training.max_minutes": options.minutes, "training.sample_every": 0},
        Layer(parse_words(options.words), "--set"),
    )
    run = folder / f"{name}-{preset}-{seed}"
    begun, used = time.monotonic(), time.process_time()
    frame_program.start(run, settings, {"train_data": (path,)}, seed=seed, quiet=True)
    model = frame_program.load(run)
    shown = f"{(time.monotonic() - begun) / 60:.1f} minutes, {time.process_time() - used:.0f} s CPU"
    torch.manual_seed(seed)
    found = evaluate(model, read_films([path], "test"), skip=skip, samples=SAMPLES, rule=rule)
    print(f"{name} {preset} seed {seed}: {model.step:,} steps, {shown}")
    print(f"  {_words(found)}", flush=True)
    return found


def _words(found: FilmScore) -> str:
    parts = [
        f"{found.method} {found.bound.mean:.3f} ± {found.bound.standard_error:.3f} nats a frame",
        f"by {found.samples} particles {found.importance.mean:.3f}",
        f"one-step squared error {found.squared_error.mean:.2f}",
    ]
    if found.valid is not None:
        parts.append(f"valid frames {found.valid:.1%} in {found.continuations} continuations")
    return ", ".join(parts)


def speed() -> None:
    """Time an update of the trainer's by the side of the same network by hand in PyTorch."""
    from pyro_seq.frames.data.demo import moving_squares
    from pyro_seq.frames.program import FilmData
    from pyro_seq.train.svi import SVIUpdates

    films = moving_squares(64)
    # one draw of the guide, and no noise: what is done by hand
    plain = {"training.objective": "trace", "training.num_particles": 1, "frames.noise": 0.0}
    settings = frame_program.settings(
        frame_program.presets["squares"], plain | {"frames.batch_size": 16}
    )
    data = FilmData(films.shape, films.kind, films)
    pair = frame_program.new_pair(settings, data)
    model = frame_program.model(pair, settings, data, torch.device("cpu"), 0)
    batches = frame_program.batches(model, data, seed=0)
    batch, _ = batches.draw()

    updates = SVIUpdates(pair, settings.training)
    updates.prepare(batches)
    net: Any = pair.model
    guide: Any = pair.guide
    optimizer = torch.optim.AdamW([*net.parameters(), *guide.parameters()], lr=1e-3)
    x = batch.values

    def by_hand() -> None:
        """VRNN by its equations: the chain of posteriors, one step after the other."""
        before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        past = before.flatten(2)
        seen = net.context.contexts[0].encoder(before)
        seen = torch.cat([torch.zeros_like(seen[:, :1]), seen[:, 1:]], 1)
        told = guide.encoder(x, past=past)
        z, state = x.new_zeros(len(x), net.latent_size), None
        divergence, hidden, latents = x.new_zeros(()), [], []
        for t in range(x.shape[1]):
            inputs = torch.cat([seen[:, t], net.features(z)], -1).unsqueeze(1)
            d, state = net.recurrence(inputs, state)
            prior, posterior = net.prior(d[:, 0]), guide.network(told[:, t], d[:, 0])
            z = posterior.rsample()
            divergence = divergence + (posterior.log_prob(z) - prior.log_prob(z)).sum()
            hidden.append(d[:, 0])
            latents.append(z)
        features = net.decoder(net.features(torch.stack(latents, 1)), torch.stack(hidden, 1))
        law = net.emission(features, past)
        loss = (divergence - law.log_prob(x).sum()) / x[..., 0, 0, 0].numel()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*net.parameters(), *guide.parameters()], 1.0)
        optimizer.step()

    with pair.scope():
        turns = in_turns(
            {"pyro_seq": lambda: updates.update(batch, 1_000, 1.0), "by hand": by_hand}, rounds=15
        )
    middle = medians(turns)
    print(f"  pyro_seq over by hand: {middle['pyro_seq'] / middle['by hand']:.2f}")


def main() -> None:
    """Train and score, or time."""
    parser = parser_of_runs(__doc__)
    parser.add_argument("name", choices=[*SETS, "speed"])
    parser.add_argument("--minutes", type=float, default=20.0, help="of training, each")
    options = parsed(parser)
    if options.name == "speed":
        speed()
        return
    _, preset, _, _, others = SETS[options.name]
    with kept_in(options.run_dir) as folder:
        for seed in options.seeds:
            for one in (*others, preset):
                learnt(options.name, one, seed, folder, options)


if __name__ == "__main__":
    main()
