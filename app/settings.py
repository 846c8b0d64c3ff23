"""What the gateway and its client can be told from outside. In the environment a field's name has `VSR_` before it."""

import ipaddress
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.guarded_http import TargetPolicy
from app.keys import digest_text
from app.webhook_signatures import signing_key


class OutboundSettings(BaseSettings):
    """What may be fetched from other hosts and told to them: the gateway accepts it, the courier does it."""

    # A mistake is told without its value, which may be a secret.
    model_config = SettingsConfigDict(env_prefix="VSR_", frozen=True, hide_input_in_errors=True)

    allow_source_url: bool = Field(False, description="Accept jobs whose source is to be fetched from an https URL.")
    webhook_secret: SecretStr | None = Field(
        None, description="Signs webhooks: `whsec_` and base64, or a text of 24 characters and more. None: no webhooks."
    )
    target_ports: Annotated[list[int], NoDecode] = Field(
        default=[443], description="Ports of other hosts that may be called, comma separated."
    )
    allow_loopback_targets: bool = Field(
        False,
        description="Sources and webhooks on this machine itself, by http too and at any port. For tests, and where "
        "everyone who may submit jobs may also reach all that listens on this machine.",
    )
    max_upload_bytes: int = Field(10 * 1024**3, ge=1, description="Largest source file.")

    max_source_bytes_per_key: int = Field(
        0, ge=0, description="Bytes that sources and uploads of one API key may take together. 0: any number."
    )

    @field_validator("target_ports", mode="before")
    @classmethod
    def split_ports(cls, value: object) -> object:
        return [part for item in value.split(",") if (part := item.strip())] if isinstance(value, str) else value

    @field_validator("webhook_secret")
    @classmethod
    def none_or_strong(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is None or not secret.get_secret_value():  # an empty variable is how compose files leave it out
            return None
        signing_key(secret.get_secret_value())
        return secret

    @property
    def target_policy(self) -> TargetPolicy:
        return TargetPolicy(frozenset(self.target_ports), self.allow_loopback_targets)


class CourierSettings(OutboundSettings):
    courier_metrics_host: str = Field(
        "127.0.0.1", description="Address of the courier's own /metrics; 0.0.0.0 in a container."
    )
    courier_metrics_port: int = Field(
        9101, ge=0, le=65535, description="Port of the courier's own /metrics. 0: any free one."
    )
    courier_fetches: int = Field(
        4, ge=1, le=64, description="Sources that are fetched at a time; half of them at most for one user."
    )
    courier_deliveries: int = Field(
        8, ge=1, le=64, description="Webhooks that are delivered at a time; half of them at most for one user."
    )
    courier_claim_seconds: float = Field(15.0, gt=0, description="A courier silent for longer is taken for lost.")
    courier_reconcile_seconds: float = Field(
        10.0, gt=0, description="How often the courier looks whether Redis has lost its memory."
    )
    source_idle_timeout_seconds: float = Field(
        30.0, gt=0, description="A source's host that sends nothing for so long is given up for now."
    )
    source_timeout_seconds: float = Field(4 * 3600.0, gt=0, description="Longest time to fetch one source.")


class GatewaySettings(OutboundSettings):
    host: str = Field("127.0.0.1", description="Address to listen on; beyond loopback only with keys.")
    port: int = Field(8000, ge=0, le=65535, description="0: any free port.")
    api_keys: Annotated[list[SecretStr], NoDecode] = Field(
        default=[],
        description="Keys that clients must show, comma separated: plain, or as `sha256:` and the digest. Held as "
        "digests from here on. None: loopback only.",
    )
    api_keys_file: Path | None = Field(
        None, description="File of more keys, one name and digest per line; read again whenever it changes."
    )
    allow_anonymous: bool = Field(
        False, description="Listen beyond loopback without keys: only where something else keeps strangers out."
    )
    allowed_hosts: Annotated[list[str], NoDecode] = Field(
        default=[],
        description="With allow_anonymous: names beside localhost to answer to, comma separated; * for any. Others are "
        "refused, as they may be another site's that a browser was led here by.",
    )
    upload_idle_timeout_seconds: float = Field(
        60.0, gt=0, description="An upload that sends nothing for so long is given up."
    )
    upload_min_bytes_per_second: int = Field(
        1024, ge=0, description="An upload that is slower, over `upload_rate_window_seconds`, is given up. 0: none is."
    )
    upload_rate_window_seconds: float = Field(
        300.0, gt=0, description="How long an upload may be slower than `upload_min_bytes_per_second`."
    )
    upload_retention_seconds: float = Field(
        24 * 3600.0, gt=0, description="Uploads that did not become a job are removed when older than this."
    )
    result_retention_seconds: float = Field(
        7 * 24 * 3600.0, ge=0, description="Result and source of a job are kept for so long after its end. 0: for ever."
    )
    failed_retention_seconds: float = Field(
        24 * 3600.0,
        ge=0,
        description="The same for jobs that failed or were canceled: source and finished segments. 0: for ever.",
    )
    job_retention_seconds: float = Field(
        30 * 24 * 3600.0,
        ge=0,
        description="After that a job is remembered for so long, with its report: 410 and not 404. 0: for ever.",
    )
    gateway_metrics_host: str = Field(
        "127.0.0.1", description="Address of the gateway's own /metrics; 0.0.0.0 in a container."
    )
    gateway_metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of the gateway's own /metrics, open to whoever reaches it; 0: any free one. None: it is "
        "served with the API, behind a key.",
    )
    janitor_seconds: float = Field(300.0, gt=0, description="How often expired and abandoned files are looked for.")
    max_queued_jobs: int = Field(1000, ge=1, description="With so many jobs waiting, new ones are refused for now.")
    max_active_jobs_per_key: int = Field(
        100, ge=0, description="Jobs of one API key that may wait or run at a time. 0: any number."
    )
    max_connections: int = Field(
        1024,
        ge=1,
        description="Requests that this gateway works on at a time, more than `max_uploads`; others are answered 503. "
        "As many connections, and a few more, may be open: then those that ask for nothing are closed for new ones.",
    )
    head_timeout_seconds: float = Field(
        20.0,
        gt=0,
        description="A connection that has not sent a whole request head for so long is closed; so is one that still "
        "sends the body of a request that was refused.",
    )
    max_uploads: int = Field(
        256,
        ge=0,
        description="Uploads that this gateway receives at a time. 0: any number.",
    )
    max_uploads_per_key: int = Field(
        32, ge=0, description="The same of one API key, so that none keeps the others out. 0: any number."
    )
    max_listeners_per_key: int = Field(
        100,
        ge=0,
        description="Streams of events of one API key. 0: any number. All keys together: half of `max_connections`.",
    )
    max_begun_uploads_per_key: int = Field(
        100, ge=0, description="Resumable uploads of one API key that are not whole yet. 0: any number."
    )
    enable_test_presets: bool = Field(False, description="Accept presets with random weights. For tests only.")

    @field_validator("api_keys", "allowed_hosts", mode="before")
    @classmethod
    def split_at_commas(cls, value: object) -> object:
        return [part for item in value.split(",") if (part := item.strip())] if isinstance(value, str) else value

    @model_validator(mode="after")
    def leave_connections_for_others(self) -> Self:
        if self.max_connections <= self.max_uploads:
            raise ValueError("max_connections must be more than max_uploads, or nothing else would get through")
        return self

    @field_validator("api_keys")
    @classmethod
    def hash_at_once(cls, keys: list[SecretStr]) -> list[SecretStr]:
        return [SecretStr(digest_text(key.get_secret_value())) for key in keys]

    @property
    def has_keys(self) -> bool:
        return bool(self.api_keys) or self.api_keys_file is not None

    @property
    def is_loopback_only(self) -> bool:
        return is_loopback(self.host)


class ClientSettings(BaseSettings):
    """For `vsr submit`, `status`, ...: which service, and the key to it."""

    model_config = SettingsConfigDict(env_prefix="VSR_", frozen=True, hide_input_in_errors=True)

    url: str = Field("http://127.0.0.1:8000", description="Address of the service.")
    api_key: SecretStr | None = None
    uploads_dir: Path = Field(
        Path("~/.cache/twostep-vsr/uploads"), description="Where uploads that were interrupted are remembered."
    )


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine and no other."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
