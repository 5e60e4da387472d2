"""The gateway: OpenAI's API and a page on this machine, with the person's plugins behind them.

app (routes and wiring) · run (one reply) · pool (sessions with the cloud) · middleware (who may call) · body ·
openai_api, json_fields (requests) · openai_reply (replies, errors) · names (of models) · page and static/ (the page's
files). Test: pytest tests/device/test_gateway.py
"""

from sideplug.device.gateway.app import Gateway, GatewayConfig, GatewayServer, TrainingJob
from sideplug.device.gateway.openai_api import Defaults

__all__ = ["Defaults", "Gateway", "GatewayConfig", "GatewayServer", "TrainingJob"]
