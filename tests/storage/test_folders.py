"""Folders appear whole or not at all, and a manifest names what was cut or changed since."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from energymt.errors import StorageError
from energymt.folders import MANIFEST, atomic_folder, verify_manifest, write_atomically, write_manifest


def make_folder(path: Path) -> Path:
    (path / "sub").mkdir(parents=True)
    (path / "weights.safetensors").write_bytes(bytes(range(256)) * 4)
    (path / "sub" / "config.json").write_text("{}")
    write_manifest(path, {"step": 3})
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_manifest_gives_back_the_provenance(tmp_path: Path) -> None:
    assert verify_manifest(make_folder(tmp_path / "m")) == {"step": 3}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m")
    (folder / "sub" / "config.json").unlink()
    with pytest.raises(StorageError, match=r"sub/config\.json is missing"):
        verify_manifest(folder)


def test_a_cut_file_is_named_with_its_sizes(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m")
    os.truncate(folder / "weights.safetensors", 1000)
    with pytest.raises(StorageError, match=r"weights\.safetensors has 1,000 bytes instead of 1,024"):
        verify_manifest(folder)


def test_one_changed_byte_is_seen(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m")
    content = bytearray((folder / "weights.safetensors").read_bytes())
    content[700] ^= 1
    (folder / "weights.safetensors").write_bytes(content)
    with pytest.raises(StorageError, match="was changed"):
        verify_manifest(folder)


@pytest.mark.parametrize("text", ["", "{", '{"files": 3, "provenance": {}', "[]"])
def test_a_damaged_manifest_is_no_traceback(tmp_path: Path, text: str) -> None:
    folder = make_folder(tmp_path / "m")
    (folder / MANIFEST).write_text(text)
    with pytest.raises(StorageError, match="is damaged"):
        verify_manifest(folder)


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not a finished"):
        verify_manifest(tmp_path)


def test_a_folder_takes_its_place_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "model"
    with atomic_folder(path) as part:
        (part / "a").write_text("1")
        assert not path.exists()
    with atomic_folder(path) as part:
        (part / "a").write_text("2")
        assert (path / "a").read_text() == "1"
    assert (path / "a").read_text() == "2"
    assert names(path.parent) == ["model"]


def test_a_failed_write_leaves_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with atomic_folder(path) as part:
        (part / "a").write_text("1")

    def fail() -> None:
        with atomic_folder(path) as part:
            (part / "a").write_text("2")
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fail()
    assert (path / "a").read_text() == "1"
    assert names(tmp_path) == ["model"]


def test_without_the_system_call_folders_are_replaced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("energymt.folders._exchange", lambda left, right: False)
    path = tmp_path / "model"
    for text in ("1", "2"):
        with atomic_folder(path) as part:
            (part / "a").write_text(text)
    assert (path / "a").read_text() == "2" and names(tmp_path) == ["model"]


def test_a_writer_killed_between_its_two_renames_loses_nothing(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    folder.rename(tmp_path / ".model.previous")
    assert verify_manifest(tmp_path / "model") == {"step": 3}


@pytest.mark.faults
def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    code = f"""if True:
        import os, pathlib
        from energymt.folders import atomic_folder
        with atomic_folder(pathlib.Path({str(tmp_path / "model")!r})) as part:
            (part / "a").write_text("half")
            os.kill(os.getpid(), 9)"""
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == -9 and len(names(tmp_path)) == 1 and not (tmp_path / "model").exists()
    with atomic_folder(tmp_path / "model") as part:
        (part / "a").write_text("whole")
    assert names(tmp_path) == ["model"]


def test_an_unwritable_folder_is_one_sentence() -> None:
    path = Path("/sys/energymt/model")  # nobody can make a folder there, not even root
    with pytest.raises(StorageError, match="could not be written") as caught, atomic_folder(path):
        pass
    assert str(path) in str(caught.value) and "folder" in str(caught.value)
    with pytest.raises(StorageError, match="could not be written"):
        write_atomically(path, "text")


@pytest.mark.parametrize("writer", ["python", "torch", "safetensors"])
def test_a_full_disk_keeps_the_old_folder(tmp_path: Path, writer: str) -> None:
    """Files may grow to 64 KiB only, so that a real write fails as on a full disk (EFBIG in place of ENOSPC)."""
    writers = {
        "python": "(part / 'a').write_bytes(bytes(1_000_000))",
        "torch": "import torch; torch.save(torch.zeros(250_000), part / 'a')",
        "safetensors": "import torch, safetensors.torch as s; s.save_file({'a': torch.zeros(250_000)}, part / 'a')",
    }
    code = f"""if True:
        import resource, signal, pathlib
        from energymt.errors import StorageError
        from energymt.folders import atomic_folder
        path = pathlib.Path({str(tmp_path / "model")!r})
        with atomic_folder(path) as part:
            (part / "a").write_text("old")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
        try:
            with atomic_folder(path) as part:
                {writers[writer]}
        except StorageError as error:
            print(error)"""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "model could not be written" in done.stdout, done.stderr
    assert (tmp_path / "model" / "a").read_text() == "old" and names(tmp_path) == ["model"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE) == limit


@pytest.mark.faults
def test_a_disk_that_is_really_full_is_one_sentence(tmp_path: Path) -> None:
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mount.returncode != 0:
        pytest.skip("needs the right to mount a small file system")

    def write(count: int) -> None:
        with atomic_folder(tmp_path / "model") as part:
            for number in range(count):
                (part / str(number)).write_bytes(bytes(1_000_000 // count))

    try:
        for count in (1, 100):  # a file that is too large, and the last of many small ones
            with pytest.raises(StorageError, match="the disk is full"):
                write(count)
        assert names(tmp_path) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_other_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="CUDA out of memory"), atomic_folder(tmp_path / "m"):
        raise RuntimeError("CUDA out of memory")
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "m") as part:
        (part / "none").read_text()


def test_text_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, "{}")
    write_atomically(path, json.dumps({"a": 1}))
    assert json.loads(path.read_text()) == {"a": 1} and names(tmp_path) == ["state.json"]
