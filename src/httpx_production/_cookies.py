"""A client's cookies: looked for where a response sets some, taken where they can be sent back."""

from __future__ import annotations

from http.cookiejar import Cookie, CookieJar, DefaultCookiePolicy, LWPCookieJar, MozillaCookieJar
from typing import Any

import httpx

STANDARD_JARS = (CookieJar, LWPCookieJar, MozillaCookieJar)


class SendableCookiesPolicy(DefaultCookiePolicy):
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
    A jar that isn't the standard library's may want to be asked all the same.
    """

    def extract_cookies(self, response: httpx.Response) -> None:
        """Take a response's cookies."""
        headers = response.headers
        sets_some = "set-cookie" in headers or "set-cookie2" in headers
        if sets_some or type(self.jar) not in STANDARD_JARS:
            super().extract_cookies(response)


def prepare_cookies(cookies: Any, given: Any) -> None:
    """Prepare what httpx has made of the cookies it was given; the caller's own jar stays as it is.

    In place, since httpx's client makes its own Cookies of whatever it is given.
    """
    if cookies.jar is not given and isinstance(cookies.jar, CookieJar):
        cookies.jar.set_policy(SendableCookiesPolicy())
    if type(cookies) is httpx.Cookies:
        cookies.__class__ = QuickCookies
