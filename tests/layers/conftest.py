"""The helpers of the contract suites wait here as long as everything else does."""

from __future__ import annotations

import pytest

from asgi_ipc.conformance import base

from ..waiting import LIVENESS


@pytest.fixture(autouse=True)
def be_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_patience", LIVENESS)
