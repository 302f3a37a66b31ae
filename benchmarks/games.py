"""Games: an agent trained in imagination alone, and how well the model predicts; `--game cartpole`,
`acrobot`, `pendulum` or `cartpole-pixels`, which sees the picture that the game draws.

Each seed is a run by the preset of that name: real steps, what the last agent earns in 100 real
games (always its likeliest action), and the model's errors of open-loop predictions of games that
were held out. A random agent plays as many games.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import common
import torch

from pyro_seq.config.model_settings import Layer
from pyro_seq.games.loaded import Returns, measured, play_real, returns_of
from pyro_seq.games.program import PRESETS, game_program
from pyro_seq.games.settings import game_settings

GAMES = 100
# published: mean return and real steps, of Stable-Baselines3's zoo
ZOO = {
    "cartpole": "DQN 500 after 50,000",
    "acrobot": "DQN -77 after 100,000",
    "pendulum": "SAC -156 after 20,000",
    "cartpole-pixels": "none from pictures; of numbers, DQN 500 after 50,000",
}


def run(
    game: str, seed: int, folder: Path, quick: bool
) -> tuple[Returns, Returns, dict[str, float], int, tuple[float, float]]:
    """(what the agent earns, what a random one does, the model's figures, real steps, minutes by
    the clock and of the processor).
    """
    changes = (
        {"play.env_steps": 300, "agent.updates": 5, "world.updates": 20, "agent.first_updates": 5}
        if quick
        else {}
    )
    settings = game_settings(Layer(PRESETS[game], game), Layer(changes))
    begun, used = time.monotonic(), time.process_time()
    game_program.start(folder, settings, seed=seed, quiet=True)
    # the latter does not count what other programs take of a machine that is shared
    minutes = (time.monotonic() - begun) / 60, (time.process_time() - used) / 60
    trained = game_program.load(folder)
    torch.manual_seed(seed)
    earned, by_chance = (
        returns_of(play_real(trained, GAMES, agent=agent, seed=seed + 1_000))
        for agent in ("trained", "random")
    )
    return earned, by_chance, measured(trained), trained.real_steps, minutes


def main() -> None:
    """One line a seed, then the bars."""
    parser = common.parser_of(__doc__)
    parser.add_argument("--game", choices=list(ZOO), default="cartpole")
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0 on")
    parser.add_argument("--keep", help="where to keep the runs; a temporary folder if not given")
    options = common.parsed(parser)
    game, seeds, kept = options.game, options.seeds, options.keep
    torch.set_num_threads(options.threads or 1)
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(1 if options.quick else seeds):
            folder = Path(kept or temporary) / f"{game}-{seed}"
            earned, by_chance, figures, steps, minutes = run(game, seed, folder, options.quick)
            error = earned.standard_error or 0.0
            shown = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
            print(
                (
                    f"seed {seed}: return {earned.mean:.1f} ± {error:.1f} (random "
                    f"{by_chance.mean:.1f}), {steps:,} real steps, "
                ),
                end="",
            )
            by_clock, of_processor = minutes
            print(
                f"{by_clock:.1f} minutes, {of_processor:.1f} of the processor; {shown}", flush=True
            )
            found.append((earned, by_chance, figures, steps, minutes))
    print(f"published: {ZOO[game]} steps (Stable-Baselines3 zoo)")
    if game == "cartpole":
        wanted = 0 if options.quick else max(1, round(0.8 * len(found)))
        common.report(
            "seeds with a mean return of at least 475",
            sum(e.mean >= 475 for e, *_ in found),
            at_least=wanted,
        )
        common.report(
            "real steps, the most of a seed", max(steps for *_, steps, _ in found), at_most=50_000
        )
        common.report(
            "minutes, the most of a seed", max(minutes[0] for *_, minutes in found), at_most=20
        )
        errors = [figures["error_10"] for _, _, figures, *_ in found if "error_10" in figures]
        if errors:
            bar = None if options.quick else 0.1
            common.report(
                "open loop, 10 steps: error in deviations, median of seeds",
                statistics.median(errors),
                at_most=bar,
            )
    else:
        for number, (earned, by_chance, *_) in enumerate(found):
            error = (
                (earned.standard_error or 0) ** 2 + (by_chance.standard_error or 0) ** 2
            ) ** 0.5
            above = (earned.mean - by_chance.mean) / error
            common.report(
                f"seed {number}: standard errors above the random agent",
                above,
                at_least=None if options.quick else 5,
            )
        if game == "cartpole-pixels":
            common.report(
                "real steps, the most of a seed",
                max(steps for *_, steps, _ in found),
                at_most=20_000,
            )
            common.report(
                "minutes of the processor, the most of a seed",
                max(minutes[1] for *_, minutes in found),
                at_most=30,
            )


if __name__ == "__main__":
    main()
