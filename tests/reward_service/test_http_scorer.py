"""A scoring service over real HTTP and TLS on loopback: what is sent, what is tried again, what is never taken."""

import json
import logging
import ssl
import subprocess
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from common.errors import ConfigError, MemberFailedError
from common.scorer_config import HttpScorerConfig
from reward_service.http_scorer import MAX_ANSWER_BYTES, HttpScorer, retry_after_s
from reward_service.scorers import Failure, Scored

TOKEN = "Tr0ub4dor&3"


def lengths(request):
    return {"scores": [float(len(r)) for r in request["responses"]]}


class Server(ThreadingHTTPServer):
    """Answers by a script: one entry per request, the last one again and again.

    An entry is a status, or a function of the request, or (status, headers, body), or "hang".
    """

    daemon_threads = True

    def __init__(self, *script):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = list(script) or [lengths]
        self.requests = []
        self.times = []
        self.closing = threading.Event()
        self.num_connections = 0

    def get_request(self):
        self.num_connections += 1
        return super().get_request()

    def handle_error(self, request, client_address):
        """A client that hangs up, or distrusts the certificate, is part of some tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.times.append(time.monotonic())
        self.server.requests.append((dict(self.headers), json.loads(body)))
        entry = self.server.script[min(len(self.server.requests), len(self.server.script)) - 1]
        status, headers, answer = entry if isinstance(entry, tuple) else (200, {}, entry)
        if isinstance(answer, int):
            status, answer = answer, b""
        if callable(answer):
            answer = json.dumps(answer(json.loads(body))).encode()
        if answer == "hang":
            self.server.closing.wait(60)
            return
        drip = answer == "drip"
        self.send_response(status)
        self.send_header("Content-Length", "1000" if drip else str(len(answer)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        while drip and not self.server.closing.wait(0.1):
            self.wfile.write(b" ")
        if not drip:
            self.wfile.write(answer)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    """Starts servers, and ends them."""
    running = []

    def start(*script, tls=None):
        server = Server(*script)
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        running.append((server, thread))
        server.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}/score"
        return server

    yield start
    for server, thread in running:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def scorer_of():
    """Builds scorers with short pauses, and closes them."""
    built = []

    def build(url, *, token=None, **settings):
        settings = {"timeout_s": 30.0, "backoff_s": 0.001, **settings}
        scorer = HttpScorer.from_config(HttpScorerConfig(name="far", url=url, **settings), token)
        built.append(scorer)
        return scorer

    yield build
    for scorer in built:
        scorer.close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """(certificate, key) of 127.0.0.1 that no authority signed."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2"),
            *("-subj", "/CN=tests", "-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


def reasons(outcomes):
    return [o.reason if isinstance(o, Failure) else o.value for o in outcomes]


# --- what is sent and taken


def test_prompts_and_responses_are_sent_in_batches_and_scores_come_back_in_order(serve, scorer_of, texts_of, soon):
    server = serve()
    found = scorer_of(server.url, batch_sequences=2).score(texts_of("a", "bcd", "é😀"), soon)
    assert found == [Scored(n, {"far": n}) for n in (2.0, 4.0, 3.0)]
    assert [body for _, body in server.requests] == [
        {"prompts": ["say", "say"], "responses": [" a", " bcd"]},
        {"prompts": ["say"], "responses": [" é😀"]},
    ]
    assert {headers["Content-Type"] for headers, _ in server.requests} == {"application/json"}
    assert not [headers for headers, _ in server.requests if "Authorization" in headers]


def test_the_token_is_sent_and_shown_nowhere(serve, scorer_of, texts_of, soon, caplog):
    caplog.set_level(logging.DEBUG)
    echo = (403, {}, f"wrong token {TOKEN}".encode())
    server = serve(lengths, echo, (500, {}, TOKEN.encode()), (200, {}, f'"{TOKEN}"'.encode()))
    scorer = scorer_of(server.url, token=TOKEN, max_retries=0)
    found = [scorer.score(texts_of("a"), soon)[0] for _ in range(4)]
    assert [headers["Authorization"] for headers, _ in server.requests] == [f"Bearer {TOKEN}"] * 4
    assert reasons(found) == [2.0, "reward_error", "reward_error", "reward_shape"]
    shown = [repr(found), repr(scorer), repr(vars(scorer)), repr(scorer.client.headers), scorer.version, caplog.text]
    assert not [text for text in shown if TOKEN in text]


def test_whole_numbers_are_scores_and_null_drops_its_text_alone(serve, scorer_of, texts_of, soon):
    server = serve((200, {}, b'{"scores": [1, null, -2.5], "model": "v3"}'))
    assert reasons(scorer_of(server.url).score(texts_of("a", "b", "c"), soon)) == [1.0, "reward_error", -2.5]


@pytest.mark.parametrize(
    ("score", "reason"),
    [
        ("NaN", "reward_nonfinite"),
        ("-Infinity", "reward_nonfinite"),
        ("1e999", "reward_nonfinite"),
        ("1e39", "reward_nonfinite"),
        ("1" + "0" * 400, "reward_nonfinite"),
        ('"1.0"', "reward_shape"),
        ("[1.0]", "reward_shape"),
        ("true", "reward_shape"),
        ("{}", "reward_shape"),
    ],
)
def test_a_score_that_is_no_finite_number_drops_its_text_alone(serve, scorer_of, texts_of, soon, score, reason):
    server = serve((200, {}, f'{{"scores": [1.0, {score}, 2.0]}}'.encode()))
    assert reasons(scorer_of(server.url).score(texts_of("a", "b", "c"), soon)) == [1.0, reason, 2.0]
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b'{"scores": [1.0]}',
        b'{"scores": [1.0, 2.0, 3.0]}',
        b'{"scores": 1.0}',
        b'{"scores": null}',
        b'{"score": [1.0, 2.0]}',
        b"[1.0, 2.0]",
        b'{"scores": [1.0, 2.0]',
        b"",
        b"\xff\xfe",
        b"[" * 200_000,
        b"<html>busy</html>",
        b" " * (MAX_ANSWER_BYTES + 1),
    ],
    ids=lambda answer: answer[:24].decode(errors="replace"),
)
def test_an_answer_of_another_shape_drops_its_batch_alone(serve, scorer_of, texts_of, soon, answer):
    server = serve((200, {}, answer), lengths)
    found = scorer_of(server.url, batch_sequences=2).score(texts_of("a", "b", "c"), soon)
    assert reasons(found) == ["reward_shape", "reward_shape", 2.0]
    assert len(server.requests) == 2, "the server answered: it would answer so again"


# --- what is tried again


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_a_failure_that_may_pass_is_tried_again(serve, scorer_of, texts_of, soon, status):
    server = serve(status, status, lengths)
    assert reasons(scorer_of(server.url, max_retries=2).score(texts_of("a"), soon)) == [2.0]
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [500, 429])
def test_a_failure_that_stays_drops_its_batch_after_the_last_try(serve, scorer_of, texts_of, soon, status):
    server = serve(*[status] * 3, lengths)
    found = scorer_of(server.url, max_retries=2, batch_sequences=2).score(texts_of("a", "b", "c"), soon)
    assert reasons(found) == ["reward_error", "reward_error", 2.0]
    assert f"HTTP status {status}" in found[0].detail
    assert len(server.requests) == 4


@pytest.mark.parametrize("status", [400, 401, 404, 422, 301, 204])
def test_a_request_that_is_refused_is_not_sent_again(serve, scorer_of, texts_of, soon, status):
    server = serve((status, {"Location": "/elsewhere"}, b""))
    (found,) = scorer_of(server.url).score(texts_of("a"), soon)
    assert found.reason == "reward_error"
    assert f"HTTP status {status}" in found.detail
    assert ("redirects are not followed" in found.detail) == (status == 301)
    assert len(server.requests) == 1


def test_the_server_may_say_when_to_try_again(serve, scorer_of, texts_of, soon):
    server = serve((429, {"Retry-After": "1"}, b""), lengths)
    assert reasons(scorer_of(server.url).score(texts_of("a"), soon)) == [2.0]
    assert server.times[1] - server.times[0] >= 1.0


def test_who_asks_for_more_time_than_there_is_gets_none(serve, scorer_of, texts_of):
    server = serve((429, {"Retry-After": "50"}, b""), lengths)
    found = scorer_of(server.url).score(texts_of("a"), time.monotonic() + 10.0)
    assert reasons(found) == ["reward_error"]
    assert len(server.requests) == 1


def test_retry_after_is_a_number_or_a_date():
    now = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
    assert retry_after_s("120", now) == 120.0
    assert retry_after_s("Sun, 01 Mar 2026 12:00:30 GMT", now) == 30.0
    assert retry_after_s("Sun, 01 Mar 2026 11:00:00 GMT", now) == 0.0
    assert retry_after_s(None, now) is retry_after_s("soon", now) is None


def test_a_server_that_does_not_answer_in_time_is_asked_again(serve, scorer_of, texts_of, soon):
    server = serve("hang", lengths)
    assert reasons(scorer_of(server.url, timeout_s=1.0).score(texts_of("a"), soon)) == [2.0]
    assert len(server.requests) == 2


@pytest.mark.parametrize("how", ["hang", "drip"])
def test_a_server_that_never_answers_in_time_drops_its_batch(serve, scorer_of, texts_of, soon, how):
    server = serve((200, {}, how))
    found = scorer_of(server.url, timeout_s=0.5, max_retries=1).score(texts_of("a", "b"), soon)
    assert reasons(found) == ["reward_timeout"] * 2
    assert len(server.requests) == 2


def test_what_is_not_scored_by_the_deadline_is_given_up(serve, scorer_of, texts_of):
    server = serve(lengths, "hang")
    found = scorer_of(server.url, batch_sequences=1).score(texts_of("a", "b", "c"), time.monotonic() + 1.0)
    assert reasons(found) == [2.0, "reward_timeout", "reward_timeout"]


def test_a_server_that_is_not_there_drops_the_batch_and_its_return_is_noticed(serve, scorer_of, texts_of, soon):
    server = serve()
    url = server.url
    server.shutdown()
    server.server_close()
    scorer = scorer_of(url, max_retries=1)
    (found,) = scorer.score(texts_of("a"), soon)
    assert found.reason == "reward_error"
    assert url in found.detail
    assert "ConnectError" in found.detail


def test_a_probe_names_the_service_that_does_not_answer(serve, scorer_of, mixture_of):
    assert mixture_of(scorer_of(serve().url)).probe() == {}
    with pytest.raises(MemberFailedError, match=r"reward_error: scorer far: http://127\.0\.0\.1.*HTTP status 404"):
        mixture_of(scorer_of(serve(404).url)).probe()


# --- TLS


def test_a_certificate_that_no_authority_signed_is_refused_at_once(serve, scorer_of, texts_of, soon, certificate):
    server = serve(tls=certificate)
    (found,) = scorer_of(server.url, token=TOKEN, max_retries=5, backoff_s=30.0).score(texts_of("a"), soon)
    assert found.reason == "reward_error"
    assert "certificate verify failed" in found.detail
    assert not server.requests, "nothing was sent"
    assert server.num_connections == 1, "it would end so again"


def test_a_certificate_is_taken_if_its_authority_is_named(serve, scorer_of, texts_of, soon, certificate):
    server = serve(tls=certificate)
    scorer = scorer_of(server.url, token=TOKEN, ca_file=str(certificate[0]))
    assert reasons(scorer.score(texts_of("a"), soon)) == [2.0]


def test_a_certificate_of_another_host_is_refused(serve, scorer_of, texts_of, soon, certificate):
    url = serve(tls=certificate).url.replace("127.0.0.1", "localhost")
    (found,) = scorer_of(url, ca_file=str(certificate[0])).score(texts_of("a"), soon)
    assert found.reason == "reward_error"
    assert "certificate verify failed" in found.detail


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_of_authorities_that_cannot_be_read_is_named(scorer_of, tmp_path, content):
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"scorer far: ca_file={path}"):
        scorer_of("https://127.0.0.1/score", ca_file=str(path))


def test_proxies_of_the_environment_see_nothing_that_is_sent_to_loopback(serve, scorer_of, texts_of, soon, monkeypatch):
    proxy, server = serve(403), serve()
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("ALL_PROXY", proxy.url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert reasons(scorer_of(server.url, token=TOKEN).score(texts_of("a"), soon)) == [2.0]
    assert not proxy.requests
