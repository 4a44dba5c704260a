"""What is asked of the file system: a file replaced in one piece, and a word on whether it lives on this machine."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

_NETWORK = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|9p|afs|acfs|beegfs|ceph|coda|gfs2?|glusterfs|gpfs|lustre|mfs|moosefs|ncpfs|ocfs2|orangefs"
    r"|panfs|pvfs2|quobyte|wekafs|fuse.*|drvfs|prl_fs|vboxsf|virtiofs|vmhgfs"  # the last five: folders of a host
)


def filesystem_type(path: Path, mountinfo: str) -> str:
    """Type (`ext4`, `nfs4`, `fuse.sshfs`) of the mount that holds an absolute path without links; '' if none does.

    `mountinfo` is the text of `/proc/self/mountinfo` (proc(5)). The longest mount point that contains the path decides,
    the later one of equals: it is mounted over the earlier.
    """
    found, depth = "", -1
    for line in mountinfo.splitlines():
        before, dash, after = line.partition(" - ")
        fields = before.split(" ")
        if not dash or len(fields) < 5:
            continue
        mount = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4]))
        if len(mount.parts) >= depth and path.is_relative_to(mount):
            found, depth = after.split(" ")[0], len(mount.parts)
    return found


def is_network_type(name: str) -> bool:
    """Whether a file system of this type may be shared with other machines (every FUSE is taken for one that is)."""
    return _NETWORK.fullmatch(name) is not None


def is_on_network(path: Path) -> bool:
    """Whether a path lives on a file system of a network type. Where the mounts can't be read (macOS): False."""
    try:
        mountinfo = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return False
    return is_network_type(filesystem_type(path.resolve(), mountinfo))


def part_name(name: str, process: int | str) -> str:
    """Name under which `replace_file` writes: hidden, and matched by no pattern of the finished files."""
    return f".{name}.{process}.part"


def replace_file(path: Path, pieces: Iterable[bytes | bytearray]) -> None:
    """Write `pieces` as the new content of `path`: whoever reads sees the old file or the whole new one.

    Not forced to disk: what is written here can be made again from the store. Raises OSError; then the old file stands.
    """
    part = path.with_name(part_name(path.name, os.getpid()))
    try:
        with part.open("wb") as file:
            file.writelines(pieces)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
