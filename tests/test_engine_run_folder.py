"""The folder of a run: locked, refused before the work, renamed; epochs without an update."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from common.errors import UserError, one_sentence
from common.files import lock
from configs.schema import ScheduleConfig
from configs.store import to_dict
from engine.checkpoint import fingerprint
from engine.distributed import World
from engine.optim import learning_rate
from engine.run_folder import check_run, open_run
from tests.closed import refusal, skip_unbound
from tests.conftest import SHORT, composed, run_program
from train import build

ALONE = World(0, 1, torch.device("cpu"))

NO_LOCKS = "#include <errno.h>\nint flock(int fd, int op) { errno = CODE; return -1; }\n"

OPEN = """
import sys, torch
from pathlib import Path
from common.files import lock
from engine.distributed import World
from engine.run_folder import open_run
folder = Path(sys.argv[1])
with open_run(folder / "run", {"name": "run"}, World(0, 1, torch.device("cpu"))):
    with lock(folder, on_wait=lambda: sys.exit("waits")):  # as the cache of scans does
        print("open")
"""


@pytest.mark.parametrize("code", ["ENOSYS", "ENOLCK"])  # Lustre without -o flock; NFS, no lockd
def test_a_disk_without_locks_is_used_and_named_once(tmp_path: Path, code: str) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (tmp_path / "no.c").write_text(NO_LOCKS)
    flags = ["-shared", "-fPIC", f"-DCODE={code}", "-o", str(tmp_path / "no.so")]
    subprocess.run([compiler, *flags, str(tmp_path / "no.c")], check=True)
    done = run_program("-c", OPEN, str(tmp_path), LD_PRELOAD=str(tmp_path / "no.so"))
    assert done.stdout == "open\n"
    assert done.stderr.count("\n") == 1
    assert f"{tmp_path / 'run'} is not guarded against a second process" in done.stderr


def test_a_folder_is_for_one_process(tmp_path: Path) -> None:
    first, second = (open_run(tmp_path, {"name": "a"}, ALONE) for _ in range(2))
    with first, pytest.raises(UserError, match="another process is training"), second:
        pass
    with lock(tmp_path / ".lock", busy="still locked"):
        pass


def test_a_folder_that_may_not_be_written_is_refused_before_the_data_are_looked_at(
    tmp_path: Path,
) -> None:
    skip_unbound()
    tmp_path.chmod(0o500)
    common = ["train.py", "model=small14", "data=folder", "data.root=/nowhere", "device=cpu"]
    said = refusal(*common, f"runs={tmp_path}/runs", "name=a")
    assert f"cannot write to {tmp_path}/runs/a (Permission denied)" in said


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_run(tmp_path / "new" / "run", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
    for folder in (tmp_path / "file" / "run", tmp_path / (300 * "x")):
        with pytest.raises(UserError, match="cannot write to"):
            check_run(folder, {})


def test_another_configuration_is_refused_before_the_work(tmp_path: Path) -> None:
    config = to_dict(composed("model=small14", "name=a"))
    with open_run(tmp_path, config, ALONE):
        (tmp_path / "checkpoints" / "last.pt").touch()
    check_run(tmp_path, {**config, "name": "b", "runs": "elsewhere"})
    with pytest.raises(UserError, match="seed: 0 -> 1"):
        check_run(tmp_path, {**config, "seed": 1})
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config.yaml is damaged"):
        check_run(tmp_path, config)


def test_a_renamed_run_goes_on_and_fewer_steps_leave_nothing_to_do(
    command: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed, tmp_path / "renamed")
    before = fingerprint(tmp_path / "renamed" / "checkpoints" / "last.pt")
    assert before == fingerprint(undisturbed / "checkpoints" / "last.pt")
    assert before != fingerprint(undisturbed / "checkpoints" / "best.pt")
    out = run_program(*command, f"runs={tmp_path}", "name=renamed", "max_steps=3").stdout
    assert "renamed has done 25 steps" in out
    assert "nothing is left to train" in out
    assert before == fingerprint(tmp_path / "renamed" / "checkpoints" / "last.pt")


def test_epochs_without_an_update_do_not_count_towards_a_plateau(small: Path) -> None:
    """200 images: the batch of 512 that ends step n has images of epochs 0 .. floor(2.56 n)."""
    data = ["data=folder", f"data.root={small}", "batch_size=512"]
    for skipped, expected in (("[]", [0, 2, 5]), ("[[2,2]]", [0, 5]), ("[[1,3]]", [])):
        trainer = build(composed(*SHORT, *data, f"skip_steps={skipped}"), ALONE)
        assert [epoch for epoch in range(6) if trainer.plan.has_updates(epoch)] == expected
    schedule = ScheduleConfig(patience=2)
    flat = [50.0] * 9
    rates = [learning_rate(schedule, flat[:n], lambda epoch: epoch % 3 == 0) for n in range(9)]
    assert rates == [1e-2] * 7 + [1e-3] * 2


def test_ctrl_c_before_the_work_causes_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left, one_sentence():
        raise KeyboardInterrupt
    assert left.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_the_programs_read_paths_as_typed(tmp_path: Path) -> None:
    """With a ~ that the shell does not expand, and characters that Hydra cannot read."""
    for program, options in (
        ("eval.py", ["checkpoint=~/my (own), 1#/a=b.pt"]),
        ("train.py", ["data=folder", "data.root=~/my (own), 1#/a=b.pt", f"runs={tmp_path}"]),
    ):
        done = run_program(program, *options, "device=cpu", HOME=str(tmp_path), check=False)
        assert done.stderr.count("\n") == 1
        assert f" at {tmp_path}/my (own), 1#/a=b.pt" in done.stderr
