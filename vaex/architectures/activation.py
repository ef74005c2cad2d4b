"""Activation functions, chosen by their name in torch.nn.functional."""

from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "softplus": nn.Softplus,
}


def activation_class(name: str) -> type[nn.Module]:
    """Raises ValueError for a name that is not in ACTIVATIONS."""
    if name not in ACTIVATIONS:
        raise ValueError(f"architecture.activation={name}: must be one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
