"""What a model costs: parameters, floating-point operations and memory, without computing anything.

Networks run on tensors that have shapes but no values, so that no batch is too large and every step takes a moment.
Counted are products of matrices, convolutions and attention, a multiplication and an addition being two operations;
elementwise work is not.
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


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(
    out: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any
) -> int:
    return int(sdpa_backward_flop_count(out, query, key, value))  # type: ignore[no-untyped-call]


# Attention on a CPU, which FlopCounterMode leaves out.
ATTENTION: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


@dataclass(frozen=True)
class Layer:
    """A module, or a parameter that is not in a layer.

    `shape` is of its output, for one image; None where that is not a tensor.
    """

    path: str
    kind: str
    shape: tuple[int, ...] | None
    parameters: int
    flops: int


@dataclass(frozen=True)
class StepCost:
    """Of one training step: operations, and bytes. `optimizer` is its state, None if it depends on values."""

    forward_flops: int
    backward_flops: int
    weights: int
    gradients: int
    optimizer: int | None
    activations: int  # kept from the forward for the backward pass


@dataclass
class _Call:
    """Of a module: what it put out, and its operations outside of the modules it called."""

    shape: tuple[int, ...] | None = None
    flops: int = 0
    container: bool = False


@dataclass
class _Recorder:
    counter: FlopCounterMode
    calls: dict[nn.Module, _Call] = field(default_factory=dict)  # in the order of their first calls
    running: list[tuple[nn.Module, int]] = field(default_factory=list)  # with the operations before

    def before(self, module: nn.Module, inputs: object) -> None:
        self.calls.setdefault(module, _Call())
        self.running.append((module, self.counter.get_total_flops()))

    def after(self, module: nn.Module, inputs: object, output: object) -> None:
        _, start = self.running.pop()
        spent = self.counter.get_total_flops() - start
        call = self.calls[module]
        first = output[0] if isinstance(output, tuple) else output  # attention gives its weights, too
        call.shape = tuple(first.shape) if isinstance(first, Tensor) else None
        call.flops += spent
        if self.running:
            outer = self.calls[self.running[-1][0]]
            outer.flops -= spent
            outer.container = True


def layers(model: Autoencoder, image_shape: tuple[int, int, int]) -> list[Layer]:
    """What has parameters or operations of its own, in the order of the forward pass of one image and one z."""
    mode, model = _without_values(model)
    names = {module: name for name, module in model.named_modules()}
    recorder = _Recorder(FlopCounterMode(display=False, custom_mapping=ATTENTION))
    for module in names:
        module.register_forward_pre_hook(recorder.before)
        module.register_forward_hook(recorder.after)
    device = model.device
    with mode, torch.no_grad(), recorder.counter:
        x = torch.zeros(1, *image_shape, device=device)
        labels = torch.zeros(1, dtype=torch.int64, device=device)
        model.decode(model.encode(x, labels).mean, labels, x)

    called = {names[module]: call for module, call in recorder.calls.items()}
    owned: dict[str, list[tuple[str, nn.Parameter]]] = {path: [] for path in [*called, ""]}
    for name, parameter in model.named_parameters():
        path = name.rpartition(".")[0]
        while path and path not in called:  # attention reads the weights of a layer that it doesn't call
            path = path.rpartition(".")[0]
        owned[path].append((name, parameter))
    rows = []
    for path, parameters in owned.items():
        call = called.get(path, _Call(container=True))
        if call.flops or not call.container:
            shape = call.shape
            if shape and path.startswith(("encoder", "decoder")):
                shape = shape[1:]  # of one image
            count = sum(parameter.numel() for _, parameter in parameters)
            rows.append(Layer(path, type(model.get_submodule(path)).__name__, shape, count, call.flops))
        else:
            rows += [Layer(name, "Parameter", tuple(p.shape), p.numel(), 0) for name, p in parameters]
    return [row for row in rows if row.parameters or row.flops]


def step_cost(experiment: Experiment, config: Config) -> StepCost:
    """Of a training step of `config.batch_size` images, as it runs uncompiled."""
    mode, model = _without_values(experiment.model)
    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
    own = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    device = experiment.device
    with mode:
        x = experiment.dataset.to_float(
            torch.zeros(config.batch_size, *experiment.dataset.image_shape, dtype=torch.uint8, device=device)
        )
        labels = torch.zeros(config.batch_size, dtype=torch.int64, device=device)
        batch = Batch(x=x, input=experiment.corruption(x), labels=labels)
        with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
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
            activations=sum(storage.nbytes() for storage in kept.values()),
        )


def _without_values(model: Autoencoder) -> tuple[FakeTensorMode, Autoencoder]:
    """A copy in training mode whose tensors have shapes alone, and the mode in which it runs."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with FakeCopyMode(mode):
        return mode, copy.deepcopy(model).train()


def _state_bytes(optimizer: torch.optim.Optimizer) -> int | None:
    """Of what the optimizer keeps, after its first step."""
    try:
        optimizer.step()
    except DataDependentOutputException:
        return None
    return _bytes(value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
