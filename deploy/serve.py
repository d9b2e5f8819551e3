"""Serve an exported network over HTTP: python3 deploy/serve.py inference/ [--port 8000] [...]"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import logging
import os
import re
import socket
import sys
from typing import Any

from predictor import Predictor, console, machine
from predictor.errors import UserError
from predictor.exported_folder import Description, open_folder
from server import sockets
from server.limits import Limits

report = functools.partial(print, flush=True)


def main() -> int:
    args = parse_arguments()
    description = open_folder(args.folder)
    listener = sockets.bind(args.host, args.port)  # before minutes are spent on an engine
    predictors = load(description, args)
    return serve(predictors, listener, args)


def parse_arguments() -> argparse.Namespace:
    parser = console.Parser(
        'Serve an exported network over HTTP.',
        example='serve.py output/quickstart/inference --port 8000',
    )

    parser.add_argument('--host', default='127.0.0.1', help='(default: this machine alone)')
    parser.add_argument('--port', type=port, default=8000, help='(default: 8000; 0: any)')
    parser.add_argument(
        '--cors',
        type=origin,
        action='append',
        default=[],
        metavar='ORIGIN',
        help='allow requests by web pages of this origin, like https://example.org; '
        "'*': any; may be given again (default: none)",
    )
    number = console.positive_number
    group = parser.add_argument_group('batches')
    add(group, '--instances', 1, 'networks side by side')
    add(group, '--max-batch', 16, 'images a batch, and the most that a request may have')
    add(group, '--max-delay-ms', 2, 'a batch waits for pictures being decoded', type=number)
    add(group, '--queue', 256, 'images that may wait')
    group = parser.add_argument_group('limits')
    add(group, '--timeout-s', 30, 'for an answer, after the upload', type=number)
    add(group, '--max-body-mb', 16, 'of an upload')
    add(group, '--max-pixels-million', 64, 'of a picture')
    console.add_engine_options(parser)
    args = parser.parse_args()
    if args.queue < args.max_batch:
        raise UserError(f'--queue {args.queue} is less than a batch (--max-batch {args.max_batch})')
    return args


def add(group: Any, flag: str, default: int, help: str, *, type: Any = console.positive) -> None:
    metavar = 'N' if type is console.positive else 'X'
    help = f'{help} (default: {default})'
    group.add_argument(flag, type=type, metavar=metavar, default=default, help=help)


def port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f'{text} is not a port: 0 to 65535')
    return int(text)


def origin(text: str) -> str:
    if text != '*' and not re.fullmatch(r'(?i)https?://[^/\s]+', text):
        raise argparse.ArgumentTypeError(
            f"{text} is not an origin like https://example.org, or '*'"
        )
    return text.lower()  # as browsers write it


def load(description: Description, args: argparse.Namespace) -> list[Predictor]:
    """The instances; they share the cores."""
    options = console.engine_options(args)
    if options['threads'] is None:
        options['threads'] = max(1, machine.cores() // args.instances)
    first = Predictor(description, batch=args.max_batch, report=report, **options)
    report(f'engine: {first.engine} ({first.reason})')
    return [first, *(first.another() for _ in range(args.instances - 1))]


def limits_of(args: argparse.Namespace) -> Limits:
    return Limits(
        max_batch=args.max_batch,
        max_delay_s=args.max_delay_ms / 1e3,
        queue=args.queue,
        body_bytes=args.max_body_mb << 20,
        pixels=args.max_pixels_million * 1_000_000,
        answer_s=args.timeout_s,
    )


def serve(predictors: list[Predictor], listener: socket.socket, args: argparse.Namespace) -> int:
    """Until SIGTERM or Ctrl-C."""
    from server.listening import Server  # imports uvicorn
    from server.routes import make_app
    from server.service import Service

    logging.basicConfig(format='%(asctime)s %(message)s', level=logging.ERROR)
    service = Service(predictors, limits_of(args))

    def on_stop() -> None:
        service.stop()
        with contextlib.suppress(OSError):  # standard output may be a pipe without a reader
            os.write(1, b'stopping: answering open requests; a second signal ends at once\n')

    ready = f'{service.description.model}: {sockets.url(listener)} (Ctrl-C ends it)'
    server = Server(
        make_app(service, args.cors),
        service.limits,
        on_ready=lambda: report(ready),
        on_stop=on_stop,
        refuse=service.metrics.count_refusal,
    )
    sockets.listen(listener)
    asyncio.run(server.serve(sockets=[listener]))
    if not service.close(timeout_s=1.0):
        sys.stdout.flush()
        os._exit(0)  # a network still runs, but no client waits for it
    return 0


if __name__ == '__main__':
    console.run(main)
