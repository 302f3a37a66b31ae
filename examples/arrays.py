"""A program of one's own: sequences of whole numbers in a NumPy array, learnt by any pair.

python examples/arrays.py --data numbers.npy --run-dir runs/numbers [--model srnn] [--resume]
"""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from pyro_seq.cli.programs.training import TrainCommand, Wanted
from pyro_seq.config.build import PairComponents, make_pair, model_settings
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions import Categorical
from pyro_seq.encoders import OneHot
from pyro_seq.pairs.pair import Pair
from pyro_seq.programs.pair_program import PairProgram
from pyro_seq.programs.program import ContentsDiffer
from pyro_seq.train.minibatches import PieceBatches
from pyro_seq.train.settings import TrainingSettings


@dataclass(frozen=True)
class ArraySettings:
    model: Any = field(default_factory=lambda: model_settings("rnn"))
    training: TrainingSettings = field(default_factory=TrainingSettings)


@dataclass
class Fitted:
    pair: Pair
    step: int


class ArrayProgram(PairProgram[ArraySettings, torch.Tensor, Fitted]):
    kind, documents, places = "array", ("array.json",), ("data",)
    settings_type = ArraySettings

    def read(self, request):
        return torch.from_numpy(np.load(request.source["data"]))

    def describe(self, data, request):
        sha256, path = hashlib.sha256(data.numpy().tobytes()).hexdigest(), request.source["data"]
        kept = {"seed": request.seed, "data": os.path.abspath(path), "sha256": sha256}
        return {"array.json": kept | {"symbols": int(data.max()) + 1}}

    def stored_source(self, run):
        kept = run.read_json("array.json")
        return kept["seed"], {"data": kept["data"]}

    def read_again(self, request):
        data = self.read(request)
        kept = request.run.read_json("array.json") | {
            "data": os.path.abspath(request.source["data"])
        }
        if self.describe(data, request) != {"array.json": kept}:
            raise ContentsDiffer(f"{kept['data']} is not what {request.run} was begun with")
        return data

    def stored_data(self, run, settings):
        return torch.tensor([run.read_json("array.json")["symbols"] - 1])

    def new_pair(self, settings, data):
        symbols = int(data.max()) + 1
        parts = PairComponents(Categorical(symbols), lambda: OneHot(symbols), PreviousObservation)
        return make_pair(settings.model, parts)

    def model(self, pair, settings, data, device, step):
        return Fitted(pair, step)

    def batches(self, model, data, *, seed):
        return PieceBatches(list(data), batch_size=4, seed=seed)


array_program = ArrayProgram()


@TrainCommand(lambda: array_program)
@click.option("--data", type=click.Path(path_type=Path), help="An array of whole numbers [N, T].")
def train(data: Path | None) -> Wanted:
    """Learn the rows of an array."""
    return Wanted({"data": data}, missing=None if data else "--data is missing: what to learn")


if __name__ == "__main__":
    train()
