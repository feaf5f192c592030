"""Model profiles: FLOPs and bytes of a prefix."""

from marconi_ext.profiles.model import (
    ModelProfile,
    load_profile,
    paper_7b,
    profile_from_config,
    profile_names,
)

__all__ = ["ModelProfile", "load_profile", "paper_7b", "profile_from_config", "profile_names"]
