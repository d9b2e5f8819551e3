"""Serve an exported network over HTTP: python3 deploy/serve.py inference/ [--port 8000] [...]"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import re
import socket
import sys
from typing import TYPE_CHECKING, Any, Iterator

from predictor import Predictor, console, machine
from predictor.errors import UserError
from predictor.exported_folder import Description, open_folder

if TYPE_CHECKING:  # imported when the arguments are known to be good
    from server.limits import Limits

Group = Any  # argparse's own is private
DRAIN_S = 20  # after SIGTERM; Kubernetes kills after 30


def main() -> int:
    args = parse_arguments()
    description = open_folder(args.folder)
    listener = bind(args)
    predictors = load(description, args)
    return serve(predictors, listener, args)


def parse_arguments() -> argparse.Namespace:
    parser = console.parser(
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
        help="let web pages of this origin ask, like https://example.org, or '*' for any; may be "
        'given again (default: none)',
    )
    group = parser.add_argument_group('batches')
    add_count(group, '--instances', 1, 'networks side by side')
    add_count(group, '--max-batch', 16, 'images a batch, and the most that a request may have')
    add_number(group, '--max-delay-ms', 2, 'a batch waits for pictures that are being decoded')
    add_count(group, '--queue', 256, 'images that may wait')
    group = parser.add_argument_group('limits')
    add_number(group, '--timeout-s', 30, 'for an answer, after the upload')
    add_count(group, '--max-body-mb', 16, 'of an upload')
    add_count(group, '--max-pixels-million', 64, 'of a picture')
    console.add_engine_options(parser)
    args = parser.parse_args()
    if args.queue < args.max_batch:
        raise UserError(f'--queue {args.queue} is less than a batch (--max-batch {args.max_batch})')
    return args


def add_count(group: Group, flag: str, default: int, help: str) -> None:
    about = f'{help} (default: {default})'
    group.add_argument(flag, type=console.positive, metavar='N', default=default, help=about)


def add_number(group: Group, flag: str, default: float, help: str) -> None:
    about = f'{help} (default: {default})'
    group.add_argument(flag, type=console.positive_number, metavar='X', default=default, help=about)


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


@contextlib.contextmanager
def refusals(args: argparse.Namespace) -> Iterator[None]:
    """The system's, of the address, as a line for the user."""
    try:
        yield
    except (OSError, UnicodeError) as error:  # the latter of a host that cannot be one
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'cannot listen on {args.host}, port {args.port}: {reason}') from None


def bind(args: argparse.Namespace) -> socket.socket:
    """The port is ours from here on, before minutes are spent on an engine."""
    from server import listening

    with refusals(args):
        return listening.bind(args.host, args.port)


def load(description: Description, args: argparse.Namespace) -> list[Predictor]:
    """The instances; they share the cores."""
    options = console.engine_options(args)
    if options['threads'] is None:
        options['threads'] = max(1, machine.cores() // args.instances)
    first = Predictor(description, batch=args.max_batch, report=report, **options)
    report(f'engine: {first.engine} ({first.reason})')
    return [first, *(first.another() for _ in range(args.instances - 1))]


def serve(predictors: list[Predictor], listener: socket.socket, args: argparse.Namespace) -> int:
    """Until SIGTERM or Ctrl-C."""
    from server import listening
    from server.app import Service

    logging.basicConfig(format='%(asctime)s %(message)s', level=logging.ERROR)
    limits = make_limits(args)
    service = Service(
        predictors,
        limits,
        max_batch=args.max_batch,
        max_delay_s=args.max_delay_ms / 1e3,
        capacity=args.queue,
        origins=args.cors,
    )

    def on_stop() -> None:
        service.stop()
        with contextlib.suppress(OSError):  # standard output may be a pipe without a reader
            os.write(1, b'stopping: answering open requests; a second signal ends at once\n')

    model = predictors[0].description.model
    server = listening.Server(
        service.app,
        limits,
        drain_s=DRAIN_S,
        on_ready=lambda: report(f'{model}: {listening.url(listener)} (Ctrl-C ends it)'),
        on_stop=on_stop,
        refuse=service.metrics.refuse,
    )
    with refusals(args):
        listener.listen(listening.BACKLOG)
    asyncio.run(listening.serve(server, listener))
    if not service.close(timeout_s=1.0):
        sys.stdout.flush()
        os._exit(0)  # a network still runs, but no client waits for it
    return 0


def make_limits(args: argparse.Namespace) -> Limits:
    from server.limits import Limits

    return Limits(
        body_bytes=args.max_body_mb << 20,
        pixels=args.max_pixels_million * 1_000_000,
        answer_s=args.timeout_s,
    )


def report(line: str) -> None:
    print(line, flush=True)


if __name__ == '__main__':
    console.run(main)
