"""For receivers of webhooks."""

import json
import time
from collections.abc import Mapping
from typing import Any

from app.client.errors import InvalidWebhookError
from app.webhook_signatures import is_signed


def verify_webhook(
    headers: Mapping[str, str], body: bytes, secret: str, *, tolerance_seconds: float = 300.0
) -> dict[str, Any]:
    """For receivers: what the webhook says, if it is ours and new. Raises `InvalidWebhookError`.

    `body` is what arrived, byte by byte: of parsed and rewritten JSON the signature is another. `secret` is the
    service's VSR_WEBHOOK_SECRET. `tolerance_seconds`: how far the clocks may be apart, and how old a message may be.
    The same event may come more than once: `webhook-id` is the same then.
    """
    given = {name.lower(): value for name, value in headers.items()}
    try:
        webhook_id, timestamp_text = given["webhook-id"], given["webhook-timestamp"]
        signatures, timestamp = given["webhook-signature"], int(timestamp_text)
    except (KeyError, ValueError):
        raise InvalidWebhookError("a header webhook-id, webhook-timestamp or webhook-signature is missing") from None
    if not is_signed(signatures, secret, webhook_id, timestamp, body):
        raise InvalidWebhookError("the signature is not of this secret and this body")
    if abs(time.time() - timestamp) > tolerance_seconds:
        raise InvalidWebhookError(f"the message was signed more than {tolerance_seconds:g} seconds ago, or will be")
    content: dict[str, Any] = json.loads(body)
    return content
