from pathlib import Path

import pytest

from viz.record.files import filesystem_type, is_network_type

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
def test_the_longest_mount_point_decides_and_of_equal_ones_the_last(path: str, kind: str) -> None:
    assert filesystem_type(Path(path), MOUNTS) == kind
    assert filesystem_type(Path(path), "") == ""


def test_network_types() -> None:
    shared = "nfs nfs4 cifs smb3 9p fuse.sshfs fuse fuseblk lustre gpfs ceph wekafs beegfs virtiofs".split()
    assert [name for name in shared if not is_network_type(name)] == []
    local = ["ext4", "xfs", "btrfs", "overlay", "tmpfs", "zfs", "apfs", ""]
    assert [name for name in local if is_network_type(name)] == []
