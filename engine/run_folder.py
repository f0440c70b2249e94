"""runs/NAME/: the folder of one run, which no other run may use."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from common.errors import UserError, reason
from common.files import lock, try_to_write, write_atomically
from configs.store import PlainConfig, changes, read_yaml

if TYPE_CHECKING:
    from engine.distributed import World


def differences(old: PlainConfig, new: PlainConfig) -> list[str]:
    """`key: old -> new` for every key whose change makes it another run."""
    return [str(change) for change in changes(old, new) if not change.resumable]


def refuse_changes(path: Path, old: PlainConfig, new: PlainConfig) -> None:
    """Raises UserError, with the differences, if `path` belongs to another configuration."""
    if changed := differences(old, new):
        raise UserError(
            f"{path} is of a run with another configuration ({'; '.join(changed)}): "
            "give name=... for a new run, or the old values to resume"
        )


def check_run(folder: Path, config: PlainConfig) -> None:
    """Raises UserError where open_run would, before the data set is opened; writes nothing.

    Only open_run sees that another process trains in the folder.
    """
    try:
        _refuse_other_config(folder, config)
        folders = (folder / "checkpoints", folder, *folder.absolute().parents)
        try_to_write(next(path for path in folders if path.exists()) / "last.pt")
    except OSError as error:
        raise _cannot_write(folder, error) from error


@contextmanager
def open_run(folder: Path, config: PlainConfig, world: "World") -> Iterator[None]:
    """Create or reopen the run folder for `config`, and lock it while the context lasts.

    Raises UserError if the folder holds a run of another configuration (with the differences), is
    in use by another process, or cannot be written.
    """
    if not world.is_main:
        yield
        return
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        busy = f"another process is training in {folder}: give name=..."
        with lock(folder / ".lock", busy=busy):
            _refuse_other_config(folder, config)
            text = OmegaConf.to_yaml(OmegaConf.create(config))
            write_atomically(folder / "config.yaml", lambda file: file.write(text.encode()))
            yield
    except OSError as error:
        if error.filename is None or not str(error.filename).startswith(str(folder)):
            raise
        raise _cannot_write(folder, error) from error


def _cannot_write(folder: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to {folder} ({reason(error)}): runs=FOLDER is another place")


def _refuse_other_config(folder: Path, config: PlainConfig) -> None:
    """Raises UserError if there is a checkpoint of another configuration."""
    path = folder / "config.yaml"
    if path.exists() and (folder / "checkpoints" / "last.pt").exists():
        refuse_changes(folder, read_yaml(path), config)
