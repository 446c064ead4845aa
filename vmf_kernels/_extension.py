"""Loads the compiled kernels. Never fails: without them `REASON` says why."""

from importlib import metadata
from pathlib import Path
from types import ModuleType

import torch  # the extension links against libtorch, which this loads

_C: ModuleType | None = None
REASON = ""


def _not_built() -> str:
    here = Path(__file__).parent.resolve()
    for distribution in metadata.distributions(name="vmf-kernels"):
        installed = Path(str(distribution.locate_file("vmf_kernels"))).resolve()
        if installed != here and any(installed.glob("_C*")):
            return (
                f"the C++ extension is not built in {here}, which Python imports before the "
                f"installed package in {installed.parent}: start it from another folder"
            )
    return (
        "the C++ extension is not built (reinstall with a C++ compiler at hand: "
        "`pip install --no-build-isolation .` says what it finds)"
    )


try:
    from vmf_kernels import _C  # type: ignore[no-redef,attr-defined]
except ImportError as error:
    _C = None
    if "cannot import name" in str(error):
        REASON = _not_built()
    else:
        REASON = f"the C++ extension does not load: {error}"

LOADED = _C is not None

__all__ = ["LOADED", "REASON", "_C", "torch"]
