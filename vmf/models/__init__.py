"""The Video Mobile-Former networks."""

from vmf.models.checkpoint import load_mobile_former
from vmf.models.config import Config
from vmf.models.macs import count_macs
from vmf.models.network import VideoMobileFormer
from vmf.models.registry import create_model, list_models

__all__ = [
    "Config",
    "VideoMobileFormer",
    "count_macs",
    "create_model",
    "list_models",
    "load_mobile_former",
]
