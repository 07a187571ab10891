"""Each test covers names of a library that are not public; a failure after an update shows which code to adapt."""

from pathlib import Path


def test_dvc_resolves_remotes_without_a_repository(tmp_path: Path) -> None:
    # droneseg.model.dvc_remote.DvcRemote
    from dvc.config import Config
    from dvc.fs import get_cloud_fs

    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    remote = models\n['remote \"models\"']\n    url = ../store\n")
    config = Config(str(tmp_path / ".dvc"))
    assert config["core"]["remote"] == "models"
    filesystem_class, options, path = get_cloud_fs(config, name="models")
    filesystem = filesystem_class(**options)
    assert Path(path) == tmp_path / "store"
    target = filesystem.join(path, "files")
    (tmp_path / "source").write_bytes(b"data")
    filesystem.makedirs(filesystem.parent(target), exist_ok=True)
    filesystem.put_file(str(tmp_path / "source"), target)
    assert filesystem.fs.info(target)["size"] == 4
    assert str(filesystem.unstrip_protocol(target)).endswith("/store/files")
