from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.tiny import make_model, make_tokens


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random Llama."""
    return make_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calibration rows for it."""
    return make_tokens(tmp_path_factory.mktemp("tokens") / "tokens.safetensors")
