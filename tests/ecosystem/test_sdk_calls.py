"""SDKs that take a client of httpx, and under the alias one of httpx2: really called.

Those that take httpx2's alone are in `test_sdk_calls_of_httpx2.py`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import cohere
import cohere.core
import elevenlabs.client
import elevenlabs.core
import groq
import httpx
import mistralai.client
import mistralai.client.errors
import openai
import postgrest.exceptions
import pytest
import supabase
from conftest import FakeClock, Flavour
from google import genai
from sdk_calls import SDK, is_retried, keeps_its_exceptions

pytestmark = [pytest.mark.anyio, pytest.mark.flavours("sync", "asyncio")]

MODEL = {"id": "our-model", "object": "model", "type": "base", "created": 1, "owned_by": "x"}
MODELS = {"object": "list", "data": [MODEL | {"capabilities": {}}]}
ONCE: Any = {"request_options": {"max_retries": 0}}  # one layer of retries is enough


def call_openai(flavour: Flavour, http_client: Any, url: str) -> Callable[[], Any]:
    kind = openai.OpenAI if flavour.sync else openai.AsyncOpenAI
    return kind(api_key="k", base_url=url, max_retries=0, http_client=http_client).models.list


def call_groq(flavour: Flavour, http_client: Any, url: str) -> Callable[[], Any]:
    kind = groq.Groq if flavour.sync else groq.AsyncGroq
    return kind(api_key="k", base_url=url, max_retries=0, http_client=http_client).models.list


def call_cohere(flavour: Flavour, http_client: Any, url: str) -> Callable[[], Any]:
    kind: Any = cohere.ClientV2 if flavour.sync else cohere.AsyncClientV2
    return partial(kind(api_key="k", base_url=url, httpx_client=http_client).models.list, **ONCE)


def call_elevenlabs(flavour: Flavour, http_client: Any, url: str) -> Callable[[], Any]:
    sdk = elevenlabs.client
    kind: Any = sdk.ElevenLabs if flavour.sync else sdk.AsyncElevenLabs
    return partial(kind(api_key="k", base_url=url, httpx_client=http_client).models.list, **ONCE)


def call_supabase(flavour: Flavour, http_client: Any, url: str) -> Callable[[], Any]:
    if flavour.sync:
        sync = supabase.ClientOptions(httpx_client=http_client)
        table = supabase.create_client(url, "k", sync).table("things")
        return table.select("*").retry(False).execute

    async def call() -> Any:
        options = supabase.AsyncClientOptions(httpx_client=http_client)
        client = await supabase.acreate_client(url, "k", options)
        return await client.table("things").select("*").retry(False).execute()

    return call


def call_mistralai(flavour: Flavour, http_client: Any, url: str) -> Callable[[], Any]:
    name = "client" if flavour.sync else "async_client"
    sdk = mistralai.client.Mistral(api_key="k", server_url=url, **{name: http_client})
    return sdk.models.list if flavour.sync else sdk.models.list_async


def call_genai(flavour: Flavour, http_client: Any, url: str) -> Callable[[], Any]:
    name = "httpx_client" if flavour.sync else "httpx_async_client"
    options = genai.types.HttpOptions(base_url=url, **{name: http_client})
    sdk = genai.Client(api_key="k", http_options=options)
    return partial((sdk if flavour.sync else sdk.aio).models.get, model="m")


SDKS = {
    "openai": SDK(
        call_openai, MODELS,
        openai.NotFoundError, openai.InternalServerError, openai.APIConnectionError,
    ),
    "groq": SDK(
        call_groq, MODELS, groq.NotFoundError, groq.InternalServerError, groq.APIConnectionError
    ),
    "cohere": SDK(
        call_cohere, {"models": [{"name": "our-model"}]},
        cohere.NotFoundError, cohere.ServiceUnavailableError, httpx.ConnectError,
    ),
    "elevenlabs": SDK(
        call_elevenlabs, [{"model_id": "our-model"}],
        elevenlabs.core.ApiError, elevenlabs.core.ApiError, httpx.ConnectError,
    ),
    "supabase": SDK(
        call_supabase, [{"name": "our-model"}],
        postgrest.exceptions.APIError, postgrest.exceptions.APIError, httpx.ConnectError,
    ),
    "mistralai": SDK(
        call_mistralai, MODELS,
        mistralai.client.errors.SDKError, mistralai.client.errors.SDKError, httpx.ConnectError,
    ),
    "google-genai": SDK(
        call_genai, {"name": "models/our-model"},
        genai.errors.ClientError, genai.errors.ServerError, httpx.ConnectError,
    ),
}  # fmt: skip
every_sdk = pytest.mark.parametrize("sdk", SDKS.values(), ids=SDKS)


@every_sdk
async def test_a_503_is_retried_by_our_client(flavour: Flavour, clock: FakeClock, sdk: SDK) -> None:
    """The SDK sees the answer alone."""
    assert "our-model" in repr(await is_retried(sdk, flavour, clock))


@every_sdk
async def test_its_exceptions_are_its_own(flavour: Flavour, clock: FakeClock, sdk: SDK) -> None:
    """A refusal, attempts that ran out, a server that isn't there: as without our client."""
    await keeps_its_exceptions(sdk, flavour)
