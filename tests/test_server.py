"""deploy/serve.py: a real server, real sockets, well-behaved clients and hostile ones."""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor

import exported
import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image
from serving import (
    CLASSES,
    MODEL,
    SERVE,
    SIZE,
    Client,
    Fake,
    command,
    eventually,
    export_tiny,
    in_thread,
    read_all,
    read_answer,
    status_of,
)

import serve
from predictor import Predictor, console, softmax
from predictor.machine import cores
from predictor.pictures import centre, read_picture
from predictor.version import VERSION
from server import connection
from server.errors import Refused
from server.limits import Limits
from server.uploads import Uploads


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return export_tiny(tmp_path_factory.mktemp('served'))


@pytest.fixture(scope='module')
def predictor(folder):
    return Predictor(folder, engine='paddle', batch=4)


@pytest.fixture(scope='module')
def live(predictor):
    """A server with a real network."""
    with in_thread([predictor.another()], Limits(body_bytes=1 << 20, pixels=1_000_000)) as server:
        yield server


@pytest.fixture
def fake(folder):
    return Fake(folder)


def picture(width: int = 30, height: int = 20, *, format: str = 'PNG', **more) -> bytes:
    rng = np.random.default_rng(width)
    file = io.BytesIO()
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(file, format, **more)
    return file.getvalue()


PICTURE = picture()


def tensor(count: int = 2) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


def request(images: np.ndarray, **more) -> dict:
    given = {'name': 'image', 'datatype': 'FP32', 'shape': list(images.shape)}
    return {'inputs': [{**given, 'data': images.ravel().tolist()}], **more}


def head(size: object, *, path: str = '/classify', more: str = '') -> bytes:
    text = f'POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n{more}\r\n'
    return text.encode()


def in_background(work, *given):
    """The future of a call in a thread of its own."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(work, *given)
    pool.shutdown(wait=False)
    return future


# Pictures


@pytest.mark.parametrize('format', ['JPEG', 'PNG', 'WEBP'])
def test_a_picture_is_classified_as_the_predictor_does(live, predictor, format):
    data = picture(40, 24, format=format)
    pixels = centre(read_picture(data), size=SIZE, resize=SIZE)
    expected = predictor.probabilities(pixels[None])[0]
    reply = live.classify(data, f'/classify?top={CLASSES}')
    assert reply.status == 200
    found = reply.json
    assert list(found) == ['model', 'width', 'height', 'classes', 'milliseconds', 'batch']
    assert (found['model'], found['width'], found['height']) == (MODEL, 40, 24)
    assert found['batch'] == 1
    assert list(found['milliseconds']) == ['decode', 'queue', 'network']
    assert all(0 <= value < 10_000 for value in found['milliseconds'].values())
    order = [entry['index'] for entry in found['classes']]
    assert order == np.argsort(-expected, kind='stable').tolist()
    assert [entry['name'] for entry in found['classes']] == [str(index) for index in order]
    chances = [entry['probability'] for entry in found['classes']]
    np.testing.assert_allclose(chances, expected[order], atol=1e-6)
    assert sum(chances) == pytest.approx(1, abs=1e-5)


def test_different_pictures_get_different_answers(live):
    one, other = (live.classify(picture(width)).json['classes'] for width in (20, 25))
    assert one != other


def test_top_limits_the_number_of_classes(live):
    for text, count in (
        ('', 5),
        ('?top=1', 1),
        ('?top=7', 7),
        ('?top=8', 7),
        ('?top=9999999999', 7),
    ):
        assert len(live.classify(PICTURE, f'/classify{text}').json['classes']) == count
    for text in ('0', '-1', '1.5', 'x', '', '%D9%A3', '1;2'):
        reply = live.classify(PICTURE, f'/classify?top={text}')
        assert (reply.status, reply.error) == (400, 'top: must be a whole number above 0')


def test_width_and_height_follow_the_exif_orientation(live):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    found = live.classify(picture(40, 24, format='JPEG', exif=exif)).json
    assert (found['width'], found['height']) == (24, 40)


def test_content_type_is_ignored(live):
    for kind in ('image/png', 'application/x-www-form-urlencoded', 'text/plain', 'nonsense'):
        assert live.classify(PICTURE, Content_Type=kind).status == 200


def form(*files: bytes, boundary: str = 'XX') -> bytes:
    name = 'Content-Disposition: form-data; name="file"; filename="a.png"'
    parts = [f'--{boundary}\r\n{name}\r\n\r\n'.encode() + data + b'\r\n' for data in files]
    return b''.join(parts) + f'--{boundary}--\r\n'.encode()


def test_form_with_one_file_is_classified(live):
    kind = 'multipart/form-data; boundary=XX'
    plain = live.classify(PICTURE).json['classes']
    assert live.classify(form(PICTURE), Content_Type=kind).json['classes'] == plain
    reply = live.classify(form(PICTURE, PICTURE), Content_Type=kind)
    assert (reply.status, reply.error) == (
        400,
        'the form has 2 files; send one: curl -F file=@picture.jpg',
    )
    assert live.classify(form(PICTURE)[:-9], Content_Type=kind).status == 400
    nameless = form(PICTURE).replace(b'; filename="a.png"', b'')
    assert live.classify(nameless, Content_Type=kind).json['classes'] == plain


def test_chunked_upload_is_classified(live):
    def pieces():
        for start in range(0, len(PICTURE), 100):
            yield PICTURE[start : start + 100]

    reply = live.ask('POST', '/classify', pieces())
    assert reply.json['classes'] == live.classify(PICTURE).json['classes']


def test_expect_100_continue_is_answered(live):
    with live.link() as link:
        link.sendall(head(len(PICTURE), more='Expect: 100-continue\r\n'))
        assert link.recv(65536).startswith(b'HTTP/1.1 100 ')
        link.sendall(PICTURE)
        assert status_of(read_answer(link)) == 200


@pytest.mark.parametrize('pack', [gzip.compress, zlib.compress], ids=['gzip', 'deflate'])
def test_compressed_upload_is_classified(live, pack):
    name = 'gzip' if pack is gzip.compress else 'deflate'
    packed = live.classify(pack(PICTURE), Content_Encoding=name)
    assert packed.json['classes'] == live.classify(PICTURE).json['classes']
    for wrong in (b'', b'x', PICTURE, pack(PICTURE)[:-1], pack(PICTURE) + b'x'):
        reply = live.classify(wrong, Content_Encoding=name)
        assert reply.status == 400
        assert 'packed' in reply.error
    bomb = live.classify(pack(b'\0' * (50 << 20)), Content_Encoding=name)
    assert (bomb.status, bomb.error) == (413, 'the body has more than 1,048,576 bytes')
    most = live.classify(pack(b'\0' * (1 << 20)), Content_Encoding=name)
    assert (most.status, most.error) == (400, 'the body is not a picture')


def test_decompression_stops_at_the_limit():
    bomb = zlib.compress(b'\0' * (100 << 20))
    uploads = Uploads(Limits(body_bytes=1 << 20), ThreadPoolExecutor(1))
    tracemalloc.start()
    try:
        with pytest.raises(Refused, match='more than'):
            uploads._unpack(bomb)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_unknown_content_encoding_is_refused(live):
    reply = live.classify(PICTURE, Content_Encoding='br')
    assert (reply.status, reply.headers['Accept-Encoding']) == (415, 'gzip, deflate')


def png_of(width: int, height: int) -> bytes:
    """The header of one, without pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack('>I', zlib.crc32(name + data))
        return struct.pack('>I', len(data)) + name + data + check

    size = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', size) + chunk(b'IDAT', zlib.compress(b'\0' * 99))


@pytest.mark.parametrize(
    ('data', 'says'),
    [
        (b'', 'the body is empty'),
        (b'hello', 'the body is not a picture'),
        (b'\0' * 1000, 'the body is not a picture'),
        (b'data:image/png;base64,iVBORw0KGgo=', 'is a data URL: send the picture'),
        (b64encode(PICTURE), 'is base64: send the picture'),
        (b'{"image": "..."}', 'is JSON: send a picture'),
        (b'\0\0\0\x0cJXL ' + bytes(100), 'the body is JPEG XL, which is not read here'),
        (picture(64, 64, format='JPEG')[:-400], 'the body is damaged'),
        (PICTURE[:-40], 'the body is damaged'),
        (png_of(50_000, 50_000), 'the body has 50000 x 50000 pixels, more than 1 million'),
        (png_of(1001, 1000), 'the body has 1001 x 1000 pixels, more than 1 million'),
    ],
    ids=[
        'empty',
        'text',
        'zeros',
        'data URL',
        'base64',
        'JSON',
        'JPEG XL',
        'cut jpeg',
        'cut png',
        'bomb',
        'too large',
    ],
)
def test_body_that_is_not_a_picture_is_refused(live, data, says):
    reply = live.classify(data)
    assert reply.status == 400
    assert says in reply.error
    assert live.classify(PICTURE).status == 200


def test_clients_share_batches_and_each_gets_its_own_answer(fake):
    sent = {
        width: centre(read_picture(picture(width)), size=SIZE, resize=SIZE)
        for width in range(20, 32)
    }
    with in_thread([fake]) as server, ThreadPoolExecutor(12) as pool:
        fake.go.clear()
        ask = lambda width: server.classify(picture(width), '/classify?top=7').json  # noqa: E731
        asked = {width: pool.submit(ask, width) for width in sent}
        assert fake.running.wait(10)
        eventually(lambda: server.metric('classifier_queue_images') == 12 - fake.seen[0])
        fake.go.set()
        found = {width: future.result() for width, future in asked.items()}
        assert server.metric('classifier_images_total') == 12
    assert max(fake.seen) <= 4
    assert len(fake.seen) < 7
    for width, pixels in sent.items():
        mean = pixels.astype(np.float32).mean()
        expected = softmax(mean * np.arange(CLASSES, dtype=np.float32)[None])[0]
        best = found[width]['classes'][0]
        assert (best['index'], best['probability']) == (6, pytest.approx(expected[6], abs=1e-4))


# The protocol


def test_server_and_model_metadata(live):
    extensions = ['binary_tensor_data', 'classification', 'model_configuration', 'statistics']
    assert live.get('/v2').json['extensions'] == extensions
    assert set(live.get('/v2').json) == {'name', 'version', 'extensions'}
    assert live.get('/v2').json['version'] == VERSION
    assert live.get('/v2/health/live').json == {'live': True}
    assert live.get('/v2/health/ready').json['ready'] is True
    for base in (f'/v2/models/{MODEL}', f'/v2/models/{MODEL}/versions/1'):
        assert live.get(base).json == {
            'name': MODEL,
            'versions': ['1'],
            'platform': 'paddle',
            'inputs': [{'name': 'image', 'datatype': 'FP32', 'shape': [-1, 3, SIZE, SIZE]}],
            'outputs': [{'name': 'logits', 'datatype': 'FP32', 'shape': [-1, CLASSES]}],
        }
        assert live.get(f'{base}/ready').json == {'name': MODEL, 'ready': True}


def test_infer_with_a_uint8_graph(folder):
    fake = Fake(folder, type='uint8')
    with in_thread([fake]) as server:
        (given,) = server.get(f'/v2/models/{MODEL}').json['inputs']
        assert given == {'name': 'image', 'datatype': 'UINT8', 'shape': [-1, SIZE, SIZE, 3]}
        data = [200] * (SIZE * SIZE * 3)
        asked = {**given, 'shape': [1, SIZE, SIZE, 3], 'data': data}
        (output,) = server.infer({'inputs': [asked]}).json['outputs']
        assert output['data'] == [200.0 * number for number in range(CLASSES)]
        assert server.infer({'inputs': [{**asked, 'data': [-1, *data[1:]]}]}).status == 400


def test_unknown_models_and_versions_are_404(live):
    for path in (
        '/v2/models/other',
        f'/v2/models/{MODEL}/versions/2',
        f'/v2/models/{MODEL.upper()}',
    ):
        for method, end in (('GET', ''), ('GET', '/ready'), ('POST', '/infer')):
            reply = live.ask(method, path + end)
            assert reply.status == 404
            assert reply.error.startswith('no such ')


def test_json_and_binary_tensors_give_the_predictors_logits(live, predictor):
    images = tensor(3)
    expected = predictor.logits(images)
    (output,) = live.infer(request(images, id='7')).json['outputs']
    assert (output['name'], output['datatype'], output['shape']) == ('logits', 'FP32', [3, CLASSES])
    np.testing.assert_allclose(np.reshape(output['data'], output['shape']), expected, atol=1e-5)
    asked = request(images, id='7', parameters={'binary_data_output': True})
    del asked['inputs'][0]['data']
    asked['inputs'][0]['parameters'] = {'binary_data_size': images.nbytes}
    reply = live.infer(asked, images.tobytes())
    assert reply.headers['Content-Type'] == 'application/octet-stream'
    length = int(reply.headers['Inference-Header-Content-Length'])
    response = json.loads(reply.body[:length])
    assert (response['model_name'], response['model_version'], response['id']) == (MODEL, '1', '7')
    assert response['outputs'][0]['parameters'] == {'binary_data_size': 3 * CLASSES * 4}
    found = np.frombuffer(reply.body[length:], '<f4').reshape(3, CLASSES)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_wrong_infer_request_is_400_with_one_line(live):
    """The kinds of mistakes are in test_tensors.py."""
    for asked in (b'', b'{', b'[' * 100_000, b'\xff', request(tensor(5)), {'inputs': []}):
        reply = live.infer(asked)
        assert reply.status == 400
        assert reply.error
    reply = live.infer(request(tensor(1)), Inference_Header_Content_Length='-1')
    assert reply.status == 400
    assert live.infer(request(tensor(1))).status == 200


@pytest.mark.parametrize('packing', [None, 'gzip', 'deflate'])
@pytest.mark.parametrize('binary', [False, True])
def test_tritonclient_infers(live, predictor, binary, packing):
    client = pytest.importorskip('tritonclient.http')
    images = tensor(2)
    with client.InferenceServerClient(f'127.0.0.1:{live.port}') as triton:
        assert triton.is_server_live()
        assert triton.is_server_ready()
        assert triton.is_model_ready(MODEL)
        assert not triton.is_model_ready('other')
        assert 'binary_tensor_data' in triton.get_server_metadata()['extensions']
        assert triton.get_model_metadata(MODEL, '1')['name'] == MODEL
        given = client.InferInput('image', list(images.shape), 'FP32')
        given.set_data_from_numpy(images, binary_data=binary)
        for outputs in (None, [client.InferRequestedOutput('logits', binary_data=binary)]):
            result = triton.infer(
                MODEL,
                [given],
                outputs=outputs,
                request_id='42',
                request_compression_algorithm=packing,
                response_compression_algorithm=packing,
            )
            assert result.get_response()['id'] == '42'
            np.testing.assert_allclose(
                result.as_numpy('logits'), predictor.logits(images), atol=1e-5
            )
        with pytest.raises(Exception, match="it has 'logits'"):
            triton.infer(MODEL, [given], outputs=[client.InferRequestedOutput('other')])
        with pytest.raises(Exception, match="parameter 'sequence_id' is not supported"):
            triton.infer(MODEL, [given], sequence_id=1, sequence_start=True)
        triton.infer(MODEL, [given], priority=1, timeout=10**6)  # they change no answer


def test_tritonclient_config_statistics_and_class_count(live, predictor):
    client = pytest.importorskip('tritonclient.http')
    images = tensor(2)
    with client.InferenceServerClient(f'127.0.0.1:{live.port}') as triton:
        before = triton.get_inference_statistics(MODEL)['model_stats'][0]
        given = client.InferInput('image', list(images.shape), 'FP32')
        given.set_data_from_numpy(images)
        for binary in (True, False):
            requested = client.InferRequestedOutput('logits', binary_data=binary, class_count=3)
            found = triton.infer(MODEL, [given], outputs=[requested]).as_numpy('logits')
            names = predictor.description.classes
            for row, logits in zip(found, predictor.logits(images)):
                texts = [t.decode() if isinstance(t, bytes) else t for t in row]
                order = np.argsort(-logits)[:3]
                assert [text.split(':')[1:] for text in texts] == [
                    [str(i), names[i]] for i in order
                ]
                values = [float(text.split(':')[0]) for text in texts]
                np.testing.assert_allclose(values, logits[order], atol=1e-5)
        assert triton.get_model_config(MODEL) == {
            'name': MODEL,
            'platform': 'paddle',
            'max_batch_size': 4,
            'input': [{'name': 'image', 'data_type': 'TYPE_FP32', 'dims': [3, SIZE, SIZE]}],
            'output': [{'name': 'logits', 'data_type': 'TYPE_FP32', 'dims': [CLASSES]}],
            'dynamic_batching': {},
        }
        after = triton.get_inference_statistics(MODEL, '1')['model_stats'][0]
        assert after['inference_count'] == before['inference_count'] + 4
        assert after['inference_stats']['success']['count'] >= 2
        assert after['inference_stats']['compute_infer']['ns'] > 0
        assert triton.get_inference_statistics()['model_stats'][0]['name'] == MODEL
        (entry,) = triton.get_model_repository_index()
        assert (entry['name'], entry['state']) == (MODEL, 'READY')
        for ask in (triton.get_trace_settings, triton.get_log_settings):
            with pytest.raises(Exception, match='is not offered here'):
                ask()
        with pytest.raises(Exception, match='is not offered here'):
            triton.unload_model(MODEL)
        with pytest.raises(Exception, match='no such model'):
            triton.get_model_config('other')


# The other routes


def test_origin_is_lower_cased_as_browsers_send_it():
    assert serve.origin('HTTPS://Example.org:8443') == 'https://example.org:8443'
    for wrong in ('example.org', 'ftp://a.org', 'https://a.org/', 'null', ''):
        with pytest.raises(argparse.ArgumentTypeError, match='is not an origin'):
            serve.origin(wrong)


def test_cors_allows_only_the_given_origins(fake, live):
    asks = {'Origin': 'https://a.org', 'Access-Control-Request-Method': 'POST'}
    asks['Access-Control-Request-Headers'] = 'content-type'
    allowed = 'Access-Control-Allow-Origin'
    assert live.ask('OPTIONS', '/classify', headers=asks).headers[allowed] is None
    assert live.classify(PICTURE, Origin='https://a.org').headers[allowed] is None
    with in_thread([fake], origins=['https://a.org']) as server:
        reply = server.ask('OPTIONS', '/classify', headers=asks)
        assert (reply.status, reply.headers[allowed]) == (200, 'https://a.org')
        for body, status in ((PICTURE, 200), (b'hello', 400)):
            reply = server.classify(body, Origin='https://a.org')
            assert (reply.status, reply.headers[allowed]) == (status, 'https://a.org')
        assert server.classify(PICTURE, Origin='https://b.org').headers[allowed] is None
        asks['Origin'] = 'https://b.org'
        assert server.ask('OPTIONS', '/classify', headers=asks).status == 400


def test_about_describes_model_and_limits(live):
    assert live.get('/about').json == {
        'model': MODEL,
        'classes': CLASSES,
        'engine': 'paddle',
        'reason': 'as asked for',
        'input': {'size': SIZE, 'resize': SIZE},
        'accuracy': None,
        'limits': {'bytes': 1 << 20, 'pixels': 1_000_000},
    }


def test_page_files_are_served(live):
    page = REPOSITORY / 'deploy' / 'server' / 'page'
    kinds = {'/': 'text/html', '/page.css': 'text/css', '/page.js': 'text/javascript'}
    for path, kind in kinds.items():
        reply = live.get(path)
        assert reply.status == 200
        assert reply.headers['Content-Type'].startswith(kind)
        assert reply.body == (page / (path[1:] or 'index.html')).read_bytes()
        assert live.ask('HEAD', path).body == b''


def test_every_answer_has_the_security_headers(live):
    asked = [('GET', '/'), ('GET', '/nothing'), ('POST', '/about'), ('POST', '/classify')]
    for method, path in asked:
        headers = live.ask(method, path).headers
        policy = headers['Content-Security-Policy']
        assert "default-src 'self'; img-src 'self' blob: data:" in policy
        assert headers['X-Content-Type-Options'] == 'nosniff'
        assert headers['X-Frame-Options'] == 'DENY'
        assert 'Access-Control-Allow-Origin' not in headers
        assert 'Server' not in headers


@pytest.mark.parametrize(
    'path',
    [
        '/nothing',
        '/about/',
        '//about',
        '/../about',
        '/page/index.html',
        '/app.py',
        '/../app.py',
        '/%2e%2e/app.py',
        '/..%2fapp.py',
        '/page/../../app.py',
        '/%2e%2e%2f%2e%2e%2f%2e%2e%2fetc%2fpasswd',
        '/..\\app.py',
        '/page.js%00.html',
        '/v2/models/../../../../etc/passwd',
        '/v2/models/..%2f..%2f..%2fetc%2fpasswd',
        '/v2/models/%2e%2e',
        'http://example.org/app.py',
        '*',
    ],
)
def test_no_path_reaches_the_file_system(live, path):
    answer = live.raw(f'GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n'.encode())
    assert status_of(answer) == 404
    assert json.loads(answer.partition(b'\r\n\r\n')[2])['error']


def test_other_methods_are_405(live):
    for method, path in (
        ('GET', '/classify'),
        ('POST', '/about'),
        ('OPTIONS', '/'),
        ('PUT', '/'),
        ('BREW', '/v2'),
    ):
        reply = live.ask(method, path)
        assert (reply.status, reply.error) == (405, 'method not allowed')
        assert reply.headers['Allow']


def test_metrics_count_requests_images_and_refusals(fake):
    with in_thread([fake]) as server:
        for width in (20, 30):
            assert server.classify(picture(width)).status == 200
        assert server.infer(request(tensor(3))).status == 200
        for number in range(50):
            server.get(f'/secret{number}')
            server.get(f'/v2/models/secret{number}')
            server.ask(f'SECRET{number}', f'/secret{number}')
        server.classify(b'')
        value = server.metric
        assert value('classifier_requests_total{route="classify",status="200"}') == 2
        assert value('classifier_requests_total{route="classify",status="400"}') == 1
        assert value('classifier_requests_total{route="infer",status="200"}') == 1
        assert value('classifier_requests_total{route="none",status="404"}') == 100
        assert value('classifier_refused_total{reason="bad_picture"}') == 1
        assert value('classifier_images_total') == 5
        assert value('classifier_batch_images_count') == 3
        assert value('classifier_batch_images_sum') == 5
        assert value('classifier_batch_images_bucket{le="1.0"}') == 2
        counts = {'decode': 2, 'queue': 3, 'network': 3, 'whole': 3}
        for stage, count in counts.items():
            assert value(f'classifier_seconds_count{{stage="{stage}"}}') == count
        assert value('classifier_queue_images') == 0
        assert value('classifier_bodies_bytes') == 0
        text = server.get('/metrics')
        assert text.headers['Content-Type'].startswith('text/plain; version=0.0.4')
        assert b'ecret' not in text.body.lower()


# Limits


def test_too_large_content_length_is_refused_unread(live):
    for size in ((1 << 20) + 1, 10**9, 10**19):
        with live.link() as link:
            start = time.monotonic()
            link.sendall(head(size, more='Expect: 100-continue\r\n'))
            answer = read_answer(link)
            assert time.monotonic() - start < 1.5
        assert status_of(answer) == 413
        assert b'connection: close' in answer
        assert b'more than 1,048,576 bytes' in answer


@pytest.mark.parametrize('chunked', [False, True], ids=['announced', 'chunked'])
def test_too_large_upload_is_refused_while_it_is_sent(live, chunked):
    """A client that continues to send and reads afterwards gets the answer."""
    sent, piece = 0, b'10000\r\n' + b'\0' * 65536 + b'\r\n'
    with live.link() as link:
        if chunked:
            more = 'Transfer-Encoding: chunked\r\n'
            link.sendall(f'POST /classify HTTP/1.1\r\nHost: x\r\n{more}\r\n'.encode())
        else:
            link.sendall(head(1 << 30))
        answer = b''
        with contextlib.suppress(ConnectionError):
            while sent < 1 << 30 and not answer:
                link.sendall(piece)
                sent += len(piece)
                link.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    answer = link.recv(65536)
                link.settimeout(20)
        answer += read_all(link)
        assert sent < 64 << 20
        assert status_of(answer) == 413
    assert live.classify(PICTURE).status == 200


def test_client_that_continues_to_send_is_slowed_down_and_dropped(live):
    sent, piece = 0, b'10000\r\n' + b'\0' * 65536 + b'\r\n'
    with live.link() as link:
        start = time.monotonic()
        link.sendall(b'POST /nothing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n')
        with contextlib.suppress(ConnectionError):
            while sent < 1 << 30:
                link.sendall(piece)
                sent += len(piece)
        assert time.monotonic() - start < 10
    assert sent < 32 << 20  # mostly what fits into the buffers of the system


def test_client_that_reads_only_after_sending_gets_the_answer(live):
    """As http.client does. It works with some megabytes."""
    for path, status in (('/classify', 413), ('/nothing', 404), ('/about', 405)):
        assert live.classify(b'\0' * (3 << 19), path).status == status


@pytest.mark.skipif(shutil.which('curl') is None, reason='needs curl')
def test_curl_gets_the_answer_to_a_refused_upload(live, tmp_path):
    (tmp_path / 'large').write_bytes(b'\0' * (64 << 20))
    for options in ([], ['-H', 'Expect:'], ['-H', 'Transfer-Encoding: chunked']):
        url = f'http://127.0.0.1:{live.port}/classify'
        what = ['--data-binary', f'@{tmp_path}/large', '-s', '-w', '%{http_code}']
        run = subprocess.run(['curl', *what, *options, url], capture_output=True, text=True)
        assert run.stdout == '{"error":"the body has more than 1,048,576 bytes"}413'


def test_memory_of_all_uploads_together_is_limited(fake):
    """A Content-Length reserves nothing, or a few idle clients would block all others."""
    limits = Limits(body_bytes=1 << 20)
    with in_thread([fake], limits) as server, contextlib.ExitStack() as stack:
        links = [stack.enter_context(server.link()) for _ in range(20)]
        for link in links:
            link.sendall(head(1 << 20) + b'\0' * 1000)
        eventually(lambda: server.metric('classifier_bodies_bytes') == 20_000)
        assert server.classify(PICTURE).status == 200
        for link in links[:15]:
            link.sendall(b'\0' * ((1 << 20) - 1001))
        links[15].sendall(b'\0' * ((1 << 20) - 7000))
        eventually(lambda: server.metric('classifier_bodies_bytes') == (16 << 20) - 2015)
        large = picture(100, 100)
        reply = server.classify(large)
        assert (reply.status, reply.headers['Retry-After']) == (503, '1')
        assert reply.error == 'too many uploads at once; try again'
        links[0].close()
        eventually(lambda: server.metric('classifier_bodies_bytes') < 15 << 20)
        assert server.classify(large).status == 200
        packed = gzip.compress(large)  # it may unpack to the largest size
        assert server.classify(packed, Content_Encoding='gzip').status == 503
        for link in links:
            link.close()
        eventually(lambda: server.metric('classifier_bodies_bytes') == 0)


def test_memory_is_released_after_every_kind_of_request(fake):
    limits = Limits(body_bytes=1 << 20)
    with in_thread([fake], limits) as server:
        for body in (PICTURE, b'hello', b'', b'\0' * (2 << 20)):
            server.classify(body)
            server.infer(body or b'x')
            server.classify(body, Content_Encoding='gzip')
        assert server.metric('classifier_bodies_bytes') == 0
        assert server.metric('classifier_queue_images') == 0


def test_uploads_of_disconnected_clients_are_freed(fake, monkeypatch):
    """Also those in the queue of the decoding threads."""
    go, size = threading.Event(), 1 << 20
    monkeypatch.setattr('server.classify.read_picture', lambda *_, **__: go.wait(20) and 1 / 0)
    threads = min(cores(), 4)
    with in_thread([fake], Limits(body_bytes=size), queue=100) as server:
        tracemalloc.start()
        try:
            for _ in range(12):
                with server.link() as link:
                    link.sendall(head(size) + bytes(size))
                    eventually(lambda: server.metric('classifier_queue_images') > 0)
                eventually(lambda: server.metric('classifier_queue_images') == 0)
            assert server.metric('classifier_bodies_bytes') == threads * size
            assert tracemalloc.get_traced_memory()[0] < (threads + 4) * size
        finally:
            tracemalloc.stop()
            go.set()
        eventually(lambda: server.metric('classifier_bodies_bytes') == 0)


def test_upload_counts_while_a_thread_decodes_it_after_disconnect(fake, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr('server.classify.read_picture', lambda *_, **__: go.wait(20) and 1 / 0)
    with in_thread([fake]) as server:
        with server.link() as link:
            link.sendall(head(len(PICTURE)) + PICTURE)
            eventually(lambda: server.metric('classifier_queue_images') == 1)
        eventually(lambda: server.metric('classifier_queue_images') == 0)
        assert server.metric('classifier_bodies_bytes') == len(PICTURE)
        go.set()
        eventually(lambda: server.metric('classifier_bodies_bytes') == 0)


def test_slow_body_is_408(fake):
    with in_thread([fake], Limits(body_s=0.3)) as server, server.link() as link:
        start = time.monotonic()
        link.sendall(head(100) + b'x')
        answer = read_answer(link)
        assert 0.25 < time.monotonic() - start < 3
        assert status_of(answer) == 408
        assert b'the body did not arrive within 0.3 s' in answer


@pytest.mark.parametrize('sent', [b'', b'GET /about HTTP/1.1\r\nHost'])
def test_connection_without_a_complete_head_is_dropped(fake, sent):
    with in_thread([fake], Limits(head_s=0.3)) as server:
        with server.link() as link:
            start = time.monotonic()
            link.sendall(sent)
            assert read_all(link) == b''
            assert 0.25 < time.monotonic() - start < 3
        assert server.metric('classifier_refused_total{reason="slow_client"}') == 1


def test_head_sent_byte_by_byte_is_dropped(fake):
    with in_thread([fake], Limits(head_s=0.3)) as server, server.link() as link:
        start = time.monotonic()
        with pytest.raises(ConnectionError):  # noqa: PT012
            while time.monotonic() - start < 5:
                link.sendall(b'G')
                time.sleep(0.05)
        assert time.monotonic() - start < 3


def test_slow_head_of_a_second_request_is_dropped(fake):
    with in_thread([fake], Limits(head_s=0.5)) as server, server.link() as link:
        link.sendall(b'GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n')
        assert status_of(read_answer(link)) == 200
        start = time.monotonic()
        link.sendall(b'GET /v2 HTT')
        assert read_all(link) == b''
        assert time.monotonic() - start < 3


def test_answer_may_take_longer_than_the_head_timeout(fake):
    with in_thread([fake], Limits(head_s=0.2)) as server:
        fake.go.clear()
        asked = in_background(server.classify, PICTURE)
        time.sleep(0.6)
        fake.go.set()
        assert asked.result(10).status == 200


def test_client_that_never_reads_is_dropped(fake):
    with in_thread([fake], Limits(head_s=0.5)) as server, server.link() as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.settimeout(0.5)
        with contextlib.suppress(OSError):
            for _ in range(100_000):
                link.sendall(b'GET /page.js HTTP/1.1\r\nHost: x\r\n\r\n')
        eventually(lambda: not server.server.server_state.connections, timeout_s=15)


def test_too_many_connections_are_503(fake):
    with in_thread([fake], Limits(connections=5)) as server, contextlib.ExitStack() as stack:
        links = [stack.enter_context(server.link()) for _ in range(5)]
        eventually(lambda: len(server.server.server_state.connections) == 5)
        answer = server.raw(b'')
        assert status_of(answer) == 503
        assert b'Retry-After: 1' in answer
        assert json.loads(answer.partition(b'\r\n\r\n')[2])['error'].startswith('too many conn')
        links[0].close()
        eventually(lambda: len(server.server.server_state.connections) == 4)
        assert server.get('/v2').status == 200


def test_more_connections_than_open_files_are_503(folder):
    """The server keeps spare descriptors, so that accepting cannot fail."""
    with command(folder, files=600) as server, contextlib.ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(server.link())
        assert server.get('/v2').status == 503
        stack.close()
        eventually(lambda: server.get('/v2').status == 200)
        assert server.classify(PICTURE).status == 200
        server.process.terminate()
        assert server.end()[2] == ''


MALFORMED = [
    b'\0' * 100,
    b'hello\r\n\r\n',
    b'GET\r\n\r\n',
    b'GET / HTTP/1.1\r\n\r\n',  # no host
    b'GET / HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n',
    b'GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n',
    b'GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 2\r\n\r\n',
    b'GET / HTTP/1.1\r\nHost: x\r\nContent-Length: ' + b'9' * 5000 + b'\r\n\r\n',
    b'GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, gzip\r\n\r\n',
    b'GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n',
    b'GET / HTTP/1.1\r\n' + b'X: ' + b'y' * 200_000 + b'\r\n\r\n',
    b'GET /' + b'y' * 200_000,
    b'GET / HTTP/1.1\r\n' + b'X: y\r\n' * 100_000 + b'\r\n',
    b'POST /classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n',
    b'POST /classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n',
    b'POST /classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;' + b'e' * 200_000,
    b'POST /classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n'
    + b'T: '
    + b'y' * 200_000,
    b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03' + b'\0' * 500,  # TLS
]


@pytest.mark.parametrize('data', MALFORMED, ids=lambda data: repr(data[:40]))
def test_malformed_http_is_400(live, caplog, data):
    with live.link() as link:
        with contextlib.suppress(ConnectionError):
            link.sendall(data)
        answer = read_all(link)
    if answer:  # otherwise the connection was reset while more data was on its way
        assert status_of(answer) == 400
        assert json.loads(answer.partition(b'\r\n\r\n')[2]) == {'error': 'not a valid HTTP request'}
    assert len(data) > 1000 or answer
    assert live.get('/v2').status == 200
    assert not caplog.records


def test_malformed_rest_of_a_refused_upload_ends_the_connection(live, caplog):
    """The answer has begun, so no second one is sent."""
    with live.link() as link:
        link.sendall(b'POST /nothing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n')
        answer = read_answer(link)
        link.sendall(b'ZZ\r\n')
        assert read_all(link) == b''
    assert status_of(answer) == 404
    assert not caplog.records


def test_upgrades_are_ignored(live):
    more = 'Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nConnection: close'
    answer = live.raw(f'GET /v2 HTTP/1.1\r\nHost: x\r\n{more}\r\n\r\n'.encode())
    assert status_of(answer) == 200


def test_keep_alive_and_pipelined_requests_are_answered(live):
    """All sent at once."""
    one = b'GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n'
    last = b'GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n'
    upload = head(len(PICTURE)) + PICTURE
    answers = live.raw(one * 20 + upload + one * 5 + last)
    assert re.findall(rb'HTTP/1.1 (\d+)', answers) == [b'200'] * 27
    assert answers.count(b'"probability"') == 5


def test_full_queue_is_503(fake):
    with in_thread([fake], max_batch=1, queue=2) as server:
        fake.go.clear()
        asked = [in_background(server.classify, PICTURE)]
        assert fake.running.wait(10)
        asked += [in_background(server.classify, PICTURE) for _ in range(2)]
        eventually(lambda: server.metric('classifier_queue_images') == 2)
        for reply in (server.classify(PICTURE), server.infer(request(tensor(1)))):
            assert (reply.status, reply.headers['Retry-After']) == (503, '1')
            assert reply.error == 'too many images are waiting; try again'
        assert server.get('/v2/health/ready').status == 200
        fake.go.set()
        assert [future.result(10).status for future in asked] == [200] * 3
        assert server.metric('classifier_refused_total{reason="queue"}') == 2


def test_late_answer_is_504(fake):
    with in_thread([fake], Limits(answer_s=0.3), max_batch=1) as server:
        fake.go.clear()
        running = in_background(server.classify, PICTURE)
        assert fake.running.wait(10)
        reply = server.classify(PICTURE)
        assert (reply.status, reply.error) == (504, 'no answer within 0.3 s')
        assert running.result(10).status == 504
        fake.go.set()
        assert server.classify(PICTURE).status == 200
    assert fake.seen == [1, 1]  # the second one was not run


def test_expired_picture_is_not_decoded(fake, monkeypatch):
    go, decoded = threading.Event(), []

    def prepare(pixels: np.ndarray) -> np.ndarray:
        decoded.append(pixels)
        assert go.wait(20)
        return pixels

    monkeypatch.setattr(fake, 'prepare', prepare)
    with in_thread([fake], Limits(answer_s=1.0)) as server:
        asked = [in_background(server.classify, PICTURE) for _ in range(cores() + 1)]
        eventually(lambda: server.metric('classifier_queue_images') == len(asked))
        eventually(lambda: len(decoded) == cores())
        time.sleep(1.1)
        go.set()
        assert {future.result(10).status for future in asked} == {504}
    assert len(decoded) == cores()
    assert fake.seen == []


def test_slow_decoding_is_504_in_time(fake, monkeypatch):
    go, prepare = threading.Event(), fake.prepare

    def slow(pixels: np.ndarray) -> np.ndarray:
        assert go.wait(20)
        return prepare(pixels)

    monkeypatch.setattr(fake, 'prepare', slow)
    with in_thread([fake], Limits(answer_s=0.5)) as server:
        reply = server.classify(PICTURE)
        assert (reply.status, reply.error) == (504, 'no answer within 0.5 s')
        assert server.metric('classifier_queue_images') == 0
        go.set()
        assert server.classify(PICTURE).status == 200


def test_request_of_a_disconnected_client_is_not_run(fake):
    with in_thread([fake], max_batch=1) as server:
        fake.go.clear()
        running = in_background(server.classify, PICTURE)
        assert fake.running.wait(10)
        with server.link() as link:
            link.sendall(head(len(PICTURE)) + PICTURE)
            eventually(lambda: server.metric('classifier_queue_images') == 1)
        eventually(lambda: server.metric('classifier_queue_images') == 0)
        fake.go.set()
        assert running.result(10).status == 200
        assert server.classify(PICTURE).status == 200
        assert server.metric('classifier_requests_total{route="classify",status="499"}') == 1
    assert fake.seen == [1, 1]


def test_failing_network_is_500(fake, caplog):
    with in_thread([fake]) as server:
        fake.error = RuntimeError('out of memory')
        for reply in (server.classify(PICTURE), server.infer(request(tensor(1)))):
            assert reply.status == 500
            assert reply.error == 'the network failed; see the log of the server'
        fake.error = None
        assert server.classify(PICTURE).status == 200
    errors = [str(record.exc_info[1]) for record in caplog.records]
    assert errors == ['out of memory'] * 2


@pytest.mark.filterwarnings('ignore')
def test_non_finite_logits_are_an_error(fake, monkeypatch):
    with in_thread([fake]) as server:
        images = np.full((1, 3, SIZE, SIZE), 3e38, np.float32)
        reply = server.infer(request(images))
        assert reply.status == 400
        assert 'not finite' in reply.error
        monkeypatch.setattr(fake, 'prepare', lambda pixels: np.full((1, 4), np.inf, np.float32))
        reply = server.classify(PICTURE)
        assert (reply.status, reply.error) == (500, "the network's logits are not finite")


def test_internal_error_is_logged_and_not_shown(fake, caplog, monkeypatch):
    with in_thread([fake]) as server:
        monkeypatch.setattr(fake, 'prepare', lambda pixels: 1 / 0)
        reply = server.classify(PICTURE)
        assert (reply.status, reply.error) == (500, 'internal error; see the log of the server')
        assert reply.headers['X-Content-Type-Options'] == 'nosniff'
        assert server.metric('classifier_requests_total{route="classify",status="500"}') == 1
        assert server.metric('classifier_queue_images') == 0
    assert 'ZeroDivisionError' in caplog.text


def burst(server: Client, count: int, *, at_once: int) -> dict[int, int]:
    """`count` uploads, each on a connection of its own: status -> how many got it."""
    statuses: dict[int, int] = {}
    lock, numbers = threading.Lock(), iter(range(count))
    data = picture(200, 150, format='JPEG')

    def work() -> None:
        while True:
            with lock:
                if next(numbers, None) is None:
                    return
            status = server.classify(data).status
            with lock:
                statuses[status] = statuses.get(status, 0) + 1

    threads = [threading.Thread(target=work) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


def check_burst(folder, count: int, *, at_once: int) -> None:
    with command(folder, '--queue', '4', '--max-batch', '2') as server:
        assert server.classify(PICTURE).status == 200
        burst(server, 100, at_once=20)
        before = server.resident()
        statuses = burst(server, count, at_once=at_once)
        assert sum(statuses.values()) == count
        assert set(statuses) <= {200, 503, 504}
        assert statuses[200] > 0
        assert server.classify(PICTURE).status == 200
        assert server.metric('classifier_queue_images') == 0
        assert server.metric('classifier_bodies_bytes') == 0
        assert server.resident() - before < 64 << 20
        server.process.terminate()
        code, _, err = server.end()
        assert (code, err) == (0, '')


def test_burst_of_requests_leaves_memory_bounded(folder):
    check_burst(folder, 500, at_once=50)


@pytest.mark.slow
def test_burst_of_thousands_leaves_memory_bounded(folder):
    check_burst(folder, 6000, at_once=300)


@pytest.mark.slow
def test_thousand_endless_uploads_leave_memory_bounded(folder):
    """Each announces 16 MB and sends a little; other clients are still answered."""
    with command(folder) as server, contextlib.ExitStack() as stack:
        assert server.classify(PICTURE).status == 200
        before = server.resident()
        for number in range(1500):
            try:
                link = stack.enter_context(server.link())
                link.sendall(head(16 << 20) + b'\0' * 100_000)
            except OSError:
                continue
            if number % 100 == 0:
                assert server.resident() - before < 300 << 20
        assert server.get('/v2/health/live').status in (200, 503)
        stack.close()
        eventually(lambda: server.metric('classifier_bodies_bytes') == 0)
        assert server.classify(PICTURE).status == 200


# Start and stop


def half_sent(server: Client) -> socket.socket:
    link = server.link()
    link.sendall(head(len(PICTURE)) + PICTURE[:100])
    eventually(lambda: server.metric('classifier_bodies_bytes') == 100)
    return link


def test_signal_lets_requests_in_flight_finish(folder):
    """SIGTERM; the next test sends SIGINT."""
    with command(folder) as server:
        link, idle = half_sent(server), server.link()
        server.process.terminate()
        assert read_all(idle) == b''  # it has sent no request
        with pytest.raises(ConnectionError):
            server.link()
        link.sendall(PICTURE[100:])
        assert status_of(read_all(link)) == 200
        code, out, err = server.end()
        assert (code, err) == (0, '')
        assert out == 'stopping: answering open requests; a second signal ends at once\n'


def test_second_signal_ends_at_once(folder):
    with command(folder) as server:
        half_sent(server)
        server.process.send_signal(signal.SIGINT)
        assert 'stopping' in server.process.stdout.readline()
        start = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        code, _, err = server.end(timeout_s=10)
        assert (code, err) == (-signal.SIGINT, '')
        assert time.monotonic() - start < 3


def test_drain_timeout_answers_503(fake, caplog):
    """A client that never sends its body gets 503 when the server ends."""
    with in_thread([fake], drain_s=1) as server:
        link = half_sent(server)
        start = time.monotonic()
        server.stop()
        assert time.monotonic() - start < 5
        answer = read_all(link)
        assert status_of(answer) == 503
        assert b'the server has stopped' in answer
    assert 'Traceback' not in caplog.text


def test_stopping_server_is_not_ready_but_answers(fake):
    with in_thread([fake]) as server:
        server.service.stop()
        for path in ('/v2/health/ready', f'/v2/models/{MODEL}/ready'):
            assert server.get(path).status == 503
            assert server.get(path).headers['Retry-After'] == '1'
        assert server.get('/v2/health/live').status == 200
        assert server.classify(PICTURE).status == 200
        assert server.infer(request(tensor(1))).status == 200


def test_stop_drops_no_connected_client(fake, monkeypatch):
    """Sixteen clients that make a connection for each request; later connections are refused."""
    monkeypatch.setattr(connection, 'LAST_S', 10)  # the machine may be busy
    ends = []

    def ask_until_the_end(server: Client) -> None:
        with contextlib.suppress(ConnectionRefusedError):
            while True:
                with server.link() as link:
                    try:
                        link.sendall(head(len(PICTURE)) + PICTURE)
                        ends.append(status_of(read_answer(link)))
                    except (OSError, AssertionError) as error:
                        ends.append(error)

    with in_thread([fake]) as server:
        clients = [in_background(ask_until_the_end, server) for _ in range(16)]
        waiting = server.link()  # it has connected, and sends a moment later
        eventually(lambda: len(ends) > 100)
        server.server.should_exit = True
        time.sleep(0.2)
        waiting.sendall(head(len(PICTURE)) + PICTURE)
        assert status_of(read_all(waiting)) == 200
        for client in clients:
            client.result(20)
    assert set(ends) == {200}


# Connections


@pytest.mark.parametrize('version', ['1.0', '1.1'])
def test_half_closed_client_is_answered(fake, version):
    fake.go.clear()
    with in_thread([fake]) as server, server.link() as link:
        link.sendall(head(len(PICTURE)).replace(b'HTTP/1.1', f'HTTP/{version}'.encode()) + PICTURE)
        link.shutdown(socket.SHUT_WR)
        assert fake.running.wait(10)
        time.sleep(0.15)
        fake.go.set()
        answer = read_all(link)
        parts = answer.split(b'HTTP/1.1 100 Continue\r\n\r\n')
        assert (len(parts) > 1) == (version == '1.1')  # HTTP 1.0 has no such answer
        assert status_of(parts[-1]) == 200


@pytest.mark.parametrize(
    'line',
    [
        'GET http://x:1/about HTTP/1.1',
        'GET HTTPS://x/about?a=http://y HTTP/1.1',
        '\r\nGET /about HTTP/1.1',
        '\r\n\r\nGET /about HTTP/1.1',
    ],
)
def test_absolute_urls_and_leading_blank_lines_are_accepted(live, line):
    answer = live.raw(f'{line}\r\nHost: x\r\nConnection: close\r\n\r\n'.encode())
    assert status_of(answer) == 200
    assert MODEL.encode() in answer


FIRST = head(len(PICTURE)) + PICTURE
SECOND = b'GET /about HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n'


@pytest.mark.parametrize(
    'pieces',
    [
        [FIRST + b'\r\n', SECOND],
        [FIRST, b'\r\n', SECOND],
        [FIRST + b'\r\n\r\n' + SECOND],
        [FIRST, b'\r', b'\n' + SECOND],
        [FIRST + b'\r\n\r', b'\n', SECOND],
    ],
)
def test_blank_lines_between_requests_are_ignored(live, pieces):
    """Old browsers sent one after a form."""
    with live.link() as link:
        for piece in pieces:
            link.sendall(piece)
            time.sleep(0.05)
        assert re.findall(rb'HTTP/1.1 (\d+)', read_all(link)) == [b'200', b'200']


def test_blank_lines_alone_do_not_keep_a_connection(fake):
    with in_thread([fake], Limits(head_s=0.3)) as server, server.link() as link:
        for _ in range(3):
            link.sendall(b'\r\n' * 10_000 + b'\r')
            link.sendall(b'\n')
        assert read_all(link) == b''
        assert server.metric('classifier_refused_total{reason="slow_client"}') == 1


# The command line


def refused(*arguments: str) -> str:
    """The one line of a start that fails with exit code 2, without the command's name."""
    run = subprocess.run(
        [sys.executable, SERVE, *arguments], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 2
    assert 'Traceback' not in run.stderr
    return run.stderr.splitlines()[-1].removeprefix('serve.py: ')


def test_command_prints_engine_and_url(folder):
    with command(folder, '--instances', '2', '--timeout-s', '0.5', '--max-body-mb', '2') as server:
        assert server.lines[0] == 'engine: paddle (as asked for)\n'
        url = f'http://127.0.0.1:{server.port}/'
        assert server.lines[-1] == f'{MODEL}: {url} (Ctrl-C ends it)\n'
        assert server.get('/about').json['limits'] == {'bytes': 2 << 20, 'pixels': 64_000_000}
        assert len(server.classify(PICTURE).json['classes']) == 5


def test_wrong_arguments_are_one_line(folder, tmp_path, monkeypatch, capsys):
    def refused(*arguments: str) -> str:
        """The one line of a start in this process that fails with exit code 2."""
        monkeypatch.setattr(sys, 'argv', ['serve.py', *arguments])
        with pytest.raises(SystemExit) as end:
            console.run(serve.main)
        assert end.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    good = str(folder)
    assert 'is not a folder' in refused(str(tmp_path / 'nothing'))
    assert 'has no inference.yml' in refused(str(tmp_path))
    assert '--queue 8 is less than a batch' in refused(good, '--queue', '8')
    assert 'above 0' in refused(good, '--max-batch', '0')
    assert 'above 0' in refused(good, '--timeout-s', 'nan')
    assert 'above 0' in refused(good, '--max-delay-ms', '-1')
    assert 'is not an origin' in refused(good, '--cors', 'http://a.org/page')
    assert 'not a port' in refused(good, '--port', '65536')
    assert 'cannot listen on 192.0.2.1, port 8000' in refused(good, '--host', '192.0.2.1')
    assert 'cannot listen on no.such.invalid' in refused(good, '--host', 'no.such.invalid')
    assert 'cannot listen on' in refused(good, '--host', 'x' * 100)


def test_port_in_use_is_one_line(folder):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        start = time.monotonic()
        text = refused(str(folder), '--port', str(port))
    assert text == f'cannot listen on 127.0.0.1, port {port}: Address already in use'
    assert time.monotonic() - start < 5  # no engine was started


def test_help_imports_no_framework():
    code = (
        'import sys, runpy; sys.argv = [sys.argv[1], "--help"]\n'
        'sys.path.insert(0, sys.argv[0].rpartition("/")[0])\n'
        'try: runpy.run_path(sys.argv[0], run_name="__main__")\n'
        'except SystemExit as end: assert not end.code\n'
        'heavy = {"paddle", "onnxruntime", "openvino", "tensorrt", "uvicorn", "starlette"}\n'
        'print(sorted(heavy & set(sys.modules)))\n'
    )
    run = subprocess.run([sys.executable, '-c', code, SERVE], capture_output=True, text=True)
    assert run.stdout.endswith('\n[]\n'), run.stderr
    assert '--max-delay-ms' in run.stdout


@pytest.mark.skipif(not exported.HAS_ONNX, reason='paddle2onnx or onnxruntime is not installed')
def test_runs_without_the_modules_that_windows_lacks():
    driver = str(REPOSITORY / 'tests' / 'as_on_windows.py')
    with command(exported.folder(), '--engine', 'onnxruntime', through=[driver]) as server:
        assert server.classify(PICTURE).status == 200
        server.process.send_signal(signal.SIGINT)
        code, _, err = server.end()
        assert (code, err) == (0, '')


def test_closed_standard_output_is_no_error(folder):
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    arguments = [sys.executable, SERVE, str(folder), '--port', str(port), '--engine', 'paddle']
    server = subprocess.Popen(
        ['sh', '-c', 'exec "$@" >&-', 'sh', *arguments], stderr=subprocess.PIPE, text=True
    )

    def listens() -> bool:
        with contextlib.suppress(ConnectionError):
            return Client(port).get('/v2/health/ready').status == 200
        return False

    try:
        eventually(listens, timeout_s=60)
        assert Client(port).classify(PICTURE).status == 200
        server.terminate()
        assert server.communicate(timeout=30) == (None, '')
        assert server.returncode == 0
    finally:
        server.kill()
        server.communicate()


def test_deploy_imports_nothing_of_the_repository(folder, tmp_path):
    """A copy of deploy/ alone, started from another folder."""
    import shutil

    shutil.copytree(REPOSITORY / 'deploy', tmp_path / 'copy')
    code = f'import sys; sys.path.insert(0, {str(tmp_path / "copy")!r}); import server.routes'
    environment = {**os.environ, 'PYTHONPATH': ''}
    run = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, '')
