"""Who may ask the web view: the pages of this very server, in a browser that was told its name or address.

The view has no login. What a browser could be led to do by other pages is refused here:

    another site's page sends a request   Origin, Sec-Fetch-Site, and JSON as the only content type
    a name that is led to this address    Host is an address, localhost, or listed in `web.hosts`
    a script in what is shown             Content-Security-Policy: own files alone, no inline script, no HTML from text
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from typing import Final
from urllib.parse import urlsplit

HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def wrong_host(host: str, names: Collection[str]) -> str | None:
    """Why this Host is not served; None when it is."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        name = ""
    if name == "localhost" or name in names:
        return None
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return f"this server does not go by the name {name[:100]!r}: use its address, or list the name in web.hosts"
    return None


def wrong_request(headers: Mapping[str, str]) -> tuple[int, str] | None:
    """Status and reason why a POST with these headers is refused; None when it is not."""
    content_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        return 415, "send JSON, with Content-Type: application/json"
    origin = headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc.lower() != headers.get("Host", "").lower():
        return 403, "requests from pages of another origin are refused"
    if headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        return 403, "requests from pages of another site are refused"
    return None
