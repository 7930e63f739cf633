"""torchvision, whose wheel this lets import beside a CPU build of torch.

The wheels of torchvision on PyPI are compiled for CUDA. Beside a CPU build of torch their compiled operators
do not load, and ``import torchvision`` stops at "operator torchvision::nms does not exist", because it
registers shape functions for two of them. Declaring the two schemas is enough: gradleak uses torchvision's
models, data sets and transforms, which never call these operators.

torchvision takes longer to import than torch, so that modules import this one only where they use it::

    from gradleak_lib._torchvision import torchvision
"""

import importlib
import sys
from types import ModuleType

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

# torch forgets the schemas of a Library that is garbage-collected: this name keeps it alive.
_library: torch.library.Library | None = None


def import_torchvision() -> ModuleType:
    """Import torchvision, declaring ``nms`` and ``qnms`` first where its own binary did not.

    Whoever has tried to import it before, and failed, does no harm.

    Raises
    ------
    RuntimeError
        If torchvision fails to import for any other reason.
    """
    global _library
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        if _library is None:
            _library = torch.library.Library("torchvision", "DEF")
            for schema in _SCHEMAS:
                _library.define(schema)
        # The failed import leaves half-initialised modules behind.
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        return importlib.import_module("torchvision")


torchvision = import_torchvision()
