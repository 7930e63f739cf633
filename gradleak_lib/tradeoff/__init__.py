"""Every defence against every attack: what each leaves of the leak, and what it costs."""

from gradleak_lib.tradeoff.federation import Accuracy, Linked, People, draw_people, link, train_digits
from gradleak_lib.tradeoff.gradients import Labels, Pictures, imprint, invert, read_labels
from gradleak_lib.tradeoff.mitigation import STRENGTHS, Mitigation, Sent, send, usual_norms
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
    "draw_people",
    "imprint",
    "invert",
    "leak_left",
    "link",
    "pareto_front",
    "read_labels",
    "send",
    "train_digits",
    "usual_norms",
]
