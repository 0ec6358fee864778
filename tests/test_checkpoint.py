import errno
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import TINY
from transformers import AutoTokenizer

import pvq
from pvq import checkpoint
from pvq.checkpoint import new_folder, save_checkpoint, work_folder


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


def fill(out: Path, *names: str, **options) -> None:
    with new_folder(out, **options) as folder:
        for name in names:
            (folder / name).write_text(f"new {name}")


@pytest.mark.parametrize("there", [True, False])
def test_a_symlink_keeps_pointing_to_its_folder(tmp_path, there):
    (tmp_path / "link").symlink_to(tmp_path / "deep/real")
    if there:
        (tmp_path / "deep/real").mkdir(parents=True)
    for _ in range(2):
        fill(tmp_path / "link", "a", overwrite=True)
        assert (tmp_path / "link").is_symlink()
        assert entries(tmp_path / "link") == ["a"]
        assert entries(tmp_path) == ["deep", "link"]
        assert entries(tmp_path / "deep") == ["real"]


@pytest.fixture
def mount(tmp_path, monkeypatch) -> Path:
    """An empty folder that behaves as a mount point, on which a disk was formatted."""
    folder, rename = tmp_path / "disk", os.rename

    def refuse(source, destination):
        if folder in (Path(source), Path(destination)):
            raise OSError(errno.EBUSY, "Device or resource busy")
        rename(source, destination)

    (folder / "lost+found").mkdir(parents=True)
    monkeypatch.setattr(os, "rename", refuse)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == folder)
    return folder


def test_a_mount_point_is_filled_in_place(mount, monkeypatch):
    (mount / ".disk.killed").mkdir()  # what runs before this one have left
    work_folder(mount).mkdir()
    assert work_folder(mount).parent == mount, "beside it is another disk"
    moves = []
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda a, b: (moves.append(Path(a).name), rename(a, b)))
    fill(mount, "config.json", "a", "z")
    assert entries(mount) == [".disk.killed", ".disk.work", "a", "config.json", "lost+found", "z"]
    assert moves[-1] == "config.json", "a folder that was filled by half is no model"
    with pytest.raises(FileExistsError, match="not empty: choose another"):
        fill(mount, "b")
    moves.clear()
    fill(mount, "config.json", "b", overwrite=True)
    assert entries(mount) == [".disk.killed", ".disk.work", "b", "config.json", "lost+found"]
    assert moves[0] == moves[-1] == "config.json"
    assert entries(mount.parent) == ["disk"]


def test_a_failure_in_a_mount_point_leaves_what_was_there(mount, monkeypatch):
    fill(mount, "config.json", "a")
    with pytest.raises(ZeroDivisionError), new_folder(mount, overwrite=True) as folder:
        (folder / "b").write_text(str(1 // 0))
    assert entries(mount) == ["a", "config.json", "lost+found"]
    rename = os.rename

    def fail(source, destination):
        if Path(destination) == mount / "b":
            raise OSError(errno.EIO, "Input/output error")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match=r"Input/output error; the finished .* kept as .*/disk-2$"):
        fill(mount, "config.json", "a", "b", overwrite=True)
    assert entries(mount) == ["a", "config.json", "disk-2", "lost+found"]
    assert entries(mount / "disk-2") == ["a", "b", "config.json"]


def test_what_is_no_model_is_not_removed_from_a_mount_point(mount):
    (mount / "thesis").write_text("1")
    with pytest.raises(ValueError, match="holds no model: overwrite would remove all that"):
        fill(mount, "a", overwrite=True)
    assert entries(mount) == ["lost+found", "thesis"]


def test_a_mount_point_that_is_not_recognised_costs_no_work(mount, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda _: False)
    with pytest.raises(OSError, match=r"Device or resource busy; the finished .* kept as .*disk-2"):
        fill(mount, "a", overwrite=True)
    assert entries(mount) == ["lost+found"]
    assert entries(mount.parent) == ["disk", "disk-2"]
    assert entries(mount.parent / "disk-2") == ["a"]


def test_the_current_directory_is_filled_in_place(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    before = os.stat(".").st_ino
    fill(Path(), "config.json", "a")
    fill(tmp_path / "out", "config.json", "b", overwrite=True)
    assert (os.stat(".").st_ino, (tmp_path / "out").stat().st_ino) == (before, before)
    assert entries(Path()) == ["b", "config.json"]
    assert entries(tmp_path) == ["out"]
    (tmp_path / "out/deeper").mkdir()
    monkeypatch.chdir("deeper")
    with pytest.raises(ValueError, match="holds the current directory, which overwrite would"):
        fill(tmp_path / "out", "c", overwrite=True)
    assert entries(tmp_path / "out") == ["b", "config.json", "deeper"]


def test_an_output_that_appears_meanwhile_is_kept(tmp_path, monkeypatch):
    (tmp_path / "out-2").mkdir()

    def race(out: Path) -> None:
        with new_folder(out) as folder:
            (folder / "a").write_text("new")
            out.mkdir(exist_ok=True)
            (out / "a").write_text("other")

    with pytest.raises(FileExistsError, match=r"meanwhile; the finished .* kept as .*/out-3$"):
        race(tmp_path / "out")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(FileExistsError, match=r"meanwhile; the finished .* kept as .*/here-2$"):
        race(tmp_path / "here")
    assert entries(tmp_path) == ["here", "out", "out-2", "out-3"]
    assert entries(tmp_path / "here") == ["a", "here-2"]
    for name, content in (
        ("out", "other"), ("out-3", "new"), ("here", "other"), ("here/here-2", "new"),
    ):  # fmt: skip
        assert (tmp_path / name / "a").read_text() == content


def test_modes_are_those_of_new_files_and_folders(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with new_folder(tmp_path / "out") as folder:
        (folder / "sub").mkdir(0o700)
        for file in (folder / "a", folder / "sub/b"):
            file.touch(0o600)
    modes = {name: (tmp_path / name).stat().st_mode for name in ("folder", "file")}
    for name, like in (("out", "folder"), ("out/sub", "folder"), ("out/a", "file")):
        assert (tmp_path / name).stat().st_mode == modes[like]
    assert (tmp_path / "out/sub/b").stat().st_mode == modes["file"]


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


def test_chat_templates_with_names_are_taken_over(tmp_path, quantized):
    source = shutil.copytree(TINY, tmp_path / "source")
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = {"default": "D", "tool_use": "T"}
    tokenizer.save_pretrained(source)
    model, report = quantized
    save_checkpoint(model, report, tmp_path / "out", source=source)
    taken = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert taken.chat_template == {"default": "D", "tool_use": "T"}
    assert entries(tmp_path / "out/additional_chat_templates") == ["tool_use.jinja"]


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


def test_only_models_of_transformers_have_checkpoints(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(64, 64))
    report = pvq.quantize_model(model, pvq.PVQConfig(), progress=False)
    with pytest.raises(TypeError, match="model is a Sequential, expected a transformers model"):
        save_checkpoint(model, report, tmp_path / "out")
    assert entries(tmp_path) == []
