"""Which presets there are, and which of them a live worker has loaded."""

from fastapi import APIRouter, Depends

from app.dependencies import ServicesDep, require_api_key
from app.errors import QueueUnavailableError, UnauthorizedError, responses
from app.schemas import Model, ModelList
from worker.contract.presets import PRESETS, TEST_PRESETS, loaded_models

router = APIRouter(tags=["models"], dependencies=[Depends(require_api_key)])


@router.get("/v1/models", summary="List the presets", responses=responses(UnauthorizedError, QueueUnavailableError))
def list_models(services: ServicesDep) -> ModelList:
    known = PRESETS | (TEST_PRESETS if services.settings.enable_test_presets else {})
    loaded = loaded_models(services.redis)
    return ModelList(
        models=[
            Model(
                preset=preset,
                description=description,
                loaded=preset in loaded,
                scale=loaded[preset].scale if preset in loaded else None,
                device=loaded[preset].device if preset in loaded else None,
            )
            for preset, description in known.items()
        ]
    )
