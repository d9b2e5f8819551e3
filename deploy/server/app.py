"""The routes: what is asked, and what is answered. Everything an error says is one line of JSON."""

from __future__ import annotations

import asyncio
import functools
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Awaitable, Callable, Sequence, TypeVar

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from predictor import Predictor, machine, softmax
from predictor.pictures import BadPicture, centre, read_picture
from server import VERSION
from server.batching import Answer, Batcher, Closing, Expired
from server.frame import EXPECTED, Frame, error_response, refusal
from server.limits import App, Bodies, Body, Limits, Linger, Refused
from server.metrics import CONTENT_TYPE, Metrics
from server.protocol import (
    EXTENSIONS,
    HEADER_LENGTH,
    VERSIONS,
    BadRequest,
    Signature,
    file_in_form,
    misunderstood,
    read_call,
    write_answer,
)

T = TypeVar('T')

PAGE = Path(__file__).resolve().parent / 'page'
PAGE_FILES = {  # the only files that are served, read when the server starts
    '/': ('index.html', 'text/html'),
    '/page.css': ('page.css', 'text/css'),
    '/page.js': ('page.js', 'text/javascript'),
}
TOP = 5
DECODERS = 4  # at most: a large picture takes a gigabyte while it is decoded


@dataclass(frozen=True)
class Decoded:
    """A picture as the graph takes it, and its size when it is upright."""

    images: np.ndarray
    width: int
    height: int
    seconds: float


class Service:
    """One model, answering requests: `app` for an ASGI server.

    predictors: one for each thread that runs the network
    capacity: images that may wait
    origins: of web pages elsewhere that may ask; '*': any
    """

    def __init__(
        self,
        predictors: Sequence[Predictor],
        limits: Limits,
        *,
        max_batch: int,
        max_delay_s: float,
        capacity: int,
        origins: Sequence[str] = (),
    ) -> None:
        self._first = predictors[0]
        self._description = self._first.description
        self._limits = limits
        threads = min(machine.cores(), DECODERS)
        self._workers = ThreadPoolExecutor(threads, thread_name_prefix='worker')
        self._bodies = Bodies(limits, self._workers)
        self._signature = _signature(self._first, max_batch)
        self._stopping = False
        self.metrics = Metrics(max_batch=max_batch)
        self._batcher = Batcher(
            [predictor.logits for predictor in predictors],
            max_batch=max_batch,
            max_delay_s=max_delay_s,
            capacity=capacity,
            on_batch=self.metrics.saw_batch,
        )
        follow = self.metrics.follow
        follow('classifier_queue_images', 'Images waiting', lambda: self._batcher.depth)
        follow('classifier_bodies_bytes', 'Bodies in memory', lambda: self._bodies.held)
        inner: Any = Linger(self._routes(), limits)
        if origins:
            inner = CORSMiddleware(
                inner,
                allow_origins=origins,
                allow_methods=('GET', 'POST'),
                allow_headers=('*',),
                expose_headers=(HEADER_LENGTH, 'Retry-After'),
            )
        self.app: App = Frame(inner, self.metrics)

    def stop(self) -> None:
        """Be no longer ready. What still comes is answered: who has connected sends it now."""
        self._stopping = True

    def close(self, *, timeout_s: float) -> bool:
        """Answer what waits, and end the threads; whether that was done in time."""
        self._workers.shutdown(wait=False, cancel_futures=True)
        return self._batcher.close(timeout_s=timeout_s)

    def _routes(self) -> Starlette:
        model = '/v2/models/{model}'
        routes = [
            Route('/classify', self.classify, methods=['POST']),
            Route('/about', self.about),
            Route('/metrics', self.tell_metrics),
            Route('/v2', self.server_metadata),
            Route('/v2/health/live', self.live),
            Route('/v2/health/ready', self.ready),
            Route('/v2/models/stats', self.model_statistics),
            Route('/v2/repository/index', self.repository_index, methods=['POST']),
        ]
        for base in (model, model + '/versions/{version}'):
            routes += [
                Route(base, self.model_metadata),
                Route(f'{base}/ready', self.model_ready),
                Route(f'{base}/config', self.model_configuration),
                Route(f'{base}/stats', self.model_statistics),
                Route(f'{base}/infer', self.infer, methods=['POST']),
            ]
        routes.append(Route('/v2/{rest:path}', self.not_offered, methods=['GET', 'POST']))
        routes += [Route(path, _page(*file)) for path, file in PAGE_FILES.items()]
        app = Starlette(routes=routes, exception_handlers=self._handlers())
        app.router.redirect_slashes = False
        return app

    def _handlers(self) -> dict[Any, Any]:
        """An answer for each kind of error."""

        async def refuse(request: Request, error: Exception) -> JSONResponse:
            refused = refusal(error, self._limits)
            self.metrics.refuse(refused.reason)
            return error_response(refused.status, str(refused), refused.headers)

        async def http(request: Request, error: HTTPException) -> JSONResponse:
            return error_response(error.status_code, error.detail.lower(), error.headers)

        async def bug(request: Request, error: Exception) -> JSONResponse:
            return error_response(500, 'a bug of the server; its log says which', None)

        return {**dict.fromkeys(EXPECTED, refuse), HTTPException: http, Exception: bug}

    async def classify(self, request: Request) -> Response:
        """POST /classify?top=5: the classes of the picture in the body."""
        start = time.perf_counter()
        top = min(_top(request), len(self._description.classes))
        with await self._bodies.read(request) as body:
            deadline = self._deadline()
            with self._batcher.place(1, deadline=deadline) as place:
                kind = request.headers.get('content-type', '')
                decode = self._in_worker(deadline, body, functools.partial(self._decode, kind))
                picture = await _unless_gone(request, decode)
                body.release()
                answer = await _unless_gone(request, place.run(picture.images))
        self.metrics.seconds['decode'].observe(picture.seconds)
        self.metrics.seconds['queue'].observe(answer.queue_s)
        self.metrics.seconds['whole'].observe(time.perf_counter() - start)
        return JSONResponse(self._classified(picture, answer, top))

    def _classified(self, picture: Decoded, answer: Answer, top: int) -> dict[str, Any]:
        chances = softmax(answer.logits)[0]
        if not np.isfinite(chances).all():
            raise Refused(500, 'failed', "the network's logits are not finite")
        best = np.argsort(-chances, kind='stable')[:top]
        names = self._description.classes
        stages = {
            'decode': picture.seconds,
            'queue': answer.queue_s,
            'network': answer.network_s,
        }
        return {
            'model': self._description.model,
            'width': picture.width,
            'height': picture.height,
            'classes': [
                {'name': names[i], 'index': int(i), 'probability': float(chances[i])} for i in best
            ],
            'milliseconds': {name: round(1e3 * s, 3) for name, s in stages.items()},
            'batch': answer.batch,
        }

    async def infer(self, request: Request) -> Response:
        """POST /v2/models/{model}/infer: the logits of tensors."""
        start = time.perf_counter()
        self._require_model(request)
        length = request.headers.get(HEADER_LENGTH)
        with await self._bodies.read(request) as body:
            deadline = self._deadline()
            read = functools.partial(read_call, self._signature, header_length=length)
            call = await _unless_gone(request, self._in_worker(deadline, body, read))
            with self._batcher.place(len(call.images), deadline=deadline) as place:
                answer = await _unless_gone(request, place.run(call.images))
        content, head = write_answer(self._signature, call, answer.logits)
        self.metrics.seconds['queue'].observe(answer.queue_s)
        self.metrics.seconds['whole'].observe(time.perf_counter() - start)
        if not call.binary:
            return Response(content, media_type='application/json')
        return Response(
            content, media_type='application/octet-stream', headers={HEADER_LENGTH: str(head)}
        )

    async def about(self, request: Request) -> Response:
        image, limits = self._description.input, self._limits
        return JSONResponse(
            {
                'model': self._description.model,
                'classes': len(self._description.classes),
                'engine': self._first.engine,
                'reason': self._first.reason.partition(f', {machine.CACHE}')[0],  # no paths
                'input': {'size': image.size, 'resize': image.resize},
                'accuracy': self._description.accuracy,
                'limits': {'bytes': limits.body_bytes, 'pixels': limits.pixels},
            }
        )

    async def tell_metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), headers={'Content-Type': CONTENT_TYPE})

    async def server_metadata(self, request: Request) -> Response:
        name = 'wide-resnet-resnext'
        return JSONResponse({'name': name, 'version': VERSION, 'extensions': list(EXTENSIONS)})

    async def live(self, request: Request) -> Response:
        return JSONResponse({'live': True})

    async def ready(self, request: Request) -> Response:
        self._require_open()
        return JSONResponse({'live': True, 'ready': True})

    async def model_metadata(self, request: Request) -> Response:
        self._require_model(request)
        return JSONResponse(self._signature.metadata())

    async def model_ready(self, request: Request) -> Response:
        self._require_model(request)
        self._require_open()
        return JSONResponse({'name': self._description.model, 'ready': True})

    async def model_configuration(self, request: Request) -> Response:
        self._require_model(request)
        return JSONResponse(self._signature.configuration())

    async def model_statistics(self, request: Request) -> Response:
        """Of the time since the start."""
        if 'model' in request.path_params:
            self._require_model(request)
        name = {'name': self._description.model, 'version': VERSIONS[-1]}
        return JSONResponse({'model_stats': [{**name, **self.metrics.statistics()}]})

    async def repository_index(self, request: Request) -> Response:
        state = 'UNAVAILABLE' if self._stopping else 'READY'
        entry = {'name': self._description.model, 'version': VERSIONS[-1], 'state': state}
        return JSONResponse([{**entry, 'reason': 'stopping' if self._stopping else ''}])

    async def not_offered(self, request: Request) -> Response:
        """What Triton has besides: loading of models, shared memory, traces, logs."""
        path = request.path_params['rest'][:100]
        raise Refused(404, 'unknown', f'/v2/{path} is not offered here; GET /v2 says what is')

    def _require_open(self) -> None:
        if self._stopping:
            raise Closing

    def _require_model(self, request: Request) -> None:
        if request.path_params['model'] != self._description.model:
            raise Refused(404, 'unknown', f'no such model; this is {self._description.model}')
        if request.path_params.get('version', VERSIONS[-1]) not in VERSIONS:
            raise Refused(404, 'unknown', f'no such version; there is {", ".join(VERSIONS)}')

    def _deadline(self) -> float:
        return time.monotonic() + self._limits.answer_s

    async def _in_worker(self, deadline: float, body: Body, work: Callable[[bytes], T]) -> T:
        """`work` on the body's bytes in a thread. Expired if its turn or its end comes too late."""

        def in_time() -> T:
            if time.monotonic() > deadline:
                raise Expired
            return body.use(work)

        run = asyncio.get_running_loop().run_in_executor(self._workers, in_time)
        try:
            return await asyncio.wait_for(run, deadline - time.monotonic())
        except asyncio.TimeoutError:
            raise Expired from None

    def _decode(self, content_type: str, body: bytes) -> Decoded:
        start = time.perf_counter()
        if content_type.lower().startswith('multipart/form-data'):
            body = file_in_form(content_type, body)
        try:
            picture = read_picture(body, max_pixels=self._limits.pixels)
        except BadPicture as error:
            raise BadPicture(misunderstood(body) or str(error)) from None
        image = self._description.input
        pixels = centre(picture, size=image.size, resize=image.resize)
        images = self._first.prepare(pixels[np.newaxis])
        return Decoded(images, picture.width, picture.height, time.perf_counter() - start)


def _signature(predictor: Predictor, max_batch: int) -> Signature:
    description = predictor.description
    return Signature(
        model=description.model,
        platform=predictor.engine,
        input=description.input.name,
        type=description.input.type,
        shape=description.input.shape,
        output=description.output,
        labels=tuple(description.classes),
        max_batch=max_batch,
    )


def _page(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = (PAGE / name).read_bytes()

    async def page(request: Request) -> Response:
        return Response(content, media_type=kind)

    return page


def _top(request: Request) -> int:
    text = request.query_params.get('top', str(TOP))
    if not (text.isascii() and text.isdecimal() and int(text[:9]) >= 1):
        raise BadRequest('top: must be a whole number above 0')
    return int(text[:9])


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What the work gives; it is dropped, and ClientDisconnect raised, when the client leaves."""

    async def leaves() -> None:
        while (await request.receive())['type'] != 'http.disconnect':
            pass

    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(leaves())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
