"""Settings that the gateway and the workers share. In the environment a field's name has `VSR_` before it."""

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class RedisSettings(BaseSettings):
    # A mistake is told without its value, which may hold a password.
    model_config = SettingsConfigDict(env_prefix="VSR_", hide_input_in_errors=True)

    redis_url: SecretStr | None = Field(
        None, description="redis://, rediss:// or unix:// address. May hold a password: never logged."
    )


class StorageSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="VSR_")

    storage_dir: Path = Field(
        Path("vsr-data"), description="Folder of all jobs; gateway and workers must see the same one."
    )
    min_free_bytes: int = Field(
        512 * 1024**2, ge=0, description="Uploads are refused when the disk would have less free than this."
    )


class TracingSettings(BaseSettings):
    """OpenTelemetry's own names; its exporter reads the rest of them (headers, sampler, time limits) by itself."""

    endpoint: str | None = Field(
        None,
        validation_alias=AliasChoices("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
        description="Where traces are sent (OTLP over HTTP). None: there are none.",
    )


class LogSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="VSR_")

    log_format: Literal["json", "console"] = Field("json", description="JSON lines, or text for a terminal.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
