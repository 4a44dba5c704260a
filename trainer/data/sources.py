"""What `--dataset` names: a Hub dataset, a file, a folder or a glob, resolved to its exact revision and its files."""

import glob
import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainer.base.atomic_files import sha256_of_file
from trainer.data.hub_file import HUB, reason_of, short_message
from trainer.errors import SourceUnreachable, UserError

PYTHON_LIBRARY = "python-library"
READABLE = ".jsonl, .json, .txt (each also with .gz or .zst), .parquet"
READ_WHOLE_BYTES = 256 << 20
"""Local files are told apart by their contents up to this much in all, beyond it by size and time of change."""

Kind = Literal["json lines", "paragraphs", "parquet"]
_KINDS: dict[str, Kind] = {".jsonl": "json lines", ".json": "json lines", ".txt": "paragraphs", ".parquet": "parquet"}


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of a source."""

    kind: Kind
    address: str
    """A path, or an `hf://` address that includes the revision."""
    name: str
    """What `Origin` calls it."""

    @property
    def is_remote(self) -> bool:
        return self.address.startswith(HUB)


@dataclass(frozen=True, slots=True)
class DataSource:
    """A source of documents, resolved: the same name and revision are the same documents in the same order."""

    name: str
    """What a person calls it: `DKYoon/SlimPajama-6B`, `python-library`, a path as it was given."""
    revision: str
    """Commit of a Hub dataset; a SHA-256 hex of local files or of the embedded library."""
    shards: tuple[Shard, ...]
    config: str | None = None
    split: str = "train"
    has_validation: bool = False
    """The source has a validation split of its own, so nothing need be held out."""
    note: str = ""
    """What a person must know of how it was chosen (`SlimPajama out of reach (…)`)."""


def kind_of(name: str) -> Kind | None:
    """What a file of this name holds; None for a kind that is not read."""
    path = Path(name.lower())
    if path.suffix not in (".gz", ".zst"):
        return _KINDS.get(path.suffix)
    kind = _KINDS.get(path.with_suffix("").suffix)
    return None if kind == "parquet" else kind  # Parquet is compressed inside


def embedded_source(shards: Sequence[Path], revision: str) -> DataSource:
    """The embedded library as a source, whose shards are JSON lines in a cache folder that is nobody's business."""
    named = tuple(Shard("json lines", str(shard), f"{PYTHON_LIBRARY}/{shard.name}") for shard in shards)
    return DataSource(PYTHON_LIBRARY, revision, named)


def resolve_source(
    dataset: str,
    *,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    read_whole_bytes: int = READ_WHOLE_BYTES,
) -> DataSource:
    """Resolve a path or a Hub name, the latter by asking the Hub (seconds, minutes where it does not answer well).

    With `revision`, just that one: a commit, tag or branch of a Hub dataset, or what was recorded of local files.
    Raises UserError for files that do not exist or are of no known kind, and for a configuration, split or revision
    that the dataset does not have; SourceUnreachable for a Hub that does not answer or does not show the dataset.
    """
    if not is_local(dataset):
        return _resolve_hub(dataset, config, split, revision)
    if config is not None or split != "train":
        raise UserError(
            f"--dataset {dataset} is local and has neither configurations nor splits: name the files instead"
        )
    source = _resolve_local(dataset, read_whole_bytes)
    if revision is not None and revision != source.revision:
        raise UserError(
            f"--dataset {dataset} has changed: its files' revision is {source.revision[:12]}, expected {revision[:12]}"
            "; put the old files back, or start a new run"
        )
    return source


def is_local(dataset: str) -> bool:
    """Whether this names files here rather than a dataset on the Hub."""
    could_be_hub = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", dataset) is not None and kind_of(dataset) is None
    return not could_be_hub or Path(dataset).exists()


def _resolve_local(dataset: str, read_whole_bytes: int) -> DataSource:
    folder = Path(dataset).expanduser()
    if folder.is_dir():
        files = sorted(
            path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(folder))
        )
    elif folder.exists():
        files = [folder]
    else:
        files = sorted(path for name in glob.glob(str(folder), recursive=True) if (path := Path(name)).is_file())  # noqa: PTH207
    if not files:
        raise UserError(f"--dataset {dataset}: " + ("an empty folder" if folder.is_dir() else "no such file"))
    shards = tuple(Shard(kind, str(path), str(path)) for path in files if (kind := kind_of(path.name)) is not None)
    if not shards:
        raise UserError(f"--dataset {dataset} has {_suffixes(path.name for path in files)}: expected {READABLE}")
    try:
        return DataSource(dataset, _local_revision([Path(shard.address) for shard in shards], read_whole_bytes), shards)
    except OSError as error:
        raise UserError(f"--dataset {dataset}: can't read {error.filename}: {error.strerror}") from error


def _is_hidden(path: Path) -> bool:
    """Notebooks and version control leave copies of files in hidden folders."""
    return any(part.startswith(".") for part in path.parts)


def _local_revision(files: Sequence[Path], read_whole_bytes: int) -> str:
    """SHA-256 hex over name, size and contents of each file.

    Beyond `read_whole_bytes` in all, over the time of change instead of the contents, which would take long to read.
    """
    root = os.path.commonpath([path.absolute().parent for path in files])
    stats = [path.stat() for path in files]
    read_whole = sum(stat.st_size for stat in stats) <= read_whole_bytes
    revision = hashlib.sha256()
    for path, stat in zip(files, stats, strict=True):
        what = sha256_of_file(path) if read_whole else stat.st_mtime_ns
        revision.update(
            f"{path.absolute().relative_to(root).as_posix()}\0{stat.st_size}\0{what}\n".encode(errors="surrogateescape")
        )
    return revision.hexdigest()


def _resolve_hub(dataset: str, config: str | None, split: str, revision: str | None) -> DataSource:
    silence_libraries()
    from datasets import load_dataset_builder
    from datasets.exceptions import DataFilesNotFoundError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, RevisionNotFoundError  # type: ignore[attr-defined]

    try:
        # The commit first: everything else is then asked of it alone, and a missing dataset is told from a silent Hub.
        commit = HfApi().dataset_info(dataset, revision=revision, expand=["sha"]).sha
        builder = load_dataset_builder(dataset, name=config, revision=commit)
    except RevisionNotFoundError:
        raise UserError(f"--dataset {dataset} has no revision {revision!r} (a commit, tag or branch)") from None
    except DataFilesNotFoundError:
        raise UserError(f"--dataset {dataset} has no files that can be read: expected {READABLE}") from None
    except (HTTPError, OSError, json.JSONDecodeError) as error:
        raise SourceUnreachable(reason_of(error)) from error
    except (ValueError, RuntimeError) as error:
        # A configuration that is not there or must be chosen, data made by a script: the message says which there are.
        raise UserError(f"--dataset {dataset}: {short_message(error)}") from error
    files = {str(name): [str(file) for file in files] for name, files in (builder.config.data_files or {}).items()}
    if not files:  # `datasets` falls back on what it has in its cache when the Hub stops answering half-way
        raise SourceUnreachable("the Hub does not list its files")
    if split not in files:
        raise UserError(f"--dataset {dataset} has no split {split!r}: it has {', '.join(files)}")
    shards = tuple(Shard(kind, name, name) for name in files[split] if (kind := kind_of(name)) is not None)
    if len(shards) < len(files[split]) or commit is None:
        raise UserError(f"--dataset {dataset} has {_suffixes(files[split])}: expected {READABLE}")
    return DataSource(dataset, commit, shards, config, split, has_validation="validation" in files)


def silence_libraries() -> None:
    """Keep the progress bars, logs and warnings of the Hub's libraries off the terminal: the progress bar is there."""
    import datasets
    import huggingface_hub
    from huggingface_hub.utils.tqdm import disable_progress_bars

    datasets.disable_progress_bars()
    disable_progress_bars()
    for library in (datasets.logging, huggingface_hub.logging):
        library.set_verbosity(library.CRITICAL)
    warnings.filterwarnings("ignore", module=r"(datasets|huggingface_hub)\b")


def _suffixes(names: Iterable[str]) -> str:
    found = sorted({"".join(Path(name).suffixes[-2:]) or "no ending" for name in names})
    return ", ".join(found[:5]) + (", …" if len(found) > 5 else "")
