"""A picture in the body of a request: the one file of a form, and hints for other bodies."""

from __future__ import annotations

from email.message import Message

from server.errors import BadRequest, require

MAX_PARTS = 1000
MAX_CONTENT_TYPE = 1000  # letters: Python's parser takes time proportional to the square


def file_in_form(content_type: str, body: bytes) -> bytes:
    """The one file of a multipart/form-data body. BadRequest if there is none, or more than one."""
    letters = len(content_type)
    require(letters <= MAX_CONTENT_TYPE, f'a Content-Type of {letters:,} letters')
    message = Message()
    message['Content-Type'] = content_type
    try:
        boundary = message.get_boundary()
    except ValueError:  # it names an encoding that is unknown
        boundary = None
    if not boundary:
        raise BadRequest('multipart/form-data without a boundary')
    mark = b'\r\n--' + boundary.encode('latin-1', 'replace')
    parts = (b'\r\n' + body).split(mark, MAX_PARTS)[1:]
    require(bool(parts) and parts[-1].startswith(b'--'), 'the form is cut short')
    split = [part.partition(b'\r\n\r\n') for part in parts[:-1]]
    fields = [(head.lower(), content) for head, blank, content in split if blank]
    files = [content for head, content in fields if b'filename=' in head or b'filename*=' in head]
    if not files and len(fields) == 1:  # from a client that gives no file name
        files = [fields[0][1]]
    count = len(files)
    require(count == 1, f'the form has {count} files; send one: curl -F file=@picture.jpg')
    return files[0]


def hint(body: bytes) -> str:
    """What is wrong with a body that is text, such as a picture in base64; '' for other bodies."""
    start = body[:64].lstrip()
    if start.startswith(b'data:'):
        return "is a data URL: send the picture's own bytes, what base64 decodes to"
    if start.startswith((b'/9j/', b'iVBORw0KGgo', b'R0lGOD', b'UklGR')):
        return "is base64: send the picture's own bytes"
    if start.startswith((b'{', b'[')):
        return (
            "is JSON: send a picture's bytes (curl --data-binary @picture.jpg); tensors go to "
            '/v2/models/MODEL/infer'
        )
    return ''
