"""The light catalogue of presets is the model's; what workers say they have loaded is forgotten with them."""

from redis import Redis

from model import presets as model_presets
from worker.contract.job import now
from worker.contract.presets import PRESETS, REPEAT_PIXELS, TEST_PRESETS, LoadedModel, announce_loaded, loaded_models


def test_the_catalogue_names_and_describes_the_presets_of_the_model() -> None:
    described = {preset.name: preset.description for preset in model_presets.PRESETS.values()}
    random = {preset.name for preset in model_presets.PRESETS.values() if preset.weights == "random"}

    stand_in = {REPEAT_PIXELS: TEST_PRESETS[REPEAT_PIXELS]}  # which is no network
    assert described | stand_in == PRESETS | TEST_PRESETS
    assert random == TEST_PRESETS.keys() - stand_in.keys()


def test_a_loaded_preset_is_known_until_its_worker_falls_silent(redis: Redis) -> None:
    # Given a worker that has loaded one preset
    model = LoadedModel(preset="compact", scale=2, description="small", device="cpu", loaded_at=now())

    # When it says so
    announce_loaded(redis, model, ttl_seconds=15)

    # Then that one is known, for as long as it was said
    assert loaded_models(redis) == {"compact": model}
    assert 0 < redis.ttl("vsr:models:compact") <= 15
