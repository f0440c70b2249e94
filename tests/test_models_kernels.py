"""The rectifier's Triton kernels: their results, and without a GPU their machine code."""

import re
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from models.activations import Rectifier
from models.network import build_network
from tests.conftest import composed, run_program

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="no Triton")

REGISTERS_OF_AN_SM = 65536


def run_kernels(**environment: str) -> str:
    return run_program("-m", "pytest", "-q", "tests/kernels_on_device.py", **environment).stdout


@needs_triton
def test_interpreted_kernels_agree_with_autograd() -> None:
    assert "passed" in run_kernels(TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kernels_on_a_gpu_agree_with_autograd() -> None:
    assert "passed" in run_kernels()


def test_eager_is_the_default_and_the_fallback() -> None:
    images = torch.randn(2, 3, 48, 48)
    logits = {}
    for kernel in ("auto", "eager", "triton"):
        config = composed("model=small14", "model.fc=[16,16]", f"act.kernel={kernel}")
        network = build_network(config.model, config.act, config.init, 4)
        fused = {m.fused for m in network.modules() if isinstance(m, Rectifier)}
        assert fused == {kernel == "triton" and find_spec("triton") is not None}
        logits[kernel] = network(images, torch.arange(2))
    assert torch.equal(logits["auto"], logits["eager"])
    assert torch.equal(logits["triton"], logits["eager"])


def compiled(name: str, activations: str, num_channels: int, *, learned: bool, drop: bool) -> Any:
    """A kernel of models/kernels.py for an H100, as rectify() launches it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from models import kernels

    kernel = getattr(kernels, name)
    block_rows, block_channels = kernels._tile(num_channels)
    constants = {"block_rows": block_rows, "block_channels": block_channels, "slope_stride": 1}
    constants |= {"fixed_slope": None if learned else 0.0, "tiles": kernels._TILES}
    if not learned:
        constants |= {"slopes": None, "slope_sums": None}
        constants |= {"bias": None} if "saved" in kernel.arg_names else {}
    if not drop:
        constants |= {"keys": None, "units": None}
    types = dict.fromkeys(("x", "y", "grad_x", "grad_y", "saved"), f"*{activations}")
    types |= dict.fromkeys(("bias", "slopes", "bias_sums", "slope_sums"), "*fp32")
    types |= {"keys": "*i64", "units": "*i64", "scale": "fp32"}
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
    aligned = [n == "num_channels" or signature[n].startswith("*") for n in names]
    source = ASTSource(
        kernel,
        signature,
        {name: value for name, value in constants.items() if name in names},
        {(i,): [["tt.divisibility", 16]] for i, yes in enumerate(aligned) if yes},
    )
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})


@needs_triton
@pytest.mark.parametrize("name", ["_forward_kernel", "_backward_kernel"])
@pytest.mark.parametrize(
    ("activations", "num_channels", "learned", "drop"),
    [
        ("bf16", 96, True, False),
        ("bf16", 512, True, False),
        ("bf16", 512, False, False),
        ("fp32", 384, True, False),
        ("fp16", 64, True, False),
        ("bf16", 4096, True, True),
    ],
)
def test_machine_code_for_an_h100(
    name: str,
    activations: str,
    num_channels: int,
    learned: bool,
    drop: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = compiled(name, activations, num_channels, learned=learned, drop=drop)
    ptx = kernel.asm["ptx"]
    assert ".target sm_90" in ptx
    assert ".f64" not in ptx
    # Activations are loaded and stored 16 bytes at a time, none as single 16-bit numbers.
    assert "ld.global.v4.b32" in ptx
    assert "st.global.v4.b32" in ptx
    assert not re.search(r"(ld|st)\.global\.[a-z]?16", ptx)
    assert kernel.metadata.shared <= 8192

    (tmp_path / "kernel.ptx").write_text(ptx)
    spec = find_spec("triton.backends.nvidia")
    assert spec
    ptxas = Path(str(spec.origin)).parent / "bin" / "ptxas"
    command = [ptxas, "-v", "--gpu-name=sm_90a", "-o", "/dev/null", tmp_path / "kernel.ptx"]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "0 bytes spill stores, 0 bytes spill loads" in report
    used = re.search(r"Used (\d+) registers", report)
    assert used
    # Enough programs run at once to keep the memory busy; each loads 8 KB (backward, bf16).
    assert REGISTERS_OF_AN_SM // (int(used[1]) * 128) >= (3 if drop else 4)
