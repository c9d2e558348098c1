"""Any model or data address as a local path, verified.

`fetch` is the one place that knows the addresses. Folders and their manifests are written by `energymt.folders`; its
functions are offered here too.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

from energymt.errors import ConfigurationError, StorageError
from energymt.folders import MANIFEST, atomic_folder, verify_manifest, write_atomically, write_manifest

__all__ = [
    "MANIFEST",
    "atomic_folder",
    "cache_root",
    "fetch",
    "runs_root",
    "verify_manifest",
    "write_atomically",
    "write_manifest",
]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(@[\w./-]+)?")
FETCHED = ".fetched"
FILE_SUFFIXES = {".tsv", ".txt", ".csv", ".json", ".jsonl", ".gz", ".yaml", ".yml", ".ckpt"}  # never a model on the hub


def runs_root() -> Path:
    """The folder that holds all runs: the variable ENERGYMT_RUNS, else `runs` in the current folder; absolute."""
    return Path(os.environ.get("ENERGYMT_RUNS") or "runs").expanduser().absolute()


def cache_root() -> Path:
    """The folder for what `fetch` downloads: the variable ENERGYMT_CACHE, else ~/.cache/energymt; absolute."""
    return Path(os.environ.get("ENERGYMT_CACHE") or "~/.cache/energymt").expanduser().absolute()


def fetch(address: str | Path, *, cache: Path | None = None) -> Path:
    """The local path of a file or folder named by any address.

    Addresses: a local path, `s3://bucket/key`, `runs:/RUN/path`, `models:/NAME@ALIAS` or `models:/NAME/VERSION`
    (MLflow), or a Hugging Face id `owner/name[@revision]`. A local path wins over a Hugging Face id of that name.
    A folder with a manifest is verified. Downloads go to `cache` (default: `cache_root()`) and are used again.
    Raises StorageError when the address leads nowhere or what came is not whole.
    """
    text = str(address)
    if not text.strip():
        raise ConfigurationError("an address is empty: name a path, s3://, runs:/, models:/ or a Hugging Face id.")
    if text.startswith("pool:"):
        raise ConfigurationError(f"{text} is an energy pool, and none is asked here: name the estimator's own folder.")
    cache = cache or cache_root()
    if text.startswith("s3://"):
        return _checked(_fetch_s3(text, cache))
    if text.startswith(("runs:/", "models:/")):
        return _checked(_fetch_mlflow(text, cache))
    path = Path(text).expanduser()
    if path.exists():
        return _checked(path)
    if "://" in text:
        raise ConfigurationError(f"{text}: this kind of address is unknown: use a path, s3://, runs:/ or models:/.")
    if isinstance(address, Path) or path.is_absolute() or path.suffix in FILE_SUFFIXES or not HUB_ID.fullmatch(text):
        raise StorageError(f"{path.absolute()} does not exist: check the path.")
    return _checked(_fetch_hub(text, path))


def _checked(path: Path) -> Path:
    if (path / MANIFEST).is_file():
        verify_manifest(path)
    return path


def hub_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises where the hub refuses or is not reached: its HTTP library changed twice."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    return OSError, ValueError, LocalTokenNotFoundError, *HfHubHTTPError.__bases__  # the last: that library's own


def _fetch_hub(text: str, path: Path) -> Path:
    from huggingface_hub import snapshot_download

    name, _, revision = text.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None))
    except hub_errors() as error:
        reason = str(error).strip().splitlines()[0].partition(". ")[0].rstrip(".")
        raise StorageError(
            f"'{text}' is neither a path ({path.absolute()}) nor a Hugging Face model that can be fetched ({reason}); "
            f"check the address."
        ) from error


def _fetch_mlflow(address: str, cache: Path) -> Path:
    from energymt.tracking import tracking_uri  # before MLflow: it sets what MLflow reads when it is imported

    uri = tracking_uri()
    import mlflow

    from energymt.tracking.store import OUTAGE, current_store, first_line, open_client

    try:
        if "@" in address:
            name, _, alias = address.removeprefix("models:/").partition("@")
            address = f"models:/{name}/{open_client(uri).get_model_version_by_alias(name, alias).version}"
        folder = cache / "mlflow" / hashlib.sha256(f"{uri} {address}".encode()).hexdigest()[:20]
        # A version never changes; what a run holds may.
        if not (address.startswith("models:/") and folder.is_dir()):
            # MLflow looks for a registered name in its global store, whatever the arguments of this call say.
            with atomic_folder(folder) as part, current_store(uri):
                got = mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=str(part))
                (part / FETCHED).write_text(os.path.relpath(got, part), encoding="utf-8")
    except OUTAGE as error:
        reason = first_line(error)
        raise StorageError(f"{address} could not be fetched from {uri} ({reason}); check the address.") from error
    path = (folder / (folder / FETCHED).read_text(encoding="utf-8")).resolve()
    inside = [found.parent for found in path.glob(f"artifacts/*/{MANIFEST}")] if (path / "MLmodel").is_file() else []
    return inside[0] if inside else path


def _fetch_s3(address: str, cache: Path) -> Path:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = address.removeprefix("s3://").partition("/")
    key = key.rstrip("/")
    if not bucket or not key:
        raise ConfigurationError(f"{address}: write s3://BUCKET/KEY.")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    settings = Config(connect_timeout=10, read_timeout=60, retries={"max_attempts": 4, "mode": "standard"})
    try:
        client = boto3.client("s3", endpoint_url=endpoint, config=settings)
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
        found = [item for page in pages for item in page.get("Contents", [])]
        objects = [item for item in found if item["Key"] == key] or [
            item for item in found if item["Key"].startswith(key + "/") and not item["Key"].endswith("/")
        ]
        if not objects:
            raise StorageError(f"{address} does not exist in {endpoint or 'AWS S3'}: check bucket and key.")
        # The ETags are part of the cache key: changed content is another folder, the same content is there already.
        tag = hashlib.sha256(json.dumps([bucket, key] + [[o["Key"], o["ETag"]] for o in objects]).encode()).hexdigest()
        folder = cache / "s3" / tag[:20]
        sizes = {_local_name(item["Key"], key): item["Size"] for item in objects}
        if not _has_sizes(folder, sizes):
            with atomic_folder(folder) as part:
                for item in objects:
                    target = part / _local_name(item["Key"], key)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    client.download_file(bucket, item["Key"], str(target))
    except (BotoCoreError, ClientError) as error:
        raise StorageError(f"{address} could not be read from {endpoint or 'AWS S3'}: {error}") from error
    for name, size in sizes.items():
        if not _has_sizes(folder, {name: size}):
            raise StorageError(f"{address}: {name} came with another size than the {size:,} bytes listed; try again.")
    return folder / key.rsplit("/", 1)[-1]


def _local_name(object_key: str, key: str) -> str:
    """Where an object lies below its cache folder: the last part of the address, then what follows it."""
    name = key.rsplit("/", 1)[-1] + object_key.removeprefix(key)
    if ".." in name.split("/"):
        raise StorageError(f"the S3 key {object_key} leaves its folder: refuse to download it.")
    return name


def _has_sizes(folder: Path, sizes: dict[str, int]) -> bool:
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())
