"""Which cluster is open to others, and that it is refused."""

import pytest

from common.errors import ConfigError
from deploy.on_ray.openness import be_explicit, is_loopback, refuse_open, refuse_open_local


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.3.2.1", True), ("::1", True), ("[::1]", True), ("localhost", True),
     ("10.77.0.1", False), ("0.0.0.0", False), ("no-such-host.invalid", False)],
)  # fmt: skip
def test_only_loopback_is_loopback(host, expected):
    assert is_loopback(host) is expected


def test_an_open_cluster_is_refused_unless_it_is_on_loopback_or_accepted():
    refuse_open("127.0.0.1:6379", "127.0.0.1", insecure=False)
    refuse_open("10.0.0.1:6379", "10.0.0.1", insecure=True)
    with pytest.raises(ConfigError, match=r"10\.0\.0\.1:6379 asks for no token.*--generate.*=token.*--insecure"):
        refuse_open("10.0.0.1:6379", "10.0.0.1", insecure=False)


@pytest.mark.parametrize("mode", [{}, {"RAY_AUTH_MODE": "disabled"}])
def test_a_cluster_of_our_own_is_not_opened_to_all_interfaces_without_a_token(mode):
    everywhere = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
    refuse_open_local(mode, insecure=False)
    refuse_open_local(mode | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}, insecure=False)
    refuse_open_local(everywhere | {"RAY_AUTH_MODE": "token"}, insecure=False)
    refuse_open_local(mode | everywhere, insecure=True)
    with pytest.raises(ConfigError, match="listen on all interfaces"):
        refuse_open_local(mode | everywhere, insecure=False)


def test_the_mode_is_token_unless_the_user_chose():
    chosen, none, empty = {"RAY_AUTH_MODE": "disabled"}, {}, {"RAY_AUTH_MODE": ""}
    for environment in (chosen, none, empty):
        be_explicit(environment)
    assert chosen == {"RAY_AUTH_MODE": "disabled"}
    assert none == empty == {"RAY_AUTH_MODE": "token"}
