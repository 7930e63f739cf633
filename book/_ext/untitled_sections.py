"""Let exercises and proofs stand beside linked code.

sphinx-exercise and sphinx-proof wrap their content in a section without a title, each with the same id.
sphinx-codeautolink takes a title off its list at the end of every section, and so runs out of titles. A plain
container has neither fault.
"""

from docutils import nodes
from sphinx.application import Sphinx


def replace_untitled_sections(app: Sphinx, doctree: nodes.document) -> None:
    """Turn each section without a title into a container."""
    for section in list(doctree.findall(nodes.section)):
        if section.next_node(nodes.title, descend=True, siblings=False) is None:
            container = nodes.container("", *section.children, classes=section["classes"])
            section.replace_self(container)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect ahead of codeautolink, which listens at the default priority, 500."""
    app.connect("doctree-read", replace_untitled_sections, priority=400)
    return {"parallel_read_safe": True}
