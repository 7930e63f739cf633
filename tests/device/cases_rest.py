"""Cases of metrics, models, data and experiments."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from cases import (
    add,
    case,
    dataset,
    images,
    labels,
    network,
    people,
)
from torch import Tensor, nn
from torchmetrics.functional.image.lpips import _LPIPS

from gradleak_lib import metrics, models
from gradleak_lib.data import draw_images, hold_out, load_tabular, split_clients
from gradleak_lib.data.images import to_float
from gradleak_lib.experiments import mitigations
from gradleak_lib.experiments.mitigations import STRENGTHS, Mitigation
from gradleak_lib.metrics.reconstruction import negative_psnr
from gradleak_lib.seeding import seeded

# --- metrics: what was read where the model is, the originals on either side ---

PICTURE = (3, 12, 12)


def pairs(device: str, data: str) -> tuple[Tensor, Tensor]:
    """Six originals, and five of them, noisy and in another order."""
    originals = images("cpu", 6, PICTURE)
    noisy = originals[[2, 0, 5, 1, 4]] + 0.05 * images("cpu", 5, PICTURE, seed=1)
    return noisy.to(device), originals.to(data)


@case()
def psnr_and_ssim(device: str, data: str) -> Any:
    noisy, originals = pairs(device, data)
    return metrics.psnr(noisy, originals[:5]), metrics.ssim(noisy, originals[:5])


@case()
def squared_distances(device: str, data: str) -> Any:
    noisy, originals = pairs(device, data)
    return metrics.squared_distances(noisy, originals), negative_psnr(noisy, originals)


@case()
def match(device: str, data: str) -> Any:
    return metrics.match(*pairs(device, data))


@case(tolerance=1e-3)
def match_by_lpips(device: str, data: str) -> Any:
    with seeded(0):
        cost = metrics.lpips(_LPIPS(pnet_rand=True, net="squeeze").to(device))
    first, second = images(device, 2, (3, 32, 32)), images(data, 3, (3, 32, 32))
    return cost(first, second), metrics.match(first, second, cost=cost)


@case()
def score(device: str, data: str) -> Any:
    noisy, originals = pairs(device, data)
    found = metrics.score(noisy, originals, pool=images(data, 7, PICTURE, seed=9))
    return found, found.exact, found.iip, metrics.score(noisy[:0], originals)


@case()
def identified(device: str, data: str) -> Any:
    noisy, originals = pairs(device, data)
    return metrics.identified(noisy, originals[[2, 0, 5, 1, 4]], images(data, 7, PICTURE, seed=9))


@case()
def success_rates(device: str, data: str) -> Any:
    found, true = torch.tensor([2, 1, 1]).to(device), torch.tensor([1, 0, 3]).to(data)
    return metrics.attack_success_rate(found, true), metrics.chance_success_rate(true)


# --- models and data ---


@case(on="model")
def changed_networks(device: str, data: str) -> Any:
    cnn, resnet = network(device, "cnn"), network(device, "resnet18", (3, 32, 32))
    return (
        models.with_new_head(cnn, classes=3),
        models.with_activation(cnn, nn.Tanh),
        models.with_uniform_weights(cnn),
        models.with_small_stem(resnet).conv1,
        len(models.last_layer(cnn)),
    )


@case()
def chosen_by_itself(device: str, data: str) -> None:
    assert models.choose_device().type == "cuda"


@case(on="model")
def outputs(device: str, data: str) -> Any:
    return network(device, "resnet20", (3, 16, 16))(images(device, 2, (3, 16, 16)))


@case(on="model")
def draw_from_images(device: str, data: str) -> Any:
    found = draw_images(dataset(device), labels(data), generator=torch.Generator().manual_seed(0))
    return found.images, found.labels


@case(on="model")
def subsets(device: str, data: str) -> Any:
    rows = torch.tensor([3, 1]).to(data)
    of_people = people(device).subset(rows)
    bytes_ = (255 * images(device)).to(torch.uint8)
    return (
        dataset(device).subset(rows).images,
        dataset(device).subset(labels(data, 12) == 1).images,
        of_people.inputs,
        to_float(bytes_, 5),
    )


@case()
def split(device: str, data: str) -> Any:
    """Of samples whose inputs and targets lie on a device; who holds them is counted on the CPU."""
    data_ = replace(people(device), users=torch.arange(12) // 6, user_names=("one", "two"))
    stays, held_out = hold_out(data_)
    held = split_clients(stays, "random")
    return held_out.inputs, [held.samples(client) for client in range(len(held))]


@case()
def decode(device: str, data: str) -> Any:
    table = load_tabular("breast-cancer")
    return table.decode(table.features[:3].to(device)).to_numpy(), table.subset(labels(device)).features


# --- experiments ---

AMOUNT = {"quantisation": 4, "secure aggregation": 2, "DP-SGD": 0.1, "compression, as released": 0.5}


def sent(device: str, data: str, *, name: str) -> Any:
    model, background = network(device), dataset(data, 24, seed=5)
    usual, bound = mitigations.usual_norms(model, background, 4)
    return mitigations.send(
        Mitigation(name, AMOUNT.get(name, 0.5)),
        model,
        dataset(data, 4),
        background,
        head=models.last_layer(model),
        usual=usual,
        sample_bound=bound,
        modes=2,
    )


for name in STRENGTHS:
    add(f"send, {name}", partial(sent, name=name))


@case()
def labels_of_digits(device: str, data: str) -> Any:
    return mitigations.count_labels(Mitigation(), samples=4, batches=1, device=device)


@case()
def counts_scaled_down(device: str, data: str) -> Any:
    counts = torch.tensor([4, 1, 3]).to(device)
    return mitigations.scaled_down(mitigations.without_mode(counts, 2), 4)


@case(tolerance=0.02)
def train_digits(device: str, data: str) -> Any:
    return mitigations.train_digits(Mitigation("mm-aug", 0.5), rounds=1, clients=2, samples=20, device=device)


@case(tolerance=0.02)
def photographs(device: str, data: str) -> Any:
    found = mitigations.invert_photographs([Mitigation()], samples=2, size=16, iterations=2, device=device)
    options = {"samples": 4, "batches": 1, "bins": 16, "size": 16, "device": device}
    mitigations.imprinted_classifier(dataset(device, 40), bins=8)
    return found, mitigations.imprint_photographs(Mitigation("mm-aug", 0.5), **options)


@case(tolerance=0.05)
def link_users(device: str, data: str) -> Any:
    drawn = mitigations.draw_people(0, users=4, scenes=32, warm_epochs=1, device=device)
    options = {"rounds": 10, "modes": 3, "attack": "svm"}
    linked = mitigations.link_users(drawn, Mitigation("mm-aug", 0.5), **options)
    assert linked is not None
    return linked.identification, linked.task
