"""Where an imprint stands in a network, and how the layers before it are made to let the input through."""

from collections import OrderedDict
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gradleak_lib.attacks.access import device_of, undisturbed
from gradleak_lib.attacks.imprint import Imprint

if TYPE_CHECKING:
    from torchvision.models import ResNet

# The places that the paper shows in a ResNet-18, by the module that the imprint is put before.
POSITIONS = {"block 1": "layer1", "block 3": "layer3", "block 4": "layer4", "pooling": "avgpool"}
# The side of the square of pixels, three colours each, that the channels there have room for: a power of two.
OFFSETS = {"layer1": 4, "layer3": 4, "layer4": 8, "avgpool": 8}
_ORDER = ("conv1", "bn1", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool")


def before_input(model: nn.Module, imprint: Imprint) -> nn.Sequential:
    """Return the imprint in front of a network, on its device; neither is copied."""
    return nn.Sequential(OrderedDict(imprint=imprint.to(device_of(model)), model=model))


def before_layer(model: nn.Module, name: str, imprint: Imprint) -> nn.Module:
    """Put an imprint before a named submodule, in place.

    Parameters
    ----------
    model
        Any network, changed in place and returned.
    name
        As in ``model.named_modules()``: ``"layer1"``, or one of `POSITIONS`' values.
    imprint
        Its shape must be that of the submodule's input: see `layer_inputs`. It is brought to the model's device.

    Raises
    ------
    ValueError
        If there is no such submodule.
    """
    parent_name, _, child = name.rpartition(".")
    try:
        parent = model.get_submodule(parent_name)
        target = parent.get_submodule(child)
    except AttributeError as error:
        raise ValueError(f"the model has no submodule {name!r}") from error
    setattr(parent, child, nn.Sequential(OrderedDict(imprint=imprint.to(device_of(model)), layer=target)))
    return model


class _Reached(Exception):
    """Stops a forward pass at the layer of interest."""


@torch.no_grad()
def layer_inputs(model: nn.Module, name: str, images: Tensor) -> Tensor:
    """Return what a submodule receives: how a server measures its own public images inside its own network.

    Parameters
    ----------
    model
        Any network; the layers after the submodule are not run.
    name
        As in ``model.named_modules()``.
    images
        ``[N, C, H, W]``.

    Returns
    -------
    Tensor
        ``[N, ...]``, the submodule's first argument, on the model's device.

    Raises
    ------
    ValueError
        If the forward pass never reaches the submodule.
    """
    received: list[Tensor] = []

    def stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        received.append(inputs[0])
        raise _Reached

    hook = model.get_submodule(name).register_forward_pre_hook(stop)
    try:
        with undisturbed(model):
            model(images.to(device_of(model)))
    except _Reached:
        return received[0]
    finally:
        hook.remove()
    raise ValueError(f"the forward pass does not reach {name!r}")


@torch.no_grad()
def pass_through(resnet: "ResNet", name: str, *, offsets: bool = False) -> "ResNet":
    """Set the layers before a stage of a ResNet so that their channels carry the image.

    Batch norms become the identity, and convolutions copy pixels, keeping their strides. Images in [0, 1] pass the
    ReLUs as they are. The max-pooling stays.

    Parameters
    ----------
    resnet
        A ResNet of torchvision with basic blocks (ResNet-18 or 34), changed in place and returned.
    name
        The stage that the image shall reach: a value of `POSITIONS`.
    offsets
        Without them the first three channels carry every 4th, 8th, 16th or 32nd pixel, and all others are zero: the
        image arrives at a lower resolution. With them, other channels carry pixels that lie beside it, in the order
        of `torch.nn.functional.pixel_shuffle`, as many as `OFFSETS` says. The max-pooling blurs them: each is the
        largest of nine, two pixels apart.

    Raises
    ------
    ValueError
        If the network or the name is another.

    References
    ----------
    Fowl et al. 2022, Sec. 4.3 and App. B; Figs. 11 to 15.
    """
    from gradleak_lib._torchvision import torchvision

    if not isinstance(resnet, torchvision.models.ResNet) or name not in POSITIONS.values():
        raise ValueError(f"expected a torchvision ResNet and one of {list(POSITIONS.values())}, got {name!r}")
    before = _ORDER[: _ORDER.index(name)]
    for module in (module for stage in before for module in resnet.get_submodule(stage).modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.zeros_like(module.bias)
            module.running_var = torch.ones_like(module.bias)
            module.weight.fill_((1 + module.eps) ** 0.5)
            module.bias.zero_()
    blocks = [
        module
        for stage in before
        for module in resnet.get_submodule(stage).modules()
        if isinstance(module, torchvision.models.resnet.BasicBlock)
    ]
    strided = sum(block.downsample is not None for block in blocks)
    side = OFFSETS[name] // 2**strided if offsets else 1
    _copy(resnet.conv1, inner=1, outer=side, step=4 // side)
    for block in blocks:
        if block.downsample is None:  # only the shortcut is left
            block.bn2.weight.zero_()
        elif not offsets:
            block.bn2.weight.zero_()
            _copy(block.downsample[0])
        else:  # a stride of two drops three pixels of four: they go into channels of their own
            block.downsample[0].weight.zero_()
            _copy(block.conv1, inner=side, outer=2)
            side *= 2
            _copy(block.conv2, inner=side)
    return resnet


def _copy(convolution: nn.Conv2d, *, inner: int = 1, outer: int = 1, step: int = 1) -> None:
    """Make a convolution copy pixels of three colours, and return zero in all channels that are left.

    Channels hold squares of ``inner x inner`` pixels of a colour. With ``outer`` above one, the squares of as many
    neighbours, ``step`` pixels apart, are put together to squares of ``inner * outer``.
    """
    convolution.weight.zero_()
    whole = inner * outer
    first = convolution.kernel_size[0] // 2 - (outer - 1) // 2 * step
    for colour, below, right in product(range(3), range(outer), range(outer)):
        for y, x in product(range(inner), repeat=2):
            source = (colour * inner + y) * inner + x
            target = (colour * whole + below * inner + y) * whole + right * inner + x
            convolution.weight[target, source, first + below * step, first + right * step] = 1
