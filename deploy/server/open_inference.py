"""/v2: the routes of the Open Inference Protocol v2, as KServe and Triton have them."""

from __future__ import annotations

import contextlib
import functools
import time
from typing import Optional

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from predictor.version import VERSION as SERVER_VERSION
from server.batching import Answer
from server.errors import Refused
from server.service import Service, unless_disconnected
from server.tensors import (
    HEADER_LENGTH,
    VERSION,
    InferRequest,
    Signature,
    read_request,
    write_response,
)
from server.uploads import Body

EXTENSIONS = ('binary_tensor_data', 'classification', 'model_configuration', 'statistics')


class OpenInference:
    def __init__(self, service: Service) -> None:
        description = service.description
        self._service, self._model = service, description.model
        self._signature = Signature(
            model=description.model,
            input=description.input.name,
            type=description.input.type,
            shape=description.input.shape,
            output=description.output,
            labels=tuple(description.classes),
            max_batch=service.limits.max_batch,
        )

    async def infer(self, request: Request) -> Response:
        """POST /v2/models/{model}/infer: the logits of tensors."""
        start = time.perf_counter()
        self._require_model(request)
        length = request.headers.get(HEADER_LENGTH)
        with contextlib.closing(await self._service.uploads.read(request)) as body:
            asked, answer = await unless_disconnected(request, self._run(length, body))
        content, head = write_response(self._signature, asked, answer.logits)
        self._service.metrics.count_request(start, queue=answer.queue_s)
        if not asked.binary:
            return Response(content, media_type='application/json')
        headers = {HEADER_LENGTH: str(head)}
        return Response(content, media_type='application/octet-stream', headers=headers)

    async def _run(self, length: Optional[str], body: Body) -> tuple[InferRequest, Answer]:
        service, deadline = self._service, self._service.deadline()
        read = functools.partial(read_request, self._signature, header_length=length)
        asked = await service.in_thread(read, body, deadline)
        with service.batcher.reserve(len(asked.images), deadline=deadline) as slot:
            return asked, await slot.run(asked.images)

    async def server_metadata(self, request: Request) -> Response:
        name = 'wide-resnet-resnext'
        metadata = {'name': name, 'version': SERVER_VERSION, 'extensions': list(EXTENSIONS)}
        return JSONResponse(metadata)

    async def live(self, request: Request) -> Response:
        return JSONResponse({'live': True})

    async def ready(self, request: Request) -> Response:
        self._service.require_ready()
        return JSONResponse({'live': True, 'ready': True})

    async def model_metadata(self, request: Request) -> Response:
        self._require_model(request)
        tensors = self._signature
        image, classes = [-1, *tensors.shape], [-1, len(tensors.labels)]
        return JSONResponse(
            {
                'name': self._model,
                'versions': [VERSION],
                'platform': self._service.predictor.engine,
                'inputs': [{'name': tensors.input, 'datatype': tensors.datatype, 'shape': image}],
                'outputs': [{'name': tensors.output, 'datatype': 'FP32', 'shape': classes}],
            }
        )

    async def model_ready(self, request: Request) -> Response:
        self._require_model(request)
        self._service.require_ready()
        return JSONResponse({'name': self._model, 'ready': True})

    async def model_configuration(self, request: Request) -> Response:
        """The part of Triton's that applies here."""
        self._require_model(request)
        tensors = self._signature
        image, classes = list(tensors.shape), [len(tensors.labels)]
        datatype = f'TYPE_{tensors.datatype}'
        return JSONResponse(
            {
                'name': self._model,
                'platform': self._service.predictor.engine,
                'max_batch_size': tensors.max_batch,
                'input': [{'name': tensors.input, 'data_type': datatype, 'dims': image}],
                'output': [{'name': tensors.output, 'data_type': 'TYPE_FP32', 'dims': classes}],
                'dynamic_batching': {},
            }
        )

    async def model_statistics(self, request: Request) -> Response:
        """Since the start; also GET /v2/models/stats."""
        if 'model' in request.path_params:
            self._require_model(request)
        statistics = self._service.metrics.statistics()
        entry = {'name': self._model, 'version': VERSION, **statistics}
        return JSONResponse({'model_stats': [entry]})

    async def repository_index(self, request: Request) -> Response:
        state, reason = ('UNAVAILABLE', 'stopping') if self._service.stopping else ('READY', '')
        entry = {'name': self._model, 'version': VERSION, 'state': state, 'reason': reason}
        return JSONResponse([entry])

    async def not_offered(self, request: Request) -> Response:
        """What Triton has besides: loading of models, shared memory, traces, logs."""
        path = request.path_params['rest'][:100]
        raise Refused(404, 'unknown', f'/v2/{path} is not offered here; GET /v2 says what is')

    def _require_model(self, request: Request) -> None:
        if request.path_params['model'] != self._model:
            raise Refused(404, 'unknown', f'no such model; this is {self._model}')
        if request.path_params.get('version', VERSION) != VERSION:
            raise Refused(404, 'unknown', f'no such version; there is {VERSION}')
