"""The presets by name, for those who cannot import the model; and which of them a live worker has loaded.

vsr:models:{preset}      string  LoadedModel (JSON); expires unless the worker's heartbeat renews it
vsr:makers:{maker}       string  1; likewise, for the weights in memory and the kind of device they are on
"""

from typing import cast

from pydantic import AwareDatetime, BaseModel, ConfigDict
from redis import Redis

# Names and descriptions as in `model.presets.PRESETS`, which a test holds.
PRESETS = {
    "aligned": "small HAT, and a narrow U-Net that sees its neighbours aligned, for a CPU",
    "balanced": "a HAT of twice the work, and the U-Net of aligned, for a CPU with time",
    "compact": "small HAT, and a narrow U-Net fused as in the paper, for a CPU",
    "paper": "HAT x2 and the full U-Net of the paper, with the user's weights, for a GPU",
    "paper-residual": "as paper, but the U-Net draws what is added to HAT's frame",
}
# What stands in for networks in tests. The service accepts them only with VSR_ENABLE_TEST_PRESETS.
REPEAT_PIXELS = "repeat-pixels"
TEST_PRESETS = {
    "tiny-random": "random weights, for tests only: the picture is not meant to be good",
    REPEAT_PIXELS: "no networks, for tests only: every pixel is repeated, so that errors show exactly",
}


class LoadedModel(BaseModel):
    """What a worker process says about the model in its memory."""

    model_config = ConfigDict(frozen=True)

    preset: str
    scale: int
    description: str
    device: str
    loaded_at: AwareDatetime
    network: str | None = None
    """As in the reports of the jobs that it renders now: equal networks give equal results."""


def announce_loaded(redis: Redis, model: LoadedModel, ttl_seconds: int) -> None:
    """Called when a model is loaded and with every heartbeat; `ttl_seconds` spans a few heartbeats."""
    redis.set(_key(model.preset), model.model_dump_json(), ex=ttl_seconds)


def loaded_models(redis: Redis) -> dict[str, LoadedModel]:
    """By preset, what at least one live worker has in memory (of several workers, the last that beat)."""
    names = [*PRESETS, *TEST_PRESETS]
    contents = cast(list[bytes | None], redis.mget([_key(name) for name in names]))
    return {
        name: LoadedModel.model_validate_json(content) for name, content in zip(names, contents, strict=True) if content
    }


def announce_maker(redis: Redis, maker: str, ttl_seconds: int) -> None:
    """Say that a live worker has this network: nobody else takes its jobs over."""
    redis.set(f"vsr:makers:{maker}", 1, ex=ttl_seconds)


def is_there_a_maker(redis: Redis, maker: str) -> bool:
    """Whether a live worker has this network, or had it a moment ago."""
    return bool(redis.exists(f"vsr:makers:{maker}"))


def _key(preset: str) -> str:
    return f"vsr:models:{preset}"
