"""URLs as they may be shown: on a terminal, in a log, in an error."""

from __future__ import annotations


def masked(address: str) -> str:
    """The address without user, password and query, any of which may be a secret; what is no URL stays
    as it is.

    Whatever stands before the last `@` counts as user and password: databases take passwords that hold
    a `/` or an `@`.
    """
    scheme, found, rest = address.partition("://")
    if not found:
        return address
    _, login, place = rest.rpartition("@")
    place, query, _ = place.partition("?")
    return f"{scheme}://{'***@' if login else ''}{place}{'?***' if query else ''}"
