"""Layers as products: of weights with what they multiply, which for a convolution is patches of the image."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Rows:
    """A linear layer on the last dimension: ``[N, ..., K]`` to ``[N, ..., O]``, with N a multiple of the lanes."""

    lanes: int
    shape: tuple[int, ...]  # of the input

    def read(self, inputs: Tensor) -> Tensor:
        return inputs.reshape(self.lanes, -1, self.shape[-1])

    def write(self, rows: Tensor) -> Tensor:
        return rows.reshape(self.shape)

    def signal(self, outputs: Tensor) -> Tensor:
        return outputs.reshape(self.lanes, -1, outputs.shape[-1])

    def outputs(self, rows: Tensor) -> Tensor:
        return rows.reshape(*self.shape[:-1], rows.shape[-1])

    def times(self, weight: Tensor, rows: Tensor) -> Tensor:
        return rows @ weight.mT

    def add_times(self, total: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
        return total.add_(rows @ weight.mT)

    def back(self, weight: Tensor, signal: Tensor) -> Tensor:
        return signal @ weight

    def add_back(self, total: Tensor, weight: Tensor, signal: Tensor) -> Tensor:
        return total.add_(signal @ weight)

    def gradient(self, signal: Tensor, rows: Tensor) -> Tensor:
        return signal.mT @ rows

    def add_bias(self, rows: Tensor, bias: Tensor) -> Tensor:
        return rows.add_(bias[:, None] if bias.ndim == 2 else bias)

    def bias_gradient(self, signal: Tensor) -> Tensor:
        return signal.sum(1)


@dataclass(frozen=True)
class Patches:
    """A convolution as a product of its weights with the patches that they slide over."""

    lanes: int
    shape: tuple[int, ...]  # of the input, [N, C, H, W]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def places(self) -> tuple[int, int]:
        """Height and width of the output."""
        sizes = zip(self.shape[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)
        return height, width

    def _view(self, padded: Tensor) -> Tensor:
        """Patches of padded inputs, nothing copied: ``[lanes, N / lanes, C, k, k, H', W']``."""
        (n, c, h, w), (vertical, horizontal) = padded.stride(), self.stride
        samples = self.shape[0] // self.lanes
        size = (self.lanes, samples, self.shape[1], *self.kernel, *self.places)
        apart = (n * samples, n, c, h * self.dilation[0], w * self.dilation[1], h * vertical, w * horizontal)
        return padded.as_strided(size, apart)

    def read(self, inputs: Tensor) -> Tensor:
        vertical, horizontal = self.padding
        padded = functional.pad(inputs, (horizontal, horizontal, vertical, vertical))
        patches = self._view(padded).permute(0, 2, 3, 4, 1, 5, 6)
        return patches.reshape(self.lanes, self.shape[1] * self.kernel[0] * self.kernel[1], -1)

    def write(self, patches: Tensor) -> Tensor:
        batch, channels, height, width = self.shape
        (vertical, horizontal), (down, across), (high, wide) = self.padding, self.stride, self.places
        parts = patches.view(self.lanes, channels, *self.kernel, -1, high, wide).permute(0, 4, 1, 2, 3, 5, 6)
        if down > 1 or across > 1:
            parts = parts.reshape(batch, channels * self.kernel[0] * self.kernel[1], -1)
            return functional.fold(
                parts, (height, width), self.kernel, self.dilation, self.padding, self.stride
            )
        # First rows, then columns, k + k additions instead of k times k: twice as fast as `fold` for larger images.
        parts = parts.reshape(batch, channels, *self.kernel, high, wide)
        rows = patches.new_zeros(batch, channels, self.kernel[1], height + 2 * vertical, wide)
        for number in range(self.kernel[0]):
            first = number * self.dilation[0]
            rows[..., first : first + high, :] += parts[:, :, number]
        whole = patches.new_zeros(batch, channels, height + 2 * vertical, width + 2 * horizontal)
        for number in range(self.kernel[1]):
            first = number * self.dilation[1]
            whole[..., first : first + wide] += rows[:, :, number]
        return whole[..., vertical : vertical + height, horizontal : horizontal + width]

    def signal(self, outputs: Tensor) -> Tensor:
        samples = self.shape[0] // self.lanes
        parts = outputs.reshape(self.lanes, samples, outputs.shape[1], -1).transpose(1, 2)
        return parts.reshape(self.lanes, outputs.shape[1], -1)

    def outputs(self, products: Tensor) -> Tensor:
        samples, channels = self.shape[0] // self.lanes, products.shape[1]
        parts = products.view(self.lanes, channels, samples, -1).transpose(1, 2)
        return parts.reshape(self.shape[0], channels, *self.places)

    def times(self, weight: Tensor, patches: Tensor) -> Tensor:
        return torch.bmm(self._each(weight), patches)

    def add_times(self, total: Tensor, weight: Tensor, patches: Tensor) -> Tensor:
        return total.baddbmm_(self._each(weight), patches)

    def back(self, weight: Tensor, signal: Tensor) -> Tensor:
        return torch.bmm(self._each(weight).mT, signal)

    def add_back(self, total: Tensor, weight: Tensor, signal: Tensor) -> Tensor:
        return total.baddbmm_(self._each(weight).mT, signal)

    def _each(self, weight: Tensor) -> Tensor:
        return weight if weight.ndim == 3 else weight.expand(self.lanes, -1, -1)

    def gradient(self, signal: Tensor, patches: Tensor) -> Tensor:
        if patches.shape[1] > patches.shape[2]:
            return signal @ patches.mT
        return (patches @ signal.mT).mT.contiguous()  # up to twice as fast for few weights at many places

    def add_bias(self, products: Tensor, bias: Tensor) -> Tensor:
        return products.add_(bias[..., None])

    def bias_gradient(self, signal: Tensor) -> Tensor:
        return signal.sum(2)


Product = Rows | Patches
