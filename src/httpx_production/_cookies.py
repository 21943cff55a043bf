"""A client's cookies: looked for where a response sets some, taken where they can be sent back."""

from __future__ import annotations

from http.cookiejar import Cookie, CookieJar, DefaultCookiePolicy, LWPCookieJar, MozillaCookieJar
from typing import Any, Final

import httpx

STANDARD_JARS: Final = (CookieJar, LWPCookieJar, MozillaCookieJar)


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


def prepare_jar(jar: Any, given: Any) -> None:
    """Give a jar its policy, unless it is what the caller has given: that stays as it is."""
    if jar is not given and isinstance(jar, CookieJar):
        jar.set_policy(SendableCookiesPolicy())


def make_quick(cookies: Any) -> None:
    """Turn httpx's Cookies into ours in place: its client makes its own of whatever it is given."""
    if type(cookies) is httpx.Cookies:
        cookies.__class__ = QuickCookies
