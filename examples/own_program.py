"""An own program: what people did in a shop, a visit a line, learnt by any pair.

python examples/own_program.py train --data visits.txt --run-dir runs/visits [--model srnn]
python examples/own_program.py odd --run-dir runs/visits --data others.txt

A line of `visits.txt` is one visit: names of events in order, with blanks between them, as in
`open search view view cart pay`. The program says how lines become sequences and which parts a pair
over them has; run folders, checkpoints, `--resume`, `--set`, TensorBoard and all pairs come along.
"""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch

from pyro_seq import Pair, SequenceBatch, UserError, score
from pyro_seq.cli.programs.training import TrainCommand, Wanted
from pyro_seq.config.build import PairComponents, make_pair, model_settings
from pyro_seq.contexts import PreviousObservation
from pyro_seq.emissions import Categorical
from pyro_seq.encoders import Embedding
from pyro_seq.programs import PairProgram
from pyro_seq.programs.program import ContentsDiffer
from pyro_seq.train import Hooks, PieceBatches, TrainingSettings

DOCUMENT, END = "visits.json", "(end)"  # the end of a visit is an event, too


@dataclass(frozen=True)
class VisitSettings:
    model: Any = field(default_factory=lambda: model_settings("rnn", {"hidden_size": 32}))
    training: TrainingSettings = field(default_factory=TrainingSettings)


@dataclass
class Visits:
    events: list[str]
    train: list[torch.Tensor] = field(default_factory=list)
    valid: list[torch.Tensor] = field(default_factory=list)


@dataclass
class VisitModel:
    pair: Pair
    events: list[str]
    step: int


def read_lines(path):
    lines = [line.split() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    if not any(lines):
        raise UserError(f"{path} has no visit in it: a line for each is wanted, events with blanks")
    return [line for line in lines if line]


def encoded(lines, events, path):
    if unknown := {event for line in lines for event in line} - set(events):
        raise UserError(f"{path} has events that the run has never seen: {sorted(unknown)[:5]}")
    return [torch.tensor([events.index(event) for event in [*line, END]]) for line in lines]


class VisitProgram(PairProgram[VisitSettings, Visits, VisitModel]):
    kind, documents, places = "visits", (DOCUMENT,), ("data",)
    settings_type = VisitSettings

    def read(self, request):
        path = request.source["data"]
        lines = read_lines(path)
        events = [END, *sorted({event for line in lines for event in line})]
        visits = encoded(lines, events, path)
        return Visits(events, [v for i, v in enumerate(visits) if i % 10], visits[::10])

    def describe(self, data, request):
        path = Path(request.source["data"])
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        kept = {"seed": request.seed, "data": os.path.abspath(path), "sha256": sha256}
        return {DOCUMENT: kept | {"events": data.events}}

    def stored_source(self, run):
        kept = run.read_json(DOCUMENT)
        return kept["seed"], {"data": kept["data"]}

    def read_again(self, request):
        data, kept = self.read(request), request.run.read_json(DOCUMENT)
        if self.describe(data, request)[DOCUMENT]["sha256"] != kept["sha256"]:
            raise ContentsDiffer(f"{request.source['data']} is not what {request.run} learnt from")
        return data

    def stored_data(self, run, settings):
        return Visits(run.read_json(DOCUMENT)["events"])

    def new_pair(self, settings, data):
        size = len(data.events)
        parts = PairComponents(Categorical(size), lambda: Embedding(size, 8), PreviousObservation)
        return make_pair(settings.model, parts)

    def model(self, pair, settings, data, device, step):
        return VisitModel(pair, data.events, step)

    def batches(self, model, data, *, seed):
        return PieceBatches(data.train, batch_size=32, seed=seed)

    def hooks(self, model, data, progress):
        held_out = SequenceBatch.from_sequences(data.valid)

        def validate():
            found = score(model.pair, held_out, samples=16)
            return {"loss": -float(found.total.sum()) / held_out.num_observations}

        return Hooks(validate=validate, units="events")


visit_program = VisitProgram()


@click.group()
def visits():
    """Learn how visits go, and which ones are odd."""


@visits.command()
@click.option("--run-dir", type=click.Path(path_type=Path), required=True)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Visits to judge.")
def odd(run_dir, data):
    """Show the five oddest visits of a file, by nats an event, and the event that is oddest."""
    model, lines = visit_program.load(run_dir), read_lines(data)
    batch = SequenceBatch.from_sequences(encoded(lines, model.events, data))
    found = score(model.pair, batch, samples=64)
    mean = found.total / batch.lengths
    for i in mean.argsort()[:5].tolist():
        event = [*lines[i], END][int(found.surprise[i].argmax())]
        click.echo(f"{-mean[i]:.2f} nats an event, most at {event!r}: {' '.join(lines[i])}")


@TrainCommand(lambda: visit_program, following="odd")
@click.option("--data", type=click.Path(path_type=Path), help="A file with a visit a line.")
def train(data):
    """Learn the visits of a file."""
    return Wanted({"data": data}, missing=None if data else "--data is missing: what to learn")


visits.add_command(train)

if __name__ == "__main__":
    visits()
