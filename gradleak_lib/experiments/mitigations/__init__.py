"""Every defence against every attack: what each leaves of the leak, and what it costs."""

from gradleak_lib.experiments.mitigations.digits import Accuracy, digits_network, train_digits
from gradleak_lib.experiments.mitigations.labels import Labels, count_labels, scaled_down, without_mode
from gradleak_lib.experiments.mitigations.linkability import Linked, People, draw_people, link_users
from gradleak_lib.experiments.mitigations.mitigation import STRENGTHS, Mitigation, Sent, send, usual_norms
from gradleak_lib.experiments.mitigations.pictures import (
    Pictures,
    imprint_photographs,
    imprinted_classifier,
    invert_photographs,
    photographs,
)
from gradleak_lib.experiments.mitigations.summary import at_utility, leak_left, pareto_front

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
    "count_labels",
    "digits_network",
    "draw_people",
    "imprint_photographs",
    "imprinted_classifier",
    "invert_photographs",
    "leak_left",
    "link_users",
    "pareto_front",
    "photographs",
    "scaled_down",
    "send",
    "train_digits",
    "usual_norms",
    "without_mode",
]
