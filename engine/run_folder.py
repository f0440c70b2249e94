"""runs/NAME/: the folder of one run, which no other run may use."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from common.errors import UserError, reason
from common.files import lock, write_atomically
from configs.store import changes, read_yaml
from engine.distributed import World


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`key: old -> new` for every key whose change makes it another run."""
    return [str(change) for change in changes(old, new) if not change.resumable]


def refuse_changes(path: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raises UserError, with the differences, if `path` belongs to another configuration."""
    changed = differences(old, new)
    if changed:
        raise UserError(
            f"{path} is of a run with another configuration ({'; '.join(changed)}): "
            "give name=... for a new run, or the old values to resume"
        )


@contextmanager
def open_run(folder: Path, config: dict[str, Any], world: World) -> Iterator[None]:
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
            _write_config(folder, config)
            yield
    except OSError as error:
        if error.filename is None or not str(error.filename).startswith(str(folder)):
            raise
        raise UserError(f"cannot write to {folder} ({reason(error)})") from error


def _write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write config.yaml; refuse another configuration than that of an existing checkpoint."""
    path = folder / "config.yaml"
    if path.exists() and (folder / "checkpoints" / "last.pt").exists():
        refuse_changes(folder, read_yaml(path), config)
    text = OmegaConf.to_yaml(OmegaConf.create(config))
    write_atomically(path, lambda file: file.write(text.encode()))
