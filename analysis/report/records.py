"""results/records/: what is known of every run, also when its folder is gone or elsewhere."""

import json
from pathlib import Path

from analysis.report.read import read_run
from analysis.report.runs import Run, from_json, to_json
from common.errors import UserError, refusing


def collect(runs: Path, results: Path) -> list[Run]:
    """Read all folders of experiments' runs, and return the records of all runs.

    Records of runs whose folder is not there stay as they are. Raises UserError if a folder or a
    record cannot be read, or a record not written.
    """
    records = results / "records"
    with refusing(OSError, what=f"cannot write into {records}"):
        records.mkdir(parents=True, exist_ok=True)
        folders = sorted(runs.iterdir()) if runs.is_dir() else []
        for folder in folders:
            run = read_run(folder) if folder.is_dir() else None
            if run is not None and run.experiment is not None:
                (records / f"{run.name}.json").write_text(to_json(run))
    return load(results)


def load(results: Path) -> list[Run]:
    """The records of a results folder, by name. Raises UserError for a damaged one."""
    found = []
    for path in sorted((results / "records").glob("*.json")):
        try:
            found.append(from_json(path.read_text()))
        except (json.JSONDecodeError, TypeError) as error:
            raise UserError(f"{path} is damaged or of another version ({error})") from error
    return found
