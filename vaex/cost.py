"""The cost of a model: parameters, floating-point operations (FLOPs) and memory, without computing any values.

The model runs on fake tensors, which have shapes but no values, so that no batch is too large and counting is fast.
FLOPs are those of matrix products, convolutions and attention, where a multiplication and an addition are two
operations. Elementwise operations are not counted.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeCopyMode, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from vaex.config.create import create
from vaex.config.schema import Config
from vaex.experiment import Experiment
from vaex.model import Autoencoder
from vaex.objectives import Batch

# Attention on a CPU, which FlopCounterMode does not count by itself. Arguments are shapes.
ATTENTION: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)  # type: ignore[no-untyped-call]
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda out, query, key, value, *_, **__: sdpa_backward_flop_count(out, query, key, value)  # type: ignore[no-untyped-call]
    ),
}


@dataclass(frozen=True)
class Layer:
    """A module, or a parameter outside of all layers.

    `shape` is the shape of its output for one image, or None if the output is not a tensor.
    """

    path: str
    kind: str
    shape: tuple[int, ...] | None
    parameters: int
    flops: int


@dataclass(frozen=True)
class StepCost:
    """FLOPs and bytes of one training step. `optimizer` is the size of its state, or None if it depends on values."""

    forward_flops: int
    backward_flops: int
    weights: int
    gradients: int
    optimizer: int | None
    activations: int  # saved in the forward pass for the backward pass


@dataclass
class _Calls:
    """The calls of one module: the shape of the last output, and FLOPs outside of the modules that it called."""

    shape: tuple[int, ...] | None = None
    flops: int = 0
    calls_others: bool = False


@dataclass
class _Recorder:
    """Hooks that count the FLOPs of each module."""

    counter: FlopCounterMode
    calls: dict[nn.Module, _Calls] = field(default_factory=dict)  # in the order of their first calls
    running: list[tuple[nn.Module, int]] = field(default_factory=list)  # with the FLOPs counted before each

    def before(self, module: nn.Module, inputs: object) -> None:
        self.calls.setdefault(module, _Calls())
        self.running.append((module, self.counter.get_total_flops()))

    def after(self, module: nn.Module, inputs: object, output: object) -> None:
        _, start = self.running.pop()
        flops = self.counter.get_total_flops() - start
        calls = self.calls[module]
        first = output[0] if isinstance(output, tuple) else output  # attention also returns its weights
        calls.shape = tuple(first.shape) if isinstance(first, Tensor) else None
        calls.flops += flops
        if self.running:
            caller = self.calls[self.running[-1][0]]
            caller.flops -= flops
            caller.calls_others = True


def layers(model: Autoencoder, image_shape: tuple[int, int, int]) -> list[Layer]:
    """Everything with parameters or FLOPs of its own, in the order of the forward pass of one image and one z."""
    mode, model = _without_values(model)
    names = {module: name for name, module in model.named_modules()}
    recorder = _Recorder(FlopCounterMode(display=False, custom_mapping=ATTENTION))
    for module in names:
        module.register_forward_pre_hook(recorder.before)
        module.register_forward_hook(recorder.after)
    with mode, torch.no_grad(), recorder.counter:
        x = torch.zeros(1, *image_shape, device=model.device)
        labels = torch.zeros(1, dtype=torch.int64, device=model.device)
        if model.posterior.runs_decoder:  # which then runs once, for z and the image
            noise = torch.zeros(1, 1, model.latent_dim, device=x.device)
            model.decode_latents(model.infer(x, labels, noise), labels, x)
        else:
            model.decode(model.encode(x, labels).mean, labels, x)

    calls_of = {names[module]: calls for module, calls in recorder.calls.items()}
    calls_of.setdefault("", _Calls(calls_others=True))  # the model itself, for what belongs to no module that is called
    parameters: dict[str, list[tuple[str, nn.Parameter]]] = {path: [] for path in calls_of}
    for name, parameter in model.named_parameters():
        path = name.rpartition(".")[0]
        while path not in calls_of:  # attention uses the weights of a layer without calling the layer
            path = path.rpartition(".")[0]
        parameters[path].append((name, parameter))
    rows = []
    for path, calls in calls_of.items():
        if calls.flops or not calls.calls_others:
            of_one_image = slice(1 if path.startswith(("encoder", "decoder")) else 0, None)
            shape = None if calls.shape is None else calls.shape[of_one_image]
            count = sum(parameter.numel() for _, parameter in parameters[path])
            rows.append(Layer(path, type(model.get_submodule(path)).__name__, shape, count, calls.flops))
        else:
            rows += [Layer(name, "Parameter", tuple(p.shape), p.numel(), 0) for name, p in parameters[path]]
    return [row for row in rows if row.parameters or row.flops]


def step_cost(experiment: Experiment, config: Config) -> StepCost:
    """The cost of a training step of `config.batch_size` images that is not compiled."""
    mode, model = _without_values(experiment.model)
    device, dataset = experiment.device, experiment.dataset
    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
    own = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
    saved: dict[int, torch.UntypedStorage] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    with mode:
        pixels = torch.zeros(config.batch_size, *dataset.image_shape, dtype=torch.uint8, device=device)
        x = dataset.to_float(pixels)
        labels = torch.zeros(config.batch_size, dtype=torch.int64, device=device)
        batch = Batch(x=x, input=experiment.corruption(x), labels=labels)
        with counter, torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            loss = experiment.objective(model, batch, torch.zeros((), dtype=torch.int64, device=device)).loss
            forward = counter.get_total_flops()
            loss.backward()
        parameters = list(model.parameters())
        return StepCost(
            forward_flops=forward,
            backward_flops=counter.get_total_flops() - forward,
            weights=_bytes([*parameters, *model.buffers()]),
            gradients=_bytes(p.grad for p in parameters if p.grad is not None),
            optimizer=_state_bytes(create("optimizer", config.optimizer, params=parameters)),
            activations=sum(storage.nbytes() for storage in saved.values()),
        )


def _without_values(model: Autoencoder) -> tuple[FakeTensorMode, Autoencoder]:
    """A copy of the model in training mode with fake tensors, and the mode in which it runs."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with FakeCopyMode(mode):
        return mode, copy.deepcopy(model).train()


def _state_bytes(optimizer: torch.optim.Optimizer) -> int | None:
    """The size of the optimizer's state after its first step, or None if that depends on values."""
    try:
        optimizer.step()
    except DataDependentOutputException:
        return None
    return _bytes(value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
