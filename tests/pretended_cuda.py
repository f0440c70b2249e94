"""Run with pretended_cuda.c preloaded: our code on a GPU that is not there; prints JSON.

Tensors have shapes, strides, dtypes and devices but no values (FakeTensorMode), so an operation on
tensors of two devices raises as it does on a GPU. Only in `save` do they have values, which are
only copied.
"""

import ctypes
import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import torch
import torch._functorch.config as functorch_config
import torch._inductor.config as inductor_config
import torch.distributed as dist
from torch import Tensor, nn
from torch._inductor.utils import get_code
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

import engine.step
import train
from configs.schema import TrainConfig
from configs.store import compose_config
from data.loading import Batch
from data.normalise import network_input
from engine.checkpoint import BackgroundWriter, load_checkpoint, save_checkpoint
from engine.distributed import World
from engine.optim import SGD, build_optimizer
from engine.parallel import Parallel, load_whole_state, whole_state
from engine.precision import set_precision
from engine.trainer import Trainer
from evaluation.scorer import Scorer
from evaluation.validation import class_probabilities
from evaluation.views import Views
from models.network import build_network

DEVICE = torch.device("cuda", 0)
ACTS = ("relu", "lrelu", "prelu", "prelu_shared")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
BATCH, CROP = 128, 224
RANKS = 8
COMPILED_BATCH = 16
CONVS = 2  # per stage at most: deeper networks take longer and show the same

# What `mistakes` does wrong, and what the tests must say about it.
MISTAKES = {
    "copy to the host": "copies to the host",
    "copy to the host in the backward pass": "copies to the host",
    "item": "reads values",
    "rows by a condition": "raises",
    "equal": "reads values",
    "synchronize": "waits for the device",
    "event": "waits for the device",
    "two devices": "raises",
    "images twice": "copies other things to the device",
    "blocking copy": "copies that block",
    "bf16 gradients": "gradients of another dtype, device or strides",
    "strides of gradients": "gradients of another dtype, device or strides",
}

# Operations whose result is on the host, which has to wait for it.
READS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2")


def count_waits() -> int:
    """How often the host has waited in the CUDA runtime."""
    runtime = ctypes.CDLL(os.environ["LD_PRELOAD"])
    return ctypes.c_int.in_dll(runtime, "pretended_waits").value


class Record(TorchDispatchMode):
    """Records what passes between host and device while it is active, also in backward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.waits_before = count_waits()
        self.calls: Counter[str] = Counter()
        self.reads: list[str] = []
        self.to_host: list[list[int]] = []
        self.to_device: Counter[tuple[str, str]] = Counter()
        self.blocking: list[list[int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.ops.prim.device.default:
            with self:  # in inference mode, composite operations arrive undivided
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return self.run(func, args, kwargs)

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record an operation and do it."""
        name = func.overloadpacket.__name__
        self.calls[name] += 1
        if name in READS and args[0].is_cuda:
            self.reads.append(name)
            if name == "_local_scalar_dense":
                return 0.0
        if name == "_fused_sgd_":  # it needs values
            assert {tensor.device for tensors in args[:3] for tensor in tensors} == {DEVICE}
            return None
        result = func(*args, **kwargs)
        if name == "_to_copy":
            self.note_copy(args[0], result, kwargs.get("non_blocking", False))
        elif name == "copy_":
            self.note_copy(args[1], args[0], kwargs.get("non_blocking", args[2:] == (True,)))
        return result

    def note_copy(self, source: Tensor, target: Tensor, non_blocking: bool) -> None:
        shape = list(source.shape)
        if source.is_cuda and target.is_cpu:
            self.to_host.append(shape)
        elif source.is_cpu and target.is_cuda:
            self.to_device[str(source.dtype), str(shape[1:])] += shape[0] if shape else 1
            if not non_blocking:
                self.blocking.append(shape)

    def facts(self) -> dict[str, Any]:
        return {
            "reads": self.reads,
            "waits": count_waits() - self.waits_before,
            "to_host": self.to_host,
            "to_device": sorted([*kind, rows] for kind, rows in self.to_device.items()),
            "blocking": self.blocking,
            "convolutions": [self.calls["convolution"], self.calls["convolution_backward"]],
        }


class Replica(DistributedDataParallel):
    """Stands in for DDP, whose C++ code reads values; it sends no gradients."""

    def __init__(self, module: nn.Module, **_: Any) -> None:
        nn.Module.__init__(self)
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.module(*inputs)


def convert(module: nn.Module, change: Callable[[Tensor], Tensor], **_: bool) -> nn.Module:
    """Replaces Module._apply, on which .to() is based: torch's needs tensors with values."""
    with torch.no_grad():
        for part in module.modules():
            for name, parameter in list(part.named_parameters(recurse=False)):
                setattr(part, name, nn.Parameter(change(parameter)))
            for name, buffer in list(part.named_buffers(recurse=False)):
                setattr(part, name, change(buffer))
    return module


def without_values() -> ExitStack:
    """A context in which no tensor has values."""
    stack = ExitStack()
    for context in (
        patch.object(nn.Module, "_apply", convert),
        patch("engine.distributed.DistributedDataParallel", Replica),
        # A copied tensor keeps its mode.
        patch.object(FakeTensorMode, "__deepcopy__", lambda mode, _: mode, create=True),
        FakeTensorMode(),
    ):
        stack.enter_context(context)
    return stack


def build(root: str, *overrides: str, world: World | None = None) -> Trainer:
    """A run as train.py builds it, past the picture of step 0; at most CONVS layers a stage."""
    data = ["data=folder", f"data.root={root}", "device=cuda"]
    config = compose_config([*data, f"batch_size={BATCH}", *overrides], TrainConfig)
    for stage in config.model.stages:
        stage.convs = min(stage.convs, CONVS)
    trainer = train.build(config, world or World(0, 1, DEVICE))
    trainer.log, trainer.progress.step = Mock(), 1
    return trainer


def empty_batch(size: int, device: torch.device | str = "cpu") -> Batch:
    """A batch without values; `device`: where the loader has put the images."""
    return Batch(
        images=torch.empty(size, CROP, CROP, 3, dtype=torch.uint8, device=device),
        labels=torch.empty(size, dtype=torch.int64),
        colours=torch.empty(size, 3),
        keys=torch.empty(size, dtype=torch.int64),
        indices=torch.empty(size, dtype=torch.int64),
        replaced=torch.empty(size, dtype=torch.bool),
    )


def wrong_gradient(parameter: nn.Parameter) -> bool:
    """Whether a gradient is not what fp32 SGD needs."""
    gradient = parameter.grad
    if gradient is None or gradient.dtype != torch.float32:
        return True
    return gradient.device != DEVICE or gradient.stride() != parameter.stride()


def step_facts(trainer: Trainer, batch: Batch) -> dict[str, Any]:
    """What one step of the training loop does."""
    error = None
    with Record() as record:
        try:
            trainer.train_one_step(iter([batch]))
        except RuntimeError as raised:
            error = f"{type(raised).__name__}: {raised}"
    named = trainer.network.named_parameters()
    wrong = [name for name, parameter in named if wrong_gradient(parameter)]
    return {**record.facts(), "error": error, "wrong_gradients": wrong}


def steps(root: str) -> dict[str, Any]:
    """Steps of two micro-batches, and what a checkpoint holds after them."""
    results: dict[str, Any] = {}
    for act in ACTS:
        for precision in PRECISIONS:
            choices = [f"act={act}", f"precision={precision}", f"micro_batch={BATCH // 2}"]
            trainer = build(root, "model=small14", *choices)
            facts = step_facts(trainer, empty_batch(BATCH))
            with Record() as record:
                state = trainer.state("last.pt")
            devices = sorted({str(weight.device) for weight in state["network"].values()})
            saved = {**record.facts(), "devices": devices}
            results[f"{act} {precision}"] = {**facts, "state": saved}
    results["images on the device"] = step_facts(trainer, empty_batch(BATCH, DEVICE))
    return results


def hybrid(root: str) -> dict[str, Any]:
    """Each rectifier and precision on the first of eight ranks; one case on all; model C."""
    cases = [("small14", act, precision, 0) for act in ACTS for precision in PRECISIONS]
    cases += [("small14", "prelu", "bf16", rank) for rank in range(1, RANKS)]
    cases += [("C", "prelu", "bf16", 0)]
    results: dict[str, Any] = {}
    for model, act, precision, rank in cases:
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=RANKS)
        choices = [f"model={model}", f"act={act}", f"precision={precision}", "parallel=hybrid"]
        trainer = build(root, *choices, world=World(rank, RANKS, DEVICE))
        facts = step_facts(trainer, empty_batch(BATCH // RANKS))
        with Record():
            state = trainer.state("last.pt")
        whole = trainer.parallel.whole_network(trainer.network)
        devices = {str(parameter.device) for parameter in whole.parameters()}
        results[f"{model} {act} {precision} {rank}"] = {
            **facts,
            "fc1": list(trainer.network.head.fc1.weight.shape),
            "whole_fc1": list(whole.head.fc1.weight.shape),
            "whole_devices": sorted(devices),
            "saved": len(state["network"]),
            "momentum": len(state["optimizer"]["state"]),
        }
        dist.destroy_process_group()
    return results


def views(root: str) -> dict[str, Any]:
    """Scores of 8 images in all views, and in validation."""
    trainer = build(root, "model=small14", "act=prelu")
    colour, image = torch.empty(1, 1, 3, device=DEVICE), torch.empty(CROP, CROP, 3, device=DEVICE)
    windows = [Views.CENTRE, Views.TEN, Views.GRID]
    ways = [(view, False) for view in Views] + [(view, True) for view in windows]
    results: dict[str, Any] = {}
    for name, mean in (("fp32", colour), ("bf16", image)):
        precision = set_precision(name, DEVICE)
        for view, on_map in ways:
            scorer = Scorer(
                network=trainer.network,
                mean=mean,
                precision=precision,
                crop=CROP,
                views=view,
                on_map=on_map,
                full_image_scale=256,
            )
            images = torch.empty(8, 256, 341, 3, dtype=torch.uint8)
            results[f"{name} {view}{' on_map' * on_map}"] = score_facts(
                partial(scorer.scores, images)
            )
        validate = partial(class_probabilities, trainer.network, empty_batch(8).images)
        score = partial(validate, mean=colour, precision=precision)
        results[f"{name} validation"] = score_facts(lambda score=score: score().cpu())
    return results


def score_facts(score: Callable[[], Tensor]) -> dict[str, Any]:
    with Record() as record:
        scores = score()
    result = [str(scores.device), str(scores.dtype), list(scores.shape)]
    return {**record.facts(), "scores": result}


def spoil_input(how: str) -> Callable[..., Tensor]:
    """network_input with a mistake in it."""
    right = engine.step.network_input

    def spoiled(images: Tensor, mean: Tensor, colours: Tensor) -> Tensor:
        match how:
            case "copy to the host":
                colours = colours.cpu().to(DEVICE, non_blocking=True)
            case "item":
                colours = colours * colours.sum().item()
            case "rows by a condition":
                colours = colours[colours.sum(1) > 0]
            case "equal":
                torch.equal(colours, colours)
            case "synchronize":
                torch.cuda.synchronize()
            case "event":
                torch.cuda.current_stream().record_event().synchronize()
            case "two devices":
                mean = torch.empty(1, 1, 3)
            case "images twice":
                images = torch.empty_like(images, device="cpu").to(DEVICE, non_blocking=True)
            case "blocking copy":
                mean = torch.empty(1, 1, 3).to(DEVICE)
        return right(images, mean, colours)

    return spoiled


def spoil_gradients(how: str, trainer: Trainer) -> None:
    network = trainer.network
    match how:
        case "copy to the host in the backward pass":
            network.head.fc1.bias.register_hook(lambda gradient: gradient.cpu().to(DEVICE))
        case "bf16 gradients":
            network.bfloat16()
        case "strides of gradients":

            def lay_out(parameter: Tensor) -> None:
                assert parameter.grad is not None
                parameter.grad = parameter.grad.contiguous()

            for weight in network.trunk.parameters():
                weight.register_post_accumulate_grad_hook(lay_out)


def mistakes(root: str) -> dict[str, Any]:
    """The step with each of the mistakes."""
    results: dict[str, Any] = {}
    for how in MISTAKES:
        trainer = build(root, "model=small14", "act=prelu", "precision=bf16")
        spoil_gradients(how, trainer)
        with patch("engine.step.network_input", spoil_input(how)):
            results[how] = step_facts(trainer, empty_batch(BATCH))
    return results


def save(path: str) -> dict[str, Any]:
    """Weights and momentum from the device to a file by the asynchronous writer, and back."""
    config = compose_config(["model=small14", "model.fc=[32,32]", "act=prelu"], TrainConfig)

    def fresh(seed: int) -> tuple[nn.Module, SGD]:
        network = build_network(config.model, config.act, config.init, num_classes=10, seed=seed)
        network = network.to(memory_format=torch.channels_last).to(DEVICE)
        with patch("torch.zeros_like", torch.empty_like):  # the device only copies
            return network, build_optimizer(network, config)

    network, optimizer = fresh(seed=1)
    parallel = Parallel(World(0, 1, DEVICE))
    for parameter in network.parameters():
        momentum = torch.randn_like(parameter, device="cpu").to(DEVICE)
        optimizer.buffers[parameter].copy_(momentum)
    addresses: list[list[int]] = []
    pinned: list[bool] = []

    def write(state: dict[str, Any]) -> None:
        weights = state["network"].values()
        addresses.append([weight.data_ptr() for weight in weights])
        pinned.extend(weight.is_pinned() for weight in weights)
        save_checkpoint(Path(path), state)

    waits: list[int] = []  # for each save, of the loop, then of the loop and the thread
    with BackgroundWriter() as writer:
        for _ in range(2):
            open_gate = threading.Event()
            writer._thread.submit(open_gate.wait)  # keeps the thread from writing
            before = count_waits()
            weights, state = whole_state(parallel, network, optimizer)
            writer.save({"network": weights, "optimizer": state}, write)
            waits.append(count_waits() - before)
            open_gate.set()
            writer.wait()
            waits.append(count_waits() - before)
    other, optimizer_of_other = fresh(seed=2)
    load_whole_state(parallel, other, optimizer_of_other, load_checkpoint(Path(path)))
    pairs = list(zip(tensors(network, optimizer), tensors(other, optimizer_of_other), strict=True))
    return {
        "pinned": all(pinned),
        "same_memory": addresses[0] == addresses[1],
        "waits": waits,
        "equal": all(torch.equal(saved.cpu(), loaded.cpu()) for saved, loaded in pairs),
        "strides": all(saved.stride() == loaded.stride() for saved, loaded in pairs),
        "devices": sorted({str(tensor.device) for pair in pairs for tensor in pair}),
        "tensors": len(pairs),
    }


def tensors(network: nn.Module, optimizer: SGD) -> list[Tensor]:
    """All weights, then all momentum."""
    parameters = list(network.parameters())
    return [*parameters, *(optimizer.buffers[p] for p in parameters)]


def code(root: str) -> list[str]:
    """Inductor's code for model C in bf16: the images, the trunk forward and backward."""
    import triton  # may be missing where these tests are skipped
    from triton.backends.compiler import GPUTarget

    # These would launch kernels to compute constants and to compare speeds.
    launching = {"joint_graph_constant_folding": False, "shape_padding": False}
    caching = {"fx_graph_cache": False, "compile_threads": 1}
    at_once = {"enable_autograd_cache": False, "force_non_lazy_backward_lowering": True}
    target = Mock(get_current_target=lambda: GPUTarget("cuda", 90, 32))
    triton.runtime.driver.set_active(target)
    trainer = build(root, "model=C", "act=prelu", "precision=bf16", "compile=true")
    batch = empty_batch(COMPILED_BATCH)
    step, images, colours = trainer.step, batch.images.to(DEVICE), batch.colours.to(DEVICE)
    inputs = network_input(images, step.mean, colours)
    with (
        inductor_config.patch(launching | caching),
        functorch_config.patch(at_once),
        step.precision.autocast(),
    ):
        written = get_code(step.prepare, images, colours) + get_code(step.network.trunk, inputs)
    return [text for text in written if text]


def facts(root: str) -> dict[str, Any]:
    """All that is measured without values, in one process: importing torch takes longest."""
    parts = (steps, hybrid, views, mistakes)
    return {part.__name__: part(root) for part in parts}


if __name__ == "__main__":
    command, argument = sys.argv[1:]
    if command == "save":
        print(json.dumps(save(argument)))
    else:
        with without_values():
            print(json.dumps({"facts": facts, "code": code}[command](argument)))
