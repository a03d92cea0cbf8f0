"""Who is not a dashboard is told at once."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from common.errors import ConfigError
from deploy.jobs.dashboard import checked_address, open_dashboard


@pytest.mark.parametrize(
    ("address", "reason"),
    [("10.0.0.1:8265", "is not of the form"), ("auto", "is not of the form"),
     ("ray://10.0.0.1:10001", "is not of the form"),
     ("http://host:port", "is no URL"), ("http://me:secret@host:8265", "holds a user or password")],
)  # fmt: skip
def test_an_address_of_another_form_shows_the_form(address, reason):
    with pytest.raises(ConfigError, match=reason):
        checked_address(address)


def test_an_address_is_taken_without_the_slash_at_its_end():
    assert checked_address("http://head:8265/") == ("http://head:8265", "head")


def test_another_web_server_is_told():
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        with pytest.raises(ConfigError, match=r"is no dashboard of Ray 2\.52 or newer \(status 501\)"):
            open_dashboard(f"http://127.0.0.1:{server.server_port}", insecure=False)


def test_a_port_where_nobody_listens_names_what_may_be_missing():
    with pytest.raises(ConfigError, match=r"no Ray dashboard listens at .*ray\[default\].*--dashboard-host"):
        open_dashboard("http://127.0.0.1:1", insecure=False)
