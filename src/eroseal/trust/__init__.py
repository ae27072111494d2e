"""Verification: numbered steps without I/O, policies, and the types that only a verifier makes."""

from eroseal.trust.blob import SelfConsistentBlob, UnverifiedBlob, VerifiedBlob
from eroseal.trust.devices import DeviceInfo
from eroseal.trust.image import (
    UnverifiedImage,
    VerifiedImage,
    open_blob,
    open_image,
    open_self_consistent,
    open_self_consistent_image,
)
from eroseal.trust.locate import find_seal
from eroseal.trust.scan import BadBlock, scan_blob
from eroseal.trust.verifier import SealLocation, VerifiedSeal

__all__ = [
    "BadBlock",
    "DeviceInfo",
    "SealLocation",
    "SelfConsistentBlob",
    "UnverifiedBlob",
    "UnverifiedImage",
    "VerifiedBlob",
    "VerifiedImage",
    "VerifiedSeal",
    "find_seal",
    "open_blob",
    "open_image",
    "open_self_consistent",
    "open_self_consistent_image",
    "scan_blob",
]
