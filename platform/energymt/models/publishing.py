"""A model folder on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi

from energymt.errors import StorageError
from energymt.folders import verify_manifest
from energymt.storage import hub_errors


def push_folder(folder: Path, repository: str, *, private: bool = False) -> str:
    """Upload a verified model folder; returns its address on the hub.

    Raises:
        StorageError: the folder is not whole, or the hub refuses it.
    """
    verify_manifest(folder)
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=str(folder)))
    except hub_errors() as error:
        reason = str(error).strip().splitlines()[0]
        raise StorageError(
            f"{folder} could not be uploaded as {repository} ({reason}); check the name and the connection, and log in "
            "by `hf auth login`."
        ) from None
