from collections.abc import Iterator
from pathlib import Path

import pytest

from common.file_replacement import replace_file
from viz.record.files import filesystem_type, is_network_type, is_on_network

MOUNTS = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 27 0:40 / /home rw,relatime shared:2 master:1 - nfs4 server:/export rw
31 30 0:41 / /home/ann/scratch rw - xfs /dev/sdb rw
32 27 0:42 / /mnt/my\040drive rw - fuse.sshfs ann@host:/ rw
33 27 0:43 / /data rw - ext4 /dev/sdc rw
34 33 0:44 / /data rw - lustre mgs:/fs rw
not a line of mountinfo
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/work/training_viz", "ext4"),
        ("/home/ann/runs", "nfs4"),
        ("/homework", "ext4"),
        ("/home/ann/scratch/run.db", "xfs"),
        ("/mnt/my drive/run", "fuse.sshfs"),
        ("/data/run", "lustre"),
    ],
)
def test_the_longest_mount_decides_and_of_equals_the_later(path: str, kind: str) -> None:
    assert filesystem_type(Path(path), MOUNTS) == kind


def test_no_mount_at_all() -> None:
    assert filesystem_type(Path("/work"), "") == ""


def test_network_types() -> None:
    shared = [
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "9p",
        "fuse.sshfs",
        "fuse",
        "fuseblk",
        "lustre",
        "gpfs",
        "ceph",
        "wekafs",
        "beegfs",
        "virtiofs",
    ]
    assert [name for name in shared if not is_network_type(name)] == []
    local = ["ext4", "xfs", "btrfs", "overlay", "tmpfs", "zfs", "apfs", ""]
    assert [name for name in local if is_network_type(name)] == []


def test_this_machine_answers(tmp_path: Path) -> None:
    assert is_on_network(tmp_path) in (False, True)


def test_a_replacement_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "training_step_000050.png"
    replace_file(path, lambda file: file.write(b"old"), durable=False)

    def pieces() -> Iterator[bytes]:
        yield b"half of the "
        assert len(list(tmp_path.iterdir())) == 2
        assert list(tmp_path.glob("training_step_*.png")) == [path]
        raise RuntimeError("the disk is on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        replace_file(path, lambda file: file.writelines(pieces()), durable=False)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
