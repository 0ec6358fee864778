import errno
import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
import torch

import pvq
from pvq import checkpoint
from pvq.checkpoint import new_folder, save_checkpoint


@pytest.fixture
def quantized(small_llama):
    model = small_llama()
    return model, pvq.quantize_model(model, pvq.PVQConfig(), progress=False)


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_whole(tmp_path):
    with new_folder(tmp_path / "deep/er/out") as folder:
        (folder / "a").write_text("x")
        assert not (tmp_path / "deep/er/out").exists()
        assert folder.parent == tmp_path / "deep/er"
    assert entries(tmp_path / "deep/er") == ["out"]
    assert entries(tmp_path / "deep/er/out") == ["a"]
    mode = stat.S_IMODE((tmp_path / "deep/er/out").stat().st_mode)
    assert mode == stat.S_IMODE((tmp_path / "deep").stat().st_mode)


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), OSError("y")])
def test_a_failure_leaves_nothing(tmp_path, error):
    def half(folder: Path) -> None:
        (folder / "a").write_text("x")
        raise error

    with pytest.raises(type(error)), new_folder(tmp_path / "out") as folder:
        half(folder)
    assert entries(tmp_path) == []


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("x")
    assert entries(tmp_path / "out") == ["a"]
    assert entries(tmp_path) == ["out"]


def test_what_exists_is_kept(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("1")
    (tmp_path / "file").write_text("2")
    with (
        pytest.raises(FileExistsError, match=r"not empty: choose another.*--overwrite"),
        new_folder(tmp_path / "out"),
    ):
        raise AssertionError
    with pytest.raises(FileExistsError, match="is a file"), new_folder(tmp_path / "file"):
        raise AssertionError
    assert (tmp_path / "out/mine").read_text() == "1"


def test_overwrite_replaces_only_by_something_whole(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").write_text("1")
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "new").write_text(str(1 // 0))
    assert entries(tmp_path / "out") == ["old"]
    with new_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "new").write_text("2")
    assert entries(tmp_path / "out") == ["new"]
    assert entries(tmp_path) == ["out"]


def test_an_unwritable_place_fails_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file/out", Path("/proc/pvq-out")):
        with pytest.raises(OSError, match="cannot write the output folder"), new_folder(out):
            raise AssertionError


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="cannot write the output folder"), new_folder(tmp_path / "a"):
        raise AssertionError


def test_a_full_disk_is_noticed_before_writing(tmp_path, quantized, monkeypatch):
    model, report = quantized
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: type("U", (), {"free": 1000})())
    with pytest.raises(OSError, match=r"no space left on the disk of .*: nothing was written"):
        save_checkpoint(model, report, tmp_path / "out")
    assert entries(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_disk_that_fills_up_while_writing(tmp_path, quantized, monkeypatch, error):
    model, report = quantized

    def fail(folder, **_):
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(model, "save_pretrained", fail)
    with pytest.raises(OSError, match="no space left on the disk"):
        save_checkpoint(model, report, tmp_path / "out")
    assert entries(tmp_path) == []


def test_a_really_full_disk(tmp_path, quantized, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        model, report = quantized
        monkeypatch.setattr(checkpoint, "_SPARE_NBYTES", -report.nbytes)  # do not look before
        with pytest.raises(OSError, match="no space left on the disk"):
            save_checkpoint(model, report, disk / "out")
        assert entries(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_companions_of_the_dense_model_are_taken_over(tmp_path, quantized):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("tokenizer.json", "merges.txt", "LICENSE", "chat_template.jinja", "train.log"):
        (source / name).write_text(name)
    (source / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# Base\n")
    model, report = quantized
    save_checkpoint(model, report, tmp_path / "out", source=source)
    out = tmp_path / "out"
    assert (out / "merges.txt").read_text() == "merges.txt"
    assert (out / "chat_template.jinja").exists()
    assert not (out / "train.log").exists()
    card = (out / "README.md").read_text()
    assert "\nlicense: apache-2.0\n" in card
    assert str(tmp_path) not in card, "a path of this machine says nothing to others"
    assert json.loads((out / "pvq_report.json").read_text())["totals"]["layers"] == 14


def test_no_license_is_invented(tmp_path, quantized):
    model, report = quantized
    save_checkpoint(model, report, tmp_path / "out")
    assert "license" not in (tmp_path / "out/README.md").read_text()


def test_checksums_are_those_of_the_file(tmp_path, quantized):
    import zlib

    from safetensors import safe_open

    model, report = quantized
    save_checkpoint(model, report, tmp_path / "out")
    with safe_open(tmp_path / "out/model.safetensors", "pt") as file:
        sums = json.loads(file.metadata()["pvq_crc32"])
        for name in file.keys():  # noqa: SIM118  not a dict
            data = file.get_tensor(name).contiguous().view(torch.uint8).numpy().tobytes()
            assert sums[name] == zlib.crc32(data)
