"""Downloads from servers on this machine that behave, and that do not."""

import contextlib
import hashlib
import socket
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from engine.download import download

# Larger than one chunk and no multiple of it.
CONTENT = np.random.default_rng(0).bytes(3 * (1 << 20) + 12345)
MD5 = hashlib.md5(CONTENT).hexdigest()
HALF = len(CONTENT) // 2


class Server:
    """Answers every GET with `answer(handler, start)`; `ranges` lists the Range headers it saw."""

    def __init__(self, answer):
        self.ranges = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler):  # self is the server
                asked = handler.headers.get('Range')
                self.ranges.append(asked)
                start = int(asked[len('bytes=') : -1]) if asked else 0
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    answer(handler, start)

            def log_message(self, *args):
                pass

        self._http = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self._http.daemon_threads = True
        self.url = f'http://127.0.0.1:{self._http.server_port}/file.tar.gz'
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self):
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def serve():
    servers = []

    def start(answer):
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def head(handler, status, length):
    handler.send_response(status)
    if length is not None:
        handler.send_header('Content-Length', str(length))
    handler.end_headers()


def sound(handler, start):
    """Ranges are understood."""
    if start >= len(CONTENT):
        handler.send_error(416)
        return
    head(handler, 206 if start else 200, len(CONTENT) - start)
    handler.wfile.write(CONTENT[start:])


def without_ranges(handler, start):
    head(handler, 200, len(CONTENT))
    handler.wfile.write(CONTENT)


def without_length(handler, start):
    head(handler, 200, None)
    handler.wfile.write(CONTENT)


def breaks_in_the_middle(handler, start):
    head(handler, 206 if start else 200, len(CONTENT) - start)
    handler.wfile.write(CONTENT[start : max(HALF, start)])


def breaks_without_length(handler, start):
    head(handler, 200, None)
    handler.wfile.write(CONTENT[:HALF])


def another_file(handler, start):
    head(handler, 200, len(CONTENT))
    handler.wfile.write(CONTENT[::-1])


def half_of_another_file(handler, start):
    head(handler, 200, len(CONTENT))
    handler.wfile.write(CONTENT[::-1][:HALF])


def not_found(handler, start):
    handler.send_error(404)


def stalls(handler, start):
    head(handler, 200, len(CONTENT))
    handler.wfile.write(CONTENT[:1000])
    time.sleep(2)


def part_of(target):
    return target.with_name(target.name + '.part')


@pytest.fixture
def target(tmp_path):
    return tmp_path / 'new' / 'folder' / 'file.tar.gz'


def assert_arrived(target):
    assert target.read_bytes() == CONTENT
    assert [file.name for file in target.parent.iterdir()] == [target.name]


def refused_port():
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        return taken.getsockname()[1]


@pytest.mark.parametrize('answer', [sound, without_ranges, without_length])
def test_a_whole_file_arrives_in_a_folder_that_it_creates(serve, target, answer):
    server = serve(answer)
    download([server.url], target, md5=MD5)
    assert_arrived(target)
    assert server.ranges == [None]


def test_a_broken_download_is_continued_where_it_broke(serve, target):
    broken, whole = serve(breaks_in_the_middle), serve(sound)
    with pytest.raises(OSError, match=r'connection lost|IncompleteRead'):
        download([broken.url], target, md5=MD5)
    assert not target.exists()
    assert part_of(target).read_bytes() == CONTENT[:HALF]
    download([whole.url], target, md5=MD5)
    assert_arrived(target)
    assert whole.ranges == [f'bytes={HALF}-']


def test_the_second_mirror_continues_what_the_first_one_began(serve, target):
    whole = serve(sound)
    download([serve(breaks_in_the_middle).url, whole.url], target, md5=MD5)
    assert_arrived(target)
    assert whole.ranges == [f'bytes={HALF}-']


def test_a_server_that_ignores_ranges_sends_the_whole_file(serve, target):
    target.parent.mkdir(parents=True)
    part_of(target).write_bytes(CONTENT[:HALF])
    server = serve(without_ranges)
    download([server.url], target, md5=MD5)
    assert server.ranges == [f'bytes={HALF}-']
    assert_arrived(target)


def test_a_part_that_is_complete_needs_no_more_bytes(serve, target):
    target.parent.mkdir(parents=True)
    part_of(target).write_bytes(CONTENT)
    download([serve(sound).url], target, md5=MD5)
    assert_arrived(target)


@pytest.mark.parametrize('length', [1000, len(CONTENT), len(CONTENT) + 1000])
def test_an_old_part_of_another_file_does_not_spoil_the_download(serve, target, length):
    target.parent.mkdir(parents=True)
    part_of(target).write_bytes(b'?' * length)
    download([serve(sound).url], target, md5=MD5)
    assert_arrived(target)


@pytest.mark.parametrize(
    'first',
    [another_file, half_of_another_file, breaks_without_length, not_found, stalls],
)
def test_a_bad_first_mirror_is_skipped(serve, target, first):
    download([serve(first).url, serve(sound).url], target, md5=MD5, timeout_s=0.4)
    assert_arrived(target)


def test_a_mirror_that_refuses_the_connection_is_skipped(serve, target):
    refused = f'http://127.0.0.1:{refused_port()}/file.tar.gz'
    download([refused, serve(sound).url], target, md5=MD5)
    assert_arrived(target)


def test_the_first_good_mirror_is_the_only_one_asked(serve, target):
    first, second = serve(sound), serve(sound)
    download([first.url, second.url], target, md5=MD5)
    assert second.ranges == []


@pytest.mark.parametrize(
    ('answer', 'complaint'),
    [
        (not_found, '404'),
        (another_file, 'MD5'),
        (breaks_in_the_middle, 'connection lost|IncompleteRead'),
        (stalls, 'timed out'),
    ],
)
def test_when_every_mirror_fails_there_is_no_file(serve, target, answer, complaint):
    urls = [serve(answer).url, serve(answer).url]
    with pytest.raises(OSError, match=complaint) as caught:
        download(urls, target, md5=MD5, timeout_s=0.4)
    assert urls[-1] in str(caught.value)
    assert '\n' not in str(caught.value)
    assert not target.exists()


def test_a_file_of_the_wrong_md5_leaves_nothing_behind(serve, target):
    with pytest.raises(OSError, match='MD5'):
        download([serve(another_file).url], target, md5=MD5)
    assert list(target.parent.iterdir()) == []


def test_a_refused_connection_is_an_os_error(target):
    with pytest.raises(OSError, match='refused'):
        download([f'http://127.0.0.1:{refused_port()}/file.tar.gz'], target, md5=MD5)
    assert not target.exists()


def test_no_address_is_an_os_error_too(target):
    with pytest.raises(OSError, match='no address'):
        download([], target, md5=MD5)


@pytest.fixture
def proxy(serve, monkeypatch):
    """Go through this server, or through a port without a listener."""

    def through(address, scheme='http'):
        for name in ('http_proxy', 'https_proxy', 'no_proxy', 'REQUEST_METHOD'):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.setenv(f'{scheme}_proxy', address)
        monkeypatch.setattr(urllib.request, '_opener', None)  # which keeps the proxies

    return through


def forbidden(handler, start):
    handler.send_error(403)


def wants_a_password(handler, start):
    handler.send_error(407)


@pytest.mark.parametrize('scheme', ['http', 'https'])
def test_a_missing_proxy_is_named_instead_of_the_server(target, proxy, scheme):
    port = refused_port()
    proxy(f'http://me:secret@127.0.0.1:{port}', scheme)
    with pytest.raises(OSError, match='refused') as caught:
        download([f'{scheme}://example.invalid/file'], target, md5=MD5)
    assert str(caught.value).startswith(
        f'the proxy 127.0.0.1:{port} ({scheme}_proxy) does not reach {scheme}://example.invalid/'
    )
    assert 'secret' not in str(caught.value)


@pytest.mark.parametrize(
    ('answer', 'start'),
    [
        (forbidden, 'http://example.invalid/file, through the proxy 127.0.0.1:{}'),
        (wants_a_password, 'the proxy 127.0.0.1:{} (http_proxy) does not reach http://example.'),
    ],
)
def test_a_proxy_that_refuses_is_named(serve, target, proxy, answer, start):
    server = serve(answer)
    port = server.url.split(':')[2].split('/')[0]
    proxy(f'http://127.0.0.1:{port}')
    with pytest.raises(OSError, match=r'40[37] ') as caught:
        download(['http://example.invalid/file'], target, md5=MD5)
    assert str(caught.value).startswith(start.format(port))


def test_a_proxy_that_refuses_a_tunnel_is_named(serve, target, proxy):
    server = serve(sound)  # which knows no CONNECT
    proxy(server.url.rpartition('/')[0], 'https')
    with pytest.raises(OSError, match='Tunnel connection failed: 501') as caught:
        download(['https://example.invalid/file'], target, md5=MD5)
    assert str(caught.value).startswith('the proxy 127.0.0.1:')
    assert ' (https_proxy) does not reach https://example.invalid/file: ' in str(caught.value)


def test_each_mirror_that_failed_is_named(serve, target, monkeypatch):
    monkeypatch.setenv('no_proxy', '*')
    first, second = serve(not_found), serve(another_file)
    with pytest.raises(OSError, match='; ') as caught:
        download([first.url, second.url], target, md5=MD5)
    text = str(caught.value)
    assert text.startswith(f'{first.url}: 404 ')
    assert f'; {second.url}: MD5 is ' in text
