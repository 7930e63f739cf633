"""Every defence against every attack: what each leaves of the leak, and what it costs."""

from gradleak_lib.tradeoff.digits import Accuracy, digits_network, train_digits
from gradleak_lib.tradeoff.labels import Labels, read_labels, scaled_down, without_mode
from gradleak_lib.tradeoff.linkability import Linked, People, draw_people, link
from gradleak_lib.tradeoff.mitigation import STRENGTHS, Mitigation, Sent, send, usual_norms
from gradleak_lib.tradeoff.pictures import Pictures, imprint, imprinted, invert, photographs
from gradleak_lib.tradeoff.summary import at_utility, leak_left, pareto_front

__all__ = [
    "STRENGTHS",
    "Accuracy",
    "Labels",
    "Linked",
    "Mitigation",
    "People",
    "Pictures",
    "Sent",
    "at_utility",
    "digits_network",
    "draw_people",
    "imprint",
    "imprinted",
    "invert",
    "leak_left",
    "link",
    "pareto_front",
    "photographs",
    "read_labels",
    "scaled_down",
    "send",
    "train_digits",
    "usual_norms",
    "without_mode",
]
