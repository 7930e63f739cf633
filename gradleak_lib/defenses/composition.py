"""What a defence of an update is, and several of them one after the other."""

from collections.abc import Callable

from gradleak_lib.federated.update import Update

# What a client does to its update before it is sent.
UpdateDefense = Callable[[Update], Update]


def chain(*defenses: UpdateDefense) -> UpdateDefense:
    """Apply defences one after the other: ``chain(clip(1.0), gaussian_noise(0.01))``.

    Parameters
    ----------
    *defenses
        From first to last; with none, the update is sent as it is.

    Returns
    -------
    Callable[[Update], Update]
        The defence.

    Examples
    --------
    >>> import torch
    >>> from gradleak_lib.defenses import clip, compress
    >>> update = Update({"weight": torch.tensor([3.0, 0.1, 4.0])}, "gradient", samples=1)
    >>> chain(compress(0.4), clip(1.0))(update).tensors["weight"]
    tensor([0.6000, 0.0000, 0.8000])
    """

    def defense(update: Update) -> Update:
        for each in defenses:
            update = each(update)
        return update

    return defense
