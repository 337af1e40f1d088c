"""The server against its own description: what it says and does is the same, whatever comes."""

import os
import subprocess
import sys

import pytest
from serving_helpers import Server

pytest.importorskip("schemathesis")
# I3LM_FUZZ_SECONDS=600 looks for ten minutes, at other cases each time.
SECONDS = int(os.environ.get("I3LM_FUZZ_SECONDS", "0"))


@pytest.mark.timeout(SECONDS + 600)
def test_no_request_makes_the_server_break_its_word(folder, tmp_path):
    command = [sys.executable, "-c", "import schemathesis.cli as c; c.schemathesis()", "run"]
    flags = ["--no-color", "--generation-database", "none", "--request-timeout", "20"]
    flags += ["--continue-on-failure", "--phases", "coverage,fuzzing"]
    # That roles alternate, or that a message is not blank, a description cannot say.
    flags += ["--exclude-checks", "positive_data_acceptance"]
    # A thousand messages of a thousand parts are 4 MB: 413, before anybody looks into them.
    (tmp_path / "schemathesis.toml").write_text(
        "[checks.negative_data_rejection]\n"
        "expected-statuses = [400, 401, 404, 405, 413, 415, 422]\n"
    )
    long = ["--max-time", str(SECONDS), "--max-examples", "100000"]
    flags += long if SECONDS else ["--max-examples", "5", "--seed", "1"]
    with Server(folder, "--max-new-tokens", "4") as server:
        done = subprocess.run(
            [*command, f"{server.url}/openapi.json", *flags],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )
        assert server.ask("/health")[0] == 200
        assert "Traceback" not in server.errors
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr
    print(done.stdout[-1500:])  # how many cases there were: pytest -s
    assert "Tested: 5" in done.stdout
