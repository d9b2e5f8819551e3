"""deploy/server/forms.py: the one file of a form, to the byte."""

from __future__ import annotations

import pytest

from server.errors import BadRequest
from server.forms import file_in_form


def form(*parts: tuple[bytes, bytes], end: bytes = b'--\r\n') -> bytes:
    body = b''.join(b'--XX\r\n' + head + b'\r\n\r\n' + content + b'\r\n' for head, content in parts)
    return body + b'--XX' + end


def file_head(name: str = 'a.jpg') -> bytes:
    head = f'Content-Disposition: form-data; name="file"; filename="{name}"'
    return f'{head}\r\nContent-Type: image/jpeg'.encode()


FIELD = b'Content-Disposition: form-data; name="comment"'
KIND = 'multipart/form-data; boundary=XX'


def test_file_of_a_form_is_found_to_the_byte():
    content = bytes(range(256)) + b'\r\n--X\r\n\r\n--\r\n\n'
    for quoted in (KIND, 'multipart/form-data; charset=utf-8; boundary="XX"'):
        assert file_in_form(quoted, form((file_head(), content))) == content
    with_field = form((FIELD, b'a cat'), (file_head('ä ö.jpg'), content))
    assert file_in_form(KIND, b'preamble\r\n' + with_field + b'epilogue') == content
    assert file_in_form(KIND, form((file_head(), b''))) == b''
    assert file_in_form(KIND, form((FIELD, content))) == content  # of a client that names no file


def test_malicious_content_type_is_refused_before_it_is_parsed():
    """Python's parser takes time proportional to the square, and holds the GIL."""
    for kind in (KIND + ';' * 2000, KIND + '; x="' + ';' * 200_000):
        with pytest.raises(BadRequest, match=r'^a Content-Type of [\d,]+ letters$'):
            file_in_form(kind, form((file_head(), b'x')))


@pytest.mark.parametrize(
    ('kind', 'body', 'says'),
    [
        ('multipart/form-data', form((file_head(), b'x')), 'without a boundary'),
        ("multipart/form-data; boundary*=idna''%ff", b'', 'without a boundary'),
        ("multipart/form-data; boundary*=\0''a", b'', 'without a boundary'),
        ('multipart/form-data; boundary=YY', form((file_head(), b'x')), 'cut short'),
        (KIND, form((file_head(), b'x'), end=b''), 'cut short'),
        (KIND, b'', 'cut short'),
        (KIND, form((file_head(), b'x'))[:-10], 'cut short'),
        (KIND, form(), '0 files'),
        (KIND, form((FIELD, b'x'), (FIELD, b'y')), '0 files'),
        (KIND, form((file_head(), b'x'), (file_head(), b'y')), '2 files'),
        (KIND, form(*[(file_head(), b'x')] * 2000), 'cut short'),
        (KIND, b'--XX\r\nno head\r\n--XX--', '0 files'),
    ],
)
def test_wrong_form_is_refused(kind, body, says):
    with pytest.raises(BadRequest, match=says):
        file_in_form(kind, body)
