"""Video Mobile-Former: the networks and the tools to train, evaluate and use them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmf.models import (
        Config,
        VideoMobileFormer,
        count_macs,
        create_model,
        list_models,
        load_mobile_former,
    )

__all__ = [
    "Config",
    "VideoMobileFormer",
    "count_macs",
    "create_model",
    "list_models",
    "load_mobile_former",
]


def __getattr__(name: str) -> Any:
    # At first use: the command `vmf` has something to say before PyTorch is loaded (threads.py).
    if name in __all__:
        import vmf.models

        return getattr(vmf.models, name)
    raise AttributeError(f"module 'vmf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
