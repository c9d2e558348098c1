"""The cluster files that come with the project hold, and none of Ray's open doors is left open."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from energymt.cluster.cluster_file import placeholders, validate_cluster_file
from energymt.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]
AWS = ROOT / "cluster.yaml"


def changed(tmp_path: Path, change) -> Path:
    config = yaml.safe_load(AWS.read_text())
    change(config)
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster-local.yaml"])
def test_the_files_of_the_project_are_valid(name: str) -> None:
    config = validate_cluster_file(ROOT / name)
    assert config["cluster_name"].startswith("energymt")
    assert "--dashboard-host=127.0.0.1" in " ".join(config["head_start_ray_commands"])
    for command in [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]:
        assert "RAY_AUTH_MODE=token" in command and "0.0.0.0" not in command
    assert "nightly" not in str(config) and "ray-wheels" not in str(config)
    assert placeholders(ROOT / name), "values of one's own are marked"


def test_aws_overrides_what_ray_would_choose() -> None:
    config = validate_cluster_file(AWS)
    assert config["provider"]["cache_stopped_nodes"] is False
    assert "security_group" not in config["provider"], "Ray would add port 22 from everywhere to a group it makes"
    nodes = config["available_node_types"]
    assert set(nodes) == {"head", "train", "energy"}
    for node in nodes.values():
        needed = {"ImageId", "KeyName", "SecurityGroupIds", "SubnetIds", "IamInstanceProfile", "BlockDeviceMappings"}
        assert needed <= set(node["node_config"])
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert node["node_config"]["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] is True
    assert nodes["head"]["resources"] == {"CPU": 0, "driver": 8}, "the head never trains"
    assert nodes["head"]["node_config"]["IamInstanceProfile"] != nodes["train"]["node_config"]["IamInstanceProfile"]
    assert nodes["train"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in nodes["energy"]["node_config"]
    assert "InstanceMarketOptions" not in nodes["head"]["node_config"]
    assert nodes["train"]["resources"]["GPU"] == nodes["energy"]["resources"]["GPU"] == 1


def test_every_setup_command_is_a_shell_command() -> None:
    for name in ("cluster.yaml", "cluster-local.yaml"):
        config = validate_cluster_file(ROOT / name)
        for command in [*config["setup_commands"], *config["head_start_ray_commands"]]:
            subprocess.run(["bash", "-n", "-c", command], check=True)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda c: c.update(max_worker=3), r"max_worker"),
        (lambda c: c["provider"].update(regoin="x"), r"provider\.regoin; did you mean 'region'"),
        (lambda c: c["provider"].update(type="gcp2"), r"provider\.type is 'gcp2'"),
        (lambda c: c.update(head_node_type="haed"), r"head_node_type"),
        (lambda c: c["available_node_types"]["train"]["resources"].update(CPU=0.5), r"train\.resources\.CPU: 0\.5"),
        (lambda c: c["available_node_types"]["train"].update(min_workers=9), r"max_workers"),
        (
            lambda c: c["available_node_types"]["train"]["node_config"].pop("KeyName"),
            r"train\.node_config has no KeyName",
        ),
        (lambda c: c.pop("provider"), r"provider"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change, sentence: str) -> None:
    path = changed(tmp_path, change)
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        validate_cluster_file(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_local_cluster_has_no_node_types(tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "cluster-local.yaml").read_text())
    config["available_node_types"] = {"a": {"resources": {}, "node_config": {}}}
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigurationError, match="head_ip and worker_ips"):
        validate_cluster_file(path)


@pytest.mark.parametrize("text", ["a: [", "- 1", "", "\xff\xfe"])
def test_what_is_no_cluster_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigurationError, match=r"c\.yaml"):
        validate_cluster_file(path)
    with pytest.raises(ConfigurationError, match="no cluster file"):
        validate_cluster_file(tmp_path / "none.yaml")


def test_the_check_is_a_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "energymt.cluster.cluster_file"]
    done = subprocess.run([*command, str(AWS)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and "head, train, energy" in done.stdout and "ami-REPLACE" in done.stdout
    done = subprocess.run([*command, str(tmp_path / "no")], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "no cluster file" in done.stderr
