"""How servers are asked: directly, and with their key where they have one."""

import httpx

from marconi_ext.errors import BadInputError


def direct_client(url: str, *, timeout_s: float, api_key: str | None = None) -> httpx.Client:
    """A client for one server's control endpoints, asked directly: HTTP_PROXY and its like are for the outside,
    and a proxy can't reach this machine's loopback interface. Certificates are found as ever (SSL_CERT_FILE).

    Raises httpx.InvalidURL, ValueError for no URL, BadInputError for no key.
    """
    # A transport of one's own is what keeps httpx from looking for proxies. No connection is kept: a server may
    # have closed it since, or have been started anew.
    transport = httpx.HTTPTransport(limits=httpx.Limits(max_keepalive_connections=0))
    return httpx.Client(base_url=url, timeout=timeout_s, headers=bearer(api_key), transport=transport)


def bearer(api_key: str | None) -> dict[str, str]:
    """The headers that carry a key. Raises BadInputError, which doesn't show it."""
    if not api_key:
        return {}
    if not (api_key.isascii() and api_key.isprintable()):
        raise BadInputError("--api-key: holds characters that an HTTP header can't carry")
    return {"Authorization": f"Bearer {api_key}"}
