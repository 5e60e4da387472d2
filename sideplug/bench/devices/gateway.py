"""Any app: OpenAI's API of a gateway (and with it the plugin) that is not on the device but beside the cloud."""

from __future__ import annotations

import http.client
import json
import time
from typing import Any
from urllib.parse import urlsplit


class App:
    """An app that asks this model of the gateway at this URL."""

    def __init__(self, url: str, model: str) -> None:
        parts = urlsplit(url)
        self._model = model
        self._line = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=600)

    def reply(
        self, prompt: dict[str, Any], max_tokens: int, temperature: float, seed: int, top_p: float = 1.0
    ) -> dict[str, Any]:
        """Return a reply and the seconds at which its tokens came (see ours.Reply)."""
        start = time.perf_counter()
        body = {
            "model": self._model,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if "messages" in prompt:
            path, body = "/v1/chat/completions", body | {"messages": prompt["messages"]}
        else:
            path, body = "/v1/completions", body | {"prompt": prompt["text"]}
        self._line.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        texts: list[str] = []
        times: list[float] = []
        tokens = 0
        with self._line.getresponse() as answer:
            if answer.status != 200:
                raise RuntimeError(answer.read().decode()[:300])
            for line in answer:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
                for choice in event["choices"]:
                    text = choice["delta"].get("content") if "delta" in choice else choice.get("text")
                    if text:
                        texts.append(text)
                        times.append(time.perf_counter() - start)
        return {"text": "".join(texts), "tokens": tokens, "round_trips": 0, "times_s": times}


def make(url: str, model: str) -> App:
    """Return the app."""
    return App(url, model)
