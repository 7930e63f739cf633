"""The imprint attack as breaching 0.1.2 runs it: which of its functions are called, and with what."""

import contextlib
import copy
import io
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import gradleak_lib._torchvision  # noqa: F401  (before the peer: it makes sure that torchvision can be imported)

# isort: split
import breaching
import lpips
from breaching.analysis.analysis import compute_batch_order
from breaching.cases.malicious_modifications import ImprintBlock
from breaching.cases.models.model_preparation import VisionContainer
from breaching.cases.users import UserSingleStep

SETUP = {"device": torch.device("cpu"), "dtype": torch.float32}


class Metadata(SimpleNamespace):
    """What the peer wants to know of the data, in both ways that it asks."""

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key)


def build(resnet: nn.Module, shape: tuple[int, ...], bins: int, *, mode: int, connection: str) -> nn.Module:
    """Make an ``ImprintBlock`` as the peer's own settings for this attack do, in front of the network."""
    block = ImprintBlock(shape, bins, connection=connection, gain=1.0, linfunc="fourier", mode=mode)
    return nn.Sequential(block, resnet)


def bins_hit(model: nn.Module, inputs: Tensor) -> Tensor:
    """Bin of each sample by the block's own arithmetic: int64 ``[N]``, -1 below the first edge."""
    with torch.no_grad():
        return (model[0].linear0(inputs.flatten(1)) > 0).sum(1) - 1


def client(model: nn.Module, inputs: Tensor, labels: Tensor) -> Callable[[], dict[str, Any]]:
    """Return a call of ``UserSingleStep.compute_local_updates``, on a user who already holds the parameters.

    The payload brings no parameters and no buffers, because ours copies none either: the user received them
    with the model. It brings an empty list of buffers, not None, which puts the user into evaluation mode.
    """
    privacy = {"gradient_noise": 0.0, "input_noise": 0.0, "distribution": "laplacian"}
    settings = SimpleNamespace(
        num_data_points=len(inputs),
        provide_labels=True,
        provide_num_data_points=True,
        provide_buffers=False,
        local_diff_privacy=privacy,
    )
    user = UserSingleStep(
        VisionContainer(model), nn.CrossEntropyLoss(), dataloader=None, setup=SETUP, idx=0, cfg_user=settings
    )
    user.data_key = "inputs"  # otherwise only set where the user loads its own data
    payload: dict[str, Any] = {"parameters": [], "buffers": []}
    return lambda: user.compute_local_updates(payload, {"inputs": inputs, "labels": labels})[0]


def reader(
    model: nn.Module, shared: dict[str, Any], metadata: Metadata
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Return two calls of ``ImprintAttacker.reconstruct``: without ``prepare_attack``, and as users call it.

    ``prepare_attack`` copies the model and then its parameters, which has nothing to do with reading the
    update; in the first call it returns what it returned before.
    """
    model = VisionContainer(model)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = breaching.get_attack_config("imprint")
    names = [name for name, _ in model.named_parameters()]
    block: Any = model.model[0]
    secrets = {
        "ImprintBlock": {
            "weight_idx": names.index("model.0.linear0.weight"),
            "bias_idx": names.index("model.0.linear0.bias"),
            "shape": metadata.shape,
            "structure": block.structure,
        }
    }
    payload = {
        "parameters": list(model.parameters()),
        "buffers": list(model.buffers()),
        "metadata": metadata,
    }

    whole = breaching.attacks.prepare_attack(model, nn.CrossEntropyLoss(), settings, SETUP)
    bare = copy.copy(whole)
    prepared = bare.prepare_attack([payload], [shared])
    bare.prepare_attack = lambda *_: prepared

    def read(attacker: Any) -> Tensor:
        return attacker.reconstruct([payload], [shared], secrets)[0]["data"]

    return lambda: read(bare), lambda: read(whole)


def perceptual_scorer(seed: int) -> Any:
    """LPIPS with AlexNet as in the peer's report, but with random convolutions: nothing to download."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        return lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).to(**SETUP)


def match(scorer: Any, reconstructions: Tensor, originals: Tensor) -> Tensor:
    """Call ``compute_batch_order``: for each original the index of its reconstruction; N of each."""
    return compute_batch_order(scorer, reconstructions, originals, SETUP)
