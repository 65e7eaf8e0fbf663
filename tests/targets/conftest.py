import pytest

from gaudicc.targets import Target, load_target


@pytest.fixture(scope="session", params=["gaudi2", "gaudi3"])
def target(request: pytest.FixtureRequest) -> Target:
    return load_target(request.param)


@pytest.fixture(scope="session")
def gaudi3() -> Target:
    return load_target("gaudi3")
