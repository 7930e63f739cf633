"""What a client does against attacks: to its data before it trains, or to its update before it is sent."""

from gradleak_lib.defenses.background import add_background, add_background_mode, replace_with_background
from gradleak_lib.defenses.clipping import chain, clip, dp_sgd
from gradleak_lib.defenses.compression import compress, compress_as_released, compress_classes
from gradleak_lib.defenses.noise import gaussian_noise, laplacian_noise

__all__ = [
    "add_background",
    "add_background_mode",
    "chain",
    "clip",
    "compress",
    "compress_as_released",
    "compress_classes",
    "dp_sgd",
    "gaussian_noise",
    "laplacian_noise",
    "replace_with_background",
]
