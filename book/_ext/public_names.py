"""Let pages name a function as its users import it.

``gradleak_lib.federated.fedsgd`` is described where it is defined: ``gradleak_lib.federated.clients.fedsgd``.
"""

import importlib

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element
) -> nodes.Element | None:
    """Follow a name of the library to the place where it is defined; None where that leads nowhere new."""
    target = node.get("reftarget", "")
    module, _, name = target.rpartition(".")
    if node.get("refdomain") != "py" or not module.startswith("gradleak_lib"):
        return None
    try:
        found = getattr(importlib.import_module(module), name)
        defined = f"{found.__module__}.{found.__qualname__}"
    except (ImportError, AttributeError):
        return None
    if defined == target:
        return None
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], defined, node, content)


def setup(app: Sphinx) -> dict[str, bool]:
    """Step in where Sphinx finds no description of a name."""
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True}
