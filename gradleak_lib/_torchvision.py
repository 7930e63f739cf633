"""Let torchvision's wheel import beside a CPU build of torch.

The wheels of torchvision on PyPI are compiled for CUDA. Beside a CPU build of torch their compiled operators
do not load, and ``import torchvision`` stops at "operator torchvision::nms does not exist", because it
registers shape functions for two of them. Declaring the two schemas is enough: gradleak uses torchvision's
models, data sets and transforms, which never call these operators.
"""

import sys

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

# torch forgets the schemas of a Library that is garbage-collected: this name keeps it alive.
_library: torch.library.Library | None = None


def import_torchvision() -> None:
    """Import torchvision, declaring ``nms`` and ``qnms`` first where its own binary did not.

    Raises
    ------
    RuntimeError
        If torchvision fails to import for any other reason.
    """
    global _library
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        _library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            _library.define(schema)
        # The failed import leaves half-initialised modules behind.
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torchvision  # noqa: F401


import_torchvision()
