"""Loaded by schemathesis (tests/app/test_openapi.py)."""

import schemathesis


@schemathesis.serializer("application/offset+octet-stream")
def offset_octet_stream(context: object, value: object) -> bytes:
    """What a tus client sends: plain bytes."""
    return value if isinstance(value, bytes) else str(value).encode(errors="surrogatepass")
