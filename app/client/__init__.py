"""A client of a running service, for `vsr submit` and for anyone's Python.

from app.client import Client

with Client("http://127.0.0.1:8000") as client:
    client.upscale("clip.mp4", "clip_2x.mp4", on_progress=print)
"""

from app.client.api import Options, Progress
from app.client.asynchronous import AsyncClient
from app.client.blocking import Client
from app.client.errors import (
    ClientError,
    DamagedDownloadError,
    ForeignResponseError,
    InvalidWebhookError,
    JobEndedError,
    NoResultResponseError,
    NotFoundResponseError,
    ProblemResponseError,
    ProxyResponseError,
    RejectedResponseError,
    ServiceUnreachableError,
    SourceChangedError,
    TryLaterResponseError,
    UnauthorizedResponseError,
)
from app.client.webhooks import verify_webhook

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "DamagedDownloadError",
    "ForeignResponseError",
    "InvalidWebhookError",
    "JobEndedError",
    "NoResultResponseError",
    "NotFoundResponseError",
    "Options",
    "ProblemResponseError",
    "Progress",
    "ProxyResponseError",
    "RejectedResponseError",
    "ServiceUnreachableError",
    "SourceChangedError",
    "TryLaterResponseError",
    "UnauthorizedResponseError",
    "verify_webhook",
]
