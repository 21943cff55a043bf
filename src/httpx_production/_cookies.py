"""A client's cookies: looked for where a response sets some, taken where they can be sent back."""

from __future__ import annotations

from http.cookiejar import Cookie, DefaultCookiePolicy
from typing import Any

import httpx


class SendableCookies(DefaultCookiePolicy):
    """Takes no cookie that can't be sent back.

    httpx encodes headers as ASCII: after one `Set-Cookie: a=\\xff`, each further request to that
    host would raise UnicodeEncodeError.
    """

    def set_ok(self, cookie: Cookie, request: Any) -> bool:
        """Decide on one cookie of a response."""
        return f"{cookie.name}{cookie.value}".isascii() and super().set_ok(cookie, request)


class QuickCookies(httpx.Cookies):
    """Looks for cookies where a response sets some, as httpx2's do.

    httpx makes a urllib request of each response's request first, a fifth of a mocked GET's cost.
    """

    def extract_cookies(self, response: httpx.Response) -> None:
        """Take a response's cookies."""
        if "set-cookie" in response.headers or "set-cookie2" in response.headers:
            super().extract_cookies(response)
