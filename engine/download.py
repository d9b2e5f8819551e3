"""Downloads with progress, resume, MD5 and mirrors."""

from __future__ import annotations

import http.client
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Sequence

from tqdm import tqdm

from engine.console import can_redraw
from engine.files import CHUNK, md5_of, require_regular


def download(urls: Sequence[str], target: Path, *, md5: str, timeout_s: float = 20.0) -> None:
    """Download the first of `urls` that delivers a file with this MD5 into `target`.

    The bytes go to `target` + '.part', which a later call resumes; a verified file is renamed.
    Raises OSError with the problem of each address if none delivers.
    """
    require_regular(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f'{target.name}.part')
    problems = []
    for url in urls:
        try:
            _fetch_verified(url, part, md5, timeout_s)
        except (OSError, http.client.HTTPException) as error:
            problems.append(_describe(url, error))
            continue
        os.replace(part, target)
        return
    raise OSError('; '.join(problems) or 'no address to download from')


def _describe(url: str, error: Exception) -> str:
    """What failed: with a proxy, an error before any answer is the proxy's."""
    address = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(address.scheme)
    text = str(getattr(error, 'reason', None) or error)
    if isinstance(error, urllib.error.HTTPError):
        text = f'{error.code} {text}'
    if not proxy or urllib.request.proxy_bypass(address.hostname or ''):
        return f'{url}: {text}'
    where = proxy.rpartition('//')[2].rpartition('@')[2].rstrip('/')  # without its password
    named = f'the proxy {where} ({address.scheme}_proxy)'
    answered = isinstance(error, urllib.error.HTTPError) and error.code != 407
    if answered or not isinstance(error, urllib.error.URLError):
        return f'{url}, through {named}: {text}'
    return f'{named} does not reach {url}: {text}'


def _fetch_verified(url: str, part: Path, md5: str, timeout_s: float) -> None:
    resumed = part.exists()
    _fetch(url, part, timeout_s)
    found = md5_of(part)
    if found == md5:
        return
    part.unlink()  # none of it can be trusted: the next attempt starts from the beginning
    if not resumed:
        raise OSError(f'MD5 is {found}, not {md5}')
    _fetch_verified(url, part, md5, timeout_s)  # the part may have been of another file


def _fetch(url: str, part: Path, timeout_s: float) -> None:
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={'Range': f'bytes={done}-'} if done else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        if done and error.code == 416:  # nothing is left: the MD5 decides
            return
        raise
    with response:
        if response.status != 206:  # the server starts from the beginning
            done = 0
        length = response.headers.get('Content-Length')
        total = done + int(length) if length else None
        seconds = 1.0 if can_redraw(sys.stderr) else 30.0  # there, each state is a line
        bar = tqdm(
            total=total,
            initial=done,
            unit='B',
            unit_scale=True,
            desc=part.stem,
            mininterval=seconds,
        )
        with bar, part.open('ab' if done else 'wb') as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and part.stat().st_size < total:
        raise OSError(f'connection lost after {part.stat().st_size:,} of {total:,} bytes')
