"""Little shared memory, as in a container, and few file descriptors, as in a login shell."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.draws import centre_batches
from tests.conftest import ROOT
from tests.pictures import jpeg, read, write_index

# Holds eight batches of 64 images at once, from two processes. Prints events, then the number of
# images; writes all pixels to a file.
PROGRAM = """
import sys
import numpy as np
from pathlib import Path
from data.draws import centre_batches
from data.sources.index import scan_folder
from tests.pictures import read

if __name__ == "__main__":
    root, crop = Path(sys.argv[1]), int(sys.argv[2]) or None
    index = scan_folder(root, "train")
    draws = centre_batches(np.arange(512) % len(index), 96, 64)
    batches = list(read("torchvision", index, draws, crop, on_event=print, workers=2))
    images = [image.numpy() for batch in batches for image in batch.images]
    np.save(root / "pixels.npy", np.concatenate([image.ravel() for image in images]))
    print(len(images))
"""


@pytest.mark.parametrize(
    ("limit", "crop"), [("ulimit -n 128", 0), ("mount -t tmpfs -o size=1m none /dev/shm", 96)]
)
def test_all_batches_arrive_despite_the_limit(limit: str, crop: int, tmp_path: Path) -> None:
    """512 images, 14 MB, held at once; whole ones (crop 0) vary in size."""
    small_memory = limit.startswith("mount")
    isolated = ["unshare", "--mount"]
    if small_memory and subprocess.run([*isolated, "true"], capture_output=True).returncode:
        pytest.skip("may not make a /dev/shm of its own")
    index = write_index(tmp_path, [jpeg(96 + i, 110 - i, i) for i in range(12)])
    program = [sys.executable, "-c", PROGRAM, str(tmp_path), str(crop)]
    done = subprocess.run(
        [*(isolated if small_memory else []), "sh", "-c", f'{limit} && exec "$@"', "sh", *program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    *events, count = done.stdout.splitlines()
    assert count == "512"
    assert len(events) == small_memory
    assert all("/dev/shm, 1 MB, is too small" in event for event in events)
    draws = centre_batches(np.arange(512) % len(index), 96, 64)
    expected = [
        image.numpy().ravel()
        for batch in read("torchvision", index, draws, crop or None)
        for image in batch.images
    ]
    assert np.array_equal(np.load(tmp_path / "pixels.npy"), np.concatenate(expected))
