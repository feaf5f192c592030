"""The HTTP client with which servers' control endpoints are asked."""

import httpx


def direct_client(url: str, *, timeout_s: float, api_key: str | None = None) -> httpx.Client:
    """A client for one server, asked directly: HTTP_PROXY and its like are for the outside, and a proxy can't
    reach this machine's loopback interface. Certificates are found as ever (SSL_CERT_FILE).

    api_key: sent as a bearer token. Raises httpx.InvalidURL, ValueError.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    # A transport of one's own is what keeps httpx from looking for proxies. No connection is kept: a server may
    # have closed it since, or have been started anew.
    transport = httpx.HTTPTransport(limits=httpx.Limits(max_keepalive_connections=0))
    return httpx.Client(base_url=url, timeout=timeout_s, headers=headers, transport=transport)
