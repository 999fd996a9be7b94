"""Options of the tests."""

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "fixed", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fixed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --update-golden."""
    parser.addoption("--update-golden", action="store_true", help="write the goldens anew instead of comparing")


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether goldens are to be written."""
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake: what rules don't follow is taken for the same in every part, not shared (see `analysis.walk`)."""
    monkeypatch.setattr("onnxpart.analysis.walk._share_rest", lambda op: None)
