"""A small local Ray for each module, the toy language in files, and configurations of a few steps."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from energymt.cluster import runtime
from energymt.data.toy import ToyLanguage

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings that any trainable takes, for ten steps on the toy language."""
    folder = tmp_path_factory.mktemp("toy")
    settings: dict[str, Any] = {}
    for name, size, seed in (("train", 400, 1), ("dev", 12, 2)):
        corpus = ToyLanguage(1).sentences(size, seed=seed)
        lines = [f"{source}\t{target}\n" for source, target in zip(corpus.source, corpus.target, strict=True)]
        (folder / f"{name}.tsv").write_text("source\ttarget\n" + "".join(lines))
        settings[name] = {"path": str(folder / f"{name}.tsv"), "source": "source", "target": "target"}
    return {
        **settings,
        "model": {"variant": "transformer-toy"},
        "vocabulary": {"size": 60, "model_type": "word"},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2},
        "tokens_per_step": 256,
        "tokens_per_micro_batch": 64,
        "steps": 10,
        "evaluate_every": 5,
        "checkpoint_every": 5,
        "log_every": 1,
    }


@pytest.fixture(scope="module")
def local_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Ray with two CPUs whose workers also import from this folder; gives the folder of all runs."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        runs = tmp_path_factory.mktemp("runs")
        patch.setenv("ENERGYMT_RUNS", str(runs))
        patch.setenv("PYTHONPATH", str(HERE))
        patch.setenv("RAY_worker_niceness", "0")  # workers would give way to anything else on a busy machine
        patch.setattr(sys, "path", [str(HERE), *sys.path])
        runtime.start("local", num_cpus=2, object_store_memory=150_000_000)
        yield runs
        ray.shutdown()
