"""Label recovery as breaching 0.1.2 does it: which of its functions is called, and with what."""

import contextlib
import copy
import io
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradleak_lib.federated import Update

# isort: split
import breaching

SETUP = {"device": torch.device("cpu"), "dtype": torch.float32}
# All that it has for images; its "exhaustive" only raises an error that explains why.
STRATEGIES = (
    "iDLG",
    "analytic",
    "yin",
    "wainakh-simple",
    "wainakh-whitebox",
    "bias-corrected",
    "random",
)


class Readers:
    """The peer's attackers on one model, one for each strategy, with its settings of Inverting Gradients.

    Parameters
    ----------
    model
        The model that the server sent out; its last two parameters are the last layer's weight and bias.
    shape
        Shape of one input.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        self.model = model
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            settings = breaching.get_attack_config("invertinggradients")
        self.attackers = {name: self._attacker(copy.deepcopy(settings), name, shape) for name in STRATEGIES}

    def _attacker(self, settings: Any, strategy: str, shape: tuple[int, ...]) -> Any:
        settings.label_strategy = strategy
        attacker = breaching.attacks.prepare_attack(self.model, nn.CrossEntropyLoss(), settings, SETUP)
        attacker.data_shape = shape  # otherwise only set on the way to a reconstruction
        return attacker

    def calls(self, update: Update) -> dict[str, Callable[[], Tensor]]:
        """For each strategy a call, to be made once, that returns labels, int64, usually as many as samples.

        Each works on its own copy of the gradients, since some write into them. None looks at the server's message.
        """
        metadata = {"num_data_points": update.samples, "labels": None}
        found: dict[str, Callable[[], Tensor]] = {}
        for strategy, attacker in self.attackers.items():
            gradients = [tensor.clone() for tensor in update.tensors.values()]
            shared = {"gradients": gradients, "buffers": None, "metadata": metadata}
            found[strategy] = partial(attacker._recover_label_information, [shared], [], [self.model])
        return found
