"""Settings under names of before: read in run folders, refused in files and words by one line."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pyro_seq.config import renamed
from pyro_seq.config.model_settings import Layer, model_settings, resolve, resolve_run
from pyro_seq.errors import UserError
from pyro_seq.train.settings import TrainingSettings


@dataclass(frozen=True)
class Program:
    size: int = 3
    model: Any = field(default_factory=lambda: model_settings("rnn"))
    training: TrainingSettings = field(default_factory=TrainingSettings)


@pytest.fixture
def one_renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renamed, "RENAMED", {"length": "size"})


def test_a_run_folder_of_before_is_read(one_renamed: None, tmp_path: Path) -> None:
    saved = {"length": 7, "model.hidden_size": 5}
    settings = resolve_run(Program, saved, {}, tmp_path, None)
    assert (settings.size, settings.model.hidden_size) == (7, 5)
    assert renamed.with_current_names(saved) == {"size": 7, "model.hidden_size": 5}


def test_the_name_of_today_counts_where_both_stand(one_renamed: None) -> None:
    for both in ({"length": 7, "size": 8}, {"size": 8, "length": 7}):
        assert renamed.with_current_names(both) == {"size": 8}


@pytest.mark.parametrize("trusted", [True, False])
def test_a_file_with_a_name_of_before_is_told_that_of_today(
    one_renamed: None, trusted: bool
) -> None:
    with pytest.raises(UserError) as refused:
        resolve(Program, [Layer({"length": 7}, "old.toml", trusted=trusted)], {})
    assert str(refused.value) == "old.toml: the setting 'length' is named 'size' now"


def test_no_name_of_today_is_also_one_of_before() -> None:
    assert not set(renamed.RENAMED) & set(renamed.RENAMED.values())
