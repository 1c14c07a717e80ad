"""A chat with a server that speaks the OpenAI protocol: Ollama, vLLM, llama.cpp and others.

One request a text, eight at a time. The key is sent to the host of the configured address alone:
when that host redirects to another one, httpx leaves the authorisation out. An answer is read up to
a number of bytes and of seconds, whatever the server sends.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, TypeVar

import httpx
from pydantic import BaseModel, Field, JsonValue, ValidationError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from aulait.core.errors import ModelError, require
from aulait.core.seeds import Seeds
from aulait.core.web_address import masked, secret_problem
from aulait.synthesis.variation import Chat, GenerateConfig, clean

TRIES = 3
PARALLEL = 8
TIMEOUT_S = 60.0  # without a byte
MOST_S = 600.0  # for a whole answer, redirects included
MOST_BYTES = 4 * 2**20  # of an answer: many times the longest text
MOST_REDIRECTS = 5


class ListedModel(BaseModel):
    """A model that the server offers."""

    id: str


class ModelList(BaseModel):
    """What ``GET models`` answers."""

    data: Annotated[list[ListedModel], Field(min_length=1)]


class ChatMessage(BaseModel):
    """What the model said; None where it said nothing."""

    content: str | None = None


class ChatChoice(BaseModel):
    """One answer, and why it ended."""

    message: ChatMessage
    finish_reason: str | None = None


class Completion(BaseModel):
    """What ``POST chat/completions`` answers."""

    choices: Annotated[list[ChatChoice], Field(min_length=1)]


Form = TypeVar("Form", ModelList, Completion)


class PassingFaultError(Exception):
    """A fault that may be gone at the next try: no connection, status 429 or above 499."""


class OpenAiServer:
    """The server at ``config.url``.

    Args:
        config: url, name of the model, name of the variable that holds the key, token settings.
        pause_s: seconds before the second try, doubled before the third.

    Raises:
        ModelError: the address is not one of a web server.
    """

    def __init__(self, config: GenerateConfig, pause_s: float = 1.0) -> None:
        self.url = (config.url or "").rstrip("/")
        require(self.url.startswith(("http://", "https://")), ModelError,
                f"url is '{masked(config.url or '')}'; expected the address of an OpenAI-protocol "
                "server such as http://localhost:8000/v1")
        instead = f"the environment variable {config.key_variable}"
        problem = secret_problem(self.url, instead)
        require(problem is None, ModelError, f"url: {problem}")
        self._config, self._pause_s = config, pause_s

    def first_model(self, client: httpx.Client) -> str:
        """The first model that the server lists."""
        return self._asked(client, "GET", "models", None, ModelList).data[0].id

    def answer(self, client: httpx.Client, body: Mapping[str, JsonValue]) -> str:
        """The text of an answer, without its last sentence if the server cut it there."""
        choice = self._asked(client, "POST", "chat/completions", body, Completion).choices[0]
        return clean(choice.message.content or "", choice.finish_reason != "length")

    def client(self) -> httpx.Client:
        """A connection that carries the key, where the environment has one."""
        key = os.environ.get(self._config.key_variable)
        # Not compressed: what is read is then as long as what came.
        headers = {"Accept-Encoding": "identity"} | (
            {"Authorization": f"Bearer {key}"} if key else {})
        return httpx.Client(headers=headers, timeout=TIMEOUT_S, follow_redirects=False)

    def _asked(self, client: httpx.Client, verb: str, path: str,
               body: Mapping[str, JsonValue] | None, form: type[Form]) -> Form:
        """The server's answer in its form; faults that may pass are tried three times."""
        address = f"{self.url}/{path}"
        tries = Retrying(stop=stop_after_attempt(TRIES), reraise=True,
                         wait=wait_exponential(multiplier=self._pause_s),
                         retry=retry_if_exception_type(PassingFaultError))
        try:
            content = tries(_sent, client, verb, address, body)
        except (PassingFaultError, httpx.HTTPError) as error:
            raise ModelError(
                f"server {address} gave no answer ({_one_line(str(error))}); expected an "
                "OpenAI-protocol server there; check the url, the model name, and the key in the "
                f"environment variable {self._config.key_variable}") from error
        try:
            return form.model_validate_json(content)
        except ValidationError as error:
            raise ModelError(
                f"server {self.url} answered {_one_line(content)}; expected the OpenAI "
                "protocol; check that the url ends as in /v1") from error


def chat_at(config: GenerateConfig, pause_s: float = 1.0) -> Chat:
    """A chat with the server at ``config.url`` (``POST {url}/chat/completions``).

    Answers are random; the seed is sent along, and whether it is obeyed is the server's affair.
    ``top_k`` is not part of the protocol and is not sent.

    Args:
        config: url, model, key_variable and the token settings.
        pause_s: seconds before the second try, doubled before the third.

    Raises:
        ModelError: at once, the address is not one of a web server; from the chat, no server, a
            refusal, or an answer that is not of the protocol.
    """
    server = OpenAiServer(config, pause_s)

    def chat(prompts: list[str], seed: int) -> list[str]:
        if not prompts:
            return []
        with server.client() as client, ThreadPoolExecutor(PARALLEL) as pool:
            settings: dict[str, JsonValue] = {
                "max_tokens": config.max_tokens, "temperature": config.temperature,
                "top_p": config.top_p, "model": config.model or server.first_model(client)}

            def ask(number: int, prompt: str) -> str:
                own_seed = Seeds(seed).integer("request", number) % 2**31
                messages: JsonValue = [{"role": "user", "content": prompt}]
                return server.answer(client, {**settings, "seed": own_seed, "messages": messages})

            return list(pool.map(ask, range(len(prompts)), prompts))

    return chat


def _sent(client: httpx.Client, verb: str, address: str,
          body: Mapping[str, JsonValue] | None) -> bytes:
    """What the server answers to one try.

    Redirects are followed here, because httpx reads what comes with one without a bound; it builds
    the next request, without the key where that goes to another server.

    Raises:
        PassingFaultError: it may go better next time.
        httpx.HTTPError: the server refuses, or its answer has no end.
    """
    request, until_s = client.build_request(verb, address, json=body), time.monotonic() + MOST_S
    for _ in range(MOST_REDIRECTS + 1):
        try:
            response = client.send(request, stream=True)
            try:
                if response.next_request is not None:
                    request = response.next_request
                    continue
                content = _content(response, until_s)
            finally:
                response.close()
        except httpx.TransportError as error:
            raise PassingFaultError(str(error) or type(error).__name__) from error
        if response.is_success:
            return content
        cause = f"status {response.status_code}: {_one_line(content)}"
        if response.status_code == 429 or response.is_server_error:
            raise PassingFaultError(cause)
        raise httpx.HTTPError(cause)
    raise httpx.HTTPError(f"more than {MOST_REDIRECTS} redirects")


def _content(response: httpx.Response, until_s: float) -> bytes:
    """The body of an answer.

    Raises:
        httpx.HTTPError: it is larger than ``MOST_BYTES``, or not at its end by ``until_s``.
    """
    content = bytearray()
    for part in response.iter_raw():
        content += part
        if len(content) > MOST_BYTES:
            raise httpx.HTTPError(f"an answer of more than {MOST_BYTES} bytes was cut off")
        if time.monotonic() > until_s:
            raise httpx.HTTPError(f"an answer without end was cut off after {MOST_S:g} s")
    return bytes(content)


def _one_line(said: str | bytes) -> str:
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
    return " ".join(text.split())[:160]
