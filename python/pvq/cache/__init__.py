"""PVQCache: the keys and values of ``generate`` in pyramid codes."""

from pvq.cache.cache import PVQCache

__all__ = ["PVQCache"]
