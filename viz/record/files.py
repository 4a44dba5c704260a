"""File-system checks: network mounts, leftover temporary files, and which process locks a store."""

import os
import re
from contextlib import suppress
from pathlib import Path

_NETWORK = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|9p|afs|acfs|beegfs|ceph|coda|gfs2?|glusterfs|gpfs|lustre|mfs|moosefs|ncpfs|ocfs2|orangefs"
    r"|panfs|pvfs2|quobyte|wekafs|fuse.*|drvfs|prl_fs|vboxsf|virtiofs|vmhgfs"  # the last five: folders of a host system
)


def filesystem_type(path: Path, mountinfo: str) -> str:
    """Return the type (`ext4`, `nfs4`, `fuse.sshfs`) of the mount of an absolute path without links; '' if unknown.

    `mountinfo` is the text of `/proc/self/mountinfo` (proc(5)). The longest mount point that contains the path decides;
    of equal ones the last, which is mounted over the others.
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
    """Whether a file system of this type may be shared with other machines (assumed for every FUSE)."""
    return _NETWORK.fullmatch(name) is not None


def is_on_network(path: Path) -> bool:
    """Whether a path is on a file system of a network type. False if the mounts can't be read (macOS)."""
    try:
        mountinfo = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return False
    return is_network_type(filesystem_type(path.resolve(), mountinfo))


def remove_leftovers(folder: Path) -> None:
    """Remove partial files of a run in `folder` that killed processes left; those of running processes stay."""
    names = r"training_(?:step_\d{6,}|latest)\.png|(?:metrics_history|text_samples|run)\.json"
    for path in folder.iterdir():
        found = re.fullmatch(rf"\.(?:{names})\.(\d+)\.(?:tmp|part)", path.name)
        if found and not _lives(int(found[1])):
            with suppress(OSError):  # it only takes disk space, and the next start tries again
                path.unlink()


def _lives(process: int) -> bool:
    if process == os.getpid():  # an earlier process had our id: this one has written nothing yet
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # a process of another user
    return True


def lock_holders(path: Path) -> list[str]:
    """Return `process 4711, sqlite3` for each other process that locks an SQLite file; [] if unknown (not Linux).

    The file is not opened for that: closing it again would drop this process's own locks on it.
    """
    places = set()
    for name in (path.name, f"{path.name}-shm"):
        with suppress(OSError):
            found = path.with_name(name).stat()
            places.add(f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}")
    holders = {}
    with suppress(OSError):
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            fields = line.split()  # 1: POSIX ADVISORY READ 4711 fe:00:12345 0 EOF; `->` in the second: waiting
            if len(fields) > 5 and fields[5] in places and fields[4] not in ("-1", "0", str(os.getpid())):
                if _is_ours(fields[4]):
                    continue
                name = Path(f"/proc/{fields[4]}/comm").read_text(encoding="utf-8", errors="replace").strip()
                holders[fields[4]] = f"process {fields[4]}, {name}"
    return list(holders.values())


def _is_ours(process: str) -> bool:
    """Whether it is the drawing process of this one, which also reads the store."""
    about = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    draws = b"viz.charts.renderer" in Path(f"/proc/{process}/cmdline").read_bytes()
    return draws and about.rpartition(")")[2].split()[1] == str(os.getpid())
