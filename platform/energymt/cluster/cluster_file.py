"""A cluster file (`ray up`), checked without touching a cloud: Ray's own schema, and what the schema lets pass.

python -m energymt.cluster.cluster_file cluster.yaml
"""

from __future__ import annotations

import difflib
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from energymt.errors import ConfigurationError

# Ray's schema accepts any key here, so a misspelt one would be ignored.
PROVIDER_KEYS = {
    "aws": {
        *("type", "region", "availability_zone", "cache_stopped_nodes", "security_group", "use_internal_ips"),
        *("key_pair", "cloudwatch", "disable_node_updaters"),
    },
    "local": {"type", "head_ip", "worker_ips", "coordinator_address", "use_internal_ips", "disable_node_updaters"},
}
PLACEHOLDER = "REPLACE"


def validate_cluster_file(path: Path) -> dict[str, Any]:
    """The configuration as Ray would use it, defaults filled in; nothing is started and no cloud is asked.

    Raises ConfigurationError with the file and the key that is wrong.
    """
    if not path.is_file():
        raise ConfigurationError(f"There is no cluster file at {path}; check the path.")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(config, dict) or not isinstance(config.get("provider"), dict):
        raise ConfigurationError(f"{path} must hold a mapping with the key 'provider'.")
    _check_provider(path, config["provider"])
    prepared = _by_ray(path, config)
    _check_keys(path, prepared)
    return prepared


def placeholders(path: Path) -> list[str]:
    """The lines that still hold a value to replace, as `line: text`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    texts = [re.sub(r"\s*#.*", "", line).strip() for line in lines]
    return [f"{number}: {text}" for number, text in enumerate(texts, start=1) if PLACEHOLDER in text]


def _check_provider(path: Path, provider: dict[str, Any]) -> None:
    kind = provider.get("type")
    known = PROVIDER_KEYS.get(str(kind))
    if known is None:
        raise ConfigurationError(f"{path}: provider.type is {kind!r}; use one of {', '.join(PROVIDER_KEYS)}.")
    for key in provider:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}."
            raise ConfigurationError(f"{path}: Ray does not know provider.{key}; {hint}")


def _by_ray(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    import click
    import jsonschema  # type: ignore[import-untyped]
    from ray.autoscaler._private.cli_logger import cli_logger
    from ray.autoscaler._private.util import prepare_config, validate_config

    cli_logger.configure(log_style="record", verbosity=0)  # type: ignore[no-untyped-call]
    try:
        prepared: dict[str, Any] = prepare_config(config)
        validate_config(prepared)
    except jsonschema.ValidationError as error:
        key = ".".join(str(part) for part in error.absolute_path) or "the top level"
        raise ConfigurationError(f"{path}: {key}: {error.message.splitlines()[0][:300]}.") from None
    except (ValueError, RuntimeError, KeyError, TypeError, AssertionError) as error:
        raise ConfigurationError(f"{path}: {' '.join(str(error).split())[:300]}") from None
    except click.ClickException as error:  # how Ray refuses a local provider
        raise ConfigurationError(
            f"{path}: {error.message} A local provider needs head_ip and worker_ips, and no node types."
        ) from None
    return prepared


def _check_keys(path: Path, config: dict[str, Any]) -> None:
    if config["provider"]["type"] != "aws" or "ssh_private_key" not in config["auth"]:
        return
    for name, node in config["available_node_types"].items():
        if "KeyName" not in node["node_config"] and "UserData" not in node["node_config"]:
            raise ConfigurationError(
                f"{path}: available_node_types.{name}.node_config has no KeyName although auth.ssh_private_key is set; "
                "the node could not be reached."
            )


def main(path: Path) -> int:
    """Check a file and print what is left to fill in; the exit code."""
    try:
        prepared = validate_cluster_file(path)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{path} is valid: node types {', '.join(prepared['available_node_types'])}.")
    for line in placeholders(path):
        print(f"to replace, line {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "cluster.yaml")))
