"""What a caller writes to hand an SDK our client: read by mypy --strict, never run.

Type checkers don't see the alias: to them our clients are httpx's. An ignore that is no longer
needed is an error.
"""

from typing import cast

import anthropic
import groq
import httpx2
import openai

from httpx_production import AsyncProductionHTTPClient, ProductionHTTPClient

httpx2.alias_httpx()  # in a program above all other imports

client = openai.OpenAI(http_client=cast(httpx2.Client, ProductionHTTPClient()))
async_client = openai.AsyncOpenAI(
    http_client=cast(httpx2.AsyncClient, AsyncProductionHTTPClient()),
)
anthropic.Anthropic(http_client=cast(httpx2.Client, ProductionHTTPClient()))
groq.Groq(http_client=ProductionHTTPClient())  # takes httpx's: nothing to say

openai.OpenAI(http_client=ProductionHTTPClient())  # type: ignore[arg-type]
anthropic.Anthropic(http_client=ProductionHTTPClient())  # type: ignore[arg-type]
