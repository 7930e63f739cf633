"""What a client does against attacks: to its data before it trains, or to its update before it is sent.

What many clients do together, secure aggregation, is `gradleak_lib.federated.aggregate`: the sum that the server
sees.
"""

from gradleak_lib.defenses.background import (
    DataDefense,
    add_background,
    add_background_mode,
    replace_with_background,
)
from gradleak_lib.defenses.clipping import clip, dp_sgd
from gradleak_lib.defenses.composition import UpdateDefense, chain
from gradleak_lib.defenses.compression import compress, compress_as_released, compress_classes
from gradleak_lib.defenses.inspection import find_alarms, inspect_layers, inspect_update
from gradleak_lib.defenses.noise import gaussian_noise, laplacian_noise
from gradleak_lib.defenses.privacy import epsilon, noise_multiplier_for
from gradleak_lib.defenses.private_training import dp_fedavg
from gradleak_lib.defenses.quantisation import quantize, sign

__all__ = [
    "DataDefense",
    "UpdateDefense",
    "add_background",
    "add_background_mode",
    "chain",
    "clip",
    "compress",
    "compress_as_released",
    "compress_classes",
    "dp_fedavg",
    "dp_sgd",
    "epsilon",
    "find_alarms",
    "gaussian_noise",
    "inspect_layers",
    "inspect_update",
    "laplacian_noise",
    "noise_multiplier_for",
    "quantize",
    "replace_with_background",
    "sign",
]
