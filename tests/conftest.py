"""What every test stands on: a quiet, offline environment, a home of its own, fixed seeds, the folder of real data."""

import os
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest

# Set before anything reads them: Ray, MLflow and the hub client look at their environment once, when imported.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    # One thread in every process: sums are the same everywhere, and tests side by side do not spin for a core.
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "60",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "20",
    "TOKENIZERS_PARALLELISM": "false",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}
os.environ.update(ENVIRONMENT)  # here: a conftest below, of a file that is named on the command line, imports torch
# What a user's shell may hold and a test must not see.
FOREIGN = ("HF_HOME", "HF_TOKEN", "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "RAY_ADDRESS", "AWS_PROFILE")
HOME = pytest.StashKey[Path]()

# A shell lets what it runs in the background ignore Ctrl-C, and so would every process that the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A core that others share makes any single example slow now and then, so there is no deadline.
# What decides on a change draws the same examples again and again; every other run looks for new ones.
hypothesis.settings.register_profile("house", deadline=None, print_blob=True, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("house")


def pytest_configure(config: pytest.Config) -> None:
    """Give the session a home that is thrown away, so that no cache, token or state file of the user is touched."""
    git_settings = Path.home() / ".gitconfig"
    if git_settings.exists():
        os.environ.setdefault("GIT_CONFIG_GLOBAL", str(git_settings))
    config.stash[HOME] = Path(tempfile.mkdtemp(prefix="energymt-home-"))
    for name in FOREIGN:
        os.environ.pop(name, None)
    os.environ["HOME"] = str(config.stash[HOME])


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[HOME], ignore_errors=True)


@pytest.fixture(autouse=True)
def seeds() -> None:
    """The same random numbers in each test, whichever ran before; torch is not imported for those that do without."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def tmp_home(pytestconfig: pytest.Config) -> Path:
    """The home of this session."""
    return pytestconfig.stash[HOME]


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data that ENERGYMT_DATA names; without it the test is skipped."""
    name = os.environ.get("ENERGYMT_DATA")
    if not name:
        pytest.skip("needs real data: set ENERGYMT_DATA to the data folder")
    folder = Path(name)
    if not folder.is_dir():
        pytest.fail(f"ENERGYMT_DATA names {folder}, which is no folder")
    return folder
