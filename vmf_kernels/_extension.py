"""Loads the compiled kernels. Never fails: without them `REASON` says why."""

from types import ModuleType

import torch  # the extension links against libtorch, which this loads

_C: ModuleType | None = None
REASON = ""

try:
    from vmf_kernels import _C  # type: ignore[no-redef,attr-defined]
except ImportError as error:
    _C = None
    if "cannot import name" in str(error):
        REASON = (
            "the C++ extension is not built (reinstall with a C++ compiler at hand: "
            "`pip install --no-build-isolation .` says what it finds)"
        )
    else:
        REASON = f"the C++ extension does not load: {error}"

LOADED = _C is not None

__all__ = ["LOADED", "REASON", "_C", "torch"]
