"""The networks of the papers, built untrained from a seed."""

import copy
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from gradleak_lib.seeding import seeded

NAMES = ("linear", "mlp", "cnn", "lenet", "convnet", "resnet20", "resnet18", "mobilenet-v2", "nplm")


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of that name; ``"auto"`` is the first GPU where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def build(
    name: str, shape: Sequence[int], *, classes: int, seed: int = 0, width: int | None = None
) -> nn.Module:
    """Build an untrained network.

    Parameters
    ----------
    name
        One of `NAMES`. ``linear``: one fully connected layer. ``mlp``: two hidden layers with ReLU. ``cnn``: two
        3x3 convolutions with ReLU and max pooling, and two fully connected layers (``conv1``, ``conv2``, ``fc1``,
        ``fc2``). ``lenet``: the sigmoid LeNet of the gradient-inversion literature. ``convnet``: eight
        convolutions with batch norm. ``resnet20``: He's ResNet for CIFAR. ``resnet18``, ``mobilenet-v2``:
        torchvision's, the latter as a chain of its stages. ``nplm``: the neural probabilistic language model, next
        word from a window of words (``embedding``, ``hidden``, ``output``).
    shape
        Shape of one input without the batch dimension: ``(C, H, W)``; any shape for ``linear`` and ``mlp``;
        ``(words,)`` for ``nplm``.
    classes
        Number of outputs, at least 1.
    seed
        Seed of the initial weights. The global random state is left as it was.
    width
        Hidden units of ``mlp`` (default 256), first-layer channels of ``convnet`` (default 64), ``cnn`` (16) and
        ``lenet`` (12, in all layers), units of the embedding and the hidden layer of ``nplm`` (32).

    Returns
    -------
    nn.Module
        The network in evaluation mode, on the CPU, in float32. Inputs are expected in [0, 1]; those of ``nplm``
        are int64 word numbers from 0 to ``classes``, the highest for unknown words.

    Raises
    ------
    ValueError
        If the name is unknown, or the shape does not fit the network.

    References
    ----------
    Zhu et al. 2019, Deep Leakage from Gradients (LeNet). Geiping et al. 2020, Sec. 5 (ConvNet). He et al. 2016,
    Sec. 4.2 (ResNet-20). Bengio et al. 2003 (nplm, without its direct connections).

    Examples
    --------
    >>> model = build("lenet", (3, 32, 32), classes=10, seed=1)
    >>> model(torch.rand(8, 3, 32, 32)).shape
    torch.Size([8, 10])
    """
    if name not in NAMES:
        raise ValueError(f"unknown model {name!r}: choose one of {', '.join(NAMES)}")
    if classes < 1:
        raise ValueError(f"classes must be at least 1, got {classes}")
    shape = tuple(shape)
    if name == "nplm" and len(shape) != 1:
        raise ValueError(f"nplm takes windows of shape (words,), got shape {shape}")
    if name not in ("linear", "mlp", "nplm") and len(shape) != 3:
        raise ValueError(f"{name} takes images of shape (C, H, W), got shape {shape}")
    with seeded(seed):
        model = _construct(name, shape, classes, width)
    return model.eval()


def _construct(name: str, shape: tuple[int, ...], classes: int, width: int | None) -> nn.Module:
    features = math.prod(shape)
    match name:
        case "linear":
            return nn.Sequential(nn.Flatten(), nn.Linear(features, classes))
        case "mlp":
            hidden = width or 256
            return nn.Sequential(
                nn.Flatten(),
                nn.Linear(features, hidden),
                nn.ReLU(),
                nn.Linear(hidden, hidden),
                nn.ReLU(),
                nn.Linear(hidden, classes),
            )
        case "cnn":
            return _cnn(shape, classes, width or 16)
        case "nplm":
            return _nplm(shape[0], classes, width or 32)
        case "lenet":
            return _lenet(shape, classes, width or 12)
        case "convnet":
            return _convnet(shape, classes, width or 64)
        case "resnet20":
            return ResNet20(shape[0], classes)
        case "resnet18":
            from gradleak_lib._torchvision import torchvision

            resnet = torchvision.models.resnet18(num_classes=classes)
            if shape[0] != 3:
                resnet.conv1 = nn.Conv2d(shape[0], 64, 7, stride=2, padding=3, bias=False)
            return resnet
        case _:
            from gradleak_lib._torchvision import torchvision

            mobilenet = torchvision.models.mobilenet_v2(num_classes=classes)
            if shape[0] != 3:
                mobilenet.features[0][0] = nn.Conv2d(shape[0], 32, 3, stride=2, padding=1, bias=False)
            stages = {
                "features": mobilenet.features,
                "pool": nn.AdaptiveAvgPool2d(1),
                "flatten": nn.Flatten(),
            }
            return nn.Sequential(OrderedDict(stages | {"classifier": mobilenet.classifier}))


def _cnn(shape: tuple[int, ...], classes: int, width: int) -> nn.Sequential:
    """Two 3x3 convolutions, each max-pooled by 2, and two linear layers."""
    if min(shape[1:]) < 4:
        raise ValueError(f"cnn takes images of 4x4 or larger, got {shape[1]}x{shape[2]}")
    layers = OrderedDict(
        conv1=nn.Conv2d(shape[0], width, 3, padding=1),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        conv2=nn.Conv2d(width, 2 * width, 3, padding=1),
        relu2=nn.ReLU(),
        pool2=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        fc1=nn.Linear(2 * width * (shape[1] // 4) * (shape[2] // 4), 4 * width),
        relu3=nn.ReLU(),
        fc2=nn.Linear(4 * width, classes),
    )
    return nn.Sequential(layers)


def _nplm(words: int, classes: int, width: int) -> nn.Sequential:
    """Embedding of each word of a window, one hidden layer with tanh, and a score for each next word."""
    layers = OrderedDict(
        embedding=nn.Embedding(classes + 1, width),
        flatten=nn.Flatten(),
        hidden=nn.Linear(words * width, width),
        tanh=nn.Tanh(),
        output=nn.Linear(width, classes),
    )
    return nn.Sequential(layers)


def _lenet(shape: tuple[int, ...], classes: int, width: int) -> nn.Sequential:
    """Three 5x5 convolutions with strides 2, 2, 1 and sigmoids, then one linear layer."""
    body = nn.Sequential(
        nn.Conv2d(shape[0], width, 5, stride=2, padding=2),
        nn.Sigmoid(),
        nn.Conv2d(width, width, 5, stride=2, padding=2),
        nn.Sigmoid(),
        nn.Conv2d(width, width, 5, padding=2),
        nn.Sigmoid(),
        nn.Flatten(),
    )
    return body.append(nn.Linear(width * math.ceil(shape[1] / 4) * math.ceil(shape[2] / 4), classes))


def _convnet(shape: tuple[int, ...], classes: int, width: int) -> nn.Sequential:
    """Eight 3x3 convolutions with batch norm and ReLU, max-pooled by 3 after the sixth and the eighth."""
    if min(shape[1:]) < 9:
        raise ValueError(f"convnet takes images of 9x9 or larger, got {shape[1]}x{shape[2]}")
    layers: list[nn.Module] = []
    channels = shape[0]
    for number, factor in enumerate((1, 2, 2, 4, 4, 4, 4, 4)):
        layers += [
            nn.Conv2d(channels, factor * width, 3, padding=1),
            nn.BatchNorm2d(factor * width),
            nn.ReLU(),
        ]
        channels = factor * width
        if number in (5, 7):
            layers.append(nn.MaxPool2d(3))
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(channels * (shape[1] // 9) * (shape[2] // 9), classes)
    )


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut that has no parameters (He et al. 2016, option A)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.extra = channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x[:, :, :: self.stride, :: self.stride]
        shortcut = nn.functional.pad(shortcut, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (out + shortcut).relu()


class ResNet20(nn.Module):
    """ResNet-20 for 32x32 images (He et al. 2016, Sec. 4.2)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(_BasicBlock(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(_BasicBlock(16, 32, 2), *(_BasicBlock(32, 32, 1) for _ in range(2)))
        self.layer3 = nn.Sequential(_BasicBlock(32, 64, 2), *(_BasicBlock(64, 64, 1) for _ in range(2)))
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Score a batch of images ``[N, channels, H, W]``: ``[N, classes]``."""
        x = self.bn1(self.conv1(x)).relu()
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean(dim=(2, 3)))


def last_layer(model: nn.Module) -> str:
    """Name of the last linear layer, which most attacks on labels and users look at: last in the order of definition.

    Raises
    ------
    ValueError
        If the model has no linear layer.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError("the model has no linear layer")
    return linear[-1]


def with_new_head(model: nn.Module, *, classes: int, seed: int = 0, bias: bool | None = None) -> nn.Module:
    """Return a copy of a trained network with a new, untrained last linear layer.

    Parameters
    ----------
    model
        A network built by `build`.
    classes
        Outputs of the new layer, at least 1.
    seed
        Seed of its weights.
    bias
        Whether it has one; None: as the old layer.

    Raises
    ------
    ValueError
        If the model has no linear layer, or is one itself, or ``classes`` is out of range.
    """
    name = last_layer(model)
    if not name or classes < 1:
        raise ValueError(
            f"the model must have a last layer and classes be at least 1, got {name!r}, {classes}"
        )
    old = cast(nn.Linear, model.get_submodule(name))
    adapted = copy.deepcopy(model)
    parent, _, child = name.rpartition(".")
    with seeded(seed):
        head = nn.Linear(old.in_features, classes, bias=old.bias is not None if bias is None else bias)
    setattr(adapted.get_submodule(parent), child, head.to(old.weight).train(old.training))
    return adapted


def with_activation(model: nn.Module, activation: type[nn.Module]) -> nn.Module:
    """Return a copy of a network with another activation in place of every ReLU, sigmoid or tanh layer.

    Parameters
    ----------
    model
        A network whose activations are layers (``lenet``, ``cnn``, ``mlp``, ``convnet``).
    activation
        A layer without parameters of its own, such as ``nn.ELU``.

    Raises
    ------
    ValueError
        If the model has no such layer.
    """
    changed = copy.deepcopy(model)
    found = [
        name
        for name, layer in changed.named_modules(remove_duplicate=False)
        if isinstance(layer, nn.ReLU | nn.Sigmoid | nn.Tanh) and name
    ]
    if not found:
        raise ValueError("the model has no layer that is a ReLU, sigmoid or tanh")
    for name in found:
        parent, _, child = name.rpartition(".")
        setattr(changed.get_submodule(parent), child, activation().train(model.training))
    return changed


def with_small_stem(resnet: nn.Module, *, seed: int = 0) -> nn.Module:
    """Return a copy of a ResNet for small images: a 3x3 convolution first, nothing skipped, and no pooling after it.

    Parameters
    ----------
    resnet
        ``resnet18`` of `build`, or another ResNet of torchvision.
    seed
        Seed of the new convolution. The global random state is left as it was.

    Raises
    ------
    ValueError
        If the model is no ResNet of torchvision.

    References
    ----------
    Geiping et al. 2020, code (their ResNets on CIFAR).
    """
    from gradleak_lib._torchvision import torchvision

    if not isinstance(resnet, torchvision.models.ResNet):
        raise ValueError(f"expected a ResNet of torchvision, got {type(resnet).__name__}")
    changed = copy.deepcopy(resnet)
    old = changed.conv1
    with seeded(seed):
        stem = nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does
    changed.conv1 = stem.to(old.weight).train(old.training).requires_grad_(old.weight.requires_grad)
    changed.maxpool = nn.Identity().train(old.training)
    return changed


def with_uniform_weights(model: nn.Module, bound: float = 0.5, *, seed: int = 0) -> nn.Module:
    """Return a copy of a network with every weight and bias drawn uniformly from ``[-bound, bound]``.

    Parameters
    ----------
    model
        Any network.
    bound
        Positive.
    seed
        Seed of the draw. The global random state is left as it was.

    References
    ----------
    The initialisation in the code of Zhu et al. 2019 and Wainakh et al. 2022, with 0.5.
    """
    if not 0 < bound < math.inf:
        raise ValueError(f"bound must be positive and finite, got {bound}")
    drawn = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in drawn.parameters():
            parameter.copy_(bound * (2 * torch.rand(parameter.shape, generator=generator) - 1))
    return drawn
