"""Inverting gradients as breaching 0.1.2 runs it: which of its functions are called, and with what."""

import contextlib
import copy
import io
import warnings
from typing import Any

import torch
from peer import SETUP, Metadata
from torch import Tensor, nn

from gradleak_lib.federated import Update

# isort: split
import breaching
from breaching.cases.models.resnets import ResNet, resnet_depths_to_config


def resnet18(classes: int, seed: int) -> nn.Module:
    """Its ResNet-18 for images of 32 pixels, untrained, with the arguments that its own ``construct_model`` gives."""
    block, layers = resnet_depths_to_config(18)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResNet(
            block,
            layers,
            3,
            classes,
            stem="CIFAR",
            convolution_type="Standard",
            nonlin="ReLU",
            norm="BatchNorm2d",
            downsample="B",
            width_per_group=64,
            zero_init_residual=False,
        )
    return model.eval()


class Attacker:
    """Its attack ``invertinggradients`` on one update, with its own settings but for those named here.

    Parameters
    ----------
    model
        What the server sent; attacked in evaluation mode.
    update
        The gradient.
    labels
        int64 ``[n]``, known to the attack.
    shape
        Shape of one image.
    mean, std
        Of the normalisation, one number for each channel.
    tv
        Scale of its total variation: the mean over pixels of the differences down and across, with zeros outside.
    iterations, restarts
        Of each restart; how many.
    """

    def __init__(
        self,
        model: nn.Module,
        update: Update,
        labels: Tensor,
        shape: tuple[int, ...],
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        tv: float,
        iterations: int,
        restarts: int,
    ) -> None:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            settings: Any = copy.deepcopy(breaching.get_attack_config("invertinggradients"))
        settings.optim.max_iterations = iterations
        settings.restarts.num_trials = restarts
        settings.regularization.total_variation.scale = tv
        metadata = {"num_data_points": update.samples, "labels": labels, "local_hyperparams": None}
        self.shared = {"gradients": list(update.tensors.values()), "buffers": None, "metadata": metadata}
        self.payload = {
            "parameters": list(model.parameters()),
            "buffers": list(
                model.buffers()
            ),  # a list, even an empty one, puts the model into evaluation mode
            "metadata": Metadata(shape=shape, mean=mean, std=std, modality="vision"),
        }
        self.attacker = breaching.attacks.prepare_attack(model, nn.CrossEntropyLoss(), settings, SETUP)
        self.models, self.labels, self.stats = self.attacker.prepare_attack([self.payload], [self.shared])

    def trial(self) -> Tensor:
        """Run one restart, without choosing between several: ``[n, C, H, W]`` in the model's scale."""
        return self.attacker._run_trial(self.models, [self.shared], self.labels, self.stats, 0)

    def reconstruct(self, seed: int) -> Tensor:
        """Run all restarts one after the other, and return what it chooses: ``[n, C, H, W]`` in the model's scale.

        Its starts come from torch's global state: from one seed the same ones as those of our `invert`.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.attacker.reconstruct([self.payload], [self.shared], {})[0]["data"]
