"""`energymt sweep`: what is refused before Ray starts, and that every option arrives (tests/ray holds the sweeps)."""

from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from energymt import sweep
from energymt.cli import app
from tests.terminal import quick


def test_every_option_reaches_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, Any] = {}
    monkeypatch.setattr(sweep, "command", lambda space, **options: found.update(options, space=space))
    options = ["--config", "c.yaml", "--set", "steps=1", "--set", "seed=2", "--name", "n", "--resume", "--dry-run"]
    arguments = ["sweep", "toy_operators", *options, "--register", "best", "--tracking", "sqlite:///s.db"]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    assert found == {
        "space": "toy_operators",
        "config": Path("c.yaml"),
        "settings": ["steps=1", "seed=2"],
        "name": "n",
        "resume": True,
        "dry_run": True,
        "register": "best",
        "tracking": "sqlite:///s.db",
    }
    given = {parameter.name for parameter in typer.main.get_command(app).commands["sweep"].params}  # type: ignore[attr-defined]
    assert given == found.keys(), "an option of `sweep` that this test does not give"


def test_a_best_model_cannot_be_registered_nowhere(bare: Path) -> None:
    done = quick("sweep", "toy_operators", "--register", "best", "--tracking", "none", folder=bare)
    done.refuses(2, "--register", "leave out --tracking none")
    assert not (bare / "runs").exists()
