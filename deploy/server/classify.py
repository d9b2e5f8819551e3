"""POST /classify: a picture -> its most probable classes. GET /about: the model and its limits."""

from __future__ import annotations

import contextlib
import functools
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from predictor import softmax
from predictor.pictures import BadPicture, centre, read_picture
from server.batching import Answer
from server.errors import Refused
from server.forms import file_in_form, hint
from server.service import Service, unless_disconnected
from server.tensors import BadRequest
from server.uploads import Body

TOP = 5


@dataclass(frozen=True)
class Decoded:
    """A picture as the graph takes it; width and height of the upright picture."""

    images: np.ndarray  # one
    width: int
    height: int
    seconds: float


class Pictures:
    """The routes for people."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def classify(self, request: Request) -> Response:
        """POST /classify?top=5: the classes of the picture in the body."""
        start = time.perf_counter()
        top = _top(request)
        kind = request.headers.get('content-type', '')
        with contextlib.closing(await self._service.uploads.read(request)) as body:
            picture, answer = await unless_disconnected(request, self._run(kind, body))
        seconds = self._service.metrics.seconds
        seconds['decode'].observe(picture.seconds)
        seconds['queue'].observe(answer.queue_s)
        seconds['whole'].observe(time.perf_counter() - start)
        return JSONResponse(self._message(picture, answer, top))

    async def about(self, request: Request) -> Response:
        predictor, limits = self._service.predictor, self._service.limits
        description = self._service.description
        image = description.input
        return JSONResponse(
            {
                'model': description.model,
                'classes': len(description.classes),
                'engine': predictor.engine,
                'reason': predictor.reason,
                'input': {'size': image.size, 'resize': image.resize},
                'accuracy': description.accuracy,
                'limits': {'bytes': limits.body_bytes, 'pixels': limits.pixels},
            }
        )

    async def _run(self, content_type: str, body: Body) -> tuple[Decoded, Answer]:
        service, deadline = self._service, self._service.deadline()
        with service.batcher.reserve(1, deadline=deadline) as slot:
            decode = functools.partial(self._decode, content_type)
            picture = await service.in_thread(decode, body, deadline)
            body.close()
            return picture, await slot.run(picture.images)

    def _decode(self, content_type: str, body: bytes) -> Decoded:
        start = time.perf_counter()
        if content_type.lower().startswith('multipart/form-data'):
            body = file_in_form(content_type, body)
        try:
            picture = read_picture(body, max_pixels=self._service.limits.pixels)
        except BadPicture as error:
            raise BadPicture(hint(body) or str(error)) from None
        image = self._service.description.input
        pixels = centre(picture, size=image.size, resize=image.resize)
        images = self._service.predictor.prepare(pixels[np.newaxis])
        return Decoded(images, picture.width, picture.height, time.perf_counter() - start)

    def _message(self, picture: Decoded, answer: Answer, top: int) -> dict[str, Any]:
        probabilities = softmax(answer.logits)[0]
        if not np.isfinite(probabilities).all():
            raise Refused(500, 'failed', "the network's logits are not finite")
        names = self._service.description.classes
        best = np.argsort(-probabilities, kind='stable')[:top].tolist()
        stages = {
            'decode': picture.seconds,
            'queue': answer.queue_s,
            'network': answer.network_s,
        }
        return {
            'model': self._service.description.model,
            'width': picture.width,
            'height': picture.height,
            'classes': [
                {'name': names[i], 'index': i, 'probability': float(probabilities[i])} for i in best
            ],
            'milliseconds': {name: round(1e3 * s, 3) for name, s in stages.items()},
            'batch': answer.batch,
        }


def _top(request: Request) -> int:
    text = request.query_params.get('top', str(TOP))
    if not (text.isascii() and text.isdecimal() and int(text[:9]) >= 1):
        raise BadRequest('top: must be a whole number above 0')
    return int(text[:9])
