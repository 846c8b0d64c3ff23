"""Signatures of webhooks, as in the Standard Webhooks specification (standardwebhooks.com), version v1.

    webhook-id         the event's; the same for every attempt to deliver it
    webhook-timestamp  of the attempt, in seconds since 1970
    webhook-signature  v1,{base64 of HMAC-SHA256 of "{id}.{timestamp}.{body}"}, one or more, separated by spaces

The id and the time are signed too: a receiver that knows both can tell an old message, or one that it had, from a new.
"""

import base64
import binascii
import hashlib
import hmac

_PREFIX = "whsec_"
# The specification's own least length.
_MIN_KEY_BYTES = 24


def signing_key(secret: str) -> bytes:
    """The key that a secret stands for. Raises ValueError (without the secret) for one that could be guessed."""
    if secret.startswith(_PREFIX):
        try:
            key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
        except binascii.Error:
            raise ValueError(f"what follows {_PREFIX} is not base64") from None
    else:
        key = secret.encode()
    if len(key) < _MIN_KEY_BYTES:
        raise ValueError(f"the secret is too short: {_MIN_KEY_BYTES} bytes are the least")
    return key


def signature_of(secret: str, webhook_id: str, timestamp: int, body: bytes) -> str:
    content = f"{webhook_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(signing_key(secret), content, hashlib.sha256)).decode()


def is_signed(signatures: str, secret: str, webhook_id: str, timestamp: int, body: bytes) -> bool:
    """Whether one of `signatures`, as the header has them, is ours."""
    expected = signature_of(secret, webhook_id, timestamp, body).encode()
    return any([hmac.compare_digest(expected, candidate.encode()) for candidate in signatures.split(" ")])
