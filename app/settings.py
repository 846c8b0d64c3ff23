"""What the gateway and its client can be told from outside. In the environment a field's name has `VSR_` before it."""

import ipaddress
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.keys import digest_text


class GatewaySettings(BaseSettings):
    # A mistake is told without its value, which may be a secret.
    model_config = SettingsConfigDict(env_prefix="VSR_", frozen=True, hide_input_in_errors=True)

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
    max_upload_bytes: int = Field(10 * 1024**3, ge=1, description="Largest source file.")
    upload_idle_timeout_seconds: float = Field(
        60.0, gt=0, description="An upload that sends nothing for so long is given up."
    )
    upload_retention_seconds: float = Field(
        24 * 3600.0, gt=0, description="Uploads that did not become a job are removed at start when older than this."
    )
    max_queued_jobs: int = Field(1000, ge=1, description="With so many jobs waiting, new ones are refused for now.")
    enable_test_presets: bool = Field(False, description="Accept presets with random weights. For tests only.")

    @field_validator("api_keys", "allowed_hosts", mode="before")
    @classmethod
    def split_at_commas(cls, value: object) -> object:
        return [part for item in value.split(",") if (part := item.strip())] if isinstance(value, str) else value

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


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine and no other."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
