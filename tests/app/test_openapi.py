"""Whatever schemathesis makes of our own description, the gateway answers as that description says."""

import os
import subprocess
import sys
from pathlib import Path

from tests.app.conftest import StartGateway

HERE = Path(__file__).parent / "schemathesis"
EXAMPLES_PER_CALL = 12
SEED = 20261123
KEY = "schemathesis-0123456789"


def test_every_call_keeps_what_the_description_promises(start_gateway: StartGateway, tmp_path: Path) -> None:
    # Given a gateway that asks for a key
    gateway = start_gateway(api_keys=KEY)
    # When schemathesis calls everything with what it makes up, right and wrong
    report = tmp_path / "report.txt"
    with report.open("w") as output:
        run = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml")),
                *("run", f"{gateway.url}/openapi.json"),
                *("--max-examples", str(EXAMPLES_PER_CALL), "--seed", str(SEED), "--checks", "all"),
                *("--header", f"X-API-Key: {KEY}", "--phases", "examples,coverage,fuzzing", "--continue-on-failure"),
                *("--generation-database", "none", "--no-color"),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
            env=os.environ | {"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(HERE)},
            check=False,
        )
    # Then nothing fails
    assert run.returncode == 0, report.read_text()
