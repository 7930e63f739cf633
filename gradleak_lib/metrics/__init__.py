"""How bad a leak is: scores that only the evaluator can compute, since only it has the originals."""

from gradleak_lib.metrics.labels import attack_success_rate, chance_success_rate
from gradleak_lib.metrics.linkability import (
    Identification,
    balanced_pairs,
    identification,
    identity_bits,
    matching_ap,
)
from gradleak_lib.metrics.reconstruction import (
    EXACT_DB,
    Cost,
    Score,
    identified,
    lpips,
    match,
    negative_psnr,
    psnr,
    score,
    squared_distances,
    ssim,
)

__all__ = [
    "EXACT_DB",
    "Cost",
    "Identification",
    "Score",
    "attack_success_rate",
    "balanced_pairs",
    "chance_success_rate",
    "identification",
    "identified",
    "identity_bits",
    "lpips",
    "match",
    "matching_ap",
    "negative_psnr",
    "psnr",
    "score",
    "squared_distances",
    "ssim",
]
