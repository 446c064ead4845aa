"""Video Mobile-Former: the networks and the tools to train, evaluate and use them."""

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
