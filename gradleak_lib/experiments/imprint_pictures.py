"""Pictures for the studies of *Robbing the Fed*: what the server reads from one update, beside what was sent.

Each function returns images ``[N, C, H, W]`` by title. Batches are those of `gradleak_lib.experiments.imprint`.
"""

import torch
from torch import Tensor, nn

from gradleak_lib import metrics
from gradleak_lib.experiments import imprint as experiments
from gradleak_lib.experiments.imprint import Data

Pictures = dict[str, Tensor]


def smaller(images: Tensor, side: int = 64) -> Tensor:
    """Images averaged down to about so many pixels; as they are where they are smaller."""
    step = max(1, images.shape[-1] // side)
    return nn.functional.avg_pool2d(images, step) if step > 1 else images


def linear_model(
    *, batch: int = 0, images: int = 64, data: Data = "imagenet", device: str = "cpu"
) -> Pictures:
    """Fig. 1: a batch with a label each and a batch of one class, above what the linear model gives back of them."""
    several, _ = experiments.draw(data, images, batch)
    one = experiments.of_one_class("cifar10" if data == "imagenet" else data, images, batch)
    labels = torch.arange(images)
    layer, present = experiments.linear_gradient(several, labels, device)
    separate = (layer["weight"][labels] / layer["bias"][labels, None]).reshape(several.images.shape).cpu()
    layer, present = experiments.linear_gradient(one, torch.zeros_like(labels), device)
    mixture = (
        (layer["weight"][present] / layer["bias"][present, None]).reshape(-1, *one.images.shape[1:]).cpu()
    )
    return {
        "64 classes": smaller(several.images),
        "recovered": smaller(separate.clamp(0, 1)),
        "one class": one.images,
        "recovered ": mixture.clamp(0, 1).expand_as(one.images),
    }


def batch(
    *,
    batch: int,
    bins: int,
    images: int = 64,
    data: Data = "imagenet",
    host: str = "resnet18",
    device: str = "cpu",
) -> Pictures:
    """Figs. 3 and 10: a batch, and what an imprint reads of it; grey where nothing came back."""
    some, public = experiments.draw(data, images, batch)
    layer = experiments.planted(data, public.images, bins, reduction="sum")
    score, _ = experiments.attack(some, layer, host, classes=experiments.CLASSES[data], device=device)
    return {"private": smaller(some.images), "recovered": smaller(score.images)}


def naive(
    *, batch: int, images: int = 64, data: Data = "cifar10", host: str = "resnet18", device: str = "cpu"
) -> Pictures:
    """Fig. 9: a batch, and what Eq. 2 reads from an ordinary linear layer before a network."""
    some, _ = experiments.draw(data, images, batch)
    return {"private": some.images, "Eq. 2": experiments.naive_score(some, host, batch, device).images}


def one_of_thousands(
    *, rounds: int = 20, images: int = 8192, data: Data = "cifar10", host: str = "linear", device: str = "cpu"
) -> Pictures:
    """Fig. 4: the images that single bins caught in some rounds, and what each variant reads of them."""
    found: dict[str, list[Tensor]] = {"private": [], "difference of rows": [], "sparse": []}
    for number in range(rounds):
        crowd, edges, inside = experiments.one_shot_round(data, images, number, 1.0)
        if int(inside.sum()) == 1:
            found["private"].append(crowd.images[inside])
            for title, variant in (("difference of rows", "cumulative"), ("sparse", "sparse")):
                read = experiments.shoot(crowd, edges, variant, host, device)  # type: ignore[arg-type]
                found[title].append(read if len(read) == 1 else torch.full_like(crowd.images[:1], 0.5))
    return {title: torch.cat(some).clamp(0, 1) for title, some in found.items()}


def places(
    *,
    batch: int,
    bins: int,
    images: int = 64,
    data: Data = "imagenet",
    offsets: bool = False,
    device: str = "cpu",
) -> Pictures:
    """Figs. 11 to 15: what is read at four places of a ResNet-18, as it arrives there."""
    from gradleak_lib.attacks.placement import POSITIONS

    found = {}
    for place in POSITIONS:
        _, seen, read, _ = experiments.read_at_place(place, batch, bins, images, data, offsets, device)
        title = f"before {place.replace('pooling', 'the last pooling')}"
        found[title] = smaller(metrics.score(read, seen).images, 112)
    return found


def local_steps(
    *, batch: int, gain: float, images: int = 64, data: Data = "imagenet", device: str = "cpu"
) -> Pictures:
    """Fig. 16: a batch, and what is read from the change after eight local steps."""
    some, score, _ = experiments.after_local_steps(
        batch=batch, gain=gain, images=images, data=data, device=device
    )
    return {"private": smaller(some.images), "recovered": smaller(score.images)}


def noise(
    *, batch: int, scale: str, images: int = 64, data: Data = "imagenet", device: str = "cpu"
) -> Pictures:
    """Fig. 6, right: what is read from a gradient with noise of several scales."""
    scores = experiments.with_noise(batch=batch, scale=scale, images=images, data=data, device=device)
    return {f"sigma {sigma:g}": smaller(score.images) for sigma, _, score in scores}
