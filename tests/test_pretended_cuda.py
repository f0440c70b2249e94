"""Our code on a GPU that is not there (pretended_cuda.c): devices, copies, waits, gradients.

On a GPU, a step that copies to the host or reads a number waits for all queued work, and the
kernels no longer overlap with the host's work on the next ones.
"""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run_program
from pretended_cuda import ACTS, BATCH, COMPILED_BATCH, CROP, MISTAKES, PRECISIONS, RANKS

STEPS = [f"{act} {precision}" for act in ACTS for precision in PRECISIONS]
CONVS_OF = {"small14": 1 + 2 + 2, "C": 1 + 2 + 2 + 2}  # with two of each stage
LAYERS, POOLED = CONVS_OF["C"], 3  # each stage but the last ends in a pool
HYBRID = [
    *(f"small14 {step} 0" for step in STEPS),
    *(f"small14 prelu bf16 {rank}" for rank in range(1, RANKS)),
    "C prelu bf16 0",
]
VIEWS = [
    *("centre", "ten", "grid", "sparse", "dense"),
    *("centre on_map", "ten on_map", "grid on_map", "validation"),
]


def headers() -> list[Path]:
    """Folders of the CUDA headers in torch's wheels: of the runtime, and of the compiler."""
    site = Path(torch.__file__).parents[1]
    wanted = [("nvidia", "cuda_runtime_api.h"), ("triton", "crt/host_defines.h")]
    folders = []
    for package, name in wanted:
        for path in sorted((site / package).rglob(name))[:1]:
            folders.append(path.parents[name.count("/")])
    return folders


@pytest.fixture(scope="session")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library to preload."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    if not (torch.version.cuda or "").startswith("13."):
        pytest.skip(f"torch is built for CUDA {torch.version.cuda}, not 13")
    folders = headers()
    if len(folders) < 2:
        pytest.skip("torch's wheels have come without the CUDA headers")
    library = tmp_path_factory.mktemp("cuda") / "pretended_cuda.so"
    source = Path(__file__).with_name("pretended_cuda.c")
    # torch loads the driver by this name, and so gets the preloaded library.
    named = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(library)]
    included = [f"-I{folder}" for folder in folders]
    subprocess.run([compiler, *named, *included, str(source)], check=True)
    return library


def pretended(runtime: Path, *arguments: str) -> Any:
    """What pretended_cuda.py prints."""
    # Otherwise conftest.py hides all GPUs, and torch 2.11 would not even look for them.
    environment = {"LD_PRELOAD": str(runtime), "CUDA_VISIBLE_DEVICES": "0"}
    done = run_program("tests/pretended_cuda.py", *arguments, **environment)
    return json.loads(done.stdout)


@pytest.fixture(scope="session")
def facts(runtime: Path, small: Path) -> Any:
    return pretended(runtime, "facts", str(small))


def wrong(facts: dict[str, Any], precision: str, batch: int) -> set[str]:
    """What a step did that it should not; `batch`: this process's number of images."""
    # fp16's scaler asks whether a gradient overflowed before it updates the weights.
    reads = ["_local_scalar_dense"] if precision == "fp16" else []
    copies = [
        ["torch.float32", "[3]", batch],  # colours
        ["torch.int64", "[]", 2 * batch],  # keys and labels
        ["torch.uint8", f"[{CROP}, {CROP}, 3]", batch],
    ]
    checks = {
        "raises": facts["error"] is not None,
        "reads values": facts["reads"] != reads,
        "waits for the device": facts["waits"] > 0,
        "copies to the host": facts["to_host"] != [],
        "copies other things to the device": facts["to_device"] != copies,
        "copies that block": facts["blocking"] != [],
        "gradients of another dtype, device or strides": facts["wrong_gradients"] != [],
    }
    return {mistake for mistake, was_made in checks.items() if was_made}


@pytest.mark.parametrize("case", STEPS)
def test_a_step_stays_on_the_device(facts: Any, case: str) -> None:
    step = facts["steps"][case]
    assert wrong(step, precision=case.split()[1], batch=BATCH) == set()
    # Two micro-batches, forward and backward.
    assert step["convolutions"] == [2 * CONVS_OF["small14"]] * 2


def test_images_on_the_device_are_not_copied(facts: Any) -> None:
    copies = facts["steps"]["images on the device"]["to_device"]
    assert [dtype for dtype, _, _ in copies] == ["torch.float32", "torch.int64"]


@pytest.mark.parametrize("case", STEPS)
def test_the_state_of_a_checkpoint_stays_on_the_device(facts: Any, case: str) -> None:
    """Until the writer copies it. Two numbers of fp16's scaler are read."""
    state = facts["steps"][case]["state"]
    assert state["devices"] == ["cuda:0"]
    assert state["to_host"] == [[1, 1, 3]]  # the mean
    assert len(state["reads"]) == (2 if case.endswith("fp16") else 0)
    assert state["waits"] == 0


@pytest.mark.parametrize("case", HYBRID)
def test_a_step_of_hybrid_stays_on_the_device(facts: Any, case: str) -> None:
    step, (model, _, precision, rank) = facts["hybrid"][case], case.split()
    assert wrong(step, precision=precision, batch=BATCH // RANKS) == set()
    assert step["convolutions"] == [CONVS_OF[model]] * 2
    rows, columns = step["whole_fc1"]
    assert step["fc1"] == [rows // RANKS, columns]
    assert step["whole_devices"] == ["cuda:0"]
    assert (step["saved"] > 0) == (step["momentum"] > 0) == (rank == "0")


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_scores_come_back_once(facts: Any, precision: str, view: str) -> None:
    seen = facts["views"][f"{precision} {view}"]
    assert seen["scores"] == ["cpu", "torch.float32", [8, 10]]
    assert seen["to_host"] == [[8, 10]]
    copies = {dtype: rows for dtype, _, rows in seen["to_device"]}
    places = copies.pop("torch.int64", 0)  # of the bins in a window
    assert copies == {"torch.uint8": 8}
    assert (places > 0) == (view == "dense")
    assert seen["reads"] == seen["blocking"] == []
    assert seen["waits"] == 0
    assert seen["convolutions"][0] > 0


@pytest.mark.parametrize(("mistake", "name"), MISTAKES.items())
def test_a_mistake_in_the_step_is_detected(facts: Any, mistake: str, name: str) -> None:
    assert name in wrong(facts["mistakes"][mistake], precision="bf16", batch=BATCH)


def test_the_writer_copies_from_the_device_to_pinned_memory(runtime: Path, tmp_path: Path) -> None:
    """Weights and momentum come back from the file unchanged; only the thread waits."""
    saved = pretended(runtime, "save", str(tmp_path / "last.pt"))
    assert saved["pinned"]
    assert saved["same_memory"]
    assert saved["waits"] == [0, 1, 0, 1]
    assert saved["tensors"] > 0
    assert saved["equal"]
    assert saved["strides"]
    assert saved["devices"] == ["cuda:0"]


@dataclass
class Kernel:
    """A call of a kernel in Inductor's code, and the feature maps it reads and writes."""

    name: str
    reads_image: bool
    maps: list[str]  # of any layer, [B, C, h, w] in bf16
    passes: int  # over maps; one that is updated in place counts twice


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


def shapes(code: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of the tensors that Inductor's code allocates or is given."""
    made = r"(\w+) = (?:empty_strided_cuda|rand_strided)\(\(([\d, ]*)\), .*?torch\.(\w+)\)"
    known = {name: (numbers(shape), dtype) for name, shape, dtype in re.findall(made, code)}
    checked = r"assert_(?:size_stride|tensor_metadata)\((\w+), \(([\d, ]*)\)"
    for name, shape in re.findall(checked, code):
        known.setdefault(name, (numbers(shape), "bfloat16"))
    for new, old in re.findall(r"^\s+(\w+) = (\w+); del \w+  # reuse", code, re.MULTILINE):
        known[new] = known[old]
    again = r"^\s+(\w+) = reinterpret_tensor\((\w+), \(([\d, ]*)\).*# reuse"
    for new, old, shape in re.findall(again, code, re.MULTILINE):
        known[new] = numbers(shape), known[old][1]
    return known


def kernels(code: str) -> list[Kernel]:
    """Inductor's kernels, in the order of their calls."""
    known = shapes(code)
    parameters = dict(re.findall(r"^def (triton_\w+)\((.*?)\)", code, re.MULTILINE))
    calls = []
    for name, text in re.findall(r"^\s+(triton_\w+)\.run\((.*), stream", code, re.MULTILINE):
        pairs = list(zip(parameters[name].split(", "), text.split(", "), strict=False))
        maps = [
            (parameter, argument)
            for parameter, argument in pairs
            if len(known.get(argument, [()])[0]) == 4 and known[argument][1] == "bfloat16"
            if known[argument][0][0] == COMPILED_BATCH and known[argument][0][2] > 7
        ]
        calls.append(
            Kernel(
                name=name,
                reads_image=any(known.get(a, ("", ""))[1] == "uint8" for _, a in pairs),
                maps=[argument for _, argument in maps],
                passes=sum(2 if parameter.startswith("in_out") else 1 for parameter, _ in maps),
            )
        )
    return calls


@pytest.fixture(scope="session")
def code(runtime: Path, small: Path) -> list[str]:
    """Inductor's code for model C in bf16: the images, the trunk forward and backward."""
    return pretended(runtime, "code", str(small))


def check_forward(code: str) -> None:
    """A layer's bias and rectifier are one kernel; only pools read its output."""
    assert code.count("extern_kernels.convolution(") == code.count(", bias=None)") == LAYERS
    passing = [kernel for kernel in kernels(code) if kernel.maps]
    layers = [kernel for kernel in passing if "convolution" in kernel.name]
    assert len(layers) == LAYERS
    for layer in layers:
        assert "prelu" in layer.name
        assert layer.passes == 3  # with the bias in place, for the backward pass, and rectified
    others = [kernel for kernel in passing if kernel not in layers]
    casts = [kernel for kernel in others if "max_pool" not in kernel.name]
    assert [kernel.passes for kernel in casts] == [1]  # of the images, to bf16


def check_backward(code: str) -> None:
    """A layer's gradients, of slopes, input and bias, take three kernels and six passes.

    If a pool follows the layer, its gradient may take one more kernel and one more pass.
    """
    assert len(re.findall(r"aten\.convolution_backward\.default\(", code)) == LAYERS
    layers: list[list[Kernel]] = [[]]
    for kernel in kernels(code):
        if kernel.maps:
            assert re.search("prelu|convolution|max_pool", kernel.name)
            layers[-1].append(kernel)
            if "convolution" in kernel.name:  # the bias's, which comes last
                layers.append([])
    assert layers.pop() == []
    assert len(layers) == LAYERS
    pooled = [any("pool" in kernel.name for kernel in layer) for layer in layers]
    assert sum(pooled) == POOLED
    for layer, has_pool in zip(layers, pooled, strict=True):
        own = [kernel for kernel in layer if re.search("prelu|convolution", kernel.name)]
        assert len(own) <= 3
        assert len(layer) <= len(own) + has_pool
        assert layer[-1].passes == 1  # the bias's
        assert sum(kernel.passes for kernel in layer) <= 6 + has_pool


def test_compiled_layers_make_no_needless_pass(code: list[str]) -> None:
    images, forward, backward = code
    assert [kernel.reads_image for kernel in kernels(images)] == [True]  # minus the mean, coloured
    check_forward(forward)
    check_backward(backward)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_needless_pass_is_detected(code: list[str], direction: str) -> None:
    text, check = {
        "forward": (code[1], check_forward),
        "backward": (code[2], check_backward),
    }[direction]
    name = next(kernel.name for kernel in kernels(text) if "prelu" in kernel.name and kernel.maps)
    definition = re.search(rf"^def {name}\(.*\n", text, re.MULTILINE)
    call = re.search(rf"^\s+{name}\.run\(.*\n", text, re.MULTILINE)
    assert definition is not None
    assert call is not None
    copied = (definition[0] + call[0]).replace(name, "triton_poi_fused_clone_99")
    with pytest.raises(AssertionError):
        check(text + copied)
