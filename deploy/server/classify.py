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
from server.errors import Refused, require
from server.forms import file_in_form, hint
from server.service import Service, unless_disconnected
from server.uploads import Body

TOP = '5'


@dataclass(frozen=True)
class Decoded:
    """A picture as the graph takes it; width and height of the upright picture."""

    images: np.ndarray  # one
    width: int
    height: int
    seconds: float


class Pictures:
    def __init__(self, service: Service) -> None:
        self._service, self._description = service, service.description

    async def classify(self, request: Request) -> Response:
        """POST /classify?top=5: the classes of the picture in the body."""
        start = time.perf_counter()
        top = request.query_params.get('top', TOP)
        valid = top.isascii() and top.isdecimal() and int(top[:9]) >= 1
        require(valid, 'top: must be a whole number above 0')
        kind = request.headers.get('content-type', '')
        with contextlib.closing(await self._service.uploads.read(request)) as body:
            picture, answer = await unless_disconnected(request, self._run(kind, body))
        self._service.metrics.count_request(start, decode=picture.seconds, queue=answer.queue_s)
        return JSONResponse(self._message(picture, answer, int(top[:9])))

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
        image = self._description.input
        pixels = centre(picture, size=image.size, resize=image.resize)
        images = self._service.predictor.prepare(pixels[np.newaxis])
        return Decoded(images, picture.width, picture.height, time.perf_counter() - start)

    def _message(self, picture: Decoded, answer: Answer, top: int) -> dict[str, Any]:
        probabilities = softmax(answer.logits)[0]
        if not np.isfinite(probabilities).all():
            raise Refused(500, 'failed', "the network's logits are not finite")
        best = np.argsort(-probabilities, kind='stable')[:top].tolist()
        names = self._description.classes
        seconds = {
            'decode': picture.seconds,
            'queue': answer.queue_s,
            'network': answer.network_s,
        }
        return {
            'model': self._description.model,
            'width': picture.width,
            'height': picture.height,
            'classes': [
                {'name': names[i], 'index': i, 'probability': float(probabilities[i])} for i in best
            ],
            'milliseconds': {stage: round(1e3 * s, 3) for stage, s in seconds.items()},
            'batch': answer.batch,
        }

    async def about(self, request: Request) -> Response:
        predictor, limits = self._service.predictor, self._service.limits
        image = self._description.input
        return JSONResponse(
            {
                'model': self._description.model,
                'classes': len(self._description.classes),
                'engine': predictor.engine,
                'reason': predictor.reason,
                'input': {'size': image.size, 'resize': image.resize},
                'accuracy': self._description.accuracy,
                'limits': {'bytes': limits.body_bytes, 'pixels': limits.pixels},
            }
        )
