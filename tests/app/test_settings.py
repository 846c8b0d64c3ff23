"""What the environment says is what the gateway does."""

import pytest
from pydantic import ValidationError

from app.keys import digest_text
from app.settings import ClientSettings, CourierSettings, GatewaySettings


def test_the_environment_names_the_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    monkeypatch.setenv("VSR_PORT", "9999")
    monkeypatch.setenv("VSR_API_KEYS", "one, two,,")
    monkeypatch.setenv("VSR_API_KEY", "one")
    monkeypatch.setenv("VSR_URL", "http://vsr:8000")

    # When
    gateway, client = GatewaySettings(), ClientSettings()

    # Then
    assert gateway.port == 9999
    assert [key.get_secret_value() for key in gateway.api_keys] == [digest_text("one"), digest_text("two")]
    assert client.url == "http://vsr:8000"
    assert client.api_key is not None
    assert client.api_key.get_secret_value() == "one"


def test_an_empty_list_of_keys_is_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSR_API_KEYS", "")

    assert GatewaySettings().api_keys == []


@pytest.mark.parametrize(
    ("host", "is_loopback_only"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("vsr", False)],
)
def test_loopback_is_told_from_the_world(host: str, is_loopback_only: bool) -> None:
    assert GatewaySettings(host=host).is_loopback_only is is_loopback_only


@pytest.mark.parametrize("secret", ["guessable", "whsec_c2hvcnQ=", "whsec_no base64, however long it is"])
def test_a_webhook_secret_that_could_be_guessed_is_refused_and_not_repeated(
    secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSR_WEBHOOK_SECRET", secret)
    with pytest.raises(ValidationError) as refused:
        CourierSettings()
    assert secret not in str(refused.value)


def test_an_empty_webhook_secret_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSR_WEBHOOK_SECRET", "")
    monkeypatch.setenv("VSR_TARGET_PORTS", "443, 8443")
    assert CourierSettings().webhook_secret is None
    assert CourierSettings().target_policy.ports == {443, 8443}
