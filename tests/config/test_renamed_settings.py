"""Every setting that was renamed, by the folders and files of versions before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyro_seq.config.fields import flatten
from pyro_seq.config.model_settings import Layer, resolve_run
from pyro_seq.config.renamed import RENAMED
from pyro_seq.errors import UserError
from pyro_seq.games.settings import DEFAULTS as GAME_DEFAULTS
from pyro_seq.games.settings import GameSettings, game_settings
from pyro_seq.seqgan.program import seqgan_program
from pyro_seq.seqgan.settings import DEFAULTS as SEQGAN_DEFAULTS
from pyro_seq.seqgan.settings import SeqGANSettings

PROGRAMS: dict[str, tuple[Any, Any, Callable[..., Any]]] = {
    "games": (GameSettings, GAME_DEFAULTS, game_settings),
    "seqgan": (SeqGANSettings, SEQGAN_DEFAULTS, seqgan_program.settings),
}
BEFORE = {new: old for old, new in RENAMED.items()}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_run_folder_of_before_is_read(program: str, tmp_path: Path) -> None:
    kind, defaults, settings_from = PROGRAMS[program]
    settings = settings_from({"model.name": "rnn", "training.ema_decay": 0.5})
    saved = dict(flatten(settings))
    before = {BEFORE.get(name, name): value for name, value in saved.items()}
    assert set(before) - set(saved) >= {"model.kind", "training.average", "training.floor"}
    assert resolve_run(kind, before, defaults, tmp_path, None) == settings


def test_every_name_of_today_is_known() -> None:
    names = {name for _, _, make in PROGRAMS.values() for name, _ in flatten(make())}
    assert set(RENAMED.values()) <= names and not set(RENAMED) & names


@pytest.mark.parametrize("old", RENAMED)
def test_a_file_of_before_is_told_the_name_of_today(old: str) -> None:
    with pytest.raises(UserError) as refused:
        game_settings(Layer({old: 0.5}, "old.toml", trusted=False))
    assert str(refused.value) == f"old.toml: the setting {old!r} is named {RENAMED[old]!r} now"


def test_a_command_of_before_with_resume_is_told_the_name_of_today(
    corpus: Path,
    tiny: list[str],
    tmp_path: Path,
    pyroseq: Callable[..., int],
    refused: Callable[..., str],
) -> None:
    words = ["text", "train", "--train-corpus", corpus, "--run-dir", tmp_path / "run", *tiny]
    said = "--set: the setting 'training.average' is named 'training.ema_decay' now"
    assert refused(*words, "--set", "training.average=0.5") == said
    assert not (tmp_path / "run").exists()
    assert pyroseq(*words, "--quiet") == 0
    assert refused(*words, "--set", "training.average=0.5", "--resume") == said
